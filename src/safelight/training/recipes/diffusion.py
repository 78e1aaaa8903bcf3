"""Recipe: the UNet in latent space, by predicting noise (Ho et al. 2020, eq. 14; Rombach et al. 2022, eq. 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from safelight.checkpoints import Checkpoint, write_folder
from safelight.checkpoints.components import read_autoencoder, read_clip
from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.weighting import snr_weight
from safelight.doors import Conditioning
from safelight.errors import TrainingError
from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import ClipText
from safelight.models.tokenizer import Tokenizing
from safelight.models.unet import UNet, initialise
from safelight.presets import PRESETS, Preset
from safelight.presets.conditions import TEXT
from safelight.presets.preset import AUTOENCODER, UNET
from safelight.tasks.loading import fill, open_checkpoint
from safelight.training.data import batch_indices
from safelight.training.latents import kept, moments
from safelight.training.loop import Turn
from safelight.training.pictures import Pictures
from safelight.training.recipes.settings import DiffusionSettings

ENCODE_BATCH = 64
CPU = torch.device("cpu")
MOMENTS = "moments"


@dataclass(frozen=True)
class LatentBatch:
    """B latents' moments and captions."""

    mean: Tensor
    """(B, C, h, w), unscaled."""
    std: Tensor
    """(B, C, h, w)."""
    captions: tuple[str, ...]


