"""From settings to a run, one function per recipe: what `safelight train NAME` calls."""

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
    from safelight.training.loop import require_free, train
    from safelight.training.recipes.clip import ClipRecipe

    if not loop.resume:
        require_free(loop.output)
    preset = _preset(settings.preset)
    recipe = ClipRecipe(settings, _pictures(data), preset.text, VISION[preset.name], cache=loop.output, seed=loop.seed)
    train(recipe, loop)


def autoencoder(*, loop: LoopConfig, data: DataConfig, settings: AutoencoderSettings) -> None:
    """Pictures to latents and back."""
    from safelight.training.loop import require_free, train
    from safelight.training.recipes.autoencoder import AutoencoderRecipe

    if not loop.resume:
        require_free(loop.output)
    config = _preset(settings.preset).autoencoder
    for name, side in (("size", data.size), ("crop", settings.crop)):
        if side % config.factor:
            raise TrainingError(f"{name} {side} is no multiple of the autoencoder's factor {config.factor}")
    if settings.crop > data.size:
        raise TrainingError(f"crop {settings.crop} is larger than the pictures: give at most {data.size}")
    train(AutoencoderRecipe(settings, _pictures(data), config, seed=loop.seed), loop)


def diffusion(*, loop: LoopConfig, data: DataConfig, settings: DiffusionSettings) -> None:
    """The UNet, in the latent space of a trained autoencoder, told by a trained CLIP."""
    from safelight.training.loop import require_free, train
    from safelight.training.recipes.diffusion import DiffusionRecipe

    if not loop.resume:
        require_free(loop.output)
    preset = _preset(settings.preset)
    train(DiffusionRecipe(settings, _pictures(data), preset, cache=loop.output, seed=loop.seed), loop)


def judge(*, loop: LoopConfig, data: DataConfig) -> None:
    """The classifier by which `safelight evaluate` measures models trained on scenes."""
    from safelight.training.loop import require_free, train
    from safelight.training.recipes.judge import JudgeRecipe
    from safelight.training.scenes import Scenes

    if not loop.resume:
        require_free(loop.output)
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
