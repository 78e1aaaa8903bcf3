"""From settings to a run, one function per recipe: what `safelight train NAME` calls."""

# ruff: noqa: PLC0415  (help must not wait for torch)

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safelight import __version__
from safelight.errors import OutputError, TrainingError
from safelight.training.config import LoopConfig
from safelight.training.recipes.settings import (
    AutoencoderSettings,
    ClipSettings,
    DataConfig,
    DiffusionSettings,
    PreviewDecoderSettings,
    SceneConfig,
)
from safelight.training.recipes.tuning_settings import (
    DreamBoothSettings,
    HypernetworkSettings,
    InversionLoop,
    InversionSettings,
    LoraSettings,
    TuningData,
    TuningLoop,
    TuningSettings,
)

if TYPE_CHECKING:
    from safelight.presets import Preset
    from safelight.training.pictures import Pictures
    from safelight.training.recipes.tuning import Tuning

S = TypeVar("S", bound=TuningSettings)
SCENES = "scenes"
"""The value of `data` that stands for the built-in world."""
TOLD = "logs/settings.json"
"""What a run was told, in its output folder. Not beside the model: a `.json` there says that one is finished."""
PART = "config.json"
"""In the folder of every part that is finished."""


def clip(*, loop: LoopConfig, data: DataConfig, settings: ClipSettings) -> None:
    """Words and pictures into one space: a CLIP with its vocabulary, from pictures and captions."""
    from safelight.models.clip import ClipTextConfig
    from safelight.presets import VISION
    from safelight.presets.conditions import TEXT
    from safelight.training.loop import train
    from safelight.training.recipes.clip import ClipRecipe

    _begin(loop)
    preset = _preset(settings.preset)
    if preset.name not in VISION:
        raise TrainingError(f"{preset.name} has no CLIP of its own: give --preset {' or '.join(VISION)}")
    tower, vision = preset.networks[TEXT], VISION[preset.name]
    assert isinstance(tower, ClipTextConfig)  # those that are listed there have one
    if data.size != vision.image_size:
        raise TrainingError(
            f"--size {data.size} does not fit the image tower of {preset.name}: give --size {vision.image_size}"
        )
    pictures = _pictures(data, settings.family)
    recipe = ClipRecipe(settings, pictures, tower, vision, cache=loop.output, seed=loop.seed)
    record("clip", loop, pictures.identity, {"data": data, "settings": settings})
    train(recipe, loop)


def autoencoder(*, loop: LoopConfig, data: DataConfig, settings: AutoencoderSettings) -> None:
    """Pictures to latents and back."""
    from safelight.training.loop import train
    from safelight.training.recipes.autoencoder import AutoencoderRecipe

    _begin(loop)
    if settings.begin_from is not None:
        _require_part("--begin-from", settings.begin_from, "autoencoder")
    if settings.perceptual is not None and not settings.perceptual.is_file():
        _require_part("--perceptual", settings.perceptual, "clip", ", or a file of LPIPS weights")
    config = _preset(settings.preset).autoencoder
    if config is None:
        raise TrainingError(f"{settings.preset} has no autoencoder: it works on the pixels themselves")
    for name, side in (("--size", data.size), ("--crop", settings.crop)):
        if side % config.factor:
            below = side // config.factor * config.factor
            raise TrainingError(
                f"{name} {side} is not a multiple of {config.factor}, the autoencoder's factor: "
                f"the nearest that work are {below} and {below + config.factor}"
            )
    if settings.crop > data.size:
        raise TrainingError(f"--crop {settings.crop} is larger than the pictures: give at most {data.size}")
    pictures = _pictures(data)
    recipe = AutoencoderRecipe(settings, pictures, config, seed=loop.seed)
    record("autoencoder", loop, pictures.identity, {"data": data, "settings": settings})
    train(recipe, loop)


def diffusion(*, loop: LoopConfig, data: DataConfig, settings: DiffusionSettings) -> None:
    """The UNet, in the latent space of a trained autoencoder, told by a trained CLIP."""
    from safelight.training.loop import train
    from safelight.training.recipes.diffusion import DiffusionRecipe

    _begin(loop)
    if settings.text_encoder is not None:
        _require_part("--text-encoder", settings.text_encoder, "clip")
    if settings.autoencoder is not None:
        _require_part("--autoencoder", settings.autoencoder, "autoencoder")
    preset = None if settings.preset is None else _preset(settings.preset)
    pictures = _pictures(data)
    recipe = DiffusionRecipe(settings, pictures, preset, cache=loop.output, seed=loop.seed)
    record("diffusion", loop, pictures.identity, {"data": data, "settings": settings})
    train(recipe, loop)


def preview_decoder(*, loop: LoopConfig, data: DataConfig, settings: PreviewDecoderSettings) -> None:
    """A small decoder of a model's latents, for previews: about the same pictures in a small part of the time."""
    from safelight.training.loop import train
    from safelight.training.recipes.preview_decoder import PreviewDecoderRecipe

    _begin(loop)
    pictures = _pictures(data)
    recipe = PreviewDecoderRecipe(settings, pictures, seed=loop.seed)
    record("preview-decoder", loop, pictures.identity, {"data": data, "settings": settings})
    train(recipe, loop)


