"""What a recipe that begins from nothing can be told: the source of its command-line options. No torch, so that help is
instant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safelight.errors import DataError, TrainingError
from safelight.training.config import option


@dataclass(frozen=True)
class SceneConfig:
    """Which scenes to train on."""

    size: int = 64
    """Side of the training pictures in pixels."""
    count: int = 50_000
    """How many scenes there are."""
    data_seed: int = 0
    """Seed of the scenes."""

    def __post_init__(self) -> None:
        if self.size < 8:
            raise DataError(f"--size {self.size} is too small: give at least 8 pixels")
        if self.count < 1:
            raise DataError(f"--count {self.count} leaves nothing to train on: give at least 1")


@dataclass(frozen=True)
class DataConfig(SceneConfig):
    """Which pictures and captions to train on."""

    data: str = "scenes"
    """A folder of pictures with captions (.txt or .caption beside each, or metadata.jsonl), which are scaled to cover
    the square and cropped to its centre; or `scenes`, built in."""


@dataclass(frozen=True)
class ClipSettings:
    """Contrastive training of a CLIP, with its vocabulary (Radford et al. 2021)."""

    preset: str = "tiny"
    """Whose text tower and image tower to build."""
    family: int = 1
    """So many pictures in a row always come into one batch together. Where they look alike but for what the words
    say (scenes then do), they teach what random pictures hardly do: to read every word (Yuksekgonul et al. 2023)."""
    vocabulary: int = 1024
    """Most tokens of the vocabulary that is learned from the captions."""

    def __post_init__(self) -> None:
        if self.family < 1:
            raise TrainingError(f"--family is {self.family}: give 1 or more")


@dataclass(frozen=True)
class AutoencoderSettings:
    """Training of a KL autoencoder (Esser et al. 2021; Rombach et al. 2022, sec. 3.1)."""

    preset: str = "tiny"
    """Whose autoencoder to build."""
    begin_from: Path | None = None
    """A folder from `train autoencoder` to go on from, instead of from nothing."""
    decoder_only: bool = False
    """Leave the encoder as it is: latents, and all that was trained on them, stay valid."""
    crop: int = 0
    """Train on random squares of this side, in pixels: most of what is to be learned is local, and costs less so.
    0 takes whole pictures."""
    perceptual: Path | None = None
    """A folder from `train clip`, or a file of LPIPS weights with VGG-16; without it there is no perceptual term."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual distance beside the absolute difference."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence: small, it only keeps latents near the origin."""
    adversarial_weight: float = 0.5
    """Weight of the discriminator's opinion, on top of the adaptive one; 0 trains none."""
    adversarial_start: int = 10_000
    """Pictures seen before the discriminator joins."""
    discriminator_width: int = 32
    """Channels of its first layer."""
    discriminator_layers: int = 2
    """Strided layers: 3 looks at patches of 70 pixels, 2 of 34, 1 of 16."""

    def __post_init__(self) -> None:
        if self.decoder_only and self.begin_from is None:
            raise TrainingError("--decoder-only needs an autoencoder that has been trained: add --begin-from FOLDER")
        if self.crop < 0:
            raise TrainingError(f"--crop is {self.crop}: give the side of a square in pixels, or 0 for whole pictures")
        for name in ("perceptual_weight", "kl_weight", "adversarial_weight"):
            if not getattr(self, name) >= 0:
                raise TrainingError(f"{option(name)} is {getattr(self, name)}: give a number that is 0 or more")


@dataclass(frozen=True)
class PreviewDecoderSettings:
    """Training of a small decoder for previews, by the decoder of a model."""

    model: str = "tiny"
    """Whose latents to decode: a shipped model, a folder, a file or a hub id."""
    width: int = 16
    """Channels of all layers. TAESD has 64."""
    blocks: tuple[int, ...] = (2,)
    """Residual blocks at each resolution, from the latent's, each twice as fine; the last layer then makes of each
    position as many pixels as are missing. TAESD has 3 3 3 1: sharper, and many times as slow."""
    absolute_weight: float = 0.1
    """Weight of the absolute difference beside the squared one."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise TrainingError(f"--width is {self.width}: give at least 1")
        if not self.blocks or min(self.blocks) < 0:
            raise TrainingError(f"--blocks is {self.blocks}: give 0 or more at each resolution")
        if not self.absolute_weight >= 0:
            raise TrainingError(f"--absolute-weight is {self.absolute_weight}: give a number that is 0 or more")


@dataclass(frozen=True)
class DiffusionSettings:
    """Training of the UNet in latent space (Ho et al. 2020; Rombach et al. 2022, eq. 3)."""

    begin_from: str | None = None
    """A model to go on from, instead of from nothing: a shipped one, a folder, a file or a hub id."""
    text_encoder: Path | None = None
    """A folder from `train clip`: its text tower, frozen, reads the captions. Default: that of --begin-from."""
    autoencoder: Path | None = None
    """A folder from `train autoencoder`, frozen. Default: that of --begin-from."""
    preset: str | None = None
    """Whose UNet, noise schedule and prediction kind to train. Default: that of --begin-from, else tiny."""
    caption_dropout: float = 0.1
    """Share of captions replaced by none, which is what guidance steers away from (Ho & Salimans 2021)."""
    weighting: Literal["none", "min_snr", "clamped_snr"] = "clamped_snr"
    """How noise levels count: all alike as published; less where little is to be learned (min-SNR, Hang et al. 2023);
    or so, but with all of pure noise's share (learns what is where sooner)."""
    snr_gamma: float = 5.0
    """Signal-to-noise ratio above which a noise level counts less."""

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise TrainingError(f"--caption-dropout is {self.caption_dropout}: give a share between 0 and 1")
        if not self.snr_gamma > 0:
            raise TrainingError(f"--snr-gamma is {self.snr_gamma}: give a number above 0")
