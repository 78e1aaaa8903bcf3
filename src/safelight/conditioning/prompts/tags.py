"""Tags such as `<lora:name:0.8>`: recognised, taken out of the prompt, and handed on as data.

What they do belongs to those who know adapters; a tag of a kind that nobody knows does nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from safelight.errors import RequestError

_TAG = re.compile(r"<(\w+):([^>]+)>")


@dataclass(frozen=True)
class Tag:
    """`<kind:argument:name=argument:...>` in a prompt."""

    kind: str
    arguments: tuple[str, ...]
    """As they are written, with the names of those that have one."""
    at: int
    """Where it stood in the text that is left."""

    def __str__(self) -> str:
        return f"<{self.kind}:{':'.join(self.arguments)}>"

    @property
    def unnamed(self) -> tuple[str, ...]:
        """The arguments without a name, in their order."""
        return tuple(argument for argument in self.arguments if argument.count("=") != 1)

    @property
    def named(self) -> dict[str, str]:
        """The arguments with a name; the last of several counts."""
        return dict(argument.split("=") for argument in self.arguments if argument.count("=") == 1)


@dataclass(frozen=True)
class Lora:
    """`<lora:name:text:unet:dyn>`, or `te=`, `unet=` and `dyn=`: a LoRA and how strongly it is to work."""

    name: str
    text: float = 1.0
    """On the text towers."""
    unet: float = 1.0
    """On the UNet: the same as on the text towers, unless it is said."""
    rank: int | None = None
    """Only so many of its directions; None: all."""


@dataclass(frozen=True)
class Hypernetwork:
    """`<hypernet:name:strength>`."""

    name: str
    strength: float = 1.0


def take(text: str) -> tuple[str, tuple[Tag, ...]]:
    """The text without its tags, and the tags."""
    left: list[str] = []
    tags: list[Tag] = []
    place = length = 0
    # Behind the last > there is no tag, and looking for one would take long.
    for match in _TAG.finditer(text, 0, text.rfind(">") + 1):
        left.append(text[place : match.start()])
        length += len(left[-1])
        tags.append(Tag(match[1], tuple(match[2].split(":")), length))
        place = match.end()
    return "".join([*left, text[place:]]), tuple(tags)


def put(text: str, tags: Sequence[Tag]) -> str:
    """The text with its tags where they stood: what `take` took apart."""
    parts: list[str] = []
    place = 0
    for tag in tags:
        parts += [text[place : tag.at], str(tag)]
        place = tag.at
    return "".join([*parts, text[place:]])


def lora(tag: Tag) -> Lora:
    """A tag of kind `lora`, understood.

    Raises:
        RequestError: it has no name, or what should be a number is none.
    """
    unnamed, named = tag.unnamed, tag.named
    text = named.get("te", unnamed[1] if len(unnamed) > 1 else "1")
    unet = named.get("unet", unnamed[2] if len(unnamed) > 2 else text)
    rank = named.get("dyn", unnamed[3] if len(unnamed) > 3 else None)
    directions = None if rank is None else _number(tag, rank)
    if directions is not None and (directions < 1 or directions != int(directions)):
        raise RequestError(f"in {tag!s} dyn cannot be {rank!r}: give a whole number from 1")
    return Lora(_name(tag), _number(tag, text), _number(tag, unet), None if directions is None else int(directions))


def hypernetwork(tag: Tag) -> Hypernetwork:
    """A tag of kind `hypernet`, understood.

    Raises:
        RequestError: as `lora`.
    """
    strength = tag.unnamed[1] if len(tag.unnamed) > 1 else "1"
    return Hypernetwork(_name(tag), _number(tag, strength))


def _name(tag: Tag) -> str:
    if not tag.unnamed or not tag.unnamed[0].strip():
        raise RequestError(f"{tag!s} has no name: write <{tag.kind}:name:1>")
    return tag.unnamed[0]


def _number(tag: Tag, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RequestError(f"in {tag!s} {text[:40]!r} is no number: write <{tag.kind}:name:1>")
    return value
