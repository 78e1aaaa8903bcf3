"""The deep part of a network is asked once for several steps (DeepCache: Ma, Fang & Wang 2024, sec. 3.3).

Shapes: B batch, C latent channels, h w latent size.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol

import torch
from torch import Tensor

from safelight.diffusion.denoiser import C, C_contra, Denoiser, Prediction
from safelight.diffusion.schedule import Schedule
from safelight.sending import sent

_CLOSE = 1e-6
"""Relative: a sigma so near to a level is that level."""


class DeepNetwork(Protocol[C_contra]):
    """A network whose deep part can be left out: (x (B, C, h, w), t (B,), cond, deep (B, ...) or None) -> its answer
    (B, C, h, w), and what its deep part answered: `deep`, if that was given, and the deep part was not asked.
    """

    def __call__(self, x: Tensor, t: Tensor, cond: C_contra, deep: Tensor | None, /) -> tuple[Tensor, Tensor]: ...


@dataclass
class _Memory(Generic[C]):
    """What the deep part answered to the pictures of a batch that were told cond."""

    cond: C
    spans: list[int]
    """For each picture, among which levels it was asked."""
    deep: Tensor


class Reusing(Denoiser[C]):
    """A denoiser for one walk, whose network is asked whole once for every so many of the walk's levels.

    The levels are counted by sigma, and not by calls: from one of them down to the next but `every` there is one
    whole answer to each condition, whatever the sampler asks in between, and however often. So a picture is the same
    in any batch, and a sampler that asks twice a step (Heun) or chooses its own steps gains as much. Conditions have
    memories of their own (the very object is what counts): what is told something new is asked whole.

    levels: (n + 1,) the sampler's sigmas, descending. every: 1 asks whole at each level.
    """

    def __init__(
        self,
        network: DeepNetwork[C],
        schedule: Schedule,
        prediction: Prediction,
        dtype: torch.dtype,
        *,
        levels: Tensor,
        every: int,
    ) -> None:
        super().__init__(lambda x, t, cond: network(x, t, cond, None)[0], schedule, prediction, dtype)
        if every < 1:
            raise ValueError(f"the deep part is asked once in 1 or more steps, not {every}")
        self._deep_network = network
        self._place, self._every = place_among(levels), every
        self._memories: list[_Memory[C]] = []

    def _tell(self, x: Tensor, t: Tensor, cond: C, level: float | Tensor) -> Tensor:
        spans = [self._place(sigma) // self._every for sigma in _each(level, len(x))]
        memory = next((memory for memory in self._memories if memory.cond is cond), None)
        stale = [True] * len(x) if memory is None else list(map(_stale, memory.spans, spans))
        if memory is None or all(stale):
            answer, deep = self._deep_network(x, t, cond, None)
            others = [m for m in self._memories if m.cond is not cond and {*m.spans} & {*spans}]
            self._memories = [*others, _Memory(cond, spans, deep)]  # memories of other levels are of no more use
            return answer
        shallow, _ = self._deep_network(x, t, cond, memory.deep)
        if not any(stale):
            return shallow
        # Pictures step at levels of their own. All are asked both ways, so that rows stay those of their pictures.
        whole, deep = self._deep_network(x, t, cond, None)
        rows = sent(torch.tensor(stale), x.device).view(-1, 1, 1, 1)
        memory.deep = torch.where(rows, deep, memory.deep)
        memory.spans = [new if old else known for new, known, old in zip(spans, memory.spans, stale, strict=True)]
        return torch.where(rows, whole, shallow)


def place_among(levels: Tensor) -> Callable[[float], int]:
    """Where a sigma is among a sampler's (n + 1,), descending: 0 from the first down to the second, and so on."""
    falling = [-level for level in levels.tolist()]
    return lambda sigma: max(bisect_right(falling, -sigma * (1 - _CLOSE)) - 1, 0)


def _stale(known: int, asked: int) -> bool:
    """Whether a memory is of no use. One that is a span ahead is: samplers look ahead, and come back with noise."""
    return not known - 1 <= asked <= known


def _each(level: float | Tensor, count: int) -> list[float]:
    """The sigma of each picture."""
    return level.flatten().tolist() if isinstance(level, Tensor) else [level] * count
