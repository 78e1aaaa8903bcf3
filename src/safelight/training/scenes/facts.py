"""What a scene shows, apart from how it is said and how it is drawn; and which facts training never sees."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, permutations
from random import Random
from typing import Literal, NamedTuple

from safelight.errors import RequestError
from safelight.training.scenes.glyphs import INDEX, NAMES

Size = Literal["small", "medium", "large"]
Ground = Literal["red", "orange", "yellow", "green", "blue", "purple", "white", "black"]
Texture = Literal["plain", "striped", "dotted", "checkered", "gradient"]
Place = Literal[
    "unstated",  # one object: in the middle, and the caption does not say so
    "left",
    "right",
    "top",
    "bottom",
    "middle",
    "left of",  # two objects: the first is to the left of the second
    "right of",
    "above",
    "below",
    "and",  # the first at the left, the second at the right
    "in front of",  # the first hides a part of the second
    "row",  # three objects from left to right
]
Layout = Literal["left", "right", "top", "bottom", "middle", "side by side", "stacked", "overlapping", "three in a row"]
Split = Literal["train", "held_out", "all"]
"""Scenes without any held-out combination, only those with one, or both as they come (for the judge)."""

GROUNDS: dict[Ground, tuple[int, int, int]] = {  # RGB, 0..255
    "red": (192, 32, 48),
    "orange": (244, 136, 32),
    "yellow": (250, 220, 72),
    "green": (52, 150, 68),
    "blue": (44, 84, 204),
    "purple": (128, 56, 168),
    "white": (246, 246, 244),
    "black": (26, 26, 30),
}
TEXTURES: tuple[Texture, ...] = ("plain", "striped", "dotted", "checkered", "gradient")
LAYOUTS: tuple[Layout, ...] = (
    "left",
    "right",
    "top",
    "bottom",
    "middle",
    "side by side",
    "stacked",
    "overlapping",
    "three in a row",
)
PLACES: tuple[tuple[Place, ...], ...] = (  # by number of objects, less one
    ("unstated", "left", "right", "top", "bottom", "middle"),
    ("left of", "right of", "above", "below", "and", "in front of"),
    ("row",),
)
LARGEST_FAMILY = 5  # so many layouts has a single object
_COUNT_SHARES = (0.55, 0.35, 0.10)
_TEXTURE_SHARES = (0.60, 0.10, 0.10, 0.10, 0.10)
_PLACE_SHARES = ((0.30, 0.15, 0.15, 0.15, 0.15, 0.10), (0.20, 0.20, 0.18, 0.18, 0.16, 0.08), (1.0,))
_SIZE_SHARES: tuple[dict[Size, float], ...] = (
    {"medium": 0.5, "small": 0.25, "large": 0.25},
    {"medium": 0.75, "small": 0.25},
    {"medium": 1.0},
)


@dataclass(frozen=True)
class Facts:
    """What is in a picture: n objects by Unicode name in the order of the caption, n sizes, the ground.

    Raises RequestError for an unknown object or colour, or a place that does not fit the number of objects.
    """

    objects: tuple[str, ...]
    sizes: tuple[Size, ...]
    ground: Ground
    texture: Texture
    place: Place

    def __post_init__(self) -> None:
        count = len(self.objects)
        if not 1 <= count <= len(PLACES) or len(self.sizes) != count or len(set(self.objects)) != count:
            raise RequestError(f"a scene has one to three different objects, each with a size: not {self}")
        unknown = [name for name in self.objects if name not in INDEX]
        if unknown:
            raise RequestError(f"no object is called {unknown[0]!r}: the names are in scenes.NAMES")
        if self.ground not in GROUNDS or self.texture not in TEXTURES:
            raise RequestError(f"the ground {self.texture!r} {self.ground!r} is unknown: see scenes.GROUNDS")
        if self.place not in PLACES[count - 1]:
            raise RequestError(
                f"{self.place!r} is no place for {count} object(s): one of {', '.join(PLACES[count - 1])}"
            )


class Labels(NamedTuple):
    """What a judge should see in the picture; a function of the facts, and never of the wording.

    objects: indices into NAMES, read from left to right, from top to bottom, or from front to back.
    ground, texture, position: indices into GROUNDS (in order), TEXTURES, LAYOUTS.
    """

    objects: tuple[int, ...]
    ground: int
    texture: int
    position: int


def layout(facts: Facts) -> Layout:
    """Where the objects are, as seen: several places (left of, right of, and) look the same."""
    match facts.place:
        case "unstated" | "middle":
            return "middle"
        case "left of" | "right of" | "and":
            return "side by side"
        case "above" | "below":
            return "stacked"
        case "in front of":
            return "overlapping"
        case "row":
            return "three in a row"
        case "left" | "right" | "top" | "bottom":
            return facts.place


def seen_order(facts: Facts) -> tuple[int, ...]:
    """Indices of facts.objects from left to right, from top to bottom, or from front to back."""
    order = tuple(range(len(facts.objects)))
    return order[::-1] if facts.place in ("right of", "below") else order


def labels(facts: Facts) -> Labels:
    """The numbers that a judge network is trained to answer."""
    return Labels(
        objects=tuple(INDEX[facts.objects[i]] for i in seen_order(facts)),
        ground=tuple(GROUNDS).index(facts.ground),
        texture=TEXTURES.index(facts.texture),
        position=LAYOUTS.index(layout(facts)),
    )


# crc32 is the same in every process and every version of Python, which hash() is not. These rules are never
# to be changed: a model trained under other rules has seen what it is later tested on.
@cache
def held_out_grounds(name: str) -> frozenset[Ground]:
    """The grounds on which training never shows the object of this name: one of the eight."""
    grounds = tuple(GROUNDS)
    return frozenset({grounds[zlib.crc32(f"ground of {name}".encode()) // 7 % len(grounds)]})


@cache
def is_held_out_pair(one: str, other: str) -> bool:
    """Whether training never shows these two objects together, in either order: about one pair in ten."""
    return zlib.crc32(" with ".join(sorted((one, other))).encode()) // 7 % 10 == 0


def is_held_out(facts: Facts) -> bool:
    """Whether any (object, ground) or any pair of objects in these facts is kept out of training for good."""
    return any(facts.ground in held_out_grounds(name) for name in facts.objects) or any(
        is_held_out_pair(one, other) for one, other in combinations(facts.objects, 2)
    )


def _belongs(facts: Facts, split: Split) -> bool:
    if split == "all":
        return True
    if split == "train":
        return not is_held_out(facts)
    if len(facts.objects) == 2:  # the pair itself must be new: a new ground alone would test less
        return is_held_out_pair(*facts.objects)
    return is_held_out(facts)


def relatives(facts: Facts, rng: Random, count: int) -> list[Facts]:
    """`count` (up to LARGEST_FAMILY) scenes of the same objects on the same ground that all look different.

    Only where the objects are, which of them is first, and their sizes tell them apart.
    """
    seen: dict[tuple[Layout, tuple[str, ...]], list[Facts]] = {}
    for objects in permutations(facts.objects):
        for place in PLACES[len(objects) - 1]:
            one = replace(facts, objects=objects, place=place)
            seen.setdefault((layout(one), tuple(objects[i] for i in seen_order(one))), []).append(one)
    shares = _SIZE_SHARES[len(facts.objects) - 1]
    return [
        replace(
            rng.choice(seen[look]),
            sizes=tuple(rng.choices(tuple(shares), tuple(shares.values()), k=len(facts.objects))),
        )
        for look in rng.sample(list(seen), count)
    ]


def draw_facts(rng: Random, split: Split = "train", count: int | None = None) -> Facts:
    """Draw the facts of one scene that belongs to the split; `count` fixes the number of objects (1 to 3)."""
    if count is None:
        count = rng.choices((1, 2, 3), _COUNT_SHARES)[0]
    elif not 1 <= count <= len(PLACES):
        raise RequestError(f"a scene has one to three objects, not {count}")
    size_shares = _SIZE_SHARES[count - 1]
    place = rng.choices(PLACES[count - 1], _PLACE_SHARES[count - 1])[0]
    texture = rng.choices(TEXTURES, _TEXTURE_SHARES)[0]
    sizes = tuple(rng.choices(tuple(size_shares), tuple(size_shares.values()), k=count))
    while True:  # only what is held out depends on objects and ground: the other shares stay as they are
        facts = Facts(
            objects=tuple(rng.sample(NAMES, count)),
            sizes=sizes,
            ground=rng.choice(tuple(GROUNDS)),
            texture=texture,
            place=place,
        )
        if _belongs(facts, split):
            return facts
