"""Reads a `config.json` field by field: what is used, what must have one value, what does not matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safelight.checkpoints.files import read_json
from safelight.errors import ModelFileError

MOST = 1 << 20
"""No width, number of words or of layers is larger; a network of such a size is never built."""


class Fields:
    """The fields of one `config.json`, or of one section of it.

    Absent ones take the defaults of the library that wrote it.
    """

    def __init__(self, path: Path, section: str | None = None) -> None:
        self.path = path
        content: object = read_json(path)
        if section is not None:
            content = content.get(section) if isinstance(content, dict) else None
        if not isinstance(content, dict):
            raise ModelFileError(f"{path} has no {section}: it describes another kind of model")
        self.content = {k: v for k, v in content.items() if not k.startswith("_")}
        self.known: set[str] = set()

    def get(self, name: str, default: object) -> object:
        """Any value."""
        self.known.add(name)
        return self.content.get(name, default)

    def whole(self, name: str, default: int, most: int = MOST) -> int:
        """A whole number of 1 or more."""
        return self._whole(name, self.get(name, default), most)

    def wholes(
        self, name: str, default: int | list[int], length: int | None = None, most: int = MOST
    ) -> tuple[int, ...]:
        """Whole numbers, one per level. Where `length` is given, a single number stands for all."""
        value = self.get(name, default)
        if not isinstance(value, list) and length is not None:
            value = [value] * length
        if not isinstance(value, list) or not 1 <= len(value) <= 16 or (length is not None and len(value) != length):
            raise self.bad(name, value, "one number per level")
        return tuple(self._whole(name, item, most) for item in value)

    def number(self, name: str, default: float) -> float:
        """A number above 0."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.bad(name, value, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.bad(name, value, "true or false")
        return value

    def words(self, name: str, default: list[str], allowed: Iterable[str]) -> list[str]:
        """Words of a known set."""
        value = self.get(name, default)
        if not isinstance(value, list) or not all(isinstance(word, str) and word in allowed for word in value):
            raise self.bad(name, value, f"only {', '.join(allowed)}")
        return value

    def word(self, name: str, default: str, allowed: Iterable[str]) -> str:
        """A word of a known set."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in allowed:
            raise self.bad(name, value, f"one of {', '.join(allowed)}")
        return value

    def must(self, wanted: Mapping[str, object]) -> None:
        """Fields that change the network in ways that we do not have: absent, or of this value."""
        for name, value in wanted.items():
            if (found := self.get(name, value)) != value:
                raise self.bad(name, found, f"{value!r}: Safelight has no network with another")

    def ignore(self, names: Iterable[str]) -> None:
        """Fields that do not change what the network computes."""
        self.known.update(names)

    def done(self) -> None:
        """Every other field is unknown, and may be anything: it must be off."""
        for name, value in self.content.items():
            if name not in self.known and value is not None and value is not False:
                raise self.bad(name, value, "no such field: Safelight does not know what it changes")

    def bad(self, name: str, value: object, expected: str) -> ModelFileError:
        """The error for a field."""
        return ModelFileError(f"{self.path}: {ascii(name)[1:-1]} is {ascii(value)[:120]}, expected {expected}")

    def _whole(self, name: str, value: object, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.bad(name, value, f"whole numbers from 1 to {most}")
        return value
