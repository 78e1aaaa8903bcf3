"""The `safelight` command: thin. Every option comes from a request's fields or a recipe's config.

Results go to stdout, progress and complaints to stderr. Exit codes: 0; 2 for a user's mistake, with one line
that says
what is wrong and the mend; 1 for a fault of ours, with its traceback; 130 when interrupted.
Nothing here imports torch before a command runs.
"""

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
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from cyclopts import App, CycloptsError, Parameter

from safelight import __version__
from safelight.errors import OutputError, RequestError, SafelightError
from safelight.tasks.requests import TASKS, Request, asked, flag

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from safelight.tasks.metadata import Record
    from safelight.tasks.model import Model

DEFAULT_MODEL = "tiny"

app = App(
    name="safelight",
    help="Draw, train and measure latent diffusion models. Results on stdout, progress on stderr.",
    version=__version__,
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
models_app = App(name="models", help="What models there are, and what a file holds.")
train_app = App(name="train", help="Train the parts of a model, one recipe each.")
evaluate_app = App(name="evaluate", help="Measure a model on prompts that it never saw.")
for _group in (models_app, train_app, evaluate_app):
    app.command(_group)


@dataclass(frozen=True)
class Recipe:
    """A `train` command: its options are the fields of the config that `run` takes, and `run` is imported
    when asked for.
    """

    name: str
    run: str
    """Import path "module:function"."""
    help: str


RECIPES = (
    Recipe("clip", "safelight.training.recipes.clip:run", "Words and pictures into one space (contrastive)."),
    Recipe("autoencoder", "safelight.training.recipes.autoencoder:run", "Pictures to latents and back."),
    Recipe(
        "diffusion", "safelight.training.recipes.diffusion:run", "The denoiser, on latents with captions."
    ),
)
for _recipe in RECIPES:
    train_app.command(_recipe.run, name=_recipe.name, help=_recipe.help)
evaluate_app.command(
    "safelight.evaluation.tiny:main",
    name="tiny",
    help="The shipped model, on combinations held out of its training.",
)


@dataclass(frozen=True)
class Drawing:
    """The options of every drawing command that are not part of the request."""

    model: str | None = None
    """A shipped model, a folder, a .safetensors or .ckpt file, or a hub id. Default: tiny, or that of
    --from.
    """
    device: str | None = None
    """Where to compute, like cpu or cuda. Default: the accelerator if there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """In which the networks run. Default: float32 on the CPU, else as the weights are; or that of --from."""
    output: Path | None = None
    """PNG to write (replaced if it exists); a batch writes NAME-0.png, NAME-1.png, ... Default:
    safelight-0001.png,
    or the next number that is free."""
    save_steps: Path | None = None
    """Folder for the picture of every step: step-001.png, ...; in a batch step-001-0.png, ..."""
    from_: Annotated[Path | None, Parameter(name="--from")] = None
    """A picture by Safelight to make again; options given beside it override what it recorded."""
    json: bool = False
    """Print one JSON object instead of paths."""


def _draw(task: str, drawing: Drawing, given: dict[str, object]) -> None:
    """Answer a request of the task from the options given on the command line."""
    # Everything that can be wrong is looked at before torch is imported and a model is loaded.
    record = None if drawing.from_ is None else _record(drawing.from_, task)
    request = TASKS[task].model_validate(given) if record is None else record.asked().changed(**given)
    if drawing.output is not None:
        _check_output(drawing.output)
    model = _load(drawing, record)
    request = model.resolve(request)

    started = time.perf_counter()
    if drawing.save_steps is not None:
        try:
            drawing.save_steps.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make {str(drawing.save_steps)!r} ({error.strerror}): name a folder"
            ) from error
    from tqdm import tqdm

    from safelight.tasks.model import Step
    from safelight.tasks.pictures import save_numbered, save_under_next_number

    with closing(tqdm(total=model.steps_to_take(request), unit="step", leave=False, disable=None)) as bar:

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


def _load(drawing: Drawing, record: Record | None) -> Model:
    """The model asked for, or the one that drew the picture of --from."""
    source, dtype = drawing.model, drawing.dtype
    if source is None and record is not None and record.model.local:
        raise RequestError(
            f"the picture was drawn by {record.model.name!r} from a local path, which is not recorded: "
            f"give --model (weights {record.model.sha256[:10]})"
        )
    if source is None:
        source = DEFAULT_MODEL if record is None else record.model.name
    from safelight.tasks.loading import load

    model = load(
        source, device=drawing.device, dtype=record.model.dtype if dtype is None and record else dtype
    )
    if record is not None and record.model.sha256 != model.identity.sha256:
        print(
            f"note: other weights ({model.identity.sha256[:10]}) than those that drew the picture "
            f"({record.model.sha256[:10]}): the result will differ",
            file=sys.stderr,
        )
    return model


def _check_output(output: Path) -> None:
    """Say so before the drawing, not after it, if the result could not be written."""
    if output.suffix.lower() != ".png":
        raise RequestError(
            f"--output {str(output)!r} must end in .png: only PNG holds the request losslessly"
        )
    if not output.parent.is_dir():
        raise OutputError(f"there is no folder {str(output.parent)!r} for --output: make it first")
    if output.is_dir():
        raise OutputError(f"--output {str(output)!r} is a folder: name a file in it")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"the folder {str(output.parent)!r} cannot be written to: choose another --output")


def _option(request: type[Request], name: str, field: FieldInfo) -> inspect.Parameter:
    """A request's field as a command-line option: absent is None, so that what was given is known."""
    kinds = get_args(field.annotation)
    kind: Any = field.annotation if not kinds else next(k for k in kinds if k is not type(None))
    help_ = str(field.description)
    if not field.is_required() and field.default not in (None, ""):
        help_ += f" Default: {field.default}."
    positional = name == next(iter(request.model_fields))
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD if positional else inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, Parameter(name=f"--{flag(name, field)}", help=help_)],
    )


