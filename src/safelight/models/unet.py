"""The conditional UNet: the one network of the whole family (Rombach et al. 2022, sec. 3.3 and appendix E.2.1).

A U of residual blocks over the latent; on the levels that ask for it every block is followed by a transformer that
attends to the picture itself and then to the conditions' context.

Shapes: B batch, C channels, h w latent size, L context tokens, D context width, T time width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.doors import Conditioning
from safelight.models.layers import Downsample, ResnetBlock, Upsample, attend, sinusoids

RESNET_EPS = 1e-5
TRANSFORMER_EPS = 1e-6


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a UNet. The defaults are SD 1.x (859,520,964 parameters)."""

    in_channels: int = 4
    """Channels of the latent and of everything stacked under it."""
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Width of each level, finest first."""
    blocks_per_level: int = 2
    """Residual blocks per level on the way down; one more on the way up."""
    transformer_depth: tuple[int, ...] = (1, 1, 1, 0)
    """Transformer blocks after each residual block of a level; 0 for a level without attention."""
    middle_depth: int = 1
    """Transformer blocks in the middle."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """Attention heads of each level; the middle uses the last."""
    context_width: int = 768
    """D, the width of the tokens attended to."""
    linear_projection: bool = False
    """Whether the transformers' ways in and out are linear layers (SD 2, SDXL) or 1x1 convolutions (SD 1)."""
    norm_groups: int = 32

    def __post_init__(self) -> None:
        levels = len(self.channels)
        if not len(self.transformer_depth) == len(self.heads) == levels:
            raise ValueError(f"transformer_depth and heads must have one entry for each of the {levels} levels")

    @property
    def time_width(self) -> int:
        """T, the width of the time embedding."""
        return 4 * self.channels[0]


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoids of the time."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in) -> (B, T)."""
        y: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return y


class Attention(nn.Module):
    """Attention of x to itself, or to a context of another width."""

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        source = width if context_width is None else context_width
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source, width, bias=False)
        self.to_v = nn.Linear(source, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, h*w, C), context (B, L, D) or None for self-attention -> (B, h*w, C)."""
        source = x if context is None else context
        y: Tensor = self.to_out[0](attend(self.to_q(x), self.to_k(source), self.to_v(source), self.heads))
        return y


class GEGLU(nn.Module):
    """Linear unit gated by a GELU (Shazeer 2020)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, inner)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        y: Tensor = value * F.gelu(gate)
        return y


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The original has a dropout between the two, hence the names net.0 and net.2 in every file.
        self.net = nn.ModuleDict({"0": GEGLU(width, 4 * width), "2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        y: Tensor = self.net["2"](self.net["0"](x))
        return y


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward, each around a skip."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, h*w, C), context (B, L, D) -> (B, h*w, C)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        x = x + self.ff(self.norm3(x))
        return x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the picture's positions as tokens, around a skip."""

    def __init__(self, width: int, heads: int, depth: int, config: UNetConfig) -> None:
        super().__init__()
        self.linear = config.linear_projection
        self.norm = nn.GroupNorm(config.norm_groups, width, TRANSFORMER_EPS)
        self.proj_in = nn.Linear(width, width) if self.linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, heads, config.context_width) for _ in range(depth)
        )
        self.proj_out = nn.Linear(width, width) if self.linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, C, h, w), context (B, L, D) -> (B, C, h, w)."""
        size = x.shape[-2:]
        y = self.norm(x)
        y = self.proj_in(_tokens(y)) if self.linear else _tokens(self.proj_in(y))
        for block in self.transformer_blocks:
            y = block(y, context)
        y = _picture(self.proj_out(y), size) if self.linear else self.proj_out(_picture(y, size))
        return x + y


def _tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h*w, C)."""
    return x.flatten(2).transpose(1, 2)


def _picture(x: Tensor, size: torch.Size) -> Tensor:
    """(B, h*w, C) -> (B, C, h, w)."""
    return x.transpose(1, 2).reshape(len(x), -1, *size)


