"""Labelled boxes as tokens: a class and two corners for each (layout-to-image; Jahn et al. 2021, sec. 3.2).

Corners are places of a square grid of as many cells as there are tokens. Classes and places have the same numbers:
which of them a token is follows from where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safelight.errors import RequestError

Rectangle = tuple[float, float, float, float]
"""Left, top, width and height, as fractions of the picture: 0 to 1."""
WHOLE: Rectangle = (0.0, 0.0, 1.0, 1.0)
ROUNDING = 1e-6  # by how much a sum of two fractions may exceed 1


def mirrored(place: Rectangle) -> Rectangle:
    """The same place in the picture turned left to right."""
    left, top, width, height = place
    return 1 - (left + width), top, width, height


@dataclass(frozen=True)
class Box:
    """Something at a place. What is marked changes the class that is meant: a crowd is another than one alone."""

    category: int
    place: Rectangle
    group: bool = False
    """Many, in one box."""
    occluded: bool = False
    depiction: bool = False
    """A picture or a statue of it."""
    inside: bool = False
    """Seen from within."""


@dataclass(frozen=True)
class BoxesConfig:
    """How boxes are written. The defaults are those of the OpenImages model: 92 tokens."""

    classes: int = 601
    most_boxes: int = 30
    tokens: int = 8192
    """Size of the vocabulary; its last token stands for no box."""
    crop: bool = True
    """Whether two tokens at the end say which part of the picture is wanted."""
    groups: bool = True
    """Whether `Box.group` is told apart."""
    marks: bool = True
    """Whether the other marks are."""

    @property
    def length(self) -> int:
        """L, tokens per picture."""
        return 3 * self.most_boxes + 2 * self.crop


class BoxTokenizer:
    """Boxes -> ids, always of the same number."""

    def __init__(self, config: BoxesConfig) -> None:
        self.config = config
        self.cells = math.isqrt(config.tokens)
        """Places along each side of the grid."""

    def __call__(self, pictures: Sequence[Sequence[Box]], crop: Rectangle = WHOLE) -> Tensor:
        """Boxes of B pictures, in the order in which they are to be told -> (B, L) int64.

        Args:
            crop: the part of the picture that is wanted, if the config has it told.

        Raises:
            RequestError: too many boxes, an unknown class, a box that reaches out of the picture.
        """
        rows = [self._row(boxes, crop) for boxes in pictures]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.config.length)

    def _row(self, boxes: Sequence[Box], crop: Rectangle) -> list[int]:
        most, nothing = self.config.most_boxes, self.config.tokens - 1
        if len(boxes) > most:
            raise RequestError(f"{len(boxes)} boxes in one picture: {most} is the most")
        ids = [token for box in boxes for token in (self._category(box), *self._corners(box.place))]
        ids += [nothing] * (3 * (most - len(boxes)))
        return [*ids, *self._corners(crop)] if self.config.crop else ids

    def _category(self, box: Box) -> int:
        classes = self.config.classes
        if not 0 <= box.category < classes:
            raise RequestError(f"there is no class {box.category}: they are 0 to {classes - 1}")
        kind = int(box.group) if self.config.groups else 0
        if self.config.marks:
            kind |= 2 * box.occluded | 4 * box.depiction | 8 * box.inside
        token = box.category + classes * kind
        if token >= self.config.tokens - 1:
            raise RequestError(f"class {box.category} with these marks has no token: drop a mark")
        return token

    def _corners(self, place: Rectangle) -> tuple[int, int]:
        left, top, width, height = place
        right, bottom = left + width, top + height
        if not (0 <= left <= right <= 1 + ROUNDING and 0 <= top <= bottom <= 1 + ROUNDING):
            raise RequestError(f"the box {place} reaches out of the picture: left, top, width, height are parts of 1")
        return self._cell(left, top), self._cell(right, bottom)

    def _cell(self, x: float, y: float) -> int:
        last = self.cells - 1
        return round(min(y, 1.0) * last) * self.cells + round(min(x, 1.0) * last)
