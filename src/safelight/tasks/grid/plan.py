"""Which pictures a grid has: one cell for each combination of its axes' values. This module does not import torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from safelight.errors import RequestError
from safelight.tasks.grid.axes import MODEL, Axis, Value, last_part
from safelight.tasks.request import Request

MAX_CELLS = 4096
PLACES = "xyz"
"""The directions: columns, rows, and blocks of both."""
_NAMED = 24  # characters of a field or value in the name of a file

Place = tuple[int, ...]
"""Which value of each axis, in order of the axes."""


@dataclass(frozen=True)
class Cell:
    """One combination."""

    place: Place
    model: str | None
    """The name on the model axis; None: the model that draws all."""
    request: Request
    """Not yet resolved."""
    name: str
    """Of its file, without suffix: what it is and not where it stands, so that a grid that grows keeps its cells."""


@dataclass(frozen=True)
class Plan:
    """A base request, and what of it is varied."""

    base: Request
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]

    @property
    def models(self) -> list[str | None]:
        """Every model once, in order."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    def says(self, place: Place, only: Sequence[int]) -> str:
        """The values of these axes at a place, in a message."""
        said = (f"{PLACES[i]} {self.axes[i].says(self.axes[i].values[place[i]], type(self.base))}" for i in only)
        return ", ".join(said)

    def seeded(self, seed: int) -> Plan:
        """The same with this seed wherever none is given."""
        base = self.base if self.base.seed is not None else self.base.changed(seed=seed)
        cells = (
            c if c.request.seed is not None else replace(c, request=c.request.changed(seed=seed)) for c in self.cells
        )
        return replace(self, base=base, cells=tuple(cells))


def lay_out(base: Request, axes: Sequence[Axis]) -> Plan:
    """Every cell of a grid, with its values validated.

    Args:
        base: what all cells share. Fields that are varied may have any value that is valid.
        axes: one to three: columns, rows, blocks.

    Raises:
        RequestError: too few or too many axes or cells, two that vary the same, or a value that the field cannot have.
    """
    if not 1 <= len(axes) <= len(PLACES):
        raise RequestError(f"a grid has one to three axes, and not {len(axes)}: give --x, --y and --z")
    if len({axis.key for axis in axes}) < len(axes):
        raise RequestError(
            f"two axes vary the same: {', '.join(a.name(type(base)) for a in axes)}: vary different fields"
        )
    checked = [_checked(base, axis, place) for axis, place in zip(axes, PLACES, strict=False)]
    count = 1
    for axis in checked:
        count *= len(axis.values)
    if count > MAX_CELLS:
        raise RequestError(f"the grid would have {count} cells, more than {MAX_CELLS}: give fewer values")
    cells = []
    for place in product(*(range(len(axis.values)) for axis in checked)):
        chosen = [(axis, axis.values[i]) for axis, i in zip(checked, place, strict=True)]
        model = next((str(value) for axis, value in chosen if axis.field == MODEL), None)
        name = "_".join(f"{_slug(axis.name(type(base)))}-{_apart(axis, value)}" for axis, value in chosen)
        cells.append(Cell(place, model, _request(base, chosen), name))
    return Plan(base, tuple(checked), tuple(cells))


def _checked(base: Request, axis: Axis, place: str) -> Axis:
    """The axis with its values as the request holds them.

    Raises:
        RequestError: one is out of range, or there twice; none is given; the words lack the part.
    """
    name = axis.name(type(base))
    if axis.field != MODEL and axis.field not in type(base).model_fields:
        raise RequestError(f"{place} {name}: a {base.task} request has no field {axis.field!r}")
    if axis.part is not None and axis.part not in _words(base, axis.field):
        raise RequestError(f"{place} {name}: {axis.part!r} is not in the {axis.field.replace('_', ' ')}")
    values: list[Value] = []
    for value in axis.values:
        where = f"{place} {axis.says(value, type(base))}"
        try:
            values.append(_held(base, axis, value))
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from error
        if values[-1] in values[:-1]:
            raise RequestError(f"{where}: this value is there twice: give it once")
    if not values or (axis.field == MODEL and "" in values):
        raise RequestError(f"{place} {name}: a value is missing")
    return replace(axis, values=tuple(values))


def _held(base: Request, axis: Axis, value: Value) -> Value:
    """The value, as the field holds it."""
    if axis.field == MODEL or axis.part is not None:
        return str(value)
    held: Value = getattr(base.changed(**{axis.field: value}), axis.field)
    return held


def _words(request: Request, field: str) -> str:
    words = getattr(request, field)
    return words if isinstance(words, str) else ""


def _request(base: Request, chosen: Sequence[tuple[Axis, Value]]) -> Request:
    """The base with the values: whole fields first, then parts of words, all of a field at once."""
    fields = {axis.field: value for axis, value in chosen if axis.part is None and axis.field != MODEL}
    request = base.changed(**fields) if fields else base
    parts: dict[str, dict[str, str]] = {}
    for axis, value in chosen:
        if axis.part is not None:
            parts.setdefault(axis.field, {})[axis.part] = str(value)
    replaced = {field: _replaced(_words(request, field), swaps, field) for field, swaps in parts.items()}
    return request.changed(**replaced) if replaced else request


def _replaced(words: str, swaps: Mapping[str, str], field: str) -> str:
    """The words with every part replaced, in one go: what replaces one part is not itself replaced.

    Raises:
        RequestError: a part is not in the words, or only inside another part.
    """
    found: set[str] = set()

    def swap(match: re.Match[str]) -> str:
        found.add(match[0])
        return swaps[match[0]]

    longest_first = sorted(swaps, key=len, reverse=True)
    result = re.sub("|".join(map(re.escape, longest_first)), swap, words)
    for part in swaps:
        if part not in found:
            raise RequestError(f"{part!r} is not in the {field.replace('_', ' ')} of every cell: vary a part that is")
    return result


def _slug(text: str) -> str:
    """A text as a part of a file's name, on every system."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-._")[:_NAMED].rstrip("-.")


def _apart(axis: Axis, value: Value) -> str:
    """A value in the same way; where something of it is lost, a hash keeps it apart from others."""
    text = repr(value) if isinstance(value, tuple | float) else str(value)
    slug = _slug(last_part(text) if axis.field == MODEL else text)
    return slug if slug == text else f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:6]}".lstrip("-")
