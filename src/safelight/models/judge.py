"""A small classifier that says what it sees in a scene. It shares nothing with the CLIP that conditions a model."""

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
    channels: tuple[int, ...] = (24, 48, 96, 128)
    """Width of each level; all but the last are followed by a halving."""
    norm_groups: int = 8
    image_size: int = 64


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
    """(B, objects, h, w): how much each position speaks for each object."""


class Judge(nn.Module):
    """Residual levels; objects are looked for at every position, ground and layout in the whole."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        widths, groups = config.channels, config.norm_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, stride=2, padding=1)
        self.levels = nn.ModuleList(
            nn.ModuleList(
                [
                    ResnetBlock(widths[max(i - 1, 0)], width, groups=groups, eps=EPS),
                    ResnetBlock(width, width, groups=groups, eps=EPS),
                ]
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.objects = nn.Conv2d(widths[-1], config.objects, 1)
        self.grounds = nn.Linear(widths[-1], config.grounds)
        side = config.image_size // 2 ** len(widths)
        self.layouts = nn.Sequential(
            nn.Conv2d(widths[-1], 16, 1), nn.SiLU(), nn.Flatten(), nn.Linear(16 * side * side, config.layouts)
        )

    def forward(self, pixels: Tensor) -> Verdict:
        """pixels (B, 3, S, S) in [-1, 1]."""
        x = self.conv_in(pixels)
        for i, level in enumerate(self.levels):
            assert isinstance(level, nn.ModuleList)
            for block in level:
                x = block(x)
            if i < len(self.levels) - 1:
                x = F.avg_pool2d(x, 2)
        x = F.silu(self.norm_out(x))
        seen = self.objects(x)
        return Verdict(seen.amax((2, 3)), self.grounds(x.mean((2, 3))), self.layouts(x), seen)
