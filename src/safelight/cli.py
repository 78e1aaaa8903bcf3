"""The `safelight` command: thin. Every option comes from a request's fields or a recipe's config.

Results go to stdout, progress and complaints to stderr. Exit codes: 0; 2 for a user's mistake, with one line
that says what is wrong and the mend; 1 for a fault of ours, with its traceback; 130 when interrupted.
Nothing here imports torch before a command runs.
"""

# ruff: noqa: PLC0415  (a command imports what it needs, so that `--help` does not wait for torch)

from __future__ import annotations

import inspect
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

from cyclopts import App, CycloptsError, Parameter
from cyclopts.help import DefaultFormatter

from safelight import __version__
from safelight.errors import OutputError, RequestError, SafelightError
from safelight.mistakes import explain
from safelight.tasks.request import Request, asked, flag, positional
from safelight.tasks.requests import TASKS
from safelight.tasks.sources import PLAIN, Reading
from safelight.training.recipes import commands as recipes

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from pydantic.fields import FieldInfo
    from rich.console import Console, ConsoleOptions

    from safelight.tasks.metadata import Record
    from safelight.tasks.model import Model

DEFAULT_MODEL = "tiny"
Dtype = Literal["float32", "bfloat16", "float16"]


def _shown_default(value: object) -> str | None:
    """A default in the help, as it would be typed; a switch has none worth saying."""
    if value is None or value is False:
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class _RequiredFirst(DefaultFormatter):
    """Help with what must be given on top."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        panel.entries.sort(key=lambda entry: not entry.required)
        super().__call__(console, options, panel)


app = App(
    name="safelight",
    help="Draw, train and measure latent diffusion models. Results on stdout, progress on stderr.",
    help_epilogue="`safelight COMMAND --help` explains every option of a command.",
    version=__version__,
    version_flags=["--version", "-v"],
    help_formatter=_RequiredFirst(),
    default_parameter=Parameter(negative=(), show_default=_shown_default),
    suppress_keyboard_interrupt=False,
)
models_app = App(name="models", help="What models there are, and what a file holds.")
train_app = App(name="train", help="Train the parts of a model, one recipe each.")
evaluate_app = App(name="evaluate", help="Measure a model on prompts that it never saw.")
evaluate_app.command(
    "safelight.evaluation.tiny:main",
    name="tiny",
    help="The shipped model, on combinations held out of its training.",
)


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
    output: Path | None = None
    """PNG to write (replaced if it exists); a batch writes NAME-0.png, NAME-1.png, ... Default:
    safelight-0001.png, or the next numbers that are free."""
    save_steps: Path | None = None
    """Folder for the picture of every step: step-001.png, ...; in a batch step-001-0.png, ..."""
    from_: Annotated[Path | None, Parameter(name="--from")] = None
    """A picture by Safelight to make again; options given beside it override what it recorded."""
    json: bool = False
    """Print one JSON object instead of paths."""


FLAT = Parameter(name="*")
"""The fields of a parameter are options of the command itself."""
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object.")]
ReadingOptions = Annotated[Reading | None, FLAT]


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


def _option(request: type[Request], name: str, field: FieldInfo) -> inspect.Parameter:
    """A request's field as a command-line option: absent is None, so that what was given is known."""
    kinds = get_args(field.annotation)
    kind: Any = next((k for k in kinds if k is not type(None)), field.annotation)
    help_ = str(field.description)
    if not field.is_required() and field.default not in (None, ""):
        help_ += f" Default: {field.default}."
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD if name == positional(request) else inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, Parameter(name=f"--{flag(name, field)}", help=help_)],
    )


def _drawing_command(request: type[Request]) -> Callable[..., None]:
    """The command of a task: one option per field of its request, then those of `Drawing`."""
    options = [_option(request, name, field) for name, field in asked(request).items()]
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

    return _signed(command, [*options, *shared], request.__doc__)


