"""One sheet for all cells: columns along x, rows along y, one such block for each value of z, labels on each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageDraw

from safelight.errors import RequestError
from safelight.tasks.lettering import FAINT, INK, PAPER, Font, enlarged, font, legible, wrapped

MAX_SHEET_PIXELS = 89_000_000
"""Of a sheet: Pillow and what is made with it warn of decompression bombs above 89.4 million."""
SMALL = 128
"""Pixels: where every picture is smaller, they are enlarged to about this size."""
MARGIN, PAD, GAP = 16, 8, 6  # around all, beside a label, between cells
VALUE_SIZE, FIELD_SIZE, TITLE_SIZE = 18, 13, 22
LINE, SMALL_LINE, TITLE_LINE = 23, 18, 34
NARROWEST, WIDEST = 88, 220
"""Pixels of a column, for its label; and of the labels of rows."""
MOST_LINES = 4
EMPTY = 4.0
"""How much worse an empty place is than a sheet that is no square: three blocks stand in a row, seven in threes."""
LONGEST = 1000
"""Characters of a label that are looked at: more do not fit on any."""

Size = tuple[int, int]
Spot = tuple[int, int, int]
"""Of a cell: column, row, block."""


@dataclass(frozen=True)
class Label:
    """What is varied, and its value here."""

    field: str
    value: str


@dataclass(frozen=True)
class Look:
    """How a sheet is made."""

    cell_size: int | None = None
    """Pixels of the longest side of the largest picture on the sheet. None: as they are, but small ones enlarged."""
    font: Path | None = None
    """A font file for the labels. None: Pillow's own, which knows little more than English."""


@dataclass(frozen=True)
class Layout:
    """Where everything stands, in pixels."""

    look: Look
    labels: tuple[Sequence[Label], ...]
    """Of x, y and z; none for a direction that is not there."""
    cells: Mapping[Spot, Size]
    """Of the cell's pictures, before they are scaled."""
    letters: dict[int, Font] = field(default_factory=dict)

    @cached_property
    def scale(self) -> float:
        """How much larger pictures are on the sheet; a whole number where they are."""
        longest = max(max(size) for size in self.cells.values())
        if self.look.cell_size is None:
            return max(1, math.ceil(SMALL / longest)) if longest < SMALL else 1
        scale = self.look.cell_size / longest
        return math.floor(scale) if scale >= 1 else scale

    def scaled(self, size: Size) -> Size:
        """The size on the sheet."""
        return max(1, round(size[0] * self.scale)), max(1, round(size[1] * self.scale))

    def count(self, axis: int) -> int:
        """How many columns, rows or blocks."""
        return max(spot[axis] for spot in self.cells) + 1

    @cached_property
    def widths(self) -> list[int]:
        """Of all columns."""
        return self._extent(0)

    @cached_property
    def heights(self) -> list[int]:
        """Of all rows."""
        return self._extent(1)

    def _extent(self, axis: int) -> list[int]:
        least = NARROWEST if axis == 0 else (SMALL_LINE + LINE if self.labels[1] else 1)
        longest = [least] * self.count(axis)
        for spot, size in self.cells.items():
            longest[spot[axis]] = max(longest[spot[axis]], self.scaled(size)[axis])
        return longest

    def written(self, label: Label, width: int, most: int) -> list[tuple[str, int]]:
        """The lines of a label with the sizes of their letters: the field small, the value under it."""
        small, large = self.pen(FIELD_SIZE), self.pen(VALUE_SIZE)
        name = wrapped(legible(label.field[:LONGEST], small)[0], small, width, 1)
        value = wrapped(legible(label.value[:LONGEST], large)[0], large, width, most)
        return [(line, FIELD_SIZE) for line in name] + [(line, VALUE_SIZE) for line in value]

    def pen(self, size: int) -> Font:
        """Letters of that size."""
        if size not in self.letters:
            self.letters[size] = font(size, self.look.font)
        return self.letters[size]

    @cached_property
    def left(self) -> int:
        """The width of the labels of rows."""
        if not self.labels[1]:
            return 0
        small, large = self.pen(FIELD_SIZE), self.pen(VALUE_SIZE)
        lengths = [max(large.getlength(row.value[:99]), small.getlength(row.field[:99])) for row in self.labels[1]]
        return min(WIDEST, math.ceil(max(lengths))) + 2 * PAD

    @cached_property
    def top(self) -> int:
        """The height of the labels of columns."""
        pairs = zip(self.labels[0], self.widths, strict=True)
        return max(_height(self.written(label, width, MOST_LINES)) for label, width in pairs) + PAD

    @cached_property
    def block(self) -> Size:
        """Of one value of z, with its title."""
        title = TITLE_LINE if self.labels[2] else 0
        width = self.left + sum(self.widths) + GAP * (self.count(0) - 1)
        return width, title + self.top + sum(self.heights) + GAP * (self.count(1) - 1)

    @cached_property
    def abreast(self) -> int:
        """How many blocks stand side by side: the sheet is to be like a square, with few places left empty."""
        (width, height), n = self.block, self.count(2)

        def awkward(columns: int) -> float:
            rows = math.ceil(n / columns)
            return abs(math.log(columns * width / (rows * height))) + EMPTY * math.log(rows * columns / n)

        return min(range(1, n + 1), key=awkward)

    @property
    def size(self) -> Size:
        """Of the sheet."""
        (width, height), columns = self.block, self.abreast
        rows = math.ceil(self.count(2) / columns)
        return columns * (width + MARGIN) + MARGIN, rows * (height + MARGIN) + MARGIN

    def require_room(self) -> None:
        """Raises RequestError if the sheet is too large."""
        width, height = self.size
        if width * height > MAX_SHEET_PIXELS:
            raise RequestError(
                f"the sheet would be {width}x{height}, more than {MAX_SHEET_PIXELS // 10**6} million pixels: "
                "make the pictures on it smaller by --cell-size, or give fewer values"
            )

    @property
    def unwritten(self) -> str:
        """The characters of the labels that the font does not have."""
        words = "".join(label.field + label.value for labels in self.labels for label in labels)
        return legible("".join(dict.fromkeys(words)), self.pen(VALUE_SIZE))[1]


