"""The UNet: the one network of the whole family (Rombach et al. 2022, sec. 3.3 and appendix E.2.1).

A U of residual blocks over the latent. On the levels that ask for it every block is followed by a transformer that
attends to the picture itself and then to the conditions' context or, in a UNet without a context, by attention
over the positions alone (Ho et al. 2020; Dhariwal & Nichol 2021).

Parameter names are those of diffusers' UNet2DConditionModel, without a context those of its UNet2DModel; where a
level is left by a residual block, those of its ResnetDownsampleBlock2D and ResnetUpsampleBlock2D.

Shapes: B batch, C channels, h w latent size, L context tokens, D context width, V vector width, T time width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.doors import Conditioning
from safelight.models.layers import Downsample, PositionAttention, ResnetBlock, Upsample, activated, repeated, sinusoids
from safelight.models.spatial_transformer import SpatialTransformer

RESNET_EPS = 1e-5


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a UNet. The defaults are SD 1.x (859,520,964 parameters). Level 0 is the finest."""

    in_channels: int = 4
    """Channels of the latent and of everything stacked under it."""
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Width of each level."""
    blocks_per_level: int = 2
    """Residual blocks per level on the way down; one more on the way up."""
    transformer_depth: tuple[int, ...] = (1, 1, 1, 0)
    """Transformer blocks after each residual block of a level; 0 for a level without attention."""
    middle_depth: int = 1
    """Transformer blocks in the middle."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """Attention heads of each level; the middle uses the last. (Some speak of the width of a head instead.)"""
    context_width: int | None = 768
    """D, the width of the tokens attended to. None: there are none, and attention over the positions, one layer deep,
    stands where others have transformers (the LDMs that are told nothing, or by the other doors)."""
    linear_projection: bool = False
    """Whether the transformers' ways in and out are linear layers (SD 2, SDXL) or 1x1 convolutions (SD 1)."""
    context_only: tuple[int, ...] = ()
    """Levels whose transformers attend twice to the context and never to the picture (x4 upscaler)."""
    vector_width: int | None = None
    """V, the width of the vector that is added to the time embedding through two linear layers; None: no vector."""
    size_width: int | None = None
    """The vector ends in the sinusoids of sizes, each so wide (SDXL). This changes nothing but names: diffusers makes
    such a vector inside its network, and calls the two layers `add_embedding`, not `class_embedding`."""
    classes: int | None = None
    """Number of labels, each with a learned vector that is added to the time embedding; None: no labels."""
    scale_shift: bool = False
    """Whether the time embedding scales and shifts inside the residual blocks, or is added."""
    resnet_resampling: bool = False
    """Whether the ways between the levels are residual blocks, or single convolutions."""
    norm_groups: int = 32
    norm_eps: float = RESNET_EPS
    """Of all norms but those of transformers; 1e-6 in the DDPM of Ho et al. 2020, where the next three are, too."""
    time_shift: int = 0
    time_sines_first: bool = False
    """How the sinusoids of the time are made: `layers.sinusoids`."""
    halves_symmetrically: bool = True
    """Whether a convolution that halves the size pads on all sides, or right and below only."""

    def __post_init__(self) -> None:
        levels = len(self.channels)
        if not len(self.transformer_depth) == len(self.heads) == levels:
            raise ValueError(f"transformer_depth and heads must have one entry for each of the {levels} levels")
        if self.context_width is None and (max(self.transformer_depth) > 1 or self.middle_depth != 1):
            raise ValueError("without a context, transformer_depth is 0 or 1 at each level, and middle_depth 1")
        if self.context_width is None and (self.context_only != () or self.linear_projection):
            raise ValueError("context_only and linear_projection are of transformers: they need a context_width")
        if not set(self.context_only) <= set(range(levels)):
            raise ValueError(f"context_only {self.context_only} names levels that are not among the {levels}")
        if self.vector_width is not None and self.classes is not None:
            raise ValueError("the vector door brings either a vector or a label: give vector_width or classes")
        if self.size_width is not None and self.vector_width is None:
            raise ValueError("size_width says how a vector is made: it needs a vector_width")

    @property
    def joins(self) -> int:
        """How often the two sides of the U are joined."""
        return len(self.channels) * (self.blocks_per_level + 1)

    @property
    def time_width(self) -> int:
        """T, the width of the time embedding."""
        return 4 * self.channels[0]


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoids of the time, or over a vector."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in) -> (B, T)."""
        y: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return y


