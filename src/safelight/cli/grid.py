"""`safelight grid`: a request drawn many times, two or three of its fields varied, on one labelled sheet."""

# ruff: noqa: PLC0415  (a command imports what it needs, so that `--help` does not wait for torch)

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from cyclopts import App, Group, Parameter

from safelight.cli.drawing import Drawing, believed, check_output, load_model
from safelight.cli.options import FLAT, ReadingOptions, option, signed
from safelight.errors import OutputError, RequestError
from safelight.tasks.request import Request, asked, flag, positional
from safelight.tasks.requests import TASKS, TextToImage
from safelight.tasks.sources import PLAIN, Reading

if TYPE_CHECKING:
    from safelight.tasks.grid.axes import Axis
    from safelight.tasks.grid.drawing import Grid, Models, Progress
    from safelight.tasks.grid.plan import Plan
    from safelight.tasks.metadata import Taken
    from safelight.tasks.model import Model

OTHERS = Group("Fields of other tasks", sort_key=90)


@dataclass(frozen=True)
class Axes:
    """What is varied, and how the sheet is made."""

    x: str | None = None
    """Columns: FIELD=VALUES, like sampler=euler,heun or steps=5..25:5 (a range) or model=tiny,./folder. A value with
    commas stands in double quotes; none is what the model likes best. prompt:apple=apple,pear replaces a part of
    the prompt."""
    y: str | None = None
    """Rows, written as --x."""
    z: str | None = None
    """Blocks of rows and columns, written as --x."""
    task: str | None = None
    """What is drawn, like img2img. Default: txt2img, or that of --from."""
    cell_size: int | None = None
    """Pixels of a picture's longest side on the sheet. Default: as they are, but very small ones enlarged."""
    font: Path | None = None
    """A font file for labels that are not in English. Default: Pillow's own."""

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASKS:
            raise RequestError(f"there is no task {self.task!r}: the tasks are {', '.join(TASKS)}")
        if self.cell_size is not None and self.cell_size < 1:
            raise RequestError(f"--cell-size cannot be {self.cell_size}: give a whole number from 1")


@dataclass(frozen=True)
class GridDrawing(Drawing):
    """The options of every drawing command, for a grid."""

    output: Path | None = None
    """PNG of the sheet (replaced if it exists); its cells go to the folder NAME-cells beside it. Default:
    safelight-grid-LETTERS.png, the same for the same command."""
    save_steps: Path | None = None
    """Folder for the picture of every step of every cell: CELL/step-001.png, ..."""
    from_: Annotated[Path | None, Parameter(name="--from")] = None
    """A picture by Safelight to vary, or a sheet to make again; options given beside it override what it recorded."""


# cyclopts would look for the names of Drawing's types here, where they are not.
GridDrawing.__init__.__annotations__ = get_type_hints(Drawing.__init__, include_extras=True)


def _grid(axes: Axes, drawing: GridDrawing, reading: Reading, given: dict[str, object]) -> None:
    """Draw what is missing of a grid, and its sheet."""
    # Everything that can be wrong without a model is looked at before torch is imported.
    taken, plan = _planned(axes, drawing, given)
    for line in () if taken is None else taken.notes:
        print(f"note: {line}", file=sys.stderr)
    output = drawing.output
    if output is None:
        from safelight.tasks.grid.record import short_name

        output = Path(f"safelight-grid-{short_name(plan, drawing.model)}.png")
    if output.suffix.lower() != ".png":
        raise RequestError(f"--output {str(output)!r} must end in .png: only PNG holds what a grid was made of")
    for name in ("prompts", "quality"):
        if getattr(drawing, name) is not None:
            raise RequestError(f"a grid has no use for --{name}: vary the prompt by an axis, and name a .png")
    check_output(output)
    from tqdm import tqdm

    from safelight.tasks.grid.drawing import draw_grid
    from safelight.tasks.grid.sheet import Look

    started = time.perf_counter()
    with closing(tqdm(unit="step", leave=False, disable=None, dynamic_ncols=True)) as bar:
        noted: set[str] = set()

        def watch(progress: Progress) -> None:
            if bar.total is None:
                bar.reset(progress.total)
            bar.set_postfix_str(progress.cell.name[:40], refresh=False)
            bar.update(progress.done - bar.n)
            for note in _notes(progress):
                if note not in noted:
                    tqdm.write(note, file=sys.stderr)
                noted.add(note)
            if drawing.save_steps is not None:
                _save_step(progress, drawing.save_steps, drawing)

        look = Look(axes.cell_size, axes.font)
        grid = draw_grid(_models(drawing, reading, taken), plan.base, plan.axes, output, look=look, watch=watch)
    if grid.unwritten != "" and axes.font is None:
        print(f"note: the labels' font has no {grid.unwritten}: give one that has by --font", file=sys.stderr)
    print(json.dumps(_result(grid, plan, time.perf_counter() - started)) if drawing.json else grid.sheet)


