"""The commands that draw: one per task, each option a field of its request."""

# ruff: noqa: PLC0415  (a command imports what it needs, so that `--help` does not wait for torch)

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from safelight.cli.options import FLAT, Dtype, ReadingOptions, option, signed
from safelight.errors import OutputError, RequestError
from safelight.tasks.request import Request, asked
from safelight.tasks.requests import TASKS
from safelight.tasks.sources import PLAIN, Reading

if TYPE_CHECKING:
    from safelight.tasks.metadata import Record
    from safelight.tasks.model import Model

DEFAULT_MODEL = "tiny"


@dataclass(frozen=True)
class Drawing:
    """The options of every drawing command that are not part of the request."""

    model: str | None = None
    """A shipped model, a folder, a .safetensors or .ckpt file, or a hub id. Default: tiny, or that
    of --from."""
    device: str | None = None
    """Where to compute, like cpu or cuda. Default: the accelerator if there is one."""
    dtype: Dtype | None = None
    """In which the networks run. Default: float32 on the CPU, else as the weights are; or that of --from."""
    low_memory: bool = False
    """Bring each network when it is needed and let go of it after its work: slower, in less memory."""
    refiner: str | None = None
    """A second model, named as --model, that goes on with what the first began, from --switch on."""
    output: Path | None = None
    """PNG to write (replaced if it exists); a batch writes NAME-0.png, NAME-1.png, ... Default:
    safelight-0001.png, or the next numbers that are free."""
    save_steps: Path | None = None
    """Folder for the picture of every step: step-001.png, ...; in a batch step-001-0.png, ..."""
    from_: Annotated[Path | None, Parameter(name="--from")] = None
    """A picture by Safelight to make again; options given beside it override what it recorded."""
    json: bool = False
    """Print one JSON object instead of paths."""


def _draw(task: str, drawing: Drawing, reading: Reading, given: dict[str, object]) -> None:
    """Answer a request of the task from the options given on the command line."""
    # Everything that can be wrong is looked at before torch is imported and a model is loaded.
    record = None if drawing.from_ is None else _record(drawing.from_, task)
    request = TASKS[task].model_validate(given) if record is None else record.asked().changed(**given)
    _check_output(drawing.output)
    model = _load(drawing, reading, record)
    request = model.resolve(request)
    for name, unread in model.unread(request).items():
        print(f"note: the last {unread} tokens of the {name} are not read", file=sys.stderr)

    started = time.perf_counter()
    if drawing.save_steps is not None:
        try:
            drawing.save_steps.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {str(drawing.save_steps)!r} ({error.strerror}): name a folder") from error
    from tqdm import tqdm

    from safelight.tasks.model import Step
    from safelight.tasks.pictures import save_numbered, save_under_next_number

    with closing(tqdm(total=model.count_steps(request), unit="step", leave=False, disable=None)) as bar:

        def watch(step: Step) -> None:
            bar.update()
            if drawing.save_steps is not None:
                save_numbered(model.preview(step), drawing.save_steps / f"step-{step.index + 1:03d}.png")

        images = model.draw(request, watch)

    if drawing.output is None:
        paths = save_under_next_number(images, Path(), "safelight")
    else:
        paths = save_numbered(images, drawing.output)
    if drawing.json:
        result = {
            "pictures": [str(path) for path in paths],
            "request": request.model_dump(),
            "model": model.identity.model_dump(),
            "seconds": round(time.perf_counter() - started, 3),
        }
        print(json.dumps(result))
    else:
        print(*paths, sep="\n")


def _record(picture: Path, task: str) -> Record:
    """The record of --from, of the same task."""
    from safelight.tasks.metadata import read_record

    record = read_record(picture)
    if record.task != task:
        raise RequestError(
            f"{str(picture)!r} was made by {record.task}: use `safelight {record.task} --from {picture}`"
        )
    return record


def _load(drawing: Drawing, reading: Reading, record: Record | None) -> Model:
    """The model asked for, or the one that drew the picture of --from."""
    source = drawing.model
    if source is None and record is not None and record.model.local:
        raise RequestError(
            f"the picture was drawn by {record.model.name!r} from a local path, which is not recorded: "
            f"give --model (weights {record.model.sha256[:10]})"
        )
    if source is None:
        source = DEFAULT_MODEL if record is None else record.model.name
    from safelight.tasks.loading import load

    model = load(
        source,
        drawing.device,
        record.model.dtype if drawing.dtype is None and record is not None else drawing.dtype,
        preset=reading.preset,
        ema=reading.ema,
        tokenizer=reading.tokenizer,
        vae=reading.vae,
        revision=reading.revision,
        refiner=drawing.refiner,
        low_memory=drawing.low_memory,
    )
    if record is not None and record.model.sha256 != model.identity.sha256:
        print(
            f"note: other weights ({model.identity.sha256[:10]}) than those that drew the picture "
            f"({record.model.sha256[:10]}): the result will differ",
            file=sys.stderr,
        )
    return model


def _check_output(output: Path | None) -> None:
    """Say so before the drawing, not after it, if the result could not be written."""
    if output is None:
        output = Path("safelight.png")  # stands for the numbered ones, in the same folder
    if output.suffix.lower() != ".png":
        raise RequestError(f"--output {str(output)!r} must end in .png: only PNG holds the request losslessly")
    if not output.parent.is_dir():
        raise OutputError(f"there is no folder {str(output.parent)!r} for --output: make it first")
    if output.is_dir():
        raise OutputError(f"--output {str(output)!r} is a folder: name a file in it")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"the folder {str(output.parent)!r} cannot be written to: choose another --output")


def _drawing_command(request: type[Request]) -> Callable[..., None]:
    """The command of a task: one option per field of its request, then those of `Drawing`."""
    options = [option(request, name, field) for name, field in asked(request).items()]
    options.sort(key=lambda option: option.kind)  # the one without a flag must come first
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in (("drawing", Annotated[Drawing | None, FLAT]), ("reading", ReadingOptions))
    ]

    def command(
        *unnamed: object,
        drawing: Drawing | None = None,
        reading: Reading | None = None,
        **named: object,
    ) -> None:
        given = {option.name: value for option, value in zip(options, unnamed, strict=False)} | named
        given = {name: value for name, value in given.items() if value is not None}
        _draw(
            request.task,
            Drawing() if drawing is None else drawing,
            PLAIN if reading is None else reading,
            given,
        )

    return signed(command, [*options, *shared], request.__doc__)


def register(app: App) -> None:
    """Add the command of every task."""
    for request in TASKS.values():
        app.command(_drawing_command(request), name=request.task)