class Level(nn.Module):
    """The blocks of one resolution on one side of the U, and the way to the next resolution if there is one."""

    def __init__(self, widths: list[tuple[int, int]], level: int, config: UNetConfig) -> None:
        """widths: (channels in, channels out) of each residual block."""
        super().__init__()
        depth, heads = config.transformer_depth[level], config.heads[level]
        self.resnets = nn.ModuleList(_resnet(a, b, config) for a, b in widths)
        self.attentions = nn.ModuleList(SpatialTransformer(b, heads, depth, config) for _, b in widths if depth > 0)
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def block(self, i: int, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """Residual block i and its transformer."""
        x = self.resnets[i](x, time)
        if len(self.attentions) > 0:
            x = self.attentions[i](x, context)
        return x


class Middle(nn.Module):
    """Residual block, transformer, residual block at the bottom of the U."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.channels[-1]
        self.resnets = nn.ModuleList(_resnet(width, width, config) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialTransformer(width, config.heads[-1], config.middle_depth, config)])

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        y: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x, time), context), time)
        return y


def _resnet(channels_in: int, channels_out: int, config: UNetConfig) -> ResnetBlock:
    return ResnetBlock(
        channels_in, channels_out, groups=config.norm_groups, eps=RESNET_EPS, time_width=config.time_width
    )


def initialise(unet: UNet) -> None:
    """For training from nothing: every block begins as its skip, and the whole predicts nothing.

    As the released code of Dhariwal & Nichol 2021 and of latent diffusion does; learning begins faster so.
    """
    last: list[nn.Module] = [unet.conv_out]
    for module in unet.modules():
        if isinstance(module, ResnetBlock):
            last.append(module.conv2)
        elif isinstance(module, SpatialTransformer):
            last.append(module.proj_out)
    for module in last:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def _levels(blocks: nn.ModuleList) -> list[Level]:
    """The same list, for the type checker."""
    return cast(list[Level], list(blocks))


class UNet(nn.Module):
    """The network of every member; see `UNetConfig`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, n = config.channels, config.blocks_per_level
        last = len(widths) - 1
        self.time_embedding = TimeEmbedding(widths[0], config.time_width)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)

        # Every output on the way down is kept and joined on the way up: its widths, in order.
        kept = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level([(kept[-1] if j == 0 else width, width) for j in range(n)], i, config)
            kept += [width] * n
            if i < last:
                level.downsamplers = nn.ModuleList([Downsample(width, symmetric=True)])
                kept.append(width)
            self.down_blocks.append(level)

        self.mid_block = Middle(config)

        self.up_blocks = nn.ModuleList()
        below = widths[-1]
        for i in reversed(range(len(widths))):
            pairs = []
            for _ in range(n + 1):
                pairs.append((below + kept.pop(), widths[i]))
                below = widths[i]
            level = Level(pairs, i, config)
            if i > 0:
                level.upsamplers = nn.ModuleList([Upsample(widths[i])])
            self.up_blocks.append(level)

        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[0], RESNET_EPS)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict (eps or v, as the model was trained) for the noisy latent.

        Args:
            x: (B, C, h, w), noisy latent scaled to unit variance.
            t: (B,), time in schedule steps, 0 to 999, may be fractional.
            cond: `context` (B, L, D); `concat`, if given, is stacked under x.

        Returns:
            (B, out_channels, h, w), in x's dtype.
        """
        if cond.concat is not None:
            x = torch.cat([x, cond.concat], dim=1)
        embedded = sinusoids(t, self.config.channels[0]).to(x.dtype)
        time = F.silu(self.time_embedding(embedded))  # (B, T); every block begins by the SiLU, so it is done once

        x = self.conv_in(x)
        kept = [x]
        for level in _levels(self.down_blocks):
            for i in range(len(level.resnets)):
                x = level.block(i, x, time, cond.context)
                kept.append(x)
            if level.downsamplers is not None:
                x = level.downsamplers[0](x)
                kept.append(x)

        x = self.mid_block(x, time, cond.context)

        for level in _levels(self.up_blocks):
            for i in range(len(level.resnets)):
                x = level.block(i, torch.cat([x, kept.pop()], dim=1), time, cond.context)
            if level.upsamplers is not None:
                x = level.upsamplers[0](x, size=kept[-1].shape[-2:])

        y: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return y
