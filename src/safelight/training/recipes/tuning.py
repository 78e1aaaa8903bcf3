"""What all fine-tuning has in common: pictures in their buckets, noise, words, and the loss of a model's own kind.

Shapes: B batch, C latent channels, h w latent size.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from safelight.conditioning.sizes import base_numbers
from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.weighting import snr_weight
from safelight.doors import Conditioning
from safelight.errors import TrainingError
from safelight.models.tokenizer import Tokenizing
from safelight.presets.preset import AUTOENCODER, UNET
from safelight.training.buckets import BucketedPictures, Buckets, flips
from safelight.training.config import LoopConfig
from safelight.training.folders import Entry
from safelight.training.latents import Latents
from safelight.training.recipe import Turn
from safelight.training.recipes.foundation import Foundation, save_memory
from safelight.training.recipes.previews import Previews
from safelight.training.recipes.tuning_settings import (
    AdapterSettings,
    PriorSettings,
    TuningData,
    TuningSettings,
)
from safelight.training.tags import Tags

TUNED = "tuned"
"""The one part: what is trained together is trained by one loss."""


@dataclass(frozen=True)
class TuningBatch:
    """B pictures of one size."""

    mean: Tensor
    """(B, C, h, w), unscaled."""
    std: Tensor
    """(B, C, h, w)."""
    numbers: Tensor
    """(B, 6), sizes and crops."""
    weights: Tensor
    """(B,), how much each counts."""
    of_class: Tensor
    """(B,), bool: which are of the class, not to be learned."""
    captions: tuple[str, ...]


class Tuning(ABC):
    """A recipe that goes on from a whole model, which stays as it is but for one part."""

    def __init__(
        self,
        settings: TuningSettings,
        data: TuningData,
        groups: Sequence[Sequence[Entry]],
        foundation: Foundation,
        loop: LoopConfig,
    ) -> None:
        """Encode the pictures.

        Args:
            groups: pictures to learn, and of their class if there are: as much is seen of both.

        Raises:
            DataError: the sizes do not fit the model.
            TrainingError: what pictures of the class are to teach is said, and there are none.
        """
        if isinstance(settings, AdapterSettings) and settings.class_target == "model" and len(groups) < 2:
            raise TrainingError(
                "--class-target model is about pictures of the class: give --class-prompt or --class-data"
            )
        self.settings, self.foundation, self.seed = settings, foundation, loop.seed
        self.preset = foundation.preset
        self.schedule = Schedule(self.preset.schedule)
        self.pictures = BucketedPictures(groups, buckets_for(data, self.preset.width, self.preset.factor))
        autoencoder = foundation.autoencoder()
        if loop.device != "cpu" and torch.cuda.is_available():
            autoencoder.cuda(int(os.environ.get("LOCAL_RANK", "0")))
        entries = self.pictures.entries
        self._flips = [data.flip or entry.flip for entry in entries]
        tags = Tags(data.shuffle_tags, data.keep_tags, data.tag_dropout)
        self._tags = [tags if entry.tags is None else entry.tags for entry in entries]
        self._latents = Latents(self.pictures, autoencoder, loop.output, mirrored=any(self._flips))
        self._rows = self.pictures.rows(loop.seed)
        self.previews = Previews(settings.preview, settings.preview_every, loop.output, loop.seed)
        _say_cut(entries, foundation)
        if settings.gradient_checkpointing:
            save_memory(foundation.unet, *foundation.towers.values())

    # What each kind of tuning says

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """What learns."""

    @abstractmethod
    def says(self, captions: Sequence[str]) -> Conditioning:
        """What the UNet is told of captions."""

    @abstractmethod
    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        """As `Recipe.export`."""

    def acting(self, drawing: bool) -> AbstractContextManager[Mapping[str, Tokenizing]]:
        """Within it the model's networks do what is trained; gives the tokenizers to draw with.

        Args:
            drawing: requests are to be answered, which know nothing of training.
        """
        return nullcontext(self.foundation.tokenizers)

    def weight_of(self, group: int) -> float:
        """How much the pictures of a group count."""
        settings = self.settings
        return settings.prior_weight if isinstance(settings, PriorSettings) and group > 0 else 1.0

    # The recipe

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {TUNED: self.trained}

    def batch(self, index: int, size: int) -> TuningBatch:
        chosen = self._rows(index, size)
        turned = flips(index, size, self.seed).tolist() if any(self._flips) else [False] * size
        moments = torch.stack([self._latents(i, m and self._flips[i]) for i, m in zip(chosen, turned, strict=True)])
        mean, std = moments.chunk(2, dim=1)
        entries, places = self.pictures.entries, self.pictures.places
        numbers = [
            base_numbers(entries[i].size[::-1], places[i].bucket[::-1], places[i].corner)  # heights come first
            for i in chosen
        ]
        groups = [self.pictures.groups[i] for i in chosen]
        weights, of_class = [self.weight_of(group) for group in groups], [group > 0 for group in groups]
        captions = tuple(
            self._tags[i].said(entries[i].caption, self.seed, index * size + k) for k, i in enumerate(chosen)
        )
        return TuningBatch(mean, std, torch.tensor(numbers), torch.tensor(weights), torch.tensor(of_class), captions)

    def turns(self, batch: TuningBatch, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
        settings, device = self.settings, next(self.trained.parameters()).device
        self.foundation.to(device)
        count, shape = len(batch.captions), batch.mean.shape
        told_less = settings.class_caption_dropout if isinstance(settings, PriorSettings) else 0.0
        chance = torch.where(batch.of_class.cpu(), max(told_less, settings.caption_dropout), settings.caption_dropout)
        dropped = torch.rand(count, generator=generator) < chance
        captions = ["" if d else c for c, d in zip(batch.captions, dropped.tolist(), strict=True)]
        t = torch.randint(self.preset.schedule.steps, (count,), generator=generator)
        posterior = torch.randn(shape, generator=generator).to(device)
        noise = torch.randn(shape, generator=generator)
        if settings.noise_offset > 0:  # all of a channel brighter or darker at once (Guttenberg 2023)
            noise = noise + settings.noise_offset * torch.randn(*shape[:2], 1, 1, generator=generator)
        x0 = self.preset.latent_scale * (batch.mean + batch.std * posterior)
        sigma = self.schedule.sigmas[t].float()
        weight = snr_weight(sigma, settings.weighting, settings.snr_gamma, self.preset.prediction)
        weight = batch.weights if weight is None else batch.weights * weight.to(device)
        unet = self.foundation.unet
        denoiser = Denoiser(unet, self.schedule, self.preset.prediction, next(unet.parameters()).dtype)
        noise = noise.to(device)
        target = denoiser.target(x0, noise, sigma)
        if isinstance(settings, AdapterSettings) and settings.class_target == "model":
            kept = batch.of_class.cpu().nonzero().flatten().tolist()
            if kept:
                before = self.foundation.remembers([captions[k] for k in kept])
                cond = self._told(before, batch.numbers[kept], denoiser.dtype)
                with torch.no_grad():
                    answer = denoiser.predict(x0[kept], noise[kept], sigma[kept], cond)
                target = target.index_copy(0, torch.tensor(kept, device=device), answer)
        with self.acting(drawing=False):
            cond = self._told(self.says(captions), batch.numbers, denoiser.dtype)
            loss = denoiser.loss(x0, noise, sigma, cond, weight, target).mean()
            # Here and not outside: with gradient checkpointing, the backward pass computes blocks again.
            yield Turn(TUNED, loss, {"loss": loss.detach()})

    def _told(self, said: Conditioning, numbers: Tensor, dtype: torch.dtype) -> Conditioning:
        return self.foundation.with_sizes(said, numbers).map(lambda door: door.to(dtype))

    def show(self, images_seen: int, step_images: int) -> None:
        """As `Shown.show`: the previews that are due."""
        if not self.previews.due(images_seen, step_images):
            return
        foundation = self.foundation
        device = next(self.trained.parameters()).device
        networks: dict[str, nn.Module] = {UNET: foundation.unet, **foundation.towers}
        networks[AUTOENCODER] = foundation.autoencoder().to(device)
        mode = self.trained.training
        self.trained.eval()
        with self.acting(drawing=True) as tokenizers:
            self.previews.draw(images_seen, self.preset, networks, tokenizers)
        self.trained.train(mode)


def _say_cut(entries: Sequence[Entry], foundation: Foundation) -> None:
    """Name the captions of which the towers read only the beginning."""
    tokenizers = foundation.tokenizers.values()
    long = {
        entry.caption: entry.path
        for entry in entries
        if any(len(tokenizer.words(entry.caption)) > tokenizer.length - 2 for tokenizer in tokenizers)
    }
    if long:
        room = min(tokenizer.length for tokenizer in tokenizers) - 2
        line = f"{len(long)} captions are longer than {room} tokens, and lose their ends: the first is of "
        print(f"{line}{next(iter(long.values()))}", file=sys.stderr, flush=True)


def buckets_for(data: TuningData, native: int, grid: int) -> Buckets:
    """The buckets asked for; where nothing is, kohya's, or for models that draw less than those, the like.

    Args:
        native: the side of the pictures that the model draws.
        grid: what sides must be multiples of.

    Raises:
        DataError: they are not.
    """
    side = native if data.size is None else data.size
    if data.square:
        return Buckets.square(side).on(grid)
    step = data.bucket_step if data.bucket_step is not None else 64 if side >= 512 else max(grid, side // 8)
    smallest = data.bucket_smallest if data.bucket_smallest is not None else min(256, side // 2)
    largest = data.bucket_largest if data.bucket_largest is not None else 2 * side
    return Buckets(side, smallest, largest, step, not data.no_enlarge).on(grid)
