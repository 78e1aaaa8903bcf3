"""From settings to a run, one function per recipe: what `safelight train NAME` calls. Torch is imported when it starts."""

# ruff: noqa: PLC0415  (help must not wait for torch)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safelight.errors import TrainingError
from safelight.training.config import LoopConfig
from safelight.training.recipes.settings import (
    AutoencoderSettings,
    ClipSettings,
    DataConfig,
    DiffusionSettings,
)

if TYPE_CHECKING:
    from safelight.presets import Preset
    from safelight.training.pictures import Pictures

SCENES = "scenes"
"""The value of `data` that stands for the built-in world."""


def clip(*, loop: LoopConfig, data: DataConfig, settings: ClipSettings) -> None:
    """Words and pictures into one space: a CLIP with its vocabulary, from pictures and captions."""
    from safelight.presets import VISION
    from safelight.training.loop import train
    from safelight.training.recipes.clip import ClipRecipe

    preset = _preset(settings.preset)
    recipe = ClipRecipe(settings, _pictures(data), preset.text, VISION[preset.name], seed=loop.seed)
    train(recipe, loop)


def autoencoder(*, loop: LoopConfig, data: DataConfig, settings: AutoencoderSettings) -> None:
    """Pictures to latents and back."""
    from safelight.training.loop import train
    from safelight.training.recipes.autoencoder import AutoencoderRecipe

    config = _preset(settings.preset).autoencoder
    if data.size % config.factor:
        raise TrainingError(f"size {data.size} is no multiple of the autoencoder's factor {config.factor}")
    train(AutoencoderRecipe(settings, _pictures(data), config, seed=loop.seed), loop)


def diffusion(*, loop: LoopConfig, data: DataConfig, settings: DiffusionSettings) -> None:
    """The UNet, in the latent space of a trained autoencoder, told by a trained CLIP."""
    from safelight.training.loop import train
    from safelight.training.recipes.diffusion import DiffusionRecipe

    preset = _preset(settings.preset)
    train(DiffusionRecipe(settings, _pictures(data), preset, cache=loop.output, seed=loop.seed), loop)


def judge(*, loop: LoopConfig, data: DataConfig) -> None:
    """The classifier by which `safelight evaluate` measures models trained on scenes."""
    from safelight.training.loop import train
    from safelight.training.recipes.judge import JudgeRecipe
    from safelight.training.scenes import Scenes

    if data.data != SCENES:
        raise TrainingError(f"the judge learns from the facts of scenes, not from {data.data}: leave out --data")
    train(JudgeRecipe(Scenes(data.count, data.size, data.data_seed, split="all"), seed=loop.seed), loop)


def _pictures(config: DataConfig) -> Pictures:
    if config.data == SCENES:
        from safelight.training.scenes import Scenes

        return Scenes(config.count, config.size, config.data_seed)
    from safelight.training.data import ImageFolder

    return ImageFolder(Path(config.data), config.size)


def _preset(name: str) -> Preset:
    from safelight.presets import PRESETS

    if name not in PRESETS:
        raise TrainingError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
