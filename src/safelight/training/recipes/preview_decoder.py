"""Recipe: a small decoder of a model's latents, taught by the model's own decoder (as TAESD was: Bohan 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.checkpoints.previews import fingerprint, write_preview_decoder
from safelight.errors import TrainingError
from safelight.models.autoencoder import Autoencoder
from safelight.models.preview_decoder import PreviewDecoder, PreviewDecoderConfig
from safelight.presets.preset import AUTOENCODER
from safelight.tasks.loading import fill, open_checkpoint
from safelight.training.data import batch_indices
from safelight.training.loop import Turn
from safelight.training.pictures import Pictures, pixels
from safelight.training.recipes.settings import PreviewDecoderSettings

UNFINISHED = 0.5
"""Share of the latents that are taught as a walk shows them before its end: smoother than those of pictures."""
REMEMBERED = 1 << 30
"""Bytes of lessons that are kept: the teacher takes many times as long as the pupil."""


@dataclass(frozen=True)
class PixelBatch:
    """The numbers of B pictures, and those of them that the teacher has not seen."""

    numbers: tuple[int, ...]
    new: tuple[int, ...]
    pixels: Tensor
    """(new, 3, S, S) in [-1, 1]."""


class Lesson(NamedTuple):
    """A latent and what the teacher makes of it, in half precision."""

    latent: Tensor
    """(C, h, w), scaled."""
    wanted: Tensor
    """(3, S, S) in [-1, 1]."""


class PreviewDecoderRecipe:
    """A small decoder; the autoencoder that teaches it is frozen.

    Raises:
        TrainingError: the model has no latents, the blocks do not make its factor, or the pictures have no latent.
        ModelFileError: there is no such model.
    """

    def __init__(self, settings: PreviewDecoderSettings, pictures: Pictures, *, seed: int) -> None:
        self.settings, self.pictures, self.seed = settings, pictures, seed
        origin = open_checkpoint(settings.model)
        config = origin.preset.autoencoder
        if config is None:
            raise TrainingError(f"{settings.model} works on the pixels themselves: they are their own preview")
        if len(settings.blocks) > len(config.channels):
            raise TrainingError(
                f"--blocks has {len(settings.blocks)} resolutions, and from the latents of {settings.model} to pixels "
                f"there are {len(config.channels)}: give no more numbers"
            )
        pixels_each = config.factor >> (len(settings.blocks) - 1)
        shape = PreviewDecoderConfig(config.latent_channels, settings.width, settings.blocks, pixels_each)
        self.side = pictures[0][0].shape[-1]
        if self.side % config.factor:
            raise TrainingError(
                f"pictures of {self.side} pixels have no latent: give a --size that is a multiple of {config.factor}"
            )
        weights = origin.parts[AUTOENCODER]
        self.of, self.scale = fingerprint(weights), origin.preset.latent_scale
        teacher = cast(Autoencoder, fill(config, weights, torch.device("cpu"), torch.float32))
        self.teacher = teacher.eval().requires_grad_(False)
        torch.manual_seed(seed)
        self.decoder = PreviewDecoder(shape)
        self._lessons: dict[int, Lesson] = {}
        self._size = 0  # bytes

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"decoder": self.decoder}

    def batch(self, index: int, size: int) -> PixelBatch:
        chosen = batch_indices(index, size, len(self.pictures), self.seed)
        new = tuple({i: None for i in chosen if i not in self._lessons})
        shown = pixels([self.pictures[i][0] for i in new]) if new else torch.empty(0, 3, self.side, self.side)
        return PixelBatch(tuple(chosen), new, shown)

    def turns(self, batch: PixelBatch, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
        latent, wanted = self._taught(batch)
        found = self.decoder(latent)
        squared, absolute = F.mse_loss(found, wanted), F.l1_loss(found, wanted)
        with torch.no_grad():
            psnr = -10 * torch.log10(F.mse_loss(found.clamp(-1, 1), wanted) / 4)
        loss = squared + self.settings.absolute_weight * absolute
        log = {"loss": loss.detach(), "l1": absolute.detach(), "psnr": psnr}
        yield Turn("decoder", loss, log)

    @torch.no_grad()
    def _taught(self, batch: PixelBatch) -> Lesson:
        """The lessons of a batch, each a function of its picture's number alone, and given once if there is room."""
        made: dict[int, Lesson] = {}
        if batch.new:
            teacher = self.teacher.to(batch.pixels.device)
            means = torch.split(teacher.encode(batch.pixels)[0] * self.scale, 1)
            latents = torch.cat([unfinished(mean, i) for mean, i in zip(means, batch.new, strict=True)])
            wanted = teacher.decode(latents / self.scale).clamp(-1, 1)
            for i, *lesson in zip(batch.new, latents.half(), wanted.half(), strict=True):
                made[i] = Lesson(*lesson)
            size = len(made) * sum(tensor.nbytes for tensor in made[batch.new[0]])
            if self._size + size <= REMEMBERED:
                self._lessons |= made
                self._size += size
        told = [made[i] if i in made else self._lessons[i] for i in batch.numbers]
        return Lesson(*(torch.stack(parts).float() for parts in zip(*told, strict=True)))

    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        """A folder for `--preview-decoder`, which says whose latents it decodes."""
        decoder = weights["decoder"]
        assert isinstance(decoder, PreviewDecoder)
        write_preview_decoder(folder, decoder, self.of)


def unfinished(latent: Tensor, number: int) -> Tensor:
    """Every other latent (1, C, h, w), by its number, as a network believes it under noise: blurred, more or less."""
    chance, degree = torch.rand(2, generator=torch.Generator().manual_seed(number)).tolist()
    soft = F.avg_pool2d(F.pad(latent, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return torch.lerp(latent, soft, degree if chance < UNFINISHED else 0.0)
