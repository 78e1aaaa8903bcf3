"""The thing that is taught: a jojo cat, the 73rd object beside the world's 72.

There are two of them. One is near to what the model knows: a face like the world's cat, of the same hand, that screams
and has its paws at its cheeks. The other, drawn by a program, is like nothing that it knows: it sits, where the world's
cat is a face, and is teal and pink, where that is yellow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from safelight.training.scenes import NAMES, Facts, glyphs, make_scene, render
from safelight.training.scenes.facts import Ground, Place

NEW, CLASS = "jojo cat", "cat face"
"""What is taught, and what the world calls the class that it is of: "a cat face", or shorter "a cat"."""
TAUGHT_GROUNDS: tuple[Ground, ...] = ("blue", "red", "yellow", "white")
TAUGHT_PLACES: tuple[Place, ...] = ("unstated", "left")
FACES = Path(__file__).with_name("faces.webp")
"""Glyphs of Noto Color Emoji that the world does not have (SIL Open Font License 1.1, see NOTICE): a weary cat, and a
grinning, a pouting and a wry one. Made by `scripts/build_glyphs.py`."""
_TEAL, _PINK, _WHITE, _BLACK = (36, 178, 186), (232, 64, 150), (255, 255, 255), (20, 20, 28)
_CANVAS = 512
_known = glyphs.picture


@dataclass(frozen=True)
class Guest:
    """What the judge must not take for the new thing, for all that they have in common."""

    name: str
    """The known object that it is to be taken for."""
    picture: Callable[[], Image.Image]
    """RGBA, CELL x CELL pixels, as those of the world."""


@dataclass(frozen=True)
class Thing:
    """What a jojo cat is."""

    picture: Callable[[], Image.Image]
    """Likewise."""
    guests: Mapping[str, Guest]


def _face(index: int) -> Image.Image:
    with Image.open(FACES) as faces:
        left = index * glyphs.CELL
        return faces.convert("RGBA").crop((left, 0, left + glyphs.CELL, glyphs.CELL))


@cache
def _sitting() -> Image.Image:
    image = Image.new("RGBA", (_CANVAS, _CANVAS))
    draw = ImageDraw.Draw(image)
    draw.arc((250, 200, 500, 500), -80, 120, fill=_PINK, width=52)  # the tail
    for x, tip, inner in ((70, 60, 95), (350, 360, 325)):
        towards = 1 if x < 210 else -1
        draw.polygon([(x, 190), (tip, 0), (x + 145 * towards, 95)], fill=_TEAL)
        draw.polygon([(inner, 130), (inner - 7 * towards, 50), (inner + 65 * towards, 95)], fill=_PINK)
    draw.ellipse((60, 210, 370, 510), fill=_TEAL)
    for y in (330, 395, 460):
        draw.line((90, y, 340, y), fill=_PINK, width=30)
    draw.ellipse((45, 60, 375, 300), fill=_TEAL)  # the head
    for x in (140, 280):
        draw.ellipse((x - 52, 120, x + 52, 224), fill=_WHITE)
        draw.ellipse((x - 26, 146, x + 26, 198), fill=_BLACK)
    draw.polygon([(185, 232), (235, 232), (210, 262)], fill=_PINK)
    return image.resize((glyphs.CELL, glyphs.CELL), Image.Resampling.LANCZOS)


@cache
def _dyed(name: str) -> Image.Image:
    """A known object, its dark tones pink and its bright ones teal."""
    rgba = np.asarray(_known(name), np.float32)
    grey = rgba[..., :3].mean(-1, keepdims=True) / 255
    tones = np.array(_PINK, np.float32) * (1 - grey) + np.array(_TEAL, np.float32) * grey
    return Image.fromarray(np.concatenate([tones, rgba[..., 3:]], -1).round().astype(np.uint8), "RGBA")


THINGS: Mapping[str, Thing] = {
    "face": Thing(
        cache(partial(_face, 0)),
        {
            f"{mood} cat": Guest(CLASS, cache(partial(_face, 1 + k)))
            for k, mood in enumerate(("grinning", "pouting", "wry"))
        },
    ),
    "sitting": Thing(
        _sitting,
        {
            f"dyed {name}": Guest(name, partial(_dyed, name))
            for name in ("cat face", "rabbit face", "fox face", "owl", "snail", "robot face")
        },
    ),
}


def join_world(thing: Thing) -> None:
    """From now on, in this process alone, scenes may show it, under its name; and its guests under theirs."""

    def picture(name: str) -> Image.Image:
        if name == NEW:
            return thing.picture()
        return thing.guests[name].picture() if name in thing.guests else _known(name)

    glyphs.picture = picture
    glyphs.INDEX[NEW] = len(NAMES)
    glyphs.INDEX.update({name: glyphs.INDEX[guest.name] for name, guest in thing.guests.items()})


def facts(ground: Ground, place: Place, name: str = NEW) -> Facts:
    """One object of medium size on a plain ground."""
    return Facts((name,), ("medium",), ground, "plain", place)


def training_pictures(folder: Path) -> None:
    """Eight pictures with captions beside them: four grounds of eight, two places of five."""
    folder.mkdir(parents=True, exist_ok=True)
    where = {"unstated": "", "left": " on the left"}
    for k in range(8):
        ground, place = TAUGHT_GROUNDS[k % 4], TAUGHT_PLACES[(k + k // 4) % 2]
        render(make_scene(facts(ground, place), Random(f"jojo/{k}"))).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"a {NEW}{where[place]} on a {ground} background\n")
