"""What weighs how much: `(x)` 1.1 times as much, `[x]` that much less, `(x:1.3)`; and BREAK, which begins a new chunk.

The rules are those of AUTOMATIC1111's web UI:

- Round and square brackets are matched each for themselves; weights inside each other multiply. A bracket that is never
  closed reaches to the end of the prompt, one that was never opened is a word.
- `[x:1.3]` is no weight; nor is what is no number, as in `(x:1.2.3)`.
- A backslash before `( ) [ ]` or a backslash makes it a word; before anything else it is nothing.
- Neighbours of equal weight are one piece, so that a word may begin in one bracket and end in the next.

Beyond those rules: BREAK is one inside of brackets, too, and weights stop at `LARGEST`, where no picture is left.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Literal, get_args

from safelight.errors import RequestError

Emphasis = Literal["none", "ignore", "original", "no-norm"]
"""What is done about brackets: they are words; they are read, but all weighs the same; a tower's states are multiplied
by the weights and then scaled to have their mean again; or only multiplied."""
EMPHASES: tuple[Emphasis, ...] = get_args(Emphasis)
EMPHASIS_LABELS: Mapping[Emphasis, str] = {
    "none": "None",
    "ignore": "Ignore",
    "original": "Original",
    "no-norm": "No norm",
}
"""As the web UI records them under `Emphasis`."""

MORE = 1.1
LESS = 1 / 1.1
LARGEST = 1e6
EXACT = 16
"""Brackets around a word up to which the factors are multiplied in the very order of the web UI, the inner ones first.
Of more than that, the last bits may differ."""

_PIECE = re.compile(r"\\[()\[\]\\]|[\\()\[\]]|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")
_ESCAPED = re.compile(r"[\\()\[\]]")


@dataclass(frozen=True)
class Segment:
    """Words of one weight."""

    text: str
    """Never empty."""
    weight: float = 1.0


Block = tuple[Segment, ...]
"""What stands between two BREAKs; it may be empty."""


@dataclass(frozen=True)
class _Span:
    """The pieces, `start` to before `end`, that were in a bracket."""

    bracket: str
    start: int
    end: int
    factor: float
    order: int
    """When it was closed, counting up."""


def emphasis(name: str) -> Emphasis:
    """The mode of that name, ours or the web UI's.

    Raises:
        RequestError: there is no such mode.
    """
    for mode, label in EMPHASIS_LABELS.items():
        if name in (mode, label):
            return mode
    raise RequestError(f"emphasis cannot be {name[:40]!r}: choose {', '.join(EMPHASES)}")


def read(text: str, mode: Emphasis = "original") -> tuple[Block, ...]:
    """The weights of a text, whose edits have been said. Every text can be read."""
    if mode == "none":
        return ((Segment(text),) if text else (),)
    pieces, spans = _pieces(text)
    blocks: list[Block] = []
    run: list[tuple[str, float]] = []
    for piece, weight in zip(pieces, _weights(len(pieces), spans), strict=True):
        if piece is None:
            blocks.append(_merged(run))
            run = []
        elif piece:
            run.append((piece, weight))
    blocks.append(_merged(run))
    if mode == "ignore":  # still apart, as another token may begin where another weight does
        return tuple(tuple(Segment(segment.text) for segment in block) for block in blocks)
    return tuple(blocks)


def _merged(pieces: Sequence[tuple[str, float]]) -> Block:
    """Neighbours of equal weight as one."""
    runs = ((weight, "".join(text for text, _ in run)) for weight, run in groupby(pieces, itemgetter(1)))
    return tuple(Segment(text, weight) for weight, text in runs)


def _pieces(text: str) -> tuple[list[str | None], list[_Span]]:
    """Words, with None for each BREAK, and the brackets around them in the order in which they close."""
    pieces: list[str | None] = []
    spans: list[_Span] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        spans.append(_Span(bracket, opened[bracket].pop(), len(pieces), factor, len(spans)))

    for match in _PIECE.finditer(text):
        piece, weight = match.group(), _number(match["weight"])
        if piece in opened:
            opened[piece].append(len(pieces))
        elif weight is not None and opened["("]:
            close("(", weight)
        elif piece == ")" and opened["("]:
            close("(", MORE)
        elif piece == "]" and opened["["]:
            close("[", LESS)
        elif match["weight"] is not None and weight is None and opened["("]:
            pieces.append(piece[:-1])  # no number, but the bracket closes
            close("(", MORE)
        elif piece[0] == "\\":
            pieces.append(piece[1:])  # nothing of one that stands before something else
        else:
            pieces += _broken(piece)
    for bracket, factor in (("(", MORE), ("[", LESS)):
        while opened[bracket]:
            close(bracket, factor)
    return pieces, spans


def _number(text: str | None) -> float | None:
    """A number, if it is one: `.` and `1.2.3` are none."""
    try:
        return None if text is None else min(max(float(text), -LARGEST), LARGEST)
    except ValueError:
        return None


def _broken(text: str) -> Iterator[str | None]:
    """Words split at BREAK, which takes the spaces around it along."""
    parts = _BREAK.split(text)
    for k, part in enumerate(parts):
        if k > 0:
            yield None
        words = part if k == 0 else part.lstrip()
        yield words.rstrip() if k + 1 < len(parts) else words


@dataclass
class _Around:
    """The brackets of one kind around a place, from the outermost to the innermost."""

    waiting: list[_Span]
    """Those that begin later, the next one last."""
    spans: list[_Span]
    products: list[float]
    """Of all factors up to each."""

    @classmethod
    def of(cls, spans: Sequence[_Span]) -> _Around:
        # Of those that begin at one place, the one that closes last is the outermost.
        return cls(sorted(spans, key=lambda span: (span.start, -span.order), reverse=True), [], [1.0])

    def move(self, place: int) -> bool:
        """Go on to a later place; whether others are around it."""
        before = len(self.waiting), len(self.spans)
        while self.spans and self.spans[-1].end <= place:
            self.spans.pop()
            self.products.pop()
        while self.waiting and self.waiting[-1].start <= place:
            span = self.waiting.pop()
            if span.end > place:
                self.spans.append(span)
                self.products.append(_bounded(self.products[-1] * span.factor))
        return before != (len(self.waiting), len(self.spans))


def _weights(count: int, spans: Sequence[_Span]) -> Iterator[float]:
    """What each of `count` pieces weighs: the product of the brackets around it."""
    kinds = [_Around.of([span for span in spans if span.bracket == bracket]) for bracket in "(["]
    weight = 1.0
    for place in range(count):
        moved = [kind.move(place) for kind in kinds]
        if any(moved):
            weight = _product(kinds)
        yield weight


def _product(kinds: Sequence[_Around]) -> float:
    """Of the factors of all brackets around a place."""
    around = [span for kind in kinds for span in kind.spans[-EXACT - 1 :]]
    if len(around) > EXACT:
        return _bounded(math.prod(kind.products[-1] for kind in kinds))
    weight = 1.0
    for span in sorted(around, key=attrgetter("order")):
        weight = _bounded(weight * span.factor)
    return weight


def _bounded(weight: float) -> float:
    return min(max(weight, -LARGEST), LARGEST)


def written(blocks: Sequence[Block]) -> str:
    """A text that reads as these blocks."""
    texts = []
    for k, block in enumerate(blocks):
        parts = []
        for segment in block:
            text = _ESCAPED.sub(r"\\\g<0>", segment.text)
            text = _BREAK.sub("B(REAK:1)", text)  # a word that came together from pieces
            before, after = k > 0 and segment is block[0], k + 1 < len(blocks) and segment is block[-1]
            bare = segment.weight == 1.0 and not (before and text[0].isspace()) and not (after and text[-1].isspace())
            parts.append(text if bare else f"({text}:{Decimal(repr(segment.weight)):f})")
        texts.append("".join(parts))
    return " BREAK ".join(texts)
