"""A small classifier that says what it sees in a scene. It shares nothing with the CLIP that steers a model.

Shapes: B batch, S side of the picture in pixels, w side of the map: S / 2 ** levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.layers import ResnetBlock

EPS = 1e-5


@dataclass(frozen=True)
class JudgeConfig:
    """The shape of the classifier, and how many answers each of its questions has."""

    objects: int
    grounds: int
    layouts: int
    channels: tuple[int, ...] = (16, 48, 96)
    """Width of each level, and each level halves the picture."""
    blocks: tuple[int, ...] = (1, 1, 2)
    """Residual blocks of each level."""
    norm_groups: int = 8
    image_size: int = 64

    @property
    def factor(self) -> int:
        """Pixels of a side per cell of the map."""
        return 1 << len(self.channels)


@dataclass(frozen=True)
class Verdict:
    """Logits, before sigmoid (objects) or softmax (the others)."""

    objects: Tensor
    """(B, objects): is it there?"""
    grounds: Tensor
    """(B, grounds)."""
    layouts: Tensor
    """(B, layouts)."""
    map: Tensor
    """(B, objects, w, w): how much each position speaks for each object."""


class Judge(nn.Module):
    """Residual levels; objects are looked for at every position, ground and layout in the whole."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        widths, groups, last = config.channels, config.norm_groups, config.channels[-1]
        self.conv_in = nn.Conv2d(3, widths[0], 4, stride=2, padding=1)
        self.levels = nn.ModuleList()
        entering = widths[0]
        for width, blocks in zip(widths, config.blocks, strict=True):
            level = nn.Sequential()
            for _ in range(blocks):
                level.append(ResnetBlock(entering, width, groups=groups, eps=EPS))
                entering = width
            self.levels.append(level)
        self.norm_out = nn.GroupNorm(groups, last, EPS)
        self.objects = nn.Conv2d(last, config.objects, 1)
        self.grounds = nn.Linear(last, config.grounds)
        side = config.image_size // config.factor
        self.layouts = nn.Sequential(
            nn.Conv2d(last, 16, 1), nn.SiLU(), nn.Flatten(), nn.Linear(16 * side * side, config.layouts)
        )

    def forward(self, pixels: Tensor) -> Verdict:
        """pixels (B, 3, S, S) in [-1, 1]."""
        x = self.conv_in(pixels)
        for i, level in enumerate(self.levels):
            if i > 0:  # the first halving is the convolution's
                x = F.avg_pool2d(x, 2)
            x = level(x)
        x = F.silu(self.norm_out(x))  # (B, C, w, w)
        seen = self.objects(x)
        return Verdict(seen.amax((2, 3)), self.grounds(x.mean((2, 3))), self.layouts(x), seen)
