"""LoRA (Hu et al. 2021), on convolutions, too (LoCon), and with a core between its two matrices (Tucker)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.adapters.kinds.additive import Additive, dora_of, expected_alpha
from safelight.adapters.kinds.kind import Named, Shape, base, like, require_rank, size

DOWN, UP, MID = "lora_down.weight", "lora_up.weight", "lora_mid.weight"


class LoRA(Additive):
    """alpha / R * up @ down. What rank-stabilised (alpha / sqrt(R)) and dynamic ones train is stored as this."""

    title: ClassVar[str] = "LoRA"
    OWN: ClassVar[frozenset[str]] = frozenset({DOWN, UP, MID})

    def __init__(
        self,
        down: Tensor,
        up: Tensor,
        mid: Tensor | None = None,
        alpha: Tensor | float | None = None,
        dora_scale: Tensor | None = None,
    ) -> None:
        """down (R, I, *k), up (O, R, ...); with mid (R, R', *k), down is (R', I, ...)."""
        super().__init__(alpha, dora_scale)
        self.lora_down, self.lora_up = Named(down), Named(up)
        self.lora_mid = None if mid is None else Named(mid)

    @classmethod
    def expected(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Mapping[str, Shape]:
        """As `Kind.expected`."""
        inner, rank = size(tensors, DOWN, 0), size(tensors, UP, 1)
        if MID not in tensors:
            rank = inner
            found = {DOWN: (rank, *shape[1:])}
        else:
            found = {DOWN: (inner, shape[1]), MID: (rank, inner, *shape[2:])}
        return {**found, UP: (shape[0], rank), **expected_alpha(tensors, shape)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Self:
        """As `Kind.of`."""
        down, up = tensors[DOWN], tensors[UP]
        ones = (1,) * (len(shape) - 2)
        if MID in tensors:
            down = down.reshape(*down.shape, *ones)
        return cls(down, up.reshape(*up.shape, *ones), tensors.get(MID), tensors.get("alpha"), dora_of(tensors, shape))

    @classmethod
    def fresh(
        cls, shape: Shape, rank: int, alpha: float, generator: torch.Generator | None = None, *, tucker: bool = False
    ) -> Self:
        """One that changes nothing yet: up is 0, down as linear layers begin (He et al. 2015).

        Raises:
            RequestError: the layer cannot have this rank.
        """
        require_rank(rank, shape)
        ones = (1,) * (len(shape) - 2)
        up = torch.zeros(shape[0], rank, *ones)
        if tucker and len(shape) > 2 and math.prod(shape[2:]) > 1:
            down, mid = torch.empty(rank, shape[1], *ones), torch.empty(rank, rank, *shape[2:])
            nn.init.kaiming_uniform_(mid, math.sqrt(5), generator=generator)
        else:
            down, mid = torch.empty(rank, *shape[1:]), None
        nn.init.kaiming_uniform_(down, math.sqrt(5), generator=generator)
        return cls(down, up, mid, alpha)

    @property
    def rank(self) -> int:
        """R."""
        return self.lora_up.weight.shape[1]

    def _matrices(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """up (O, R) and down (R, I * prod(k))."""
        down, up = like(self.lora_down.weight, weight), like(self.lora_up.weight, weight).flatten(1)
        if self.lora_mid is not None:
            mid = like(self.lora_mid.weight, weight)
            down = torch.einsum("rqk, qi -> rik", mid.reshape(*mid.shape[:2], -1), down.flatten(1))
        return up, down.flatten(1)

    def difference(self, weight: Tensor) -> Tensor:
        """As `Additive.difference`."""
        up, down = self._matrices(weight)
        return (self.scale * up @ down).view(weight.shape)

    def combined(self, weight: Tensor, strength: float) -> Tensor:
        """As `Additive.combined`, in one pass over the weight."""
        up, down = self._matrices(weight)
        return torch.addmm(weight.flatten(1), up, down, alpha=strength * self.scale).view(weight.shape)

    def added(self, x: Tensor, layer: nn.Module) -> Tensor:
        """What is to be added to layer(x), without making the difference: training's cheap way. Not of a DoRA."""
        down, up = self.lora_down.weight.to(x.dtype), self.lora_up.weight.to(x.dtype)
        if not isinstance(layer, nn.Conv2d):
            return self.scale * F.linear(F.linear(x, down), up)
        if self.lora_mid is None:
            return self.scale * F.conv2d(base(x, layer, down, None), up)
        return self.scale * F.conv2d(base(F.conv2d(x, down), layer, self.lora_mid.weight, None), up)

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        """As `Kind.forward`."""
        if self.dora_scale is not None:
            return super().forward(x, layer)
        y: Tensor = type(layer).forward(layer, x)  # the layer's own, whoever stands in for it
        return y + self.added(x, layer).to(y.dtype)
