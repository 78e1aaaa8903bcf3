"""The KL autoencoder between pictures and latents (Rombach et al. 2022, sec. 3.1 and appendix E.3).

Shapes: B batch, C latent channels, H W picture size in pixels, h = H / factor, w = W / factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.layers import Downsample, ResnetBlock, Upsample, attend

EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class AutoencoderConfig:
    """The shape of an autoencoder. The defaults are Stable Diffusion's KL-f8 (83,653,863 parameters)."""

    in_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    """Width of each level, finest first."""
    blocks_per_level: int = 2
    """Residual blocks per level in the encoder; one more in the decoder."""
    norm_groups: int = 32

    @property
    def factor(self) -> int:
        """Pixels per latent position, on a side."""
        return 1 << (len(self.channels) - 1)


class PositionAttention(nn.Module):
    """Single-head self-attention over all positions, around a skip."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        y = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, h*w, C)
        y = self.to_out[0](attend(self.to_q(y), self.to_k(y), self.to_v(y), heads=1))
        out: Tensor = x + y.transpose(1, 2).reshape(x.shape)
        return out


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(width, width, groups=groups, eps=EPS) for _ in range(2))
        self.attentions = nn.ModuleList([PositionAttention(width, groups)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        y: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return y


class Level(nn.Module):
    """The residual blocks of one resolution, and the way to the next one if there is one."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels_in if i == 0 else channels_out, channels_out, groups=groups, eps=EPS)
            for i in range(blocks)
        )
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        for block in self.resnets:
            x = block(x)
        for change in (self.downsamplers, self.upsamplers):
            if change is not None:
                x = change[0](x)
        return x


class Encoder(nn.Module):
    """Picture to the moments of its latent."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.channels, config.norm_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[max(i - 1, 0)], width, config.blocks_per_level, groups)
            if i < len(widths) - 1:
                level.downsamplers = nn.ModuleList([Downsample(width, symmetric=False)])
            self.down_blocks.append(level)
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2C, h, w)."""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        y: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return y


class Decoder(nn.Module):
    """Latent to picture."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.channels[::-1], config.norm_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[max(i - 1, 0)], width, config.blocks_per_level + 1, groups)
            if i < len(widths) - 1:
                level.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(level)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """The weight by which the adversarial loss is balanced (Esser et al. 2021, eq. 7)."""
        return self.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W)."""
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        y: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return y


class Autoencoder(nn.Module):
    """Encoder and decoder with the 1x1 convolutions on both sides of the latent. The latent scale is not in here."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        moments = 2 * config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(moments, moments, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) in [-1, 1] -> mean and log-variance of the latent, each (B, C, h, w).

        Only the mean is needed for a picture; training samples `mean + exp(logvar / 2) * noise`.
        """
        mean, logvar = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, z: Tensor) -> Tensor:
        """Unscaled latent (B, C, h, w) -> pixels (B, 3, H, W), about [-1, 1], not clamped."""
        y: Tensor = self.decoder(self.post_quant_conv(z))
        return y

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """There and back, as training needs it: pixels and noise (B, C, h, w) -> (pixels, mean, logvar)."""
        mean, logvar = self.encode(pixels)
        return self.decode(mean + torch.exp(0.5 * logvar) * noise), mean, logvar
