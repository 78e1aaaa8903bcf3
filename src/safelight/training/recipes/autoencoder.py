"""Recipe: a KL autoencoder (Esser et al. 2021; Rombach et al. 2022, sec. 3.1 and appendix G)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from safelight.checkpoints.components import (
    read_autoencoder,
    read_clip,
    read_lpips,
    write_autoencoder,
)
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.discriminator import PatchDiscriminator
from safelight.training.data import batch_indices
from safelight.training.loop import Turn
from safelight.training.losses import ClipDistance, Perceptual, adaptive_weight, hinge, reconstruction
from safelight.training.pictures import Pictures, pixels
from safelight.training.recipes.settings import AutoencoderSettings

PICTURES_FOR_SCALE = 256
START_LOGVAR = -6.0


@dataclass(frozen=True)
class PixelBatch:
    """B pictures."""

    pixels: Tensor
    """(B, 3, S, S) in [-1, 1]."""


class AutoencoderRecipe:
    """The autoencoder and, against it, a patch discriminator."""

    def __init__(
        self, settings: AutoencoderSettings, pictures: Pictures, config: AutoencoderConfig, *, seed: int
    ) -> None:
        self.settings, self.pictures, self.seed = settings, pictures, seed
        torch.manual_seed(seed)
        self.autoencoder = _begin(settings, config)
        self.discriminator = PatchDiscriminator(settings.discriminator_width, settings.discriminator_layers)
        self.perceptual = _perceptual(settings.perceptual)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        parts: dict[str, nn.Module] = {"autoencoder": self.autoencoder}
        if self.settings.adversarial_weight > 0:
            parts["discriminator"] = self.discriminator
        return parts

    def batch(self, index: int, size: int) -> PixelBatch:
        chosen = batch_indices(index, size, len(self.pictures), self.seed)
        return PixelBatch(pixels([self.pictures[i][0] for i in chosen]))

    def turns(self, batch: PixelBatch, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
        settings = self.settings
        x = random_squares(batch.pixels, settings.crop, generator) if settings.crop > 0 else batch.pixels
        with torch.set_grad_enabled(not settings.decoder_only):
            mean, logvar = self.autoencoder.encode(x)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        decoded = self.autoencoder.decode(mean + torch.exp(0.5 * logvar) * noise)
        parts = reconstruction(x, decoded, mean, logvar, self.perceptual, settings.perceptual_weight)
        loss = parts.absolute_and_perceptual + settings.kl_weight * parts.kl
        log = {
            "l1": (x - decoded).abs().mean().detach(),
            "reconstruction": parts.absolute_and_perceptual.detach() / x[0].numel(),
            "kl": parts.kl.detach(),
        }
        adversarial = settings.adversarial_weight > 0 and images_seen >= settings.adversarial_start
        if adversarial:
            # Its own weights are not trained by this turn: without their gradients the way back is shorter.
            self.discriminator.requires_grad_(False)
            generator_loss = -self.discriminator(decoded).mean()
            self.discriminator.requires_grad_(True)
            last = self.autoencoder.decoder.last_layer
            weight = adaptive_weight(parts.absolute_and_perceptual, generator_loss, last)
            loss = loss + settings.adversarial_weight * weight * generator_loss
            log |= {"generator": generator_loss.detach(), "adaptive_weight": weight}
        # Per number instead of per picture: Adam does not care, clipping and the eye do.
        loss = loss / x[0].numel()
        yield Turn("autoencoder", loss, {"loss": loss.detach(), **log})
        if adversarial:
            real, fake = self.discriminator(x), self.discriminator(decoded.detach())
            loss = hinge(real, fake)
            yield Turn(
                "discriminator",
                loss,
                {"discriminator": loss.detach(), "real": real.mean().detach(), "fake": fake.mean().detach()},
            )

    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        """A folder that diffusers' AutoencoderKL reads too, its latent scale measured on the first pictures."""
        autoencoder = weights["autoencoder"]
        assert isinstance(autoencoder, Autoencoder)
        first = self.batch(0, min(PICTURES_FOR_SCALE, len(self.pictures)))
        scale = latent_scale(autoencoder, first.pixels)
        write_autoencoder(folder, autoencoder, scale, size=first.pixels.shape[-1])


def random_squares(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A square of each picture, anywhere: (B, 3, S, S) -> (B, 3, side, side)."""
    room = x.shape[-1] - side + 1
    places = torch.randint(room, (len(x), 2), generator=generator).tolist()
    return torch.stack(
        [one[:, top : top + side, left : left + side] for one, (top, left) in zip(x, places, strict=True)]
    )


@torch.no_grad()
def latent_scale(autoencoder: Autoencoder, pixels: Tensor) -> float:
    """One over the deviation of the latents of one batch (Rombach et al. 2022, appendix G): pixels (B, 3, S, S)."""
    device = next(autoencoder.parameters()).device
    mean, logvar = autoencoder.encode(pixels.to(device))
    sampled_variance = mean.var() + logvar.exp().mean()
    return float(sampled_variance.rsqrt())


def _begin(settings: AutoencoderSettings, config: AutoencoderConfig) -> Autoencoder:
    if settings.begin_from is not None:
        autoencoder, _ = read_autoencoder(settings.begin_from)
        for frozen in (autoencoder.encoder, autoencoder.quant_conv):
            frozen.requires_grad_(not settings.decoder_only)
        return autoencoder
    autoencoder = Autoencoder(config)
    # Begin with latents that are hardly noisy: unit noise on small means would drown the picture at first.
    with torch.no_grad():
        assert autoencoder.quant_conv.bias is not None
        autoencoder.quant_conv.bias[config.latent_channels :] = START_LOGVAR
    return autoencoder


def _perceptual(path: Path | None) -> Perceptual:
    if path is None:
        return lambda x, y: torch.zeros(len(x), 1, 1, 1, device=x.device)
    if path.is_dir():
        return ClipDistance(read_clip(path)[0].vision_model)
    return read_lpips(path).eval().requires_grad_(False)
