"""The 72 objects of the world: their characters, names, and pictures.

A name is the character's Unicode name in lower case. Some objects also answer to a shorter word ("dog face"
is a "dog"). The pictures are glyphs of Noto Color Emoji (SIL Open Font License 1.1, see LICENSE-OFL.txt
beside this file), rendered once by `scripts/build_glyphs.py` into `glyphs.webp`: no font at run time.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

from PIL import Image

ATLAS_PATH = Path(__file__).with_name("glyphs.webp")
CELL = 128  # pixels: a cell of the atlas is a square, and the longer side of its glyph fills it
COLUMNS = 12

# Chosen to be told apart at 20 pixels by colour and silhouette; no people, no flags, no text.
CHARACTERS: tuple[str, ...] = tuple(
    "🍎🍌🍋🍉🍓🥕🥦🍄🍍🍆🍩🍔🎂🍦🍕"  # food
    "🌻🌵🌲🌴🍁🌹🍀"  # plants
    "🐶🐱🐸🐼🐷🦊🐰🦄🐙🐠🐌🦋🐞🐝🐧🦉🐘🐢🐍🐋🦩🐓🦀"  # animals
    "🚗🚌🚲✈🚀⛵🏠⛺☂🎈🎁🎸🎺⚽👗🔑⏰📷📕🌈🌙🌟💎👑👻🤖⛄"  # things
)
NAMES: tuple[str, ...] = tuple(unicodedata.name(character).lower() for character in CHARACTERS)
INDEX: dict[str, int] = {name: i for i, name in enumerate(NAMES)}

SHORT: dict[str, str] = {
    "red apple": "apple",
    "aubergine": "eggplant",
    "birthday cake": "cake",
    "soft ice cream": "ice cream",
    "slice of pizza": "pizza",
    "evergreen tree": "pine tree",
    "four leaf clover": "clover",
    "dog face": "dog",
    "cat face": "cat",
    "frog face": "frog",
    "panda face": "panda",
    "pig face": "pig",
    "fox face": "fox",
    "rabbit face": "rabbit",
    "unicorn face": "unicorn",
    "robot face": "robot",
    "tropical fish": "fish",
    "lady beetle": "ladybug",
    "honeybee": "bee",
    "automobile": "car",
    "house building": "house",
    "wrapped present": "gift",
    "alarm clock": "clock",
    "closed book": "book",
    "crescent moon": "moon",
    "glowing star": "star",
    "gem stone": "diamond",
    "snowman without snow": "snowman",
}


@cache
def _atlas() -> Image.Image:
    with Image.open(ATLAS_PATH) as atlas:
        return atlas.convert("RGBA")


def picture(name: str) -> Image.Image:
    """The glyph of a name: an RGBA picture of CELL × CELL pixels, straight alpha, centred."""
    row, column = divmod(INDEX[name], COLUMNS)
    left, top = column * CELL, row * CELL
    return _atlas().crop((left, top, left + CELL, top + CELL))
