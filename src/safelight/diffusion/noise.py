"""All randomness: one CPU generator per picture, so that a picture never depends on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NoiseSource = Callable[[], Tensor]
"""Each call gives the next standard normal draw (B, C, h, w), float32, on the CPU."""


class Noise:
    """Standard normal draws for a batch of pictures, picture k from its own seed.

    The first draw is the initial noise of the picture, the later ones are what a stochastic sampler adds. On
    the CPU
    and in float32 whatever the device and dtype of the model: the same seed is the same picture everywhere.

    seeds: one per picture, each in [-2^63, 2^64) (0 is a seed like any other). shape: (C, h, w) of one
    latent.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        if not seeds:
            raise ValueError("noise needs at least one seed")
        self.seeds = tuple(seeds)
        self.shape = tuple(shape)
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]

    def __call__(self) -> Tensor:
        """The next draw (B, C, h, w), float32, on the CPU."""
        return self.draw(self.shape)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next draw in another shape (B, *shape): for conditions that are told under noise."""
        return torch.stack([torch.randn(tuple(shape), generator=g, dtype=torch.float32) for g in self._generators])
