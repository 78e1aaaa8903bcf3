"""The averaged twin of a module: a moving average of its weights (Ho et al. 2020, appendix B)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """A copy of a module whose weights follow slowly.

    The decay of update n (from 1) is min(decay, (1 + n) / (10 + n)): a young run's average must not be one of
    its random beginning.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self._averaged: list[Tensor] = []
        self._source: list[Tensor] = []
        self._copied, self._copied_source = list(self.module.buffers()), list(module.buffers())
        for twin, own in zip(self.module.parameters(), module.parameters(), strict=True):
            if own.requires_grad:
                self._averaged.append(twin)
                self._source.append(own)

    @torch.no_grad()
    def update(self) -> None:
        """Move the twin towards the module; statistics such as batch norm's are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averaged, self._source, 1 - decay)
        if self._copied:
            torch._foreach_copy_(self._copied, self._copied_source)
