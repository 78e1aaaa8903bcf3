"""Scenes from a seed, endlessly: scene i of a seed is the same scene in every process."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from PIL import Image
from torch import Tensor

from safelight.errors import DataError
from safelight.training.scenes import painting
from safelight.training.scenes.captions import caption
from safelight.training.scenes.facts import LARGEST_FAMILY, Facts, Split, draw_facts, relatives

_TERSE_SHARE = 0.04  # captions that leave the ground unsaid, as users do
_SMALLEST = 16  # pixels: below this the objects are not to be recognised


@dataclass(frozen=True)
class Scene:
    """One scene: what it shows, how it is said, where everything is.

    placements, boxes: one per object of the facts; boxes are (left, top, right, bottom) in pixels of `size`,
    right and bottom outside, hidden parts included. order: indices of the objects from back to front.
    seed: what the shade of the ground is drawn from. size: pixels of a side.
    """

    facts: Facts
    caption: str
    placements: tuple[painting.Placement, ...]
    boxes: tuple[painting.Box, ...]
    order: tuple[int, ...]
    seed: int
    size: int


def make_scene(facts: Facts, rng: Random, size: int = 64) -> Scene:
    """Lay out the facts and say them, all drawn from `rng`. Raises DataError for a size under 16 pixels."""
    if size < _SMALLEST:
        raise DataError(f"a scene of {size} pixels is too small to show anything: choose {_SMALLEST} or more")
    placements = painting.place(facts, rng)
    return Scene(
        facts=facts,
        caption=caption(facts, rng, full=rng.random() >= _TERSE_SHARE),
        placements=placements,
        boxes=painting.boxes(facts, placements, size),
        order=(1, 0) if facts.place == "in front of" else tuple(range(len(facts.objects))),
        seed=rng.getrandbits(32),
        size=size,
    )


def _pixels(scene: Scene, size: int) -> Tensor:
    picture = painting.paint(scene.facts, scene.placements, scene.order, Random(scene.seed), size)
    return torch.from_numpy(picture)  # (S, S, 3)


def render(scene: Scene, size: int | None = None) -> Image.Image:
    """The picture of a scene, RGB, at its own size or at another."""
    side = scene.size if size is None else size
    return Image.fromarray(painting.paint(scene.facts, scene.placements, scene.order, Random(scene.seed), side))


class Scenes:
    """`count` scenes of `size` × `size` pixels; element i is a function of (seed, split, i) and nothing else.

    split "train" never shows a held-out combination; "held_out" shows one in every scene. family: so many scenes in
    a row have the same objects and ground, and differ in places, order and sizes alone. Raises DataError for a count
    under one, a size under 16 pixels, or a family that is too large.
    """

    def __init__(self, count: int, size: int = 64, seed: int = 0, split: Split = "train", family: int = 1) -> None:
        if count < 1:
            raise DataError(f"{count} scenes are nothing to learn from: ask for one or more")
        if size < _SMALLEST:
            raise DataError(f"scenes of {size} pixels are too small to show anything: choose {_SMALLEST} or more")
        if not 1 <= family <= LARGEST_FAMILY:
            raise DataError(f"a family of {family} scenes cannot be: ask for 1 to {LARGEST_FAMILY}")
        self.count, self.size, self.seed, self.split, self.family = count, size, seed, split, family

    def __len__(self) -> int:
        return self.count

    def scene(self, i: int) -> Scene:
        """Scene i, 0 <= i < len. Raises IndexError outside."""
        if not 0 <= i < self.count:
            raise IndexError(f"there is no scene {i} among {self.count}")
        # A string is hashed whole into the generator's state: neighbours have nothing in common.
        rng = Random(f"{self.split}/{self.seed}/{i}")
        if self.family == 1:
            return make_scene(draw_facts(rng, self.split), rng, self.size)
        number, member = divmod(i, self.family)
        common = Random(f"{self.split}/{self.seed}/family {number}")
        return make_scene(relatives(draw_facts(common, self.split), common, self.family)[member], rng, self.size)

    @property
    def identity(self) -> str:
        """Equal for equal data."""
        families = "" if self.family == 1 else f"/families of {self.family}"
        return f"scenes/{self.split}/{self.seed}/{self.size}/{self.count}{families}"

    def caption(self, i: int) -> str:
        """The caption of scene i, without painting it."""
        return self.scene(i).caption

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        """The picture, (3, S, S) uint8, and its caption."""
        scene = self.scene(i)
        return _pixels(scene, self.size).permute(2, 0, 1).contiguous(), scene.caption

    def masks(self, i: int) -> Tensor:
        """(n, S, S) bool: where each object of scene i is seen, in the order of its facts."""
        scene = self.scene(i)
        return torch.from_numpy(painting.masks(scene.facts, scene.placements, scene.order, self.size))