class Level(nn.Module):
    """The blocks of one resolution on one side of the U, and the way to the next resolution if there is one."""

    def __init__(
        self, widths: list[tuple[int, int]], level: int, config: UNetConfig, way: Literal["down", "up"] | None
    ) -> None:
        """widths: (channels in, channels out) of each residual block. way: where the level is left for."""
        super().__init__()
        depth = config.transformer_depth[level]
        self.resnets = nn.ModuleList(_resnet(a, b, config) for a, b in widths)
        self.attentions = nn.ModuleList(_attention(b, level, depth, config) for _, b in widths if depth > 0)
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None
        if way == "down":
            self.downsamplers = nn.ModuleList([_resampler(widths[-1][1], config, way)])
        elif way == "up":
            self.upsamplers = nn.ModuleList([_resampler(widths[-1][1], config, way)])

    @property
    def way(self) -> list[int | None]:
        """Its blocks in order, and None for the way out of it, if there is one."""
        out = [] if self.downsamplers is None and self.upsamplers is None else [None]
        return [*range(len(self.resnets)), *out]

    def block(self, i: int, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """Residual block i and what attends behind it; of n contexts for each x n times as much."""
        x = self.resnets[i](x, time)
        if len(self.attentions) > 0:
            x = _attended(self.attentions[i], x, context)
        return x

    def leave(self, x: Tensor, time: Tensor, size: torch.Size | None = None) -> Tensor:
        """(B, C, h, w) -> (B, C, h/2, w/2) on the way down, (B, C, *size) on the way up; where there is one."""
        ways = self.downsamplers if self.upsamplers is None else self.upsamplers
        assert ways is not None
        way = ways[0]
        if isinstance(way, ResnetBlock):
            y: Tensor = way(x, time, size)
        else:
            y = way(x) if size is None else way(x, size)
        return y


class Middle(nn.Module):
    """Residual block, attention, residual block at the bottom of the U."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.channels[-1]
        self.resnets = nn.ModuleList(_resnet(width, width, config) for _ in range(2))
        self.attentions = nn.ModuleList([_attention(width, None, config.middle_depth, config)])

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w); of n contexts for each x n times as much."""
        x = _attended(self.attentions[0], self.resnets[0](x, time), context)
        y: Tensor = self.resnets[1](x, repeated(time, x))
        return y


def _resnet(
    channels_in: int, channels_out: int, config: UNetConfig, resample: Literal["down", "up"] | None = None
) -> ResnetBlock:
    return ResnetBlock(
        channels_in,
        channels_out,
        groups=config.norm_groups,
        eps=config.norm_eps,
        time_width=config.time_width,
        scale_shift=config.scale_shift,
        resample=resample,
    )


def _resampler(width: int, config: UNetConfig, way: Literal["down", "up"]) -> nn.Module:
    """The way between two levels."""
    if config.resnet_resampling:
        return _resnet(width, width, config, way)
    return Downsample(width, symmetric=config.halves_symmetrically) if way == "down" else Upsample(width)


def _attention(width: int, level: int | None, depth: int, config: UNetConfig) -> nn.Module:
    """What attends at a level; None is the middle."""
    heads = config.heads[-1 if level is None else level]
    if config.context_width is None:
        return PositionAttention(width, groups=config.norm_groups, eps=config.norm_eps, heads=heads)
    return SpatialTransformer(
        width,
        heads,
        depth,
        config.context_width,
        linear=config.linear_projection,
        context_only=level in config.context_only,
        groups=config.norm_groups,
    )


def _attended(attention: nn.Module, x: Tensor, context: Tensor | None) -> Tensor:
    """x (B, C, h, w) after attention to itself and to the context, if there is one."""
    y: Tensor = attention(x) if context is None else attention(x, context)
    return y


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
        elif isinstance(module, PositionAttention):
            last.append(module.to_out)
    for module in last:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def _levels(blocks: nn.ModuleList) -> list[Level]:
    """The same list, for the type checker."""
    return cast(list[Level], list(blocks))


@dataclass
class Deep:
    """The deep part of the U as one tensor: what comes from below into its finest joins (Ma et al. 2024, sec. 3.2)."""

    joins: int
    """How many joins of the two sides are not deep, from the finest: each has a block on either side of it."""
    given: Tensor | None = None
    """(B, C, h, w) to be taken for what the deep part would answer, which then is not asked."""
    found: Tensor | None = None
    """What was taken, or answered: set by the network."""


Joining = Callable[[int, Tensor, Tensor], Tensor]
"""(level on the way up, 0 the deepest; x (B, C, h, w); what was kept (B, C', h, w)) -> (B, C + C', h, w)."""


def joined(level: int, x: Tensor, kept: Tensor) -> Tensor:
    """What comes from below and what was kept on the way down, one behind the other."""
    return torch.cat([x, kept], dim=1)


class UNet(nn.Module):
    """The network of every member; see `UNetConfig`."""

    joining: Joining
    """How the two sides of the U meet: `joined`, unless something perturbs it for a time (`models/freeu.py`)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.joining = joined
        self.config = config
        widths, n = config.channels, config.blocks_per_level
        last = len(widths) - 1
        self.time_embedding = TimeEmbedding(widths[0], config.time_width)
        self.class_embedding: nn.Module | None = None
        self.add_embedding: nn.Module | None = None
        if config.classes is not None:
            self.class_embedding = nn.Embedding(config.classes, config.time_width)
        elif config.vector_width is not None:
            layers = TimeEmbedding(config.vector_width, config.time_width)
            if config.size_width is None:
                self.class_embedding = layers
            else:
                self.add_embedding = layers
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)

        # Every output on the way down is kept and joined on the way up: its widths, in order.
        kept = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            pairs = [(kept[-1] if j == 0 else width, width) for j in range(n)]
            self.down_blocks.append(Level(pairs, i, config, "down" if i < last else None))
            kept += [width] * (n + 1 if i < last else n)

        self.mid_block = Middle(config)

        self.up_blocks = nn.ModuleList()
        below = widths[-1]
        for i in reversed(range(len(widths))):
            pairs = []
            for _ in range(n + 1):
                pairs.append((below + kept.pop(), widths[i]))
                below = widths[i]
            self.up_blocks.append(Level(pairs, i, config, "up" if i > 0 else None))

        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, deep: Deep | None = None) -> Tensor:
        """Predict (eps or v, as the model was trained) for the noisy latent.

        Args:
            x: (B, C, h, w), noisy latent scaled to unit variance.
            t: (B,), time in schedule steps, 0 to 999, may be fractional.
            cond: exactly the doors that the config has. `context` (B, L, D) where there is a `context_width`; `vector`
                (B, V) where there is a `vector_width`, or (B, 1) labels from 0 to `classes` - 1 in an integer type,
                where there are `classes`; `concat`, if given, is stacked under x. Of pictures that are `alike` the
                first stand for all, until they attend to what each of them is told.
            deep: brings what its deep part is to have answered, or is told what it answers.

        Returns:
            (B, out_channels, h, w), in x's dtype.

        Raises:
            ValueError: a door is open that this UNet does not have, or closed that it needs.
        """
        _check(cond, self.config)
        if cond.concat is not None:
            x = torch.cat([x, cond.concat], dim=1)
        first = slice(len(x) // cond.alike)
        x, vector = x[first], None if cond.vector is None else cond.vector[first]
        time = F.silu(self._embed(t[first], vector, x.dtype))  # every block begins by the SiLU, so it is done once

        down, up = _levels(self.down_blocks), _levels(self.up_blocks)
        way_down = [(level, i) for level in down for i in level.way]
        given = None if deep is None else deep.given
        if deep is not None and given is not None:
            way_down = way_down[: deep.joins - 1]

        x = self.conv_in(x)
        kept = [x]
        for level, i in way_down:
            x = level.leave(x, time) if i is None else level.block(i, x, time, cond.context)
            time = repeated(time, x)
            kept.append(x)

        x = self.mid_block(x, time, cond.context) if given is None else given.to(x.dtype)
        time = repeated(time, x)

        way_up = [(n, level, i) for n, level in enumerate(up) for i in range(len(level.resnets))]
        for n, level, i in way_up[-len(kept) :]:
            if deep is not None and len(kept) == deep.joins:
                deep.found = x
            x = level.block(i, self.joining(n, x, repeated(kept.pop(), x)), time, cond.context)
            if level.upsamplers is not None and i + 1 == len(level.resnets):
                x = level.leave(x, time, kept[-1].shape[-2:])

        y: Tensor = self.conv_out(activated(self.conv_norm_out, x))
        return y

    def _embed(self, t: Tensor, vector: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The time (B,), and the vector or labels if there are any, as one embedding (B, T)."""
        config = self.config
        waves = sinusoids(t, config.channels[0], shift=config.time_shift, sines_first=config.time_sines_first)
        time: Tensor = self.time_embedding(waves.to(dtype))
        if vector is None:
            return time
        if self.add_embedding is not None:
            told: Tensor = self.add_embedding(vector)
        else:
            assert self.class_embedding is not None
            told = self.class_embedding(vector if config.classes is None else vector[:, 0])
        return time + told


def _check(cond: Conditioning, config: UNetConfig) -> None:
    """Raise ValueError unless just those doors are open that the config has (the third is seen by its channels)."""
    vector = config.vector_width if config.classes is None else config.classes
    for door, given, has in (("context", cond.context, config.context_width), ("vector", cond.vector, vector)):
        if given is None and has is not None:
            raise ValueError(f"this UNet is told something by its {door} door: give Conditioning.{door}")
        if given is not None and has is None:
            raise ValueError(f"this UNet has no {door} door: leave Conditioning.{door} out")
    if config.classes is not None and cond.vector is not None and cond.vector.is_floating_point():
        raise ValueError("labels must have an integer type: bfloat16 cannot tell 999 from 1000")
