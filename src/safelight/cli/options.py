"""How options are made of fields, and how they are shown: nothing here knows what a command does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter
from cyclopts.help import DefaultFormatter

from safelight.tasks.marks import HEADINGS
from safelight.tasks.request import Request, flag, group, positional
from safelight.tasks.sources import Reading

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from pydantic.fields import FieldInfo
    from rich.console import Console, ConsoleOptions

Dtype = Literal["float32", "bfloat16", "float16"]
Precision = Literal["float32", "bfloat16", "float16", "int8"]
FLAT = Parameter(name="*")
"""The fields of a parameter are options of the command itself."""
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object.")]
PANELS = {name: Group(name, sort_key=place) for place, name in enumerate(HEADINGS, 1)}
ReadingOptions = Annotated[Reading | None, FLAT]


def shown_default(value: object) -> str | None:
    """A default in the help, as it would be typed; a switch has none worth saying."""
    if value is None or value is False:
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class RequiredFirst(DefaultFormatter):
    """Help with what must be given on top."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        panel.entries.sort(key=lambda entry: not entry.required)
        super().__call__(console, options, panel)


def option(request: type[Request], name: str, field: FieldInfo) -> inspect.Parameter:
    """A request's field as a command-line option: absent is None, so that what was given is known."""
    several = get_args(field.annotation) if get_origin(field.annotation) is UnionType else (field.annotation,)
    kind: Any = next(k for k in several if k is not type(None))
    help_ = str(field.description)
    if not field.is_required() and field.default not in (None, ""):
        help_ += f" Default: {field.default}."
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD if name == positional(request) else inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, Parameter(name=f"--{flag(name, field)}", help=help_, group=_panel(field))],
    )


def _panel(field: FieldInfo) -> Group | str:
    """The panel of the help that a field stands in."""
    heading = group(field)
    return "Parameters" if heading is None else PANELS[heading]  # that is what cyclopts calls its own


def signed(
    command: Callable[..., None], parameters: Sequence[inspect.Parameter], doc: str | None
) -> Callable[..., None]:
    """Give a function that takes anything the signature that cyclopts is to read."""
    signature = inspect.Signature(parameters)
    command.__doc__ = doc
    command.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    vars(command)["__signature__"] = signature
    return command