def _drawing_command(request: type[Request]) -> Callable[..., None]:
    """The command of a task: one option per field of its request, then those of `Drawing`."""
    options = [_option(request, name, field) for name, field in asked(request).items()]
    shared = inspect.Parameter(
        "drawing",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Drawing | None, Parameter(name="*")],
    )

    def command(*positional: object, drawing: Drawing | None = None, **named: object) -> None:
        given = {option.name: value for option, value in zip(options, positional, strict=False)} | named
        given = {name: value for name, value in given.items() if value is not None}
        _draw(request.task, Drawing() if drawing is None else drawing, given)

    signature = inspect.Signature([*options, shared])
    command.__doc__ = request.__doc__
    command.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    vars(command)["__signature__"] = signature  # what cyclopts reads
    return command


for _request in TASKS.values():
    app.command(_drawing_command(_request), name=_request.task)


@models_app.command(name="list")
def list_models(*, json_: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """The models known by name, and whether their weights are shipped.

    Args:
        json_: print one JSON object.
    """
    from safelight.tasks.files import known_models

    models = known_models()
    if json_:
        print(json.dumps({"models": [model.model_dump() for model in models]}))
        return
    for model in models:
        print(f"{model.name:<8} {model.width}x{model.height:<6} {model.title}  ({model.weights})")


@models_app.command(name="show")
def show_model(source: str, *, json_: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """What a model is made of, and what of its file would not be used.

    Args:
        source: a shipped model, a folder, a .safetensors or .ckpt file, or a hub id.
        json_: print one JSON object.
    """
    from safelight.tasks.files import describe

    card = describe(source)
    print(card.model_dump_json() if json_ else card.text())


@app.command
def convert(source: str, output: Path, *, json_: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """Write a model as a diffusers folder of safetensors.

    Args:
        source: a shipped model, a folder, a .safetensors or .ckpt file, or a hub id.
        output: the folder to write: a new one, an empty one, or an earlier model to replace.
        json_: print one JSON object.
    """
    from safelight.tasks.files import convert_model

    convert_model(source, output)
    print(json.dumps({"folder": str(output)}) if json_ else output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; None: this process's) and return its exit code."""
    try:
        app(
            None if arguments is None else list(arguments),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except (CycloptsError, SafelightError) as mistake:
        print(f"safelight: {' '.join(str(mistake).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our results has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