def _planned(axes: Axes, drawing: Drawing, given: dict[str, object]) -> tuple[Taken | None, Plan]:
    """What the grid begins with, and its cells."""
    from safelight.tasks.grid.axes import MODEL, parse_axis
    from safelight.tasks.grid.plan import lay_out
    from safelight.tasks.metadata import Taken, request_from

    start, recorded = (None, ()) if drawing.from_ is None else _from(drawing.from_)
    task = _task(axes.task, start)
    typed = [None if text is None else parse_axis(text, task) for text in (axes.x, axes.y, axes.z)]
    both = [one if one is not None else (recorded[i] if i < len(recorded) else None) for i, one in enumerate(typed)]
    chosen = [axis for axis in both if axis is not None]
    if None in both[: len(chosen)]:
        raise RequestError("an axis is missing: give --x, then --y, then --z")
    if not chosen:
        raise RequestError("nothing is varied: give --x, like --x sampler=euler,heun, and --y")
    given = _placed(given, task)
    for axis in chosen:
        if axis.part is None and (axis.field in given or (axis.field == MODEL and drawing.model is not None)):
            raise RequestError(f"--{axis.name(task)} is given, and varied by an axis: leave one of them out")
    firsts = {a.field: a.values[0] for a in chosen if a.part is None and a.field != MODEL and a.values[0] is not None}
    given = given | firsts
    if start is None:
        return None, lay_out(task.model_validate(given), chosen)
    taken = start if isinstance(start, Taken) else request_from(start, task.task, given)
    base = taken.request.changed(**given) if taken is start else taken.request
    return taken, lay_out(base, chosen)


def _task(name: str | None, start: Taken | Path | None) -> type[Request]:
    """The task asked for; that of the sheet or the picture of --from, if there is one."""
    from safelight.tasks.metadata import Taken, recover

    if start is None:
        return TextToImage if name is None else TASKS[name]
    found = start.found.task if isinstance(start, Taken) else recover(start).task
    if isinstance(start, Taken) and name not in (None, found):
        raise RequestError(f"the sheet of --from was made by {found}: leave out --task {name}")
    return TASKS[found if name is None else name]


def _from(picture: Path) -> tuple[Taken | Path, tuple[Axis, ...]]:
    """What to begin with: a picture; or of a sheet, its request and its axes."""
    from safelight.tasks.grid.record import read_grid
    from safelight.tasks.metadata import Record, taken_of

    grid = read_grid(picture)
    if grid is None:
        return picture, ()
    base, axes = grid.asked()
    return taken_of(Record.of(base, grid.models[0])), axes


def _placed(given: dict[str, object], task: type[Request]) -> dict[str, object]:
    """What was given without a flag is the task's own first word, which need not be a prompt."""
    place = positional(task)
    if "prompt" in given and "prompt" not in task.model_fields and place is not None:
        return {place if name == "prompt" else name: value for name, value in given.items()}
    return given


def _models(drawing: Drawing, reading: Reading, taken: Taken | None) -> Models:
    """What loads the model of a name, as the options say."""

    def give(name: str | None, light: bool) -> Model:
        chosen = replace(drawing, low_memory=light or drawing.low_memory)
        if name is None:
            return load_model(chosen, reading, taken)
        return load_model(replace(chosen, model=name), reading, None)

    return give


def _notes(progress: Progress) -> list[str]:
    """What of the words of a cell is not read, when it begins."""
    if progress.step.index > 0:
        return []
    unread = progress.model.unread(progress.cell.request)
    return [f"note: the last {count} tokens of the {name} are not read" for name, count in unread.items()]


def _save_step(progress: Progress, folder: Path, drawing: GridDrawing) -> None:
    """The picture of a step, in the folder of its cell."""
    from safelight.tasks.pictures import save_numbered

    cell = folder / progress.cell.name
    try:
        cell.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {str(cell)!r} ({error.strerror}): name a folder") from error
    images = believed(progress.model, progress.step, drawing)
    save_numbered(images, cell / f"step-{progress.step.index + 1:03d}.png")


def _result(grid: Grid, plan: Plan, seconds: float) -> dict[str, object]:
    """For programs."""
    task = type(plan.base)
    cells = [
        {
            "pictures": [str(path) for path in one.paths],
            "values": {a.name(task): a.values[i] for a, i in zip(plan.axes, one.cell.place, strict=True)},
            "drawn": not one.kept,
        }
        for one in grid.cells
    ]
    return {
        "sheet": str(grid.sheet),
        "cells": cells,
        "grid": grid.record.model_dump(mode="json"),
        "seconds": round(seconds, 3),
    }


def _fields() -> list[inspect.Parameter]:
    """An option for every field of every task, each once: those of the first task as they stand there."""
    found: dict[str, inspect.Parameter] = {}
    for request in TASKS.values():
        for name, field in asked(request).items():
            if name in found:
                continue
            one = option(request, name, field)
            if request is not TextToImage:
                # Its default is not the same in every task that has it, and what needs no flag is the prompt alone.
                mark = Parameter(name=f"--{flag(name, field)}", help=str(field.description), group=OTHERS)
                kind: Any = one.annotation
                one = one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, mark])
            found[name] = one
    return sorted(found.values(), key=lambda one: one.kind)


def _command() -> Callable[..., None]:
    fields = _fields()
    shared: Sequence[tuple[str, object]] = (
        ("axes", Annotated[Axes | None, FLAT]),
        ("drawing", Annotated[GridDrawing | None, FLAT]),
        ("reading", ReadingOptions),
    )
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in shared
    ]

    def command(
        *unnamed: object,
        axes: Axes | None = None,
        drawing: GridDrawing | None = None,
        reading: Reading | None = None,
        **named: object,
    ) -> None:
        given = {one.name: value for one, value in zip(fields, unnamed, strict=False)} | named
        given = {name: value for name, value in given.items() if value is not None}
        _grid(
            Axes() if axes is None else axes,
            GridDrawing() if drawing is None else drawing,
            PLAIN if reading is None else reading,
            given,
        )

    placed = [one for one in fields if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return signed(command, [*placed, options[0], *fields[len(placed) :], *options[1:]], HELP)


HELP = """Vary two or three fields of a request, or the model: one labelled sheet, and every picture of it saved.

The same command again draws only what is missing.
"""


def register(app: App) -> None:
    """Add the command."""
    app.command(_command(), name="grid")
