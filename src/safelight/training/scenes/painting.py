"""Where things stand, and the pixels. Lengths are in 64ths of the picture's side until they become pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from safelight.training.scenes import glyphs
from safelight.training.scenes.facts import GROUNDS, Facts, Layout, Size, Texture, layout, seen_order

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside

_SIDES: dict[Size, float] = {"small": 22.0, "medium": 34.0, "large": 44.0}  # of a single object
_PAIR_SIDES: dict[Size, float] = {"small": 18.0, "medium": 27.0, "large": 27.0}
_OVERLAP_SIDES: dict[Size, float] = {"small": 24.0, "medium": 30.0, "large": 30.0}
_ROW_SIDE = 19.0
_SIZE_STEPS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # few sizes, so that resized glyphs can be kept
_SLOTS: dict[Layout, tuple[tuple[float, float], ...]] = {  # centres of several objects, in the order seen
    "side by side": ((17.0, 32.0), (47.0, 32.0)),
    "stacked": ((32.0, 17.0), (32.0, 47.0)),
    "overlapping": ((38.0, 40.0), (26.0, 25.0)),
    "three in a row": ((11.5, 32.0), (32.0, 32.0), (52.5, 32.0)),
}
_SHADOW = 0.3  # darkness under an object, so that it stands out from a ground of its own colour
_OPAQUE = 128  # alpha from which a pixel belongs to an object
_KEPT_SIDE = 192  # pixels: larger resized glyphs would fill the memory, so they are made anew each time


@dataclass(frozen=True)
class Placement:
    """The square that holds an object: its centre and its side, in 64ths of the picture's side."""

    x: float
    y: float
    side: float


class Sprite(NamedTuple):
    """A glyph at one size with its shadow, in a square padded by `pad` pixels on every side.

    colour: (s, s, 3) 0..255, premultiplied by alpha. through: (s, s, 1) what is seen of the ground, 0..1.
    opaque: (s, s), where the object itself is. box: the opaque part's bounds within the square.
    """

    colour: Floats
    through: Floats
    opaque: Bools
    box: Box
    pad: int


def place(facts: Facts, rng: Random) -> tuple[Placement, ...]:
    """One placement per object, in the order of the facts, inside the picture, with a little jitter."""
    seen = layout(facts)
    if len(facts.objects) == 1:
        side = _SIDES[facts.sizes[0]] * (1 + 0.08 * rng.choice(_SIZE_STEPS))
        reach = 31.0 - side / 2  # how far from the middle an object stands at an edge
        dx = {"left": -reach, "right": reach}.get(seen, 0.0)
        dy = {"top": -reach, "bottom": reach}.get(seen, 0.0)
        x, y = 32.0 + dx + rng.uniform(-2, 2), 32.0 + dy + rng.uniform(-2, 2)
        return (_inside(x, y, side),)
    # Jitter of the pair as a whole is large, of each object small: so that neighbours never touch.
    jitter, own = (1.0, 0.25) if seen == "three in a row" else (1.5, 0.5)
    shift_x, shift_y = rng.uniform(-jitter, jitter), rng.uniform(-jitter, jitter)
    placements = [Placement(0.0, 0.0, 0.0)] * len(facts.objects)
    for slot, i in enumerate(seen_order(facts)):
        if seen == "three in a row":
            side = _ROW_SIDE * (1 + 0.05 * rng.choice(_SIZE_STEPS))
        else:
            sides = _OVERLAP_SIDES if seen == "overlapping" else _PAIR_SIDES
            side = sides[facts.sizes[i]] * (1 + 0.07 * rng.choice(_SIZE_STEPS))
        x, y = _SLOTS[seen][slot]
        placements[i] = _inside(x + shift_x + rng.uniform(-own, own), y + shift_y + rng.uniform(-own, own), side)
    return tuple(placements)


def _inside(x: float, y: float, side: float) -> Placement:
    low, high = side / 2 + 0.5, 63.5 - side / 2
    return Placement(min(max(x, low), high), min(max(y, low), high), side)


