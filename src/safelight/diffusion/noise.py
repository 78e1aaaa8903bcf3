"""All randomness: one CPU generator per picture, so that a picture never depends on its batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from safelight.sending import sent


class NoiseSource(Protocol):
    """Where samplers get their noise from: float32, on the CPU or where the latent is."""

    def __call__(self) -> Tensor:
        """The next standard normal draw (B, C, h, w), independent of all others."""
        ...

    def between(self, s: float, s_next: float) -> Tensor:
        """What a Brownian path does from noise level s down to s_next, as a standard normal (B, C, h, w)."""
        ...


class Noise:
    """Standard normal draws for a batch of pictures, picture k from its own seed.

    The first draw is the initial noise of the picture, the later ones are what a stochastic sampler adds. On
    the CPU and in float32 whatever the device and dtype of the model: the same seed is the same picture
    everywhere.

    seeds: one per picture, each in [-2^63, 2^64) (0 is a seed like any other). shape: (C, h, w) of one
    latent.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        if not seeds:
            raise ValueError("noise needs at least one seed")
        self.seeds = tuple(seeds)
        self.shape = tuple(shape)
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]
        self._paths = [BrownianPath(seed, self.shape) for seed in self.seeds]

    def __call__(self) -> Tensor:
        """The next draw (B, C, h, w), float32, on the CPU."""
        return self.draw(self.shape)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next draw in another shape (B, *shape): for conditions that are told under noise."""
        return torch.stack([torch.randn(tuple(shape), generator=g, dtype=torch.float32) for g in self._generators])

    def between(self, s: float, s_next: float) -> Tensor:
        """The increment (B, C, h, w) of each picture's Brownian path between two noise levels: see `BrownianPath`."""
        return torch.stack([path.between(s, s_next) for path in self._paths])


@dataclass(frozen=True)
class Sent:
    """The draws of another source, made there and sent to a device without waiting for it."""

    source: NoiseSource
    device: torch.device

    def __call__(self) -> Tensor:
        """The next draw (B, C, h, w), float32, on the device."""
        return sent(self.source(), self.device)

    def between(self, s: float, s_next: float) -> Tensor:
        """As the source's, on the device."""
        return sent(self.source.between(s, s_next), self.device)


DEPTH = 11
FAR = 16.0
"""The tree spans ln(sigma) from 16 to -16, and its leaves are 32 / 2^11 wide there: 1.6 % of sigma."""


class BrownianPath:
    """One picture's Brownian motion W, all of it fixed by the seed, asked only where a sampler stands.

    Its clock is 1 / sigma^2. In it the noise of the reverse SDE with eta 1, divided by sigma^2, is W itself,
    and with another eta comes closer to it as steps shrink. Thus a walk with more steps meets the same noise
    in finer parts, and its picture converges, where independent draws would make another picture.

    A virtual tree (Li et al. 2020, section 4, algorithm 3) over ln(sigma): W at the middle of an interval is
    what a Brownian bridge over it says, with a normal draw that is seeded by the picture and the node. Within
    a leaf the last draw gives every point the bridge's variance. So W has exactly the right distribution at
    any levels of which no two share a leaf, and is some rougher path below.

    seed: in [-2^63, 2^64). shape: of one picture's draw.
    """

    def __init__(self, seed: int, shape: Sequence[int]) -> None:
        self.seed = seed
        self.shape = tuple(shape)
        self._generator = torch.Generator("cpu")
        self._drawn: dict[int, Tensor] = {}  # the nodes of the last question: the next one shares most of them

    def between(self, s: float, s_next: float) -> Tensor:
        """(W(1 / s_next^2) - W(1 / s^2)) / sqrt(1 / s_next^2 - 1 / s^2): standard normal, float32, of `shape`.

        Times that root, the increments of neighbouring intervals sum to that of both together. The answer
        depends on nothing but the seed and the two levels. Raises ValueError unless e^16 > s > s_next > e^-16.
        """
        if not math.exp(FAR) > s > s_next > math.exp(-FAR):
            raise ValueError(f"a Brownian path goes from a noise level down to one above 0, not from {s} to {s_next}")
        weights = _change(s, s_next)
        self._drawn = {node: self._draw(node) for node in weights}
        factors = torch.tensor(list(weights.values()), dtype=torch.float32).view(-1, *([1] * len(self.shape)))
        return torch.stack(list(self._drawn.values())).mul_(factors).sum(dim=0)

    def _draw(self, node: int) -> Tensor:
        """The standard normal of a node."""
        if node in self._drawn:
            return self._drawn[node]
        self._generator.manual_seed(_mixed(self.seed, node))
        return torch.empty(self.shape, dtype=torch.float32).normal_(generator=self._generator)


@lru_cache(maxsize=1024)
def _change(s: float, s_next: float) -> dict[int, float]:
    """The answer of `between` as a sum over normal draws: node -> weight. Their squares sum to 1."""
    weights = dict(_weights(s_next))
    for node, weight in _weights(s):
        weights[node] = weights.get(node, 0.0) - weight
    span = math.sqrt(s_next**-2 - s**-2)
    # What float32 cannot see is not worth a draw: far from a node's interval this is so for most of the tree.
    return {node: weight / span for node, weight in weights.items() if abs(weight) > 1e-8 * span}


@lru_cache(maxsize=1024)
def _weights(sigma: float) -> tuple[tuple[int, float], ...]:
    """W at a noise level as a sum over normal draws: (node, weight), from the root down to a leaf.

    Node 0 is the increment over the whole range. Node n >= 1 is the middle of an interval whose halves are
    the nodes 2n and 2n + 1; below the last of them stands the leaf.
    """
    low, high = -FAR, FAR  # in -ln(sigma)
    start, end, now = math.exp(2 * low), math.exp(2 * high), sigma**-2
    weights = [(0, (now - start) / math.sqrt(end - start))]
    node = 1
    for _ in range(DEPTH):
        middle = (low + high) / 2
        half = math.exp(2 * middle)
        deviation = math.sqrt((half - start) * (end - half) / (end - start))
        if now < half:
            weights.append((node, deviation * (now - start) / (half - start)))
            high, end, node = middle, half, 2 * node
        else:
            weights.append((node, deviation * (end - now) / (end - half)))
            low, start, node = middle, half, 2 * node + 1
    weights.append((node, math.sqrt((now - start) * (end - now) / (end - start))))
    return tuple(weights)


def _mixed(seed: int, node: int) -> int:
    """64 bits that depend on every bit of both (the finalizer of SplitMix64, Steele et al. 2014)."""
    mask = 2**64 - 1
    z = (seed + 0x9E3779B97F4A7C15 * (node + 1)) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
