"""The lossless record: everything that is needed to make the same bytes again."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from safelight import __version__
from safelight.errors import RequestError
from safelight.tasks.metadata.bounded import parse
from safelight.tasks.metadata.containers import embedded, named
from safelight.tasks.metadata.names import RECORD_CHUNK
from safelight.tasks.request import Request
from safelight.tasks.requests import TASKS


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
    """In which the networks ran, like "float32" or "int8"."""


@cache
def _torch() -> str | None:
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


class Record(BaseModel):
    """One picture's whole story. `request` is resolved (nothing is left to the model) and of batch 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    task: str
    request: dict[str, JsonValue]
    """The fields of the request of that task, as `TASKS[task]` validates them."""
    model: ModelIdentity
    refiner: ModelIdentity | None = None
    """What went on where `model` left off."""
    guide: ModelIdentity | None = None
    """The weaker model that autoguidance led away from."""
    version: str = __version__
    torch: str | None = None
    """The version of torch that computed it: another may round otherwise."""

    @classmethod
    def of(
        cls,
        request: Request,
        model: ModelIdentity,
        refiner: ModelIdentity | None = None,
        guide: ModelIdentity | None = None,
    ) -> Self:
        """Record one picture's resolved request."""
        fields = request.model_dump(mode="json")
        return cls(task=request.task, request=fields, model=model, refiner=refiner, guide=guide, torch=_torch())

    @classmethod
    def read(cls, text: str, picture: str) -> Self:
        """The record that a text says; `picture` is what to call its bearer.

        Raises:
            RequestError: it says none, or one that this version cannot read.
        """
        try:
            return cls.model_validate(parse(text, f"the Safelight record of {picture}", constants=False))
        except ValidationError as error:
            places = [str(part)[:40] for part in error.errors()[0]["loc"]]
            where = ".".join(places) if places else "its start"
            raise RequestError(
                f"the Safelight record of {picture} cannot be read (at {where}): "
                f"it is damaged, or of a newer version than {__version__}"
            ) from error

    def asked(self) -> Request:
        """The request, validated.

        Raises:
            RequestError: the task is unknown to this version, or a field is out of range.
        """
        if self.task not in TASKS:
            raise RequestError(
                f"the record's task is {self.task[:40]!r}, which safelight {__version__} does not know: "
                f"it knows {', '.join(TASKS)}"
            )
        return TASKS[self.task].model_validate(self.request)

    def to_json(self) -> str:
        """Plain ASCII, the same bytes for the same record."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))


def read_record(picture: str | Path | bytes) -> Record:
    """The record of a PNG, JPEG or WebP picture that Safelight wrote.

    Args:
        picture: its path, or all its bytes.

    Raises:
        RequestError: no such file, not a picture, no record in it, or one that this version cannot read.
    """
    text = embedded(picture).texts.get(RECORD_CHUNK)
    if text is None:
        raise RequestError(
            f"{named(picture)} carries no Safelight record: give a picture as Safelight wrote it, "
            "not one that another program saved again"
        )
    return Record.read(text, named(picture))
