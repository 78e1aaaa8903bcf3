"""Words and pictures on paper: what every contact sheet is made of. The same sheet is the same bytes."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from PIL import Image, ImageFont

from safelight.errors import RequestError

PAPER, INK, FAINT = (255, 255, 255), (40, 40, 40), (125, 125, 125)
GAP = 2
"""Pixels between pictures that belong together."""
_NEVER = "\uffff"  # no font has it
_MORE = "…"

Font = ImageFont.FreeTypeFont


def font(size: int, file: Path | None = None) -> Font:
    """Letters of that many pixels: of a file, or those that Pillow brings, which know little more than English.

    Raises:
        RequestError: the file is no font.
    """
    if file is None:
        return cast(Font, ImageFont.load_default(size))
    try:
        return ImageFont.truetype(str(file), size)
    except (OSError, ValueError) as error:
        raise RequestError(f"--font {str(file)!r} is no font that can be read: give a .ttf or .otf file") from error


def legible(text: str, letters: Font) -> tuple[str, str]:
    """The text on one line in letters that the font has, and those that it has not: they stay as its empty boxes.

    An accent that is missing is left out, so that é is e.
    """
    missing, line = _mask(_NEVER, letters), []
    lost: dict[str, None] = {}
    for character in unicodedata.normalize("NFC", " ".join(text.split())):
        bare = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
        forms = (form for form in (character, bare) if form)
        known = next((f for f in forms if all(c == " " or _mask(c, letters) != missing for c in f)), None)
        line.append(character if known is None else known)
        if known is None:
            lost[character] = None
    return "".join(line), "".join(lost)


def _mask(character: str, letters: Font) -> tuple[tuple[int, int], bytes]:
    mask = letters.getmask(character)
    return mask.size, bytes(mask)


def wrapped(text: str, letters: Font, width: int, most: int) -> list[str]:
    """The text in lines of at most `width` pixels; where `most` lines are too few, the last one ends in dots."""
    lines: list[str] = []
    line = ""
    for word in _fitting(text.split(), letters, width):
        longer = f"{line} {word}" if line else word
        if line and letters.getlength(longer) > width:
            lines.append(line)
            if len(lines) > most:
                break
            longer = word
        line = longer
    lines += [line] if line else []
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and letters.getlength(last + _MORE) > width:
        last = last[:-1]
    return [*lines[: most - 1], last.rstrip() + _MORE]


def _fitting(words: Sequence[str], letters: Font, width: int) -> list[str]:
    """Words of at most `width` pixels: longer ones, like paths, are cut."""
    fitting = []
    for word in words:
        rest = word
        while letters.getlength(rest) > width and len(rest) > 1:
            cut = 1
            while letters.getlength(rest[: cut + 1]) <= width:
                cut += 1
            fitting.append(rest[:cut])
            rest = rest[cut:]
        fitting.append(rest)
    return fitting


def mosaic(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a square grid, in order; one alone is itself."""
    if len(pictures) == 1:
        return pictures[0]
    (width, height), side = pictures[0].size, math.ceil(math.sqrt(len(pictures)))
    whole = Image.new("RGB", mosaic_size((width, height), len(pictures)), PAPER)
    for k, picture in enumerate(pictures):
        row, column = divmod(k, side)
        whole.paste(picture, (column * (width + GAP), row * (height + GAP)))
    return whole


def mosaic_size(size: tuple[int, int], count: int) -> tuple[int, int]:
    """Width and height of `count` pictures of that size as `mosaic` puts them."""
    side = math.ceil(math.sqrt(count))
    rows = math.ceil(count / side)
    return side * (size[0] + GAP) - GAP, rows * (size[1] + GAP) - GAP


def enlarged(picture: Image.Image, times: int) -> Image.Image:
    """Each pixel becomes `times` squared, with hard edges: nothing is made smoother than it is."""
    size = (picture.width * times, picture.height * times)
    return picture.resize(size, Image.Resampling.NEAREST)
