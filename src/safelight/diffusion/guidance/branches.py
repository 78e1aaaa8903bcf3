"""Several conditions that act together, by weights and by places (prompts joined by AND, regional prompts).

Shapes: B batch, C latent channels, h w latent size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from safelight.diffusion.denoiser import C
from safelight.diffusion.guidance.asking import Said


@dataclass(frozen=True)
class Branch(Generic[C]):
    """One of the conditions that act together."""

    say: Said[C]
    weight: float = 1.0
    """How much it counts; without masks it may be negative."""
    mask: Tensor | None = None
    """(1, 1, h, w) or (B, 1, h, w), from 0 to 1, on the device of x: where it acts. None: everywhere."""


class Joining:
    """How the answers to several conditions become one.

    Without masks u + sum_i w_i (c_i - u) (the conjunction of Liu et al. 2022, "Composable diffusion", algorithm 1).
    With masks the average of the answers at each place, weighted by w_i m_i.
    """

    def __init__(self, branches: Sequence[Branch[C]]) -> None:
        """Raises ValueError when there is no condition, a weight cannot be, or the masks leave a place to none."""
        if len(branches) == 0:
            raise ValueError("guidance needs at least one condition")
        for branch in branches:
            if not math.isfinite(branch.weight):
                raise ValueError(f"the weight of a condition must be a finite number, not {branch.weight}")
        self.alone = len(branches) == 1 and branches[0].weight == 1.0
        self._weights: list[float] = [branch.weight for branch in branches]
        self._shares: list[Tensor] | None = None
        if any(branch.mask is not None for branch in branches):
            self._shares = _shares(branches)
            self.alone = len(branches) == 1
        self.whole = self._shares is not None or math.isclose(sum(self._weights), 1.0)
        """Whether the unconditional answer does not count."""

    def __call__(self, answers: Sequence[Tensor], uncond: Tensor | None) -> Tensor:
        """The one answer (B, C, h, w). uncond: may be None where the weights are `whole`."""
        if self.alone:
            return answers[0]
        factors: Sequence[float | Tensor] = self._weights if self._shares is None else self._shares
        if self.whole or uncond is None:
            return sum((a * f for a, f in zip(answers, factors, strict=True)), torch.zeros_like(answers[0]))
        return sum(((a - uncond) * f for a, f in zip(answers, factors, strict=True)), uncond)


def _shares(branches: Sequence[Branch[C]]) -> list[Tensor]:
    """What each counts at each place; together 1."""
    if any(branch.weight <= 0 for branch in branches):
        raise ValueError("conditions for parts of a picture need weights above 0")
    like = next(branch.mask for branch in branches if branch.mask is not None)
    ones = torch.ones_like(like[:1])
    parts = [branch.weight * (ones if branch.mask is None else branch.mask) for branch in branches]
    total = sum(parts, torch.zeros_like(ones))
    if bool((total <= 0).any()):
        raise ValueError("some places of the picture are in no region: give one condition without a region")
    return [part / total for part in parts]