def _make_sprite(name: str, side: int) -> Sprite:
    glyph = glyphs.picture(name).resize((side, side), Image.Resampling.BICUBIC)
    pad = max(1, round(side * 0.06))
    size = side + 2 * pad
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(glyph, (pad, pad))
    shadow = Image.new("L", (size, size))
    shadow.paste(glyph.getchannel("A"), (pad, pad + pad // 2))
    shadow = shadow.filter(ImageFilter.GaussianBlur(side * 0.03))
    pixels = np.asarray(canvas, np.float32)
    alpha = pixels[..., 3:] / 255
    through = (1 - alpha) * (1 - _SHADOW * np.asarray(shadow, np.float32)[..., None] / 255)
    opaque: Bools = pixels[..., 3] >= _OPAQUE
    rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    colour = pixels[..., :3] * alpha
    return Sprite(colour.astype(np.float32), through.astype(np.float32), opaque, box, pad)


_kept_sprite = lru_cache(maxsize=4096)(_make_sprite)


def _sprite(name: str, placement: Placement, size: int) -> tuple[Sprite, int, int]:
    """The sprite, and the column and row of its upper left corner: its padding may be outside the picture."""
    scale = size / 64
    side = max(4, round(placement.side * scale))
    sprite = _kept_sprite(name, side) if side <= _KEPT_SIDE else _make_sprite(name, side)
    left = min(max(round(placement.x * scale - side / 2), 0), size - side)
    top = min(max(round(placement.y * scale - side / 2), 0), size - side)
    return sprite, left - sprite.pad, top - sprite.pad


@lru_cache(maxsize=64)
def _pattern(texture: Texture, size: int, phase: int) -> Floats:
    """(S, S, 1): how much of the second tone is where, 0..1."""
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32) + 0.5) * (64 / size)
    sharp = size / 64  # steps from tone to tone about a pixel wide: clean edges at every size
    match texture:
        case "plain":
            pattern = np.zeros_like(x)
        case "gradient":
            pattern = y / 64
        case "striped":
            pattern = np.sin((x + y + 4 * phase) * (np.pi / 8)) * 2 * sharp + 0.5
        case "dotted":
            pattern = (3.5 - np.hypot((x + 4 * phase) % 16 - 8, (y + 4 * phase) % 16 - 8)) * sharp + 0.5
        case "checkered":
            pattern = np.sin((x + 4 * phase) * (np.pi / 8)) * np.sin(y * (np.pi / 8)) * 5 * sharp + 0.5
    kept: Floats = np.clip(pattern, 0, 1).astype(np.float32)[..., None]
    return kept


def _ground(facts: Facts, rng: Random, size: int) -> Floats:
    """(S, S, 3), 0..255. The tones of a texture are shades of the ground's colour, itself a little varied."""
    base = np.array([tone + rng.uniform(-6, 6) for tone in GROUNDS[facts.ground]], np.float32).clip(0, 255)
    phase = rng.randrange(4)
    light, dark = base + (255 - base) * 0.22, base * 0.86
    first, second = base, dark if facts.ground in ("white", "yellow") else light
    if facts.texture == "gradient":
        first, second, phase = light, dark, 0
    ground: Floats = first + _pattern(facts.texture, size, phase) * (second - first)
    return ground


def _overlap(sprite: Sprite, left: int, top: int, size: int) -> tuple[slice, slice, slice, slice]:
    """Rows and columns of the picture that the sprite covers, then the same of the sprite itself."""
    side = sprite.opaque.shape[0]
    rows, columns = slice(max(top, 0), min(top + side, size)), slice(max(left, 0), min(left + side, size))
    return (
        rows,
        columns,
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )


def paint(
    facts: Facts, placements: tuple[Placement, ...], order: tuple[int, ...], rng: Random, size: int
) -> npt.NDArray[np.uint8]:
    """The picture, (S, S, 3) uint8 RGB.

    order: indices of the objects from back to front. rng: draws the shade of the ground.
    """
    canvas = _ground(facts, rng, size)
    for i in order:
        sprite, left, top = _sprite(facts.objects[i], placements[i], size)
        rows, columns, own_rows, own_columns = _overlap(sprite, left, top, size)
        part = canvas[rows, columns]
        part *= sprite.through[own_rows, own_columns]
        part += sprite.colour[own_rows, own_columns]
    return (canvas + 0.5).astype(np.uint8)


def boxes(facts: Facts, placements: tuple[Placement, ...], size: int) -> tuple[Box, ...]:
    """The bounds of each whole object in pixels, hidden parts included, in the order of the facts."""
    found = []
    for name, placement in zip(facts.objects, placements, strict=True):
        sprite, left, top = _sprite(name, placement, size)
        x0, y0, x1, y1 = sprite.box
        found.append((left + x0, top + y0, left + x1, top + y1))
    return tuple(found)


def masks(facts: Facts, placements: tuple[Placement, ...], order: tuple[int, ...], size: int) -> Bools:
    """(n, S, S): where each object is seen, in the order of the facts; no pixel belongs to two."""
    seen = np.zeros((len(order), size, size), np.bool_)
    for i in order:  # who comes later stands in front
        sprite, left, top = _sprite(facts.objects[i], placements[i], size)
        rows, columns, own_rows, own_columns = _overlap(sprite, left, top, size)
        opaque = sprite.opaque[own_rows, own_columns]
        seen[:, rows, columns] &= ~opaque
        seen[i, rows, columns] |= opaque
    return seen
