"""What a sheet knows about itself: the base request and the axes, losslessly. This module does not import torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal, Self

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, ValidationError

from safelight import __version__
from safelight.errors import RequestError
from safelight.tasks.grid.axes import MODEL, Axis, Value, last_part
from safelight.tasks.grid.plan import Plan
from safelight.tasks.metadata import ModelIdentity
from safelight.tasks.request import Request
from safelight.tasks.requests import TASKS

GRID_CHUNK = "safelight-grid"


class AxisRecord(BaseModel):
    """One direction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    part: str | None
    values: list[bool | int | float | str | list[int | float | str] | None]


class GridRecord(BaseModel):
    """A whole grid: what all cells share, what is varied, and by which weights it was drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    task: str
    request: dict[str, object]
    """The base: the fields of a request of that task, as asked for, with the seed."""
    axes: list[AxisRecord]
    """Columns, rows, blocks."""
    models: list[ModelIdentity]
    """In the order of the model axis, if there is one."""
    version: str = __version__

    @classmethod
    def of(cls, plan: Plan, models: list[ModelIdentity]) -> Self:
        """Record a plan. Of models on this machine only, the names are recorded and not the folders above them."""
        axes = []
        for axis in plan.axes:
            values = [_plain(value) for value in axis.values]
            if axis.field == MODEL and models:
                values = [m.name if m.local else v for m, v in zip(models, values, strict=True)]
            axes.append(AxisRecord(field=axis.field, part=axis.part, values=values))
        return cls(task=plan.base.task, request=plan.base.model_dump(mode="json"), axes=axes, models=models)

    def asked(self) -> tuple[Request, tuple[Axis, ...]]:
        """The base request, validated, and the axes.

        Raises:
            RequestError: the task is unknown to this version, or a field is out of range.
        """
        if self.task not in TASKS:
            raise RequestError(f"the grid's task is {self.task!r}, which safelight {__version__} does not know")
        axes = tuple(Axis(a.field, tuple(_held(v) for v in a.values), a.part) for a in self.axes)
        fields = {a.field for a in axes} - {MODEL}
        if unknown := fields - TASKS[self.task].model_fields.keys():
            raise RequestError(f"the grid varies {min(unknown)!r}, which {self.task} does not have in this version")
        return TASKS[self.task].model_validate(self.request), axes

    def to_json(self) -> str:
        """Plain ASCII, the same bytes for the same record."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def same_but_for_the_seed(self, other: Self) -> bool:
        """Whether the other has the same task, request and axes, whatever drew it."""
        return _content(self) == _content(other)


def _content(record: GridRecord) -> tuple[str, dict[str, object], list[AxisRecord]]:
    axes = [
        axis.model_copy(update={"values": [last_part(str(v)) for v in axis.values]}) if axis.field == MODEL else axis
        for axis in record.axes
    ]
    return record.task, {**record.request, "seed": None}, axes


def short_name(plan: Plan, model: str | None) -> str:
    """A few letters that are the same for the same grid of the same model, and else hardly ever."""
    record = GridRecord.of(plan, []).to_json()
    return hashlib.sha256(f"{model} {record}".encode()).hexdigest()[:8]


def read_grid(sheet: str | Path) -> GridRecord | None:
    """The record of a sheet; None of a picture that is none.

    Raises:
        RequestError: no such file, not a picture, or a record that this version cannot read.
    """
    try:
        with Image.open(sheet) as image:
            image.load()  # a text chunk may stand behind the pixels
            text = image.info.get(GRID_CHUNK)
    except FileNotFoundError as error:
        raise RequestError(f"there is no picture {str(sheet)!r}: check the path") from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"{str(sheet)!r} cannot be read as a picture: give a PNG") from error
    if not isinstance(text, str):
        return None
    damaged = (
        f"the grid record of {str(sheet)!r} cannot be read: it is damaged, or of a newer version than {__version__}"
    )
    try:
        record = GridRecord.model_validate_json(text)
    except ValidationError as error:
        raise RequestError(damaged) from error
    if not record.models or not record.axes:
        raise RequestError(damaged)
    return record


def _plain(value: Value) -> bool | int | float | str | list[int | float | str] | None:
    return list(value) if isinstance(value, tuple) else value


def _held(value: bool | int | float | str | list[int | float | str] | None) -> Value:
    return tuple(value) if isinstance(value, list) else value