def compose(layout: Layout, picture: Callable[[Spot], Image.Image]) -> Image.Image:
    """The sheet; pictures are asked for one by one, and none is kept.

    Raises:
        RequestError: the sheet is too large.
    """
    layout.require_room()
    sheet = Image.new("RGB", layout.size, PAPER)
    draw = ImageDraw.Draw(sheet)
    widths, heights = layout.widths, layout.heights
    lefts = list(accumulate((w + GAP for w in widths[:-1]), initial=layout.left))
    title = TITLE_LINE if layout.labels[2] else 0
    tops = list(accumulate((h + GAP for h in heights[:-1]), initial=title + layout.top))
    for z in range(layout.count(2)):
        row, column = divmod(z, layout.abreast)
        left, top = MARGIN + column * (layout.block[0] + MARGIN), MARGIN + row * (layout.block[1] + MARGIN)
        if layout.labels[2]:
            _title(layout, draw, layout.labels[2][z], (left, top))
        for label, x, width in zip(layout.labels[0], lefts, widths, strict=True):
            lines = layout.written(label, width, MOST_LINES)
            _write(layout, draw, lines, (left + x + width // 2, top + tops[0] - PAD - _height(lines)), "ma")
        for label, y, height in zip(layout.labels[1], tops, heights, strict=False):
            lines = layout.written(label, layout.left - 2 * PAD, max(1, (height - SMALL_LINE) // LINE))
            _write(layout, draw, lines, (left + layout.left - PAD, top + y + (height - _height(lines)) // 2), "ra")
        for spot in sorted(s for s in layout.cells if s[2] == z):
            x, y = left + lefts[spot[0]], top + tops[spot[1]]
            _put(layout, sheet, picture(spot), (x, y, widths[spot[0]], heights[spot[1]]))
    return sheet


def _put(layout: Layout, sheet: Image.Image, picture: Image.Image, box: tuple[int, int, int, int]) -> None:
    """A picture in the middle of its box."""
    if layout.scale > 1:
        picture = enlarged(picture, int(layout.scale))
    elif layout.scale < 1:
        picture = picture.resize(layout.scaled(picture.size), Image.Resampling.LANCZOS)
    x, y, width, height = box
    sheet.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))


def _title(layout: Layout, draw: ImageDraw.ImageDraw, label: Label, at: tuple[int, int]) -> None:
    """The value of z over its block."""
    letters = layout.pen(TITLE_SIZE)
    words = legible(f"{label.field}: {label.value}"[:LONGEST], letters)[0]
    [line] = wrapped(words, letters, layout.block[0], 1)
    draw.text(at, line, fill=INK, font=letters)


def _write(
    layout: Layout, draw: ImageDraw.ImageDraw, lines: Sequence[tuple[str, int]], at: tuple[int, int], anchor: str
) -> None:
    """The lines of a label under each other."""
    x, y = at
    for line, size in lines:
        draw.text((x, y), line, fill=INK if size == VALUE_SIZE else FAINT, font=layout.pen(size), anchor=anchor)
        y += LINE if size == VALUE_SIZE else SMALL_LINE


def _height(lines: Sequence[tuple[str, int]]) -> int:
    return sum(LINE if size == VALUE_SIZE else SMALL_LINE for _, size in lines)
