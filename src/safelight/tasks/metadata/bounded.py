"""JSON from strangers: bounded in size, depth and number of values, and looked at with types.

What a picture carries was written by anybody. Nothing here raises but `RequestError`, in bounded time and memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from safelight.errors import RequestError

MAX_TEXT = 64 * 2**20
"""Bytes of all texts of a picture together: a record may carry the pictures that a request began with."""
MAX_VALUES = 500_000
"""Commas and opening brackets of a JSON text: each may become an object of a hundred bytes."""

_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r\x85"}


def parse(text: str, name: str, *, constants: bool = True) -> JsonValue:
    """The value that a JSON text says.

    Args:
        text: the JSON.
        name: of what is read, for the error.
        constants: NaN and Infinity, which are no JSON but which Python writes, become None (a graph of ComfyUI may
            have them); else they are an error.

    Raises:
        RequestError: it is no JSON, says a key twice, is too large or too deep.
    """
    if len(text) > MAX_TEXT or sum(text.count(mark) for mark in ",[{") > MAX_VALUES:
        raise RequestError(f"{name} is too large to be metadata: it is damaged, or was made to harm")

    def once(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise RequestError(f"{name} says {twice[:40]!r} twice: it is damaged")
        return found

    def constant(word: str) -> None:
        if not constants:
            raise ValueError(f"{word} is no number")

    try:
        value: JsonValue = json.loads(text, object_pairs_hook=once, parse_constant=constant)
    except RecursionError as error:
        raise RequestError(f"{name} is nested too deeply to be metadata: it was made to harm") from error
    except ValueError as error:  # also a number of thousands of digits
        raise RequestError(
            f"{name} cannot be read as JSON ({' '.join(str(error).split())[:80]}): it is damaged"
        ) from error
    return value


def text(value: JsonValue) -> str | None:
    """A text, with halves of characters (JSON can say them, files cannot) made visible; None if it is none."""
    return readable(value) if isinstance(value, str) else None


def readable(words: str) -> str:
    """Text that every file can hold and every terminal can show: half a surrogate pair becomes U+FFFD, and so does
    what steers a terminal.
    """
    return words.encode("utf-16", "surrogatepass").decode("utf-16", "replace").translate(_CONTROLS)


def number(value: JsonValue) -> float | None:
    """A number, also one in quotes; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def whole(value: JsonValue) -> int | None:
    """A whole number, also as 20.0 or "20"; None if it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal() and len(value) < 40:
        return int(value)
    found = number(value)
    return int(found) if found is not None and abs(found) < 2**53 and found.is_integer() else None


def mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    """An object; an empty one if it is none."""
    return value if isinstance(value, dict) else {}


def sequence(value: JsonValue) -> Sequence[JsonValue]:
    """A list; an empty one if it is none."""
    return value if isinstance(value, list) else []
