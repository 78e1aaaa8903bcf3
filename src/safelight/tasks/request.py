"""What all requests have in common, and how a wrong one is explained. The tasks are in `requests`.

A request is one definition with four faces: command-line flags, the HTTP schema, the web form and the metadata of
the picture. Descriptions, ranges and defaults stand on the fields and nowhere else.

A field that is None means "as the model likes it best"; the model fills it in (`Model.resolve`) and records
it. This module does not import torch.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, ClassVar, Literal, Self, get_args, get_origin

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.fields import FieldInfo

from safelight.diffusion.names import SAMPLER_NAMES, SPACING_NAMES
from safelight.errors import RequestError
from safelight.tasks.fields import GuidanceFields, SamplerFields, ShortcutFields
from safelight.tasks.marks import Flag, Group, Positional, Recorded

MAX_SEED = 2**64 - 1
"""What `torch.Generator.manual_seed` takes."""
MAX_SIDE = 8192
MAX_PIXELS = 2**26
"""Of all pictures of a batch together: 64 pictures of a megapixel, or one of 8192x8192."""


class Request(SamplerFields, GuidanceFields, ShortcutFields, BaseModel):
    """What all requests have in common. Construct one of the tasks in `requests`."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # ten tasks, of which one is asked

    task: ClassVar[str]
    """The command, the route and the record's name for this request."""

    seed: Annotated[
        int | None,
        Field(description="Of the noise; picture k uses seed + k. Default: random.", ge=0, le=MAX_SEED),
    ] = None
    batch: Annotated[int, Field(description="How many pictures.", ge=1, le=64)] = 1
    steps: Annotated[int | None, Field(description="Sampling steps. Default: the model's.", ge=1, le=1000)] = None
    sampler: Annotated[
        str | None,
        Field(description=f"The way from noise to picture: {', '.join(SAMPLER_NAMES)}. Default: the model's."),
    ] = None
    spacing: Annotated[
        str | None,
        Flag("schedule"),
        Field(description=f"How the noise levels are spaced: {', '.join(SPACING_NAMES)}. Default: the sampler's."),
    ] = None
    guidance: Annotated[
        float | None,
        Field(
            description="How strongly the prompt pulls; 1 is none, and twice as fast. Default: the model's.",
            ge=0,
            le=100,
            allow_inf_nan=False,
        ),
    ] = None
    width: Annotated[int | None, Field(description="Pixels. Default: the model's.", ge=1, le=MAX_SIDE)] = None
    height: Annotated[int | None, Field(description="Pixels. Default: the model's.", ge=1, le=MAX_SIDE)] = None

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise RequestError(_explain(error, cls)) from error

    def changed(self, **fields: object) -> Self:
        """A copy with the fields given, validated as the constructor does.

        Raises:
            RequestError: as the constructor.
        """
        return type(self).model_validate({**self.model_dump(), **fields})


def flag(name: str, field: FieldInfo) -> str:
    """The field's name on the command line, without dashes."""
    named = [mark.name for mark in field.metadata if isinstance(mark, Flag)]
    return named[0] if named else name.replace("_", "-")


def group(field: FieldInfo) -> str | None:
    """The heading that the field stands under; None: the task's own."""
    return next((mark.name for mark in field.metadata if isinstance(mark, Group)), None)


def positional(request: type[Request]) -> str | None:
    """The field that needs no flag, if there is one."""
    fields = request.model_fields.items()
    return next((name for name, field in fields if any(isinstance(m, Positional) for m in field.metadata)), None)


def asked(request: type[Request]) -> dict[str, FieldInfo]:
    """The fields that a user may give; those of the task itself first."""
    fields = sorted(request.model_fields.items(), key=lambda item: group(item[1]) is not None)
    return {name: field for name, field in fields if not any(isinstance(m, Recorded) for m in field.metadata)}


def _explain(error: ValidationError, request: type[Request]) -> str:
    """One line for the first mistake: what is wrong, and the mend."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return f"a {request.task} request must be an object with the fields {', '.join(asked(request))}"
    name = str(first["loc"][0])
    field = request.model_fields.get(name)
    if field is None:
        return f"a {request.task} request has no field {name!r}: the fields are {', '.join(asked(request))}"
    if first["type"] == "missing":
        [example] = field.examples if field.examples is not None else [""]
        mend = f'"{example}"' if name == positional(request) else f"--{flag(name, field)} {example}"
        return f"the {name} is missing: {request.task} needs one, like {mend}"
    given = repr(first["input"])
    if len(given) > 60:
        given = given[:57] + "..."
    return f"{name} cannot be {given}: give {_wanted(field)}"


def _wanted(field: FieldInfo) -> str:
    """The values that a field takes, in words."""
    kinds = {int: "a whole number", float: "a number", str: "text"}
    annotation = field.annotation
    members = get_args(annotation) if get_origin(annotation) is UnionType else (annotation,)
    choices = next((get_args(member) for member in members if get_origin(member) is Literal), None)
    if choices is not None:
        return f"one of {', '.join(choices)}"
    if bool in members:
        return "true or false"
    several = next((get_args(member) for member in members if get_origin(member) is tuple), None)
    if several is not None:
        return f"{len(several)} numbers" if ... not in several else "one or more of them"
    kind = next(words for python, words in kinds.items() if python in members)
    low, high = "", ""
    for mark in field.metadata:
        if isinstance(mark, Ge):
            low = f" from {mark.ge}"
        elif isinstance(mark, Gt):
            low = f" above {mark.gt}"
        elif isinstance(mark, Le):
            high = f" to {mark.le}" if low.startswith(" from") else f" and at most {mark.le}"
        elif isinstance(mark, MaxLen):
            high = f" of at most {mark.max_length} characters, without zero bytes"
        elif isinstance(mark, MinLen):
            low = " that is not empty"
    return kind + low + high
