"""A map of the picture's size, such as one of classes, brought to the latent's (released code of Rombach et al. 2022).

The parameter's name is the original one; diffusers has no such part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Method = Literal["nearest", "bilinear", "bicubic", "area"]


@dataclass(frozen=True)
class RescalerConfig:
    """How a map is shrunk. The defaults are those of semantic synthesis, with an autoencoder of factor 4."""

    stages: int = 2
    """How often it is halved."""
    method: Method = "bilinear"
    in_channels: int = 182
    out_channels: int | None = 3
    """After a 1x1 convolution; None: there is none, and the channels stay."""


class Rescaler(nn.Module):
    """Halves a map some times, without smoothing it before, then mixes its channels."""

    def __init__(self, config: RescalerConfig) -> None:
        super().__init__()
        self.config = config
        out = config.out_channels
        self.channel_mapper = None if out is None else nn.Conv2d(config.in_channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / 2**stages, W / 2**stages), rounded down."""
        for _ in range(self.config.stages):
            x = F.interpolate(x, scale_factor=0.5, mode=self.config.method)
        return x if self.channel_mapper is None else self.channel_mapper(x)