def judge(*, loop: LoopConfig, data: SceneConfig) -> None:
    """The classifier by which `safelight evaluate` measures models trained on scenes."""
    from safelight.training.loop import train
    from safelight.training.recipes.judge import JudgeRecipe
    from safelight.training.scenes import Scenes

    _begin(loop)
    scenes = Scenes(data.count, data.size, data.data_seed, split="all")
    recipe = JudgeRecipe(scenes, seed=loop.seed)
    record("judge", loop, scenes.identity, {"data": data})
    train(recipe, loop)


def dreambooth(*, loop: TuningLoop, data: TuningData, settings: DreamBoothSettings) -> None:
    """A whole model taught one thing from a few pictures, and its class kept."""
    from safelight.training.recipes.dreambooth import DreamBooth

    _tune("dreambooth", DreamBooth, loop, data, settings)


def lora(*, loop: TuningLoop, data: TuningData, settings: LoraSettings) -> None:
    """A small change of a model, in a file of its own: LoRA, LoCon, LoHa, LoKr, DoRA."""
    from safelight.training.recipes.lora import LoraRecipe

    _tune("lora", LoraRecipe, loop, data, settings)


def textual_inversion(*, loop: InversionLoop, data: TuningData, settings: InversionSettings) -> None:
    """A new word for a model, in a file of its own: nothing of the model is changed."""
    from safelight.training.recipes.textual_inversion import TextualInversion

    _tune("textual-inversion", TextualInversion, loop, data, settings)


def hypernetwork(*, loop: TuningLoop, data: TuningData, settings: HypernetworkSettings) -> None:
    """Small networks that bend what a model attends to, in a file of their own."""
    from safelight.training.recipes.hypernetwork import HypernetworkRecipe

    _tune("hypernetwork", HypernetworkRecipe, loop, data, settings)


def _tune(
    name: str, recipe_of: Callable[[S, TuningData, TuningLoop], Tuning], loop: TuningLoop, data: TuningData, settings: S
) -> None:
    """What all fine-tuning does."""
    from safelight.training.loop import train
    from safelight.training.recipes.arranging import arranged

    _begin(loop)
    loop, data = arranged(loop, data)
    recipe = recipe_of(settings, data, loop)
    record(name, loop, recipe.pictures.identity, {"data": data, "settings": settings})
    train(recipe, loop)


def record(
    recipe: str,
    loop: LoopConfig,
    pictures: str,
    told: Mapping[
        str,
        SceneConfig
        | ClipSettings
        | AutoencoderSettings
        | PreviewDecoderSettings
        | DiffusionSettings
        | TuningData
        | TuningSettings,
    ],
) -> None:
    """Write what a run is told into its folder as it starts, so that what is said of its model can be proved.

    A resumed run keeps what it was told before under "before", oldest first. Of several processes one writes.

    Args:
        recipe: its name.
        pictures: the identity of the data.
        told: the recipe's configs, by name.

    Raises:
        OutputError: it cannot be written.
        TrainingError: the earlier record is damaged.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    from safelight.checkpoints.writing import write_json

    path = loop.output / TOLD
    before: list[object] = []
    if loop.resume and path.is_file():
        try:
            earlier = json.loads(path.read_bytes())
            before = [*earlier.pop("before"), earlier]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainingError(f"{path} is damaged: delete it, and resume") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be made ({error.strerror}): choose another --output") from error
    whole: dict[str, object] = {"version": __version__, "recipe": recipe, "pictures": pictures}
    for name, config in (*told.items(), ("loop", loop)):
        whole[name] = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(config).items()}
    write_json(path, whole | {"before": before})


def _begin(loop: LoopConfig) -> None:
    """Refuse an output folder that cannot be trained into, before anything is prepared."""
    from safelight.training.loop import require_free

    if loop.output.exists() and not loop.output.is_dir():
        raise OutputError(f"--output {str(loop.output)!r} is no folder: choose another")
    if not loop.resume:
        require_free(loop.output)


def _pictures(config: DataConfig, family: int = 1) -> Pictures:
    if config.data == SCENES:
        from safelight.training.scenes import Scenes

        return Scenes(config.count, config.size, config.data_seed, family=family)
    from safelight.training.data import ImageFolder

    return ImageFolder(Path(config.data), config.size)


def _preset(name: str) -> Preset:
    from safelight.presets import PRESETS

    if name not in PRESETS:
        raise TrainingError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _require_part(option: str, folder: Path, recipe: str, or_else: str = "") -> None:
    """Refuse a folder in which no part is, before anything is prepared for it."""
    if not (folder / PART).is_file():
        mend = f"give a folder from `safelight train {recipe}`{or_else}"
        raise TrainingError(f"{option} {str(folder)!r} holds no trained {recipe}: {mend}")
