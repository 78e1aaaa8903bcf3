"""Aspect-ratio buckets: pictures are trained in the shape that they have, each batch in one shape (NovelAI 2022).

The sizes are those of kohya's tools, so that a data set falls into the same buckets here as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safelight.errors import DataError
from safelight.training.data import batch_indices, permutation, to_uint8
from safelight.training.folders import Entry, Size, identity_of


@dataclass(frozen=True)
class Buckets:
    """Which sizes pictures are trained in. All numbers are pixels.

    Raises:
        DataError: no size fulfils them.
    """

    side: int
    """The area of every bucket is at most the square of this."""
    smallest: int
    largest: int
    """Of either side."""
    step: int
    """Sides are multiples of it."""
    enlarge: bool = True
    """Whether a small picture is scaled up; if not, it gets a bucket of its own size, rounded down."""

    def __post_init__(self) -> None:
        if self.step < 1 or self.side % self.step or self.side < self.step:
            raise DataError(f"pictures of {self.side} pixels have no buckets in steps of {self.step}: give a multiple")
        if not self.smallest <= self.side <= self.largest:
            raise DataError(
                f"buckets from {self.smallest} to {self.largest} pixels leave out the square of {self.side}: widen them"
            )

    @classmethod
    def square(cls, side: int) -> Buckets:
        """One bucket for all."""
        return cls(side, side, side, side)

    def on(self, grid: int) -> Buckets:
        """The same, if a model can have them, whose pictures are multiples of `grid` pixels on both sides.

        Raises:
            DataError: it cannot.
        """
        for name, length in (("size", self.side), ("bucket-step", self.step), ("bucket-smallest", self.smallest)):
            if length % grid:
                nearest = max(grid, length // grid * grid)
                raise DataError(f"--{name} {length} is not a multiple of {grid}, as this model needs: give {nearest}")
        return self

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """Every bucket, the narrow ones first. For each width, the greatest height that the area allows."""
        found = {(self.side, self.side)}
        for width in range(self.smallest, self.largest + 1, self.step):
            height = min(self.largest, self.side**2 // width // self.step * self.step)
            if height >= self.smallest:
                found |= {(width, height), (height, width)}
        return tuple(sorted(found))

    def of(self, size: Size) -> Size:
        """The bucket of a picture: of the nearest aspect ratio."""
        if not self.enlarge:
            return self._unenlarged(size)
        wanted = size[0] / size[1]
        if size in self.sizes:
            return size
        return min(self.sizes, key=lambda bucket: abs(bucket[0] / bucket[1] - wanted))

    def _unenlarged(self, size: Size) -> Size:
        """The largest multiples of the step within the picture, which is scaled down if its area is too large."""
        if size[0] * size[1] > self.side**2:
            shape = size[0] / size[1]
            wide = math.sqrt(self.side**2 * shape)
            # One side down to a multiple of the step and the other after it: whichever bends the shape less.
            one, other = self._down(wide), self._down(wide / shape)
            by_width, by_height = (one, round(one / shape)), (round(other * shape), other)
            size = min(by_height, by_width, key=lambda s: abs(self._down(s[0]) / self._down(s[1]) - shape))
        return self._down(size[0]), self._down(size[1])

    def _down(self, length: float) -> int:
        """To a multiple of the step; what is smaller than one is scaled up to it."""
        return max(self.step, round(length) // self.step * self.step)


@dataclass(frozen=True)
class Place:
    """How a picture comes into its bucket."""

    bucket: Size
    scaled: Size
    """What it is scaled to, so that it covers the bucket."""
    corner: tuple[int, int]
    """What is then cut off above and at the left."""

    @classmethod
    def of(cls, size: Size, bucket: Size) -> Place:
        """Scaled to cover, the centre is kept."""
        scale = max(bucket[0] / size[0], bucket[1] / size[1])
        scaled = max(bucket[0], round(size[0] * scale)), max(bucket[1], round(size[1] * scale))
        return cls(bucket, scaled, ((scaled[1] - bucket[1]) // 2, (scaled[0] - bucket[0]) // 2))


class BucketedPictures:
    """Pictures of one folder or of several, each in its bucket, each as often as it is to be seen."""

    def __init__(self, groups: Sequence[Sequence[Entry]], buckets: Buckets) -> None:
        """Place every picture.

        Args:
            groups: what to train on, and further folders: of each, together as much is seen as of the first
                (DreamBooth's class pictures).

        Raises:
            DataError: a group is empty.
        """
        if not groups or not all(groups):
            raise DataError("there are no pictures to train on: give at least one")
        self.entries = [entry for group in groups for entry in group]
        self.places = [Place.of(entry.size, buckets.of(entry.size)) for entry in self.entries]
        self.groups = [k for k, group in enumerate(groups) for _ in group]
        """Which group each picture is of."""
        self._repeats = _balanced(groups)
        settings = buckets.side, buckets.smallest, buckets.largest, buckets.step, buckets.enlarge
        self.identity = identity_of(self.entries, *settings)
        """Equal for equal pictures, captions and buckets."""

    def __len__(self) -> int:
        return len(self.entries)

    def picture(self, index: int) -> Tensor:
        """(3, H, W) uint8, of the size of its bucket.

        Raises:
            DataError: it has changed since the beginning and is no longer whole.
        """
        place, image = self.places[index], self.entries[index].picture()
        if image.size != place.scaled:
            smaller = place.scaled[0] < image.width
            image = image.resize(place.scaled, Image.Resampling.BOX if smaller else Image.Resampling.LANCZOS)
        top, left = place.corner
        return to_uint8(image.crop((left, top, left + place.bucket[0], top + place.bucket[1])))

    def rows(self, seed: int) -> Rows:
        """Which pictures are in which batch."""
        by_bucket: dict[Size, list[int]] = {}
        for index, (place, repeats) in enumerate(zip(self.places, self._repeats, strict=True)):
            by_bucket.setdefault(place.bucket, []).extend([index] * repeats)
        return Rows([by_bucket[bucket] for bucket in sorted(by_bucket)], seed)


def _balanced(groups: Sequence[Sequence[Entry]]) -> list[int]:
    """The repeats of every picture: those asked for, times what makes a further group about as long as the first."""
    totals = [sum(entry.repeats for entry in group) for group in groups]
    longest = max(totals)
    return [
        entry.repeats * (1 if len(groups) == 1 else max(1, round(longest / total)))
        for group, total in zip(groups, totals, strict=True)
        for entry in group
    ]


class Rows:
    """Batches of one bucket each, and each a function of its number alone.

    In a round of as many batches as there are pictures, a bucket has as many batches as pictures; those are cut from
    an endless row of its shuffled epochs. So every picture is seen as often as every other, and no batch is short.
    With one bucket this is `batch_indices`.
    """

    def __init__(self, buckets: Sequence[Sequence[int]], seed: int) -> None:
        """The pictures of each bucket, as often as they are to be seen."""
        self.buckets, self.seed = [list(bucket) for bucket in buckets], seed
        self._of = np.repeat(np.arange(len(buckets)), [len(bucket) for bucket in buckets])

    def __call__(self, index: int, size: int) -> list[int]:
        """The pictures of batch `index`, `size` of them, all from one bucket."""
        turn, place = divmod(index, len(self._of))
        order = self._of[permutation(self.seed, turn, len(self._of))] if len(self.buckets) > 1 else self._of
        number = int(order[place])
        bucket = self.buckets[number]
        before = turn * len(bucket) + int(np.count_nonzero(order[:place] == number))
        return [bucket[i] for i in batch_indices(before, size, len(bucket), self.seed + number)]


def flips(index: int, size: int, seed: int) -> Tensor:
    """Which pictures of a batch are mirrored, (size,) bool: every other one by chance."""
    raw = np.random.Philox(np.random.SeedSequence([seed, index, 1])).random_raw(size)
    return torch.from_numpy((raw >> np.uint64(63)).astype(bool))
