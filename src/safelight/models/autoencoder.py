"""The autoencoder between pictures and latents, of both kinds (Rombach et al. 2022, sec. 3.1 and appendix G).

KL: the encoder gives mean and log-variance of the latent. VQ: it gives the latent itself, which the decoder rounds
to the entries of a codebook. Parameter names are those of diffusers' AutoencoderKL and VQModel.

Shapes: B batch, C latent channels, H W picture size in pixels, h = H / factor, w = W / factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safelight.models.codebook import Codebook, Quantised
from safelight.models.layers import Downsample, PositionAttention, ResnetBlock, Upsample, activated

EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class AutoencoderConfig:
    """The shape of an autoencoder. The defaults are Stable Diffusion's KL-f8 (83,653,863 parameters).

    Level 0 is the finest.
    """

    in_channels: int = 3
    latent_channels: int = 4
    """C, and the width of a codebook's entries."""
    inner_channels: int | None = None
    """Channels between encoder and decoder and the 1x1 convolutions on both sides of the latent; None: C."""
    channels: tuple[int, ...] = (128, 256, 512, 512)
    """Width of each level."""
    blocks_per_level: int = 2
    """Residual blocks per level in the encoder; one more in the decoder."""
    attention_levels: tuple[int, ...] = ()
    """Levels where attention over the positions follows each residual block."""
    middle_attention: bool = True
    """Whether there is such attention at the coarsest resolution, between encoder and latent and behind it."""
    codebook_size: int | None = None
    """N, the entries of the codebook of a VQ autoencoder; None: a KL autoencoder."""
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if not set(self.attention_levels) <= set(range(len(self.channels))):
            raise ValueError(f"attention_levels {self.attention_levels}: there are {len(self.channels)} levels")

    @property
    def z_channels(self) -> int:
        """Channels of what the decoder is given."""
        return self.latent_channels if self.inner_channels is None else self.inner_channels

    @property
    def moments(self) -> int:
        """Numbers that are predicted for each number of the latent: mean and log-variance, or itself."""
        return 2 if self.codebook_size is None else 1

    @property
    def factor(self) -> int:
        """Pixels per latent position, on a side."""
        return 1 << (len(self.channels) - 1)


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, width: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_resnet(width, width, config) for _ in range(2))
        attentions = [_attention(width, config)] if config.middle_attention else []
        self.attentions = nn.ModuleList(attentions)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        y: Tensor = self.resnets[1](x)
        return y


class Level(nn.Module):
    """The residual blocks of one resolution, and the way to the next one if there is one."""

    def __init__(self, level: int, channels_in: int, blocks: int, config: AutoencoderConfig) -> None:
        super().__init__()
        width, attends = config.channels[level], level in config.attention_levels
        self.resnets = nn.ModuleList(_resnet(channels_in if i == 0 else width, width, config) for i in range(blocks))
        self.attentions = nn.ModuleList(_attention(width, config) for _ in range(blocks if attends else 0))
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        for i, block in enumerate(self.resnets):
            x = block(x)
            if len(self.attentions) > 0:
                x = self.attentions[i](x)
        for change in (self.downsamplers, self.upsamplers):
            if change is not None:
                x = change[0](x)
        return x


def _resnet(channels_in: int, channels_out: int, config: AutoencoderConfig) -> ResnetBlock:
    return ResnetBlock(channels_in, channels_out, groups=config.norm_groups, eps=EPS)


def _attention(width: int, config: AutoencoderConfig) -> PositionAttention:
    return PositionAttention(width, groups=config.norm_groups, eps=EPS)


class Encoder(nn.Module):
    """Picture to the moments of its latent, or to the latent itself."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(i, widths[max(i - 1, 0)], config.blocks_per_level, config)
            if i < len(widths) - 1:
                level.downsamplers = nn.ModuleList([Downsample(width, symmetric=False)])
            self.down_blocks.append(level)
        self.mid_block = Middle(widths[-1], config)
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.moments * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, moments * z_channels, h, w)."""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        y: Tensor = self.conv_out(activated(self.conv_norm_out, self.mid_block(x)))
        return y


class Decoder(nn.Module):
    """Latent to picture."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, coarsest = config.channels, len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid_block = Middle(widths[-1], config)
        self.up_blocks = nn.ModuleList()
        for i in reversed(range(len(widths))):
            level = Level(i, widths[min(i + 1, coarsest)], config.blocks_per_level + 1, config)
            if i > 0:
                level.upsamplers = nn.ModuleList([Upsample(widths[i])])
            self.up_blocks.append(level)
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[0], EPS)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """The weight by which the adversarial loss is balanced (Esser et al. 2021, eq. 7)."""
        return self.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) -> (B, 3, H, W)."""
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        y: Tensor = self.conv_out(activated(self.conv_norm_out, x))
        return y


class Autoencoder(nn.Module):
    """Encoder and decoder with the 1x1 convolutions on both sides of the latent. The latent scale is not in here."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        C, z = config.latent_channels, config.z_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(config.moments * z, config.moments * C, 1)
        self.post_quant_conv = nn.Conv2d(C, z, 1)
        self.quantize = None if config.codebook_size is None else Codebook(config.codebook_size, C)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) in [-1, 1] -> mean and log-variance of the latent, each (B, C, h, w).

        Only the mean is needed for a picture; training samples `mean + exp(logvar / 2) * noise`. A VQ autoencoder's
        latent is certain, and not yet rounded to the codebook: it is the mean, and the log-variance that of no
        variance, minus infinity.
        """
        return self.moments(self.encoder(pixels))

    def moments(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder gives (B, moments * z_channels, h, w) -> as `encode`."""
        encoded = self.quant_conv(encoded)
        if self.quantize is not None:
            return encoded, torch.full_like(encoded, -torch.inf)
        mean, logvar = encoded.chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def quantise(self, z: Tensor) -> Quantised:
        """Unscaled latent (B, C, h, w) of a VQ autoencoder -> what it is in the codebook, and the losses of that.

        Raises:
            ValueError: a KL autoencoder has no codebook.
        """
        if self.quantize is None:
            raise ValueError("a KL autoencoder has no codebook")
        quantised: Quantised = self.quantize(z)
        return quantised

    def decode(self, z: Tensor) -> Tensor:
        """Unscaled latent (B, C, h, w) -> pixels (B, 3, H, W), about [-1, 1], not clamped.

        A VQ autoencoder first rounds the latent to its codebook. To train one, take `quantise(z).latent` for that
        and for its losses, and then `decode_entries`.
        """
        return self.decode_entries(z if self.quantize is None else self.quantise(z).latent)

    def decode_entries(self, z: Tensor) -> Tensor:
        """As `decode`, without the codebook: (B, C, h, w) -> (B, 3, H, W)."""
        y: Tensor = self.decoder(self.post_quant_conv(z))
        return y

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """There and back, as training needs it: pixels and noise (B, C, h, w) -> (pixels, mean, logvar)."""
        mean, logvar = self.encode(pixels)
        return self.decode(mean + torch.exp(0.5 * logvar) * noise), mean, logvar
