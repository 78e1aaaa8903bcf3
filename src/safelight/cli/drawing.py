"""The commands that draw: one per task, each option a field of its request."""

# ruff: noqa: PLC0415  (a command imports what it needs, so that `--help` does not wait for torch)

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter, validators

from safelight.cli.options import FLAT, Precision, ReadingOptions, option, signed
from safelight.errors import OutputError, RequestError
from safelight.tasks.request import Request, asked
from safelight.tasks.requests import TASKS
from safelight.tasks.sources import PLAIN, Reading
from safelight.uncollected import uncollected

if TYPE_CHECKING:
    from PIL import Image

    from safelight.tasks.metadata import Taken
    from safelight.tasks.model import Model, Step

DEFAULT_MODEL = "tiny"


@dataclass(frozen=True)
class Drawing:
    """The options of every drawing command that are not part of the request."""

    model: str | None = None
    """A shipped model, a folder, a .safetensors or .ckpt file, or a hub id. Default: tiny, or that
    of --from."""
    device: str | None = None
    """Where to compute, like cpu or cuda. Default: the accelerator if there is one."""
    dtype: Annotated[Precision | None, Parameter(name=["--precision", "--dtype"])] = None
    """In which the networks run. Default: float32 on the CPU, else as the weights are; or that of --from. int8, on the
    CPU: quicker, in a quarter of the memory, and nearly the same; what is made for it once is kept in ~/.cache."""
    low_memory: bool = False
    """Bring each network when it is needed and let go of it after its work: slower, in less memory."""
    compile: bool = False
    """Compile the network's blocks, for a GPU: the first run takes longer, those after it find them in ~/.cache."""
    refiner: str | None = None
    """A second model, named as --model, that goes on with what the first began, from --switch on."""
    guide: str | None = None
    """A weaker model of the same family, named as --model, that --autoguidance leads away from."""
    output: Path | None = None
    """PNG, JPEG or WebP to write (replaced if it exists); a batch writes NAME-0.png, NAME-1.png, ... Default:
    safelight-0001.png, or the next numbers that are free."""
    quality: Annotated[int | None, Parameter(validator=validators.Number(gte=1, lte=100))] = None
    """Of a JPEG or WebP, 1 to 100. Default: 95 for JPEG, WebP loses nothing."""
    prompts: Path | None = None
    """A file of prompts, one a line, to be drawn one after the other; lines that begin with # are none."""
    save_steps: Path | None = None
    """Folder for what the model believes at every step: step-001.png, ...; in a batch step-001-0.png, ..."""
    preview_decoder: Path | None = None
    """What --save-steps draws by, in less time: a TAESD decoder for the model's latents, or a folder from
    `train preview-decoder`. Default: the model's own decoder, exactly."""
    from_: Annotated[Path | None, Parameter(name="--from")] = None
    """A picture by Safelight to make again, or one by AUTOMATIC1111, ComfyUI, InvokeAI or NovelAI as far as it says
    how; options given beside it override what it recorded."""
    json: bool = False
    """Print one JSON object instead of paths."""


def _draw(task: str, drawing: Drawing, reading: Reading, given: dict[str, object]) -> None:
    """Answer a request of the task from the options given on the command line."""
    # Everything that can be wrong is looked at before torch is imported and a model is loaded.

    taken, requests = _requests(task, drawing, given)
    check_output(drawing.output)
    model = load_model(drawing, reading, taken)
    requests = [model.resolve(request) for request in requests]
    for request in requests:
        if drawing.output is not None:
            model.require_room(request, drawing.output)
        for name, unread in model.unread(request).items():
            print(f"note: the last {unread} tokens of the {name} are not read", file=sys.stderr)
        for line in model.notes(request):
            print(f"note: {line}", file=sys.stderr)

    started = time.perf_counter()
    if drawing.save_steps is not None:
        try:
            drawing.save_steps.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {str(drawing.save_steps)!r} ({error.strerror}): name a folder") from error
    images = _drawn(model, requests, drawing)
    from safelight.tasks.pictures import save_numbered, save_under_next_number

    if drawing.output is None:
        paths = save_under_next_number(images, Path(), "safelight")
    else:
        paths = save_numbered(images, drawing.output, quality=drawing.quality)
    if drawing.json:
        result = {
            "pictures": [str(path) for path in paths],
            "request": requests[0].model_dump(),
            "model": model.identity.model_dump(),
            "seconds": round(time.perf_counter() - started, 3),
        }
        print(json.dumps(result if len(requests) == 1 else result | {"requests": [r.model_dump() for r in requests]}))
    else:
        print(*paths, sep="\n")


