"""What a grid varies: one field of a request, a part of its words, or the model. This module does not import torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from safelight.errors import RequestError
from safelight.tasks.request import Request, asked, flag

Value = bool | int | float | str | tuple[int | float | str, ...] | None
"""What a field may hold."""

MODEL = "model"
"""The axis that is no field of a request: which model draws."""
MAX_VALUES = 1000

_HEAD = re.compile(r'\s*([A-Za-z][\w-]*)\s*(?::(?:\s*"((?:[^"]|"")*)"\s*|([^=]*)))?=', re.DOTALL)
_ONE = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",][^,]*|))\s*(,|\Z)', re.DOTALL)
_NUMBER = r"([+-]?\d+(?:\.\d+)?)"
_RANGE = re.compile(rf"{_NUMBER}\.\.{_NUMBER}(?::{_NUMBER})?")


@dataclass(frozen=True)
class Axis:
    """One direction of a grid."""

    field: str
    """A field of the request by its own name, like "spacing"; or "model"."""
    values: tuple[Value, ...]
    """In order; None is what the model likes best."""
    part: str | None = None
    """Replace only this part of the field's words by each value."""

    @property
    def key(self) -> tuple[str, str | None]:
        """What is varied: no two axes of a grid may vary the same."""
        return self.field, self.part

    def name(self, request: type[Request]) -> str:
        """As a person types it: the flag's name, and the part."""
        known = request.model_fields.get(self.field)
        named = self.field if known is None else flag(self.field, known)
        return named if self.part is None else f"{named}:{self.part}"

    def says(self, value: Value, request: type[Request]) -> str:
        """One value with its name, in a message."""
        return f"{self.name(request)}={shown(value)}"


def shown(value: Value) -> str:
    """A value in words: 7.0 as 7, a pair as 64x64, no words as "", None as what the model likes best."""
    if value is None:
        return "default"
    if value in ("", ()):
        return '""'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ("; " if any(isinstance(v, str) for v in value) else "x").join(map(shown, value))
    return f"{int(value)}" if isinstance(value, float) and value == int(value) else str(value)


def last_part(model: str) -> str:
    """Of a model's name or path: the folders above it are nobody's affair."""
    return re.split(r"[/\\]", model.rstrip("/\\"))[-1]


def parse_axis(text: str, request: type[Request]) -> Axis:
    """An axis as it is typed: `FIELD=VALUES`, `FIELD:PART=VALUES`, or `model=NAMES`.

    Values have commas between them; one with a comma, or with spaces at its ends, stands in double quotes, in which
    two double quotes are one. Numbers may be ranges: `5..25:5` is 5, 10, 15, 20, 25 and `1..4` is 1, 2, 3, 4. Pairs are
    written 64x64, several texts for one value a;b, none of them "". `none` is what the model likes best.

    Args:
        request: the task, whose fields may be varied.

    Raises:
        RequestError: the text is not of this form, or the task has no such field.
    """
    head = _HEAD.match(text)
    if head is None:
        raise RequestError(f"the axis {text!r} gives no values: write FIELD=VALUES, like sampler=euler,heun")
    field = _field(head[1], request)
    part = head[3] if head[2] is None else head[2].replace('""', '"')
    kinds = {MODEL: frozenset({str})}.get(field) or _kinds(request.model_fields[field].annotation)
    if part is not None and (part == "" or field == MODEL or str not in kinds):
        raise RequestError(f"the axis {text!r} names no part of a text: write prompt:apple=apple,pear")
    values: list[Value] = []
    for written, quoted in _written(text, head.end()):
        values += [_value(written, kinds)] if quoted or part is not None else _values(written, kinds, text)
    if len(values) > MAX_VALUES:
        raise RequestError(f"the axis {text[:60]!r} has more than {MAX_VALUES} values: give fewer")
    return Axis(field, tuple(values), part)


def _field(name: str, request: type[Request]) -> str:
    """The field of that name or flag."""
    fields, given = asked(request), name.replace("_", "-")
    names = {MODEL: MODEL} | {own.replace("_", "-"): own for own in fields}
    names |= {flag(own, field): own for own, field in fields.items()}
    if given not in names:
        close = get_close_matches(given, names, n=1)
        did = f"did you mean {close[0]}? " if close else ""
        flags = ", ".join(flag(own, field) for own, field in fields.items())
        raise RequestError(f"{request.task} has no {name!r} to vary: {did}an axis is one of {MODEL}, {flags}")
    return names[given]


def _written(text: str, at: int) -> Iterator[tuple[str, bool]]:
    """What stands between the commas, and whether it was quoted."""
    while True:
        one = _ONE.match(text, at)
        if one is None:
            raise RequestError(
                f'the axis {text!r} has a quote that is not closed: write "a, b", and "" for a quote in it'
            )
        yield (one[2].strip(), False) if one[1] is None else (one[1].replace('""', '"'), True)
        if one[3] == "":
            return
        at = one.end()


def _kinds(annotation: Any) -> frozenset[Any]:
    """The types that a field takes; a tuple's stands for it whole."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (UnionType, Union):
        return frozenset().union(*(_kinds(member) for member in get_args(annotation)))
    return frozenset({annotation})


def _values(written: str, kinds: frozenset[Any], text: str) -> list[Value]:
    """What a word without quotes stands for: None, the numbers of a range, or one value."""
    if written.lower() == "none" and NoneType in kinds:
        return [None]
    limits = _RANGE.fullmatch(written)
    if limits is None or not kinds & {int, float}:
        return [_value(written, kinds)]
    first, last = Decimal(limits[1]), Decimal(limits[2])
    step = abs(Decimal(1 if limits[3] is None else limits[3]))
    if step == 0 or abs(last - first) / step > MAX_VALUES:
        raise RequestError(
            f"the range {written} of {text[:60]!r} has more than {MAX_VALUES} values: give a larger step"
        )
    count = int(abs(last - first) / step) + 1
    numbers = [first + (step if last >= first else -step) * k for k in range(count)]
    return [int(n) if n == n.to_integral_value() else float(n) for n in numbers]


def _value(written: str, kinds: frozenset[Any]) -> Value:
    """One value as the request's own validation takes it: several numbers or texts apart, all else as it is."""
    several = next((kind for kind in kinds if get_origin(kind) is tuple), None)
    if several is None or str in kinds:
        return written
    between = r"\s*;\s*" if any(str in _kinds(kind) for kind in get_args(several)) else r"[\sx;]+"
    return tuple(part for part in re.split(between, written.strip()) if part != "")
