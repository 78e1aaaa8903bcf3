"""Words that change on the way: `[from:to:when]`, `[to:when]`, `[from::when]`, and `[this|that]` in turn.

A bracket is one of these if everything in it is well formed:

    inside     : (text | "(" inside ")" | "(" inside ":" inside ")" | "[" inside "]" | edit | turns)*
    edit       : "[" (inside ":")? inside ":" number "]"
    turns      : "[" inside ("|" inside)+ "]"
    text       : anything but []():| and backslashes, or a backslash and what stands behind it on the line

What is not well formed is text, brackets and all. Where even that is not allowed, as for a `|` outside of turns or a
backslash at the end, the whole prompt is text. So AUTOMATIC1111's web UI has it, whose grammar this is; it is read
here in one pass, in time that grows with the length and nothing else. Emphasis is text to this page: which of its
brackets weigh what is read from the words of each step (`emphasis`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

MAX_DEPTH = 64
"""Edits in edits. What is nested deeper is not well formed."""

_PIECE = re.compile(r"[^\\\[\]():|]+|\\.|[\[\]():|\\]")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+[eE][+-]?[0-9]+|(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+)")
_CLOSES = {")": "(", "]": "["}


@dataclass(frozen=True)
class Steps:
    """The steps that a `when` counts."""

    count: int
    """At least 1; the first step is 1."""
    before: int | None = None
    """In a second pass, how many steps the first one had: a whole `when` goes on counting from there, and a fraction
    of the second pass is above 1."""
    below_one: bool = False
    """The rule before version 1.6 of the web UI: every number below 1 is a fraction, and no other, in both passes."""

    def last(self, when: str) -> int:
        """The last step before the change, 0 to `count`. A number with a point is a fraction of the steps."""
        value = float(when)
        if self.below_one:
            value = value * self.count if value < 1 else value
        elif "." in when:
            value = (value - (self.before is not None)) * self.count
        elif self.before is not None:
            value -= self.before
        return int(min(max(value, 0.0), self.count))


@dataclass(frozen=True)
class Text:
    """Words as they are written."""

    source: str


@dataclass(frozen=True)
class Edit:
    """One thing, and another after a step."""

    before: Nodes | None
    """None: nothing, and its colon is not written either."""
    after: Nodes
    when: str
    """A number as it is written, with the spaces around it."""


@dataclass(frozen=True)
class Turns:
    """Several things, one after the other, a step each."""

    ways: tuple[Nodes, ...]
    """Two or more; any may be empty."""


Node = Text | Edit | Turns
Nodes = tuple[Node, ...]


@dataclass
class _Open:
    """A bracket that is not closed yet, by places among the items."""

    bracket: str
    place: int
    marks: list[int] = field(default_factory=list)
    """Where its colons and bars are."""
    signs: str = ""
    """Which they are."""
    depth: int = 0
    """Of the edits in it."""

    def fits(self, items: Sequence[Node]) -> bool:
        """Whether it is well formed, if it closes behind the items."""
        if self.bracket == "(":
            return self.signs in ("", ":")
        if self.signs == "":
            return True
        if self.depth >= MAX_DEPTH:
            return False
        if self.signs.strip("|") == "":
            return True
        when = items[self.marks[-1] + 1 :]
        number = "".join(item.source for item in when if isinstance(item, Text))
        return self.signs in (":", "::") and _NUMBER.fullmatch(number.strip()) is not None and _plain(when)

    def node(self, items: Sequence[Node]) -> Node | None:
        """What it is, if it fits; None: emphasis."""
        if self.bracket == "(" or self.signs == "":
            return None
        *fields, last = [_joined(items[a + 1 : b]) for a, b in pairwise([self.place, *self.marks, len(items)])]
        if self.signs[0] == "|":
            return Turns((*fields, last))
        return Edit(None if len(fields) == 1 else fields[0], fields[-1], written(last))


def read(text: str) -> Nodes:
    """The tree of a text, of which `written` makes the same text again. Every text has one."""
    items: list[Node] = []
    opened: list[_Open] = []
    for match in _PIECE.finditer(text):
        piece = match.group()
        if piece == "\\" or (piece == "|" and not opened):
            return (Text(text),)
        if piece in "([":
            opened.append(_Open(piece, len(items)))
        elif piece in ":|" and opened:
            opened[-1].marks.append(len(items))
            opened[-1].signs += piece
        elif piece in ")]" and (not opened or opened[-1].bracket != _CLOSES[piece] or not opened[-1].fits(items)):
            if _barred(opened):
                return (Text(text),)
            opened.clear()  # with one that is not well formed, none around it is
        elif piece in ")]":
            closed = opened.pop()
            node = closed.node(items)
            if opened:
                opened[-1].depth = max(opened[-1].depth, closed.depth + (node is not None))
            if node is not None:
                items[closed.place :] = [node]
                continue
        items.append(Text(piece))
    return (Text(text),) if _barred(opened) else _joined(items)


def _barred(opened: Sequence[_Open]) -> bool:
    """Whether a bar stands in brackets that came to nothing: a bar is not text."""
    return any("|" in bracket.signs for bracket in opened)


def _plain(items: Sequence[Node]) -> bool:
    return all(isinstance(item, Text) for item in items)


def _joined(items: Sequence[Node]) -> Nodes:
    """The same with neighbouring texts in one."""
    nodes: list[Node] = []
    texts: list[str] = []
    for item in items:
        if isinstance(item, Text):
            texts.append(item.source)
            continue
        if texts:
            nodes.append(Text("".join(texts)))
            texts = []
        nodes.append(item)
    return (*nodes, Text("".join(texts))) if texts else tuple(nodes)


def written(nodes: Nodes) -> str:
    """The text of a tree."""
    return "".join(_written(node) for node in nodes)


def _written(node: Node) -> str:
    if isinstance(node, Text):
        return node.source
    if isinstance(node, Turns):
        return f"[{'|'.join(map(written, node.ways))}]"
    before = "" if node.before is None else f"{written(node.before)}:"
    return f"[{before}{written(node.after)}:{node.when}]"


def said(nodes: Nodes, step: int, steps: Steps) -> str:
    """What stands there at a step, which is 1 to `steps.count`."""
    return "".join(_said(node, step, steps) for node in nodes)


def _said(node: Node, step: int, steps: Steps) -> str:
    if isinstance(node, Text):
        return node.source
    if isinstance(node, Turns):
        return said(node.ways[(step - 1) % len(node.ways)], step, steps)
    if step > steps.last(node.when):
        return said(node.after, step, steps)
    return "" if node.before is None else said(node.before, step, steps)


def schedule(nodes: Nodes, steps: Steps) -> list[tuple[int, str]]:
    """(last step, what stands there until then), from the first steps to the last."""
    stops = {steps.count, *(stop for stop in _stops(nodes, steps) if stop >= 1)}
    return [(stop, said(nodes, stop, steps)) for stop in sorted(stops)]


def _stops(nodes: Nodes, steps: Steps) -> Iterator[int]:
    """Every step after which something may change, whether or not it is said then."""
    for node in nodes:
        if isinstance(node, Turns):
            yield from range(1, steps.count + 1)
            for way in node.ways:
                yield from _stops(way, steps)
        elif isinstance(node, Edit):
            yield steps.last(node.when)
            yield from _stops(() if node.before is None else node.before, steps)
            yield from _stops(node.after, steps)