def _requests(task: str, drawing: Drawing, given: dict[str, object]) -> tuple[Taken | None, list[Request]]:
    """What is to be drawn: one request, or one for each line of --prompts; and what --from gave."""
    from safelight.tasks.metadata import request_from

    told: list[dict[str, object]] = [{}]
    if drawing.prompts is not None:
        if "prompt" not in TASKS[task].model_fields:
            raise RequestError(f"{task} is told no prompt: leave out --prompts")
        if "prompt" in given:
            raise RequestError("give a prompt or --prompts, not both")
        from safelight.tasks.prompts.words import read_prompts

        told = [{"prompt": prompt} for prompt in read_prompts(drawing.prompts)]
    if drawing.from_ is None:
        return None, [TASKS[task].model_validate(given | words) for words in told]
    taken = request_from(drawing.from_, task, given)
    for line in taken.notes:
        print(f"note: {line}", file=sys.stderr)
    return taken, [taken.request.changed(**words) if words else taken.request for words in told]


def believed(model: Model, step: Step, drawing: Drawing) -> list[Image.Image]:
    """What the model believes at a step: exactly, unless there is a decoder for previews."""
    return model.decode(step.denoised) if drawing.preview_decoder is None else model.preview(step)


def _drawn(model: Model, requests: Sequence[Request], drawing: Drawing) -> list[Image.Image]:
    """The pictures of all requests, with one bar for all their steps."""
    from tqdm import tqdm

    from safelight.tasks.pictures import save_numbered

    save_steps = drawing.save_steps
    counts = [model.count_steps(request) for request in requests]
    total = None if None in counts else sum(count for count in counts if count is not None)
    images: list[Image.Image] = []
    with closing(tqdm(total=total, unit="step", leave=False, disable=None)) as bar:

        def watch(step: Step) -> None:
            bar.update()
            if save_steps is not None:
                place = f"{len(images):03d}-" if len(requests) > 1 else ""
                save_numbered(believed(model, step, drawing), save_steps / f"{place}step-{step.index + 1:03d}.png")

        for request in requests:
            images += model.draw(request, watch)
    return images


@uncollected()
def load_model(drawing: Drawing, reading: Reading, taken: Taken | None) -> Model:
    """The model asked for, or the one that drew the picture of --from."""
    source, refiner, guide, dtype = drawing.model, drawing.refiner, drawing.guide, drawing.dtype
    if taken is not None:
        source = taken.source() if source is None else source
        refiner = taken.refiner() if refiner is None else refiner
        guide = taken.guide() if guide is None else guide
    from safelight.tasks.loading import load

    model = load(
        DEFAULT_MODEL if source is None else source,
        drawing.device,
        taken.dtype() if dtype is None and taken is not None else dtype,
        preset=reading.preset,
        ema=reading.ema,
        tokenizer=reading.tokenizer,
        vae=reading.vae,
        text_encoder=reading.text_encoder,
        normalizer=reading.normalizer,
        revision=reading.revision,
        refiner=refiner,
        guide=guide,
        low_memory=drawing.low_memory,
        compile=drawing.compile,
        preview_decoder=drawing.preview_decoder,
    )
    note = None if taken is None else taken.other_weights(model.identity.sha256)
    if note is not None:
        print(f"note: {note}", file=sys.stderr)
    return model


def check_output(output: Path | None) -> None:
    """Say so before the drawing, not after it, if the result could not be written."""
    if output is None:
        output = Path("safelight.png")  # stands for the numbered ones, in the same folder
    from safelight.tasks.metadata.formats import format_of

    format_of(output)
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