class DiffusionRecipe:
    """A UNet, from nothing or from another model's, on cached latents; text tower and autoencoder are frozen.

    preset: None is that of the model begun from, else tiny. Raises TrainingError where the parts do not fit.
    """

    def __init__(
        self, settings: DiffusionSettings, pictures: Pictures, preset: Preset | None, *, cache: Path, seed: int
    ) -> None:
        if settings.begin_from is None and (settings.text_encoder is None or settings.autoencoder is None):
            raise TrainingError(
                "nothing is known of words and latents: give --text-encoder FOLDER and --autoencoder FOLDER, "
                "or a whole model by --begin-from, like tiny"
            )
        self.settings, self.pictures, self.seed = settings, pictures, seed
        origin = None if settings.begin_from is None else open_checkpoint(settings.begin_from)
        if preset is None:
            preset = PRESETS["tiny"] if origin is None else origin.preset
        self.text, self.tokenizer = _words(settings.text_encoder, origin)
        self.autoencoder, scale = _latents(settings.autoencoder, origin)
        for frozen in (self.text, self.autoencoder):
            frozen.eval().requires_grad_(False)
        _check_fit(preset, self.text.config.width, self.autoencoder.config.latent_channels)
        side, factor = pictures[0][0].shape[-1], self.autoencoder.config.factor
        if side % factor:
            raise TrainingError(
                f"pictures of {side} pixels have no latent: give a --size that is a multiple of {factor}"
            )
        preset = preset.with_towers({TEXT: self.text.config})
        self.preset = replace(preset, autoencoder=self.autoencoder.config, latent_scale=scale)
        torch.manual_seed(seed)
        self.unet = _unet(preset, origin)
        self.schedule = Schedule(preset.schedule)
        self.latents = cached_moments(pictures, self.autoencoder, cache)
        self.captions = [pictures.caption(i) for i in range(len(pictures))]

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"unet": self.unet}

    def batch(self, index: int, size: int) -> LatentBatch:
        chosen = batch_indices(index, size, len(self.pictures), self.seed)
        mean, std = self.latents[chosen].float().chunk(2, dim=1)
        return LatentBatch(mean, std, tuple(self.captions[i] for i in chosen))

    def turns(self, batch: LatentBatch, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
        settings, device = self.settings, next(self.unet.parameters()).device
        count = len(batch.captions)
        dropped = torch.rand(count, generator=generator) < settings.caption_dropout
        captions = ["" if d else c for c, d in zip(batch.captions, dropped.tolist(), strict=True)]
        t = torch.randint(self.preset.schedule.steps, (count,), generator=generator)
        posterior = torch.randn(batch.mean.shape, generator=generator)
        noise = torch.randn(batch.mean.shape, generator=generator).to(device)

        x0 = (self.preset.latent_scale * (batch.mean + batch.std * posterior)).to(device)
        sigma = self.schedule.sigmas[t].float().to(device)
        with torch.no_grad():
            cond = Conditioning(context=self.text.to(device)(self.tokenizer(captions).to(device)).last)
        weight = snr_weight(sigma, settings.weighting, settings.snr_gamma, self.preset.prediction)
        denoiser = Denoiser(self.unet, self.schedule, self.preset.prediction)
        loss = denoiser.loss(x0, noise, sigma, cond, weight).mean()
        yield Turn("unet", loss, {"loss": loss.detach()})

    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        """A whole model in the diffusers layout."""
        unet = weights["unet"]
        assert isinstance(unet, UNet)
        networks = {UNET: unet, AUTOENCODER: self.autoencoder, TEXT: self.text}
        parts = {name: dict(network.state_dict()) for name, network in networks.items()}
        write_folder(folder, Checkpoint(self.preset, parts, {TEXT: self.tokenizer}))


def _unet(preset: Preset, origin: Checkpoint | None) -> UNet:
    """In float32: new, or with the weights of the model begun from."""
    if origin is None:
        unet = UNet(preset.unet)
        initialise(unet)
        return unet
    if origin.preset.unet != preset.unet:
        raise TrainingError(
            f"{origin.source} has another UNet than {preset.name}: leave out --preset, or begin from a model of it"
        )
    return cast(UNet, fill(preset.unet, origin.parts[UNET], CPU, torch.float32))


def _words(folder: Path | None, origin: Checkpoint | None) -> tuple[ClipText, Tokenizing]:
    """The text tower and its vocabulary: of a trained CLIP, or of the model begun from."""
    if folder is not None:
        clip, tokenizer = read_clip(folder)
        return clip.text_model, tokenizer
    assert origin is not None  # or the recipe would have refused
    tower = origin.preset.networks[TEXT]
    return cast(ClipText, fill(tower, origin.parts[TEXT], CPU, torch.float32)), origin.vocabularies()[TEXT]


def _latents(folder: Path | None, origin: Checkpoint | None) -> tuple[Autoencoder, float]:
    """The autoencoder and its latent scale: trained apart, or of the model begun from."""
    if folder is not None:
        return read_autoencoder(folder)
    assert origin is not None  # or the recipe would have refused
    network = fill(origin.preset.networks[AUTOENCODER], origin.parts[AUTOENCODER], CPU, torch.float32)
    return cast(Autoencoder, network), origin.preset.latent_scale


def _check_fit(preset: Preset, text_width: int, latent_channels: int) -> None:
    if text_width != preset.unet.context_width:
        raise TrainingError(
            f"the text tower is {text_width} wide but {preset.name}'s UNet attends to {preset.unet.context_width}: "
            "train a clip of the same preset"
        )
    if latent_channels != preset.unet.out_channels:
        raise TrainingError(
            f"the autoencoder has {latent_channels} latent channels but {preset.name}'s UNet "
            f"{preset.unet.out_channels}: train an autoencoder of the same preset"
        )


def cached_moments(pictures: Pictures, autoencoder: Autoencoder, cache: Path) -> Tensor:
    """Mean and deviation of every picture's latent, (N, 2C, h, w) float16, kept in files for the next start."""

    def make(chosen: range) -> Mapping[str, Tensor]:
        found = []
        starts = range(chosen.start, chosen.stop, ENCODE_BATCH)
        for start in tqdm(starts, desc="encoding pictures", unit="batch", disable=None):
            some = range(start, min(start + ENCODE_BATCH, chosen.stop))
            found.append(moments(autoencoder, [pictures[i][0] for i in some]))
        return {MOMENTS: torch.cat(found)}

    shares = kept(cache, pictures.identity, autoencoder, len(pictures), make)
    return torch.cat([share[MOMENTS] for share in shares])