def _training_command(start: Callable[..., None]) -> Callable[..., None]:
    """The command of a recipe: the options are the fields of the configs that `start` takes."""
    hints = get_type_hints(start)
    hints.pop("return")
    # A config without required fields needs not be given at all.
    whole = {name: config() for name, config in hints.items() if all(_has_default(f) for f in fields(config))}

    def command(**given: object) -> None:
        start(**(whole | given))

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=whole.get(name, inspect.Parameter.empty),
            annotation=Annotated[config, FLAT],
        )
        for name, config in hints.items()
    ]
    return _signed(command, parameters, start.__doc__)


def _has_default(field: Field[object]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _signed(
    command: Callable[..., None], parameters: Sequence[inspect.Parameter], doc: str | None
) -> Callable[..., None]:
    """Give a function that takes anything the signature that cyclopts is to read."""
    signature = inspect.Signature(parameters)
    command.__doc__ = doc
    command.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    vars(command)["__signature__"] = signature
    return command


for _request in TASKS.values():
    app.command(_drawing_command(_request), name=_request.task)
app.command(models_app)
for _start in (recipes.clip, recipes.autoencoder, recipes.diffusion, recipes.judge):
    train_app.command(_training_command(_start), name=_start.__name__)


@models_app.command(name="list")
def list_models(*, as_json: Json = False) -> None:
    """The models known by name, and whether their weights are shipped."""
    from safelight.tasks.files import known_models

    models = known_models()
    if as_json:
        print(json.dumps({"models": [model.model_dump() for model in models]}))
        return
    rows = [(model.name, f"{model.width}x{model.height}", model.title, model.weights) for model in models]
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(3)]
    for *cells, weights in rows:
        print("".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)) + weights)


@models_app.command(name="show")
def show_model(source: str, *, reading: ReadingOptions = None, as_json: Json = False) -> None:
    """What a model is made of, and what of its file would not be used.

    Args:
        source: A shipped model, a folder, a .safetensors or .ckpt file, or a hub id.
    """
    from safelight.tasks.files import describe

    card = describe(source, PLAIN if reading is None else reading)
    print(card.model_dump_json() if as_json else card.text())


@app.command
def convert(
    source: str,
    output: Path,
    *,
    layout: Literal["diffusers", "original"] = "diffusers",
    dtype: Dtype | None = None,
    reading: ReadingOptions = None,
    as_json: Json = False,
) -> None:
    """Write a model as a diffusers folder of safetensors, or as one file in the original layout.

    Args:
        source: A shipped model, a folder, a .safetensors or .ckpt file, or a hub id.
        output: The folder to write: a new one, an empty one, or an earlier model to replace. Or the file.
        layout: A diffusers folder, or the single .safetensors file that the original code and most programs read.
        dtype: Number format of the weights that are written. Default: as they are.
    """
    from safelight.tasks.files import convert_model

    convert_model(source, output, PLAIN if reading is None else reading, dtype, layout)
    print(json.dumps({"folder" if layout == "diffusers" else "file": str(output)}) if as_json else output)


@app.command(name="help", show=False)
def show_help(*command: str) -> None:
    """The help of safelight, or of one command."""
    _, _, unknown = app.parse_commands(command)
    if unknown:
        raise RequestError(f"there is no command {unknown[0]!r}: see `safelight --help`")
    app.help_print(command)


app.command(train_app)
app.command(evaluate_app)
for _place, _name in enumerate(n for n in app if not n.startswith("-")):
    app[_name].sort_key = _place  # as they were added, and not by the alphabet
    app[_name].help_epilogue = ""  # else they would have that of safelight itself


def _note(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as the one line that it is."""
    print(f"note: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; None: this process's) and return its exit code."""
    warnings.showwarning = _note
    try:
        app(
            None if arguments is None else list(arguments),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except (CycloptsError, SafelightError) as mistake:
        line = explain(mistake) if isinstance(mistake, CycloptsError) else str(mistake)
        print(f"safelight: {' '.join(line.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our results has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
