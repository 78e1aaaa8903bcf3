"""What a picture knows about itself: the request that made it, in words for other tools and in lossless JSON.

Two PNG text chunks are written: `parameters`, the text of AUTOMATIC1111's web UI that most galleries read,
and `safelight`, a `Record`, from which the same bytes can be made again. This module does not import torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, ValidationError

from safelight import __version__
from safelight.errors import RequestError
from safelight.tasks.request import Request
from safelight.tasks.requests import TASKS, ImageToImage, Prompted

TEXT_CHUNK = "parameters"
RECORD_CHUNK = "safelight"

# The names under which other tools know the samplers and spacings; one that is not here goes by its own name.
SAMPLER_LABELS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpmpp_2m": "DPM++ 2M",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
}
SPACING_LABELS = {"karras": "Karras", "exponential": "Exponential"}


class ModelIdentity(BaseModel):
    """Which weights drew a picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """A shipped preset, a hub id, or the last part of a local path (never the folders above it)."""
    local: bool
    """Whether `name` is only the last part of a path on the machine that drew the picture."""
    preset: str
    sha256: str
    """Of the weights file; of a folder, over the names and hashes of its weights files."""
    dtype: str
    """In which the networks ran, like "float32"."""


class Record(BaseModel):
    """One picture's whole story. `request` is resolved (nothing is left to the model) and of batch 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    task: str
    request: dict[str, str | int | float | list[int] | None]
    """The fields of the request of that task, as `TASKS[task]` validates them."""
    model: ModelIdentity
    version: str = __version__

    @classmethod
    def of(cls, request: Request, model: ModelIdentity) -> Self:
        """Record one picture's resolved request."""
        return cls(task=request.task, request=request.model_dump(mode="json"), model=model)

    def asked(self) -> Request:
        """The request, validated.

        Raises:
            RequestError: the task is unknown to this version, or a field is out of range.
        """
        if self.task not in TASKS:
            raise RequestError(
                f"the record's task is {self.task!r}, which safelight {__version__} does not know: "
                f"it knows {', '.join(TASKS)}"
            )
        return TASKS[self.task].model_validate(self.request)

    def to_json(self) -> str:
        """Plain ASCII, the same bytes for the same record."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))


def infotext(request: Request, model: ModelIdentity) -> str:
    """The `parameters` text: prompt, negative prompt, and a last line of keys that begins with `Steps`."""
    values: list[tuple[str, object]] = [
        ("Steps", request.steps),
        ("Sampler", _label(request.sampler, SAMPLER_LABELS)),
        ("Schedule type", _label(request.spacing, SPACING_LABELS)),
        ("CFG scale", None if request.guidance is None else _number(request.guidance)),
        ("Seed", request.seed),
        ("Size", f"{request.width}x{request.height}"),
        ("Model hash", model.sha256[:10]),
        ("Model", model.name),
        ("Denoising strength", _number(request.strength) if isinstance(request, ImageToImage) else None),
        ("Version", f"safelight {__version__}"),
    ]
    lines = []
    if isinstance(request, Prompted):
        lines.append(request.prompt)
        if request.negative_prompt != "":
            lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in values if value is not None))
    return "\n".join(lines).strip()


def _label(name: str | None, labels: dict[str, str]) -> str | None:
    return None if name is None else labels.get(name, name)


def _number(value: float) -> str:
    """7.0 -> "7", 7.5 -> "7.5"."""
    return str(int(value)) if value == int(value) else repr(value)


def _quoted(value: str) -> str:
    """A comma, colon or newline would end the value early in every reader; quotes keep it whole."""
    return json.dumps(value, ensure_ascii=False) if any(c in value for c in ",:\n") else value


def read_record(picture: str | Path) -> Record:
    """The record of a picture that Safelight wrote.

    Raises:
        RequestError: no such file, not a picture, no record in it, or one that this version cannot read.
    """
    try:
        with Image.open(picture) as image:
            image.load()  # a text chunk may stand behind the pixels
            text = image.info.get(RECORD_CHUNK)
    except FileNotFoundError as error:
        raise RequestError(f"there is no picture {str(picture)!r}: check the path") from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"{str(picture)!r} cannot be read as a picture ({_one_line(error)}): give a PNG") from error
    if not isinstance(text, str):
        raise RequestError(
            f"{str(picture)!r} carries no Safelight record: give a PNG as Safelight wrote it, "
            "not one that another program saved again"
        )
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        places = [str(part) for part in error.errors()[0]["loc"]]
        where = ".".join(places) if places else "its start"
        raise RequestError(
            f"the Safelight record of {str(picture)!r} cannot be read (at {where}): "
            f"it is damaged, or of a newer version than {__version__}"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
