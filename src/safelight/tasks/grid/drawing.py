"""A grid is drawn cell by cell: all are checked before the first, each is kept when it is done, the sheet is last."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, PngImagePlugin

from safelight.checkpoints.writing import atomic, write_text
from safelight.errors import ModelFileError, OutputError, RequestError
from safelight.tasks.grid.axes import MODEL, Axis, shown
from safelight.tasks.grid.plan import Cell, Place, Plan, lay_out
from safelight.tasks.grid.record import GRID_CHUNK, GridRecord
from safelight.tasks.grid.sheet import Label, Layout, Look, Spot, compose
from safelight.tasks.lettering import mosaic, mosaic_size
from safelight.tasks.loading import load
from safelight.tasks.metadata import TEXT_CHUNK, ModelIdentity, read_record
from safelight.tasks.model import Model, Step
from safelight.tasks.pictures import numbered, save_numbered
from safelight.tasks.request import Request
from safelight.tasks.resolve import RANDOM_SEEDS, needed

MANIFEST = "grid.json"
"""Beside the cells: the record of the grid that was begun, for the seed of one that goes on."""
PLAIN_LOOK = Look()

Models = Callable[[str | None, bool], Model]
"""Gives the model of a name on the model axis (None: the one that draws all). If the flag is true, it is only asked
what it can do and which it is, and need not be held in memory."""


@dataclass(frozen=True)
class Progress:
    """A step of a cell is done."""

    done: int
    """Steps of the whole grid."""
    total: int
    cell: Cell
    step: Step
    model: Model


Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Asked:
    """A cell that a model can draw."""

    cell: Cell
    request: Request
    """Resolved."""
    steps: int
    """How many it takes, or about as many where the sampler chooses them."""
    paths: tuple[Path, ...]
    kept: bool
    """Whether these files are there already, of the very same request and weights."""


@dataclass(frozen=True)
class Grid:
    """A grid that is done."""

    sheet: Path
    cells: tuple[Asked, ...]
    record: GridRecord
    unwritten: str
    """Characters of the labels that the font does not have."""


def draw_grid(
    models: Model | Models,
    base: Request,
    axes: Sequence[Axis],
    output: str | Path,
    *,
    look: Look = PLAIN_LOOK,
    watch: Watch | None = None,
) -> Grid:
    """Draw a request with two or three of its fields varied, on one labelled sheet.

    Each cell is saved in the folder NAME-cells beside the sheet as soon as it is done. Those that are there already, of
    the very same request and weights, are not drawn again: a grid that was interrupted goes on. Where the base has no
    seed, that of such a grid is taken, or one is drawn for all cells.

    Args:
        models: what draws; values of an axis "model" are loaded one at a time, as `safelight.load` does, by a model's
            device and dtype.
        base: what all cells share; `batch` pictures make a cell.
        axes: columns, rows, blocks: one to three.
        output: the PNG of the sheet; replaced if it exists.
        watch: called after every step.

    Raises:
        RequestError: an axis or a value is not possible (nothing is drawn then), the sheet would be too
            large or is to be no PNG.
        ModelFileError: a model of the axis cannot be read.
        OutputError: a file could not be written. Cells that were done stay.
    """
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise RequestError(f"the sheet {str(output)!r} must end in .png: only PNG holds what a grid was made of")
    folder = output.with_name(f"{output.stem}-cells")
    plan = lay_out(base, axes)
    plan = plan.seeded(_seed(plan, folder / MANIFEST))
    give = _beside(models) if isinstance(models, Model) else models
    alone = give(None, False) if plan.models == [None] else None
    asked, identities = _look_at(plan, folder, lambda name: give(name, True) if alone is None else alone)
    record = GridRecord.of(plan, list(identities.values()))
    _layout(plan, record, look, {_spot(a.cell.place): _size(a) for a in asked}).require_room()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {str(folder)!r} ({error.strerror}): choose another place") from error
    write_text(folder / MANIFEST, record.to_json() + "\n")
    missing = [cell for cell in asked if not cell.kept]
    done, total = 0, sum(cell.steps for cell in missing)
    for name in plan.models:
        todo = [cell for cell in missing if cell.cell.model == name]
        if todo:
            done = _draw(give(name, False) if alone is None else alone, todo, done, total, watch)
    unwritten = _save_sheet(plan, look, asked, record, output)
    return Grid(output, tuple(asked), record, unwritten)


def _seed(plan: Plan, manifest: Path) -> int:
    """For cells that have none: that of the same grid, begun earlier; else a random one."""
    if plan.base.seed is not None:
        return plan.base.seed
    try:
        begun = GridRecord.model_validate_json(manifest.read_bytes())
        if begun.same_but_for_the_seed(GridRecord.of(plan, [])):
            seed = begun.asked()[0].seed
            if seed is not None:
                return seed
    except (OSError, ValueError, RequestError):  # there is none, or not one that this version reads
        pass
    return secrets.randbelow(RANDOM_SEEDS)


def _beside(model: Model) -> Models:
    def give(name: str | None, light: bool) -> Model:
        return model if name is None else load(name, model.device, model.dtype, low_memory=light)

    return give


def _look_at(
    plan: Plan, folder: Path, give: Callable[[str | None], Model]
) -> tuple[list[Asked], dict[str | None, ModelIdentity]]:
    """Every cell as its model would draw it.

    Raises:
        RequestError: some cannot be drawn; the values that are to blame are named.
    """
    asked: dict[Place, Asked] = {}
    failures: dict[Place, str] = {}
    identities: dict[str | None, ModelIdentity] = {}
    for name in plan.models:
        cells = [cell for cell in plan.cells if cell.model == name]
        try:
            model = give(name)
        except (ModelFileError, RequestError) as error:
            failures |= {cell.place: str(error) for cell in cells}
            continue
        for cell in cells:
            try:
                request = model.resolve(cell.request)
                counted: int | None = model.count_steps(request)
            except RequestError as error:
                failures[cell.place] = str(error)
                continue
            steps = needed(request.steps) if counted is None else counted  # about, where only the walk will show
            paths = numbered(folder / f"{cell.name}.png", request.batch)
            asked[cell.place] = Asked(cell, request, steps, tuple(paths), kept=False)
        if not failures:
            identities[name] = model.identity
            for cell in cells:
                one = asked[cell.place]
                asked[cell.place] = replace(one, kept=_is_there(one, model))
    if failures:
        raise _blame(plan, failures)
    return [asked[cell.place] for cell in plan.cells], identities


def _blame(plan: Plan, failures: Mapping[Place, str]) -> RequestError:
    """One line for the first cell that cannot be drawn: the values without which it could, else all of its values."""
    place, message = next((cell.place, failures[cell.place]) for cell in plan.cells if cell.place in failures)
    varied = all(len(axis.values) > 1 for axis in plan.axes)
    if varied and len(failures) == len(plan.cells) and len(set(failures.values())) == 1:
        return RequestError(message)  # whatever the values: it is the base
    blamed = [
        i
        for i, axis in enumerate(plan.axes)
        if any((*place[:i], k, *place[i + 1 :]) not in failures for k in range(len(axis.values)))
    ]
    return RequestError(f"{plan.says(place, blamed if blamed else range(len(plan.axes)))}: {message}")


def _is_there(asked: Asked, model: Model) -> bool:
    """Whether every picture of a cell is there, whole, and of this request and these weights."""
    for k, path in enumerate(asked.paths):
        if not path.exists():
            return False
        try:
            _pixels(path)  # all of them are there
            if read_record(path).to_json() != model.record(asked.request, k).to_json():
                return False
        except (RequestError, OutputError, OSError, SyntaxError, ValueError):  # damaged, or not ours
            return False
    return True


def _draw(model: Model, todo: Sequence[Asked], done: int, total: int, watch: Watch | None) -> int:
    """Draw and save the cells of one model; how many steps are done then."""
    for one in todo:

        def seen(step: Step, one: Asked = one, before: int = done) -> None:
            if watch is not None:
                # A sampler that chooses its steps may take fewer or more than it was said to.
                watch(Progress(before + min(step.index + 1, one.steps), total, one.cell, step, model))

        images = model.draw(one.request, seen)
        save_numbered(images, one.paths[0].with_name(f"{one.cell.name}.png"))
        done += one.steps
    return done


def _save_sheet(plan: Plan, look: Look, asked: Sequence[Asked], record: GridRecord, output: Path) -> str:
    """Put the saved cells on a sheet; the characters that could not be written on it."""
    at = {_spot(one.cell.place): one for one in asked}
    layout = _layout(plan, record, look, {spot: _size(one, saved=True) for spot, one in at.items()})
    sheet = compose(layout, lambda spot: mosaic([_pixels(path) for path in at[spot].paths]))
    texts = PngImagePlugin.PngInfo()
    with _opened(asked[0].paths[0]) as first:
        words = first.info.get(TEXT_CHUNK)  # what other tools are to know of a sheet: how its first cell was drawn
    if isinstance(words, str):
        texts.add_text(TEXT_CHUNK, words)
    texts.add_text(GRID_CHUNK, record.to_json())
    with atomic(output) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=texts)
    return layout.unwritten


def _layout(plan: Plan, record: GridRecord, look: Look, sizes: Mapping[Spot, tuple[int, int]]) -> Layout:
    """The sheet of a plan."""
    columns, rows, blocks = [*([_labels(axis, plan, record) for axis in plan.axes]), [], []][:3]
    return Layout(look, (columns, rows, blocks), sizes)


def _labels(axis: Axis, plan: Plan, record: GridRecord) -> list[Label]:
    """What an axis varies, and each of its values; models of the same name are told apart by their hash."""
    values = [shown(value) for value in axis.values]
    if axis.field == MODEL:
        names = [model.name for model in record.models]
        values = [m.name if names.count(m.name) == 1 else f"{m.name} {m.sha256[:8]}" for m in record.models]
    return [Label(axis.name(type(plan.base)), value) for value in values]


def _spot(place: Place) -> Spot:
    column, row, block = (*place, 0, 0)[:3]
    return column, row, block


def _size(asked: Asked, *, saved: bool = False) -> tuple[int, int]:
    """Of a cell's pictures together: as they are, or as they are to be."""
    if saved or asked.kept:
        with _opened(asked.paths[0]) as image:
            return mosaic_size(image.size, len(asked.paths))
    return mosaic_size((needed(asked.request.width), needed(asked.request.height)), len(asked.paths))


def _pixels(path: Path) -> Image.Image:
    with _opened(path) as image:
        return image.convert("RGB")


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except OSError as error:
        raise OutputError(f"{str(path)!r} was drawn and is no longer there: draw the grid again") from error
