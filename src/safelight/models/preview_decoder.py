"""A small decoder of latents, for pictures of what is not finished: the shape of TAESD (Bohan 2023).

Convolutions and ReLUs alone; nothing looks further than they reach. Parameter names are those of the decoder in
diffusers' AutoencoderTiny.

Shapes: B batch, C latent channels, h w latent size, H = h * factor, W = w * factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REACH = 3.0
"""Latents are squashed into (-3, 3)."""


@dataclass(frozen=True)
class PreviewDecoderConfig:
    """The shape of a preview decoder. The defaults are TAESD's (1,222,531 parameters)."""

    latent_channels: int = 4
    width: int = 64
    blocks: tuple[int, ...] = (3, 3, 3, 1)
    """Residual blocks at each resolution, the latent's first; each is twice as fine as the one before."""
    pixels: int = 1
    """How many pixels on a side the last layer makes of each position (Shi et al. 2016, eq. 4): what is computed on the
    latent's own resolution costs least."""

    def __post_init__(self) -> None:
        if min(self.latent_channels, self.width, self.pixels) < 1 or not self.blocks or min(self.blocks) < 0:
            raise ValueError(f"a preview decoder cannot be so: {self}")

    @property
    def factor(self) -> int:
        """Pixels per latent position, on a side."""
        return self.pixels << (len(self.blocks) - 1)


class Block(nn.Module):
    """Three convolutions around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width), nn.ReLU(), _conv(width), nn.ReLU(), _conv(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, width, h, w)."""
        return F.relu(x + self.conv(x))


class PreviewDecoder(nn.Module):
    """Scaled latent to picture, as `PreviewDecoderConfig` says."""

    def __init__(self, config: PreviewDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
        for level, blocks in enumerate(config.blocks):
            if level > 0:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
            layers += [Block(width) for _ in range(blocks)]
        layers.append(nn.Conv2d(width, 3 * config.pixels**2, 3, padding=1))
        if config.pixels > 1:
            layers.append(nn.PixelShuffle(config.pixels))
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """Scaled latent (B, C, h, w), as samplers have it -> (B, 3, H, W), about in [-1, 1]."""
        y: Tensor = self.layers(REACH * torch.tanh(latent / REACH))
        return y * 2 - 1


def _conv(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, padding=1)
