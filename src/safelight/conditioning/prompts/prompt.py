"""A whole prompt: comments and tags out, parts joined by AND, each with its weight and its edits; and its schedule.

A negative prompt is one text: AND and tags are words in it, as in AUTOMATIC1111's web UI.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from safelight.conditioning.prompts import edits, tags
from safelight.conditioning.prompts.edits import Nodes, Steps
from safelight.conditioning.prompts.tags import Tag
from safelight.errors import RequestError

MAX_PARTS = 64
"""Each is a call of the network in every step."""

_COMMENT_LINE = re.compile(r"(^|\n)#[^\n]*(\n|$)")
_COMMENT = re.compile(r"#[^\n]*(\n|$)")
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")


@dataclass(frozen=True)
class Part:
    """What stands between two ANDs."""

    nodes: Nodes
    weight: float = 1.0
    """How strongly guidance pulls to it, beside the others."""
    tail: str = ""
    """How the weight is written, and the spaces at the end."""

    def __str__(self) -> str:
        return edits.written(self.nodes) + self.tail


@dataclass(frozen=True)
class Prompt:
    """A prompt as it was understood. `str` writes it again, without the comments and otherwise to the letter."""

    parts: tuple[Part, ...]
    """One or more."""
    tags: tuple[Tag, ...] = ()

    def __str__(self) -> str:
        return tags.put("AND".join(map(str, self.parts)), self.tags)


@dataclass(frozen=True)
class Saying:
    """One of the things that are said at once."""

    weight: float
    text: str
    """Without edits; what weighs how much in it is still to be read (`emphasis`)."""
    second: str
    """What SDXL's second tower reads in place of it: mostly the same."""


@dataclass(frozen=True)
class Phase:
    """What is said during some steps."""

    until: int
    """The last of them; the first step is 1, and the first of these is the one after the phase before."""
    sayings: tuple[Saying, ...]
    """One or more."""


def without_comments(text: str) -> str:
    """The text without lines that begin with `#`, and without what stands behind a `#` in others."""
    return _COMMENT.sub("\n", _COMMENT_LINE.sub("\n", text)) if "#" in text else text


def read(text: str, *, negative: bool = False, comments: bool = True) -> Prompt:
    """Understand a prompt. Every text is one: what is not well formed is words.

    Args:
        negative: there are no tags in it, and AND is a word.
        comments: take them out; else `#` is a sign like others.
    """
    text = without_comments(text) if comments else text
    if negative:
        return Prompt((Part(edits.read(text)),))
    left, found = tags.take(text)
    return Prompt(tuple(_part(part) for part in _AND.split(left)), found)


def _part(text: str) -> Part:
    """`words :weight`; a single part, too, may have one."""
    words = text.rstrip()
    weight = 1.0
    before, colon, number = words.rpartition(":")
    if colon and _WEIGHT.fullmatch(number.strip()) and math.isfinite(float(number)):
        words, weight = before.rstrip(), float(number)
    return Part(edits.read(words), weight, text[len(words) :])


def phases(prompt: Prompt, steps: Steps, second: Prompt | None = None) -> tuple[Phase, ...]:
    """What a prompt says at which steps, from the first to the last of `steps`.

    Args:
        second: what SDXL's second tower is told; None: the same. Its weights are those of the prompt. If it has one
            part, every part of the prompt has it beside it.

    Raises:
        RequestError: there are more than `MAX_PARTS`, or the second prompt has several, and not as many as the first.
    """
    if len(prompt.parts) > MAX_PARTS:
        raise RequestError(f"the prompt has {len(prompt.parts)} parts joined by AND: {MAX_PARTS} is the most")
    schedules = [edits.schedule(part.nodes, steps) for part in prompt.parts]
    seconds = [] if second is None else [edits.schedule(part.nodes, steps) for part in second.parts]
    if len(seconds) not in (0, 1, len(schedules)):
        raise RequestError(
            f"the prompt has {len(schedules)} parts joined by AND and prompt_2 {len(seconds)}: give one, or as many"
        )
    found: list[Phase] = []
    for stop in sorted({until for schedule in [*schedules, *seconds] for until, _ in schedule}):
        texts = [_at(schedule, stop) for schedule in schedules]
        others = [_at(schedule, stop) for schedule in seconds] if seconds else texts
        others = others * len(texts) if len(others) < len(texts) else others
        sayings = tuple(
            Saying(part.weight, text, other) for part, text, other in zip(prompt.parts, texts, others, strict=True)
        )
        if found and found[-1].sayings == sayings:
            found.pop()
        found.append(Phase(stop, sayings))
    return tuple(found)


def _at(schedule: Sequence[tuple[int, str]], step: int) -> str:
    return schedule[bisect_left(schedule, step, key=lambda entry: entry[0])][1]
