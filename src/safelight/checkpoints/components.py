"""Single trained parts as folders of their own: a CLIP, an autoencoder. Other tools read them too."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import nn

from safelight.checkpoints import configs
from safelight.checkpoints.fields import Fields
from safelight.checkpoints.files import read_tensors
from safelight.checkpoints.vocabulary import read_tokenizer, settled, write_tokenizer
from safelight.checkpoints.writing import staged_folder, write_json, write_tensors
from safelight.errors import ModelFileError
from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import Clip
from safelight.models.judge import Judge, JudgeConfig
from safelight.models.lpips import LPIPS
from safelight.models.tokenizer import ClipTokenizer

CONFIG = "config.json"
CLIP_WEIGHTS = "model.safetensors"
TEXT_SECTION, VISION_SECTION = "text_config", "vision_config"
AUTOENCODER_WEIGHTS = "diffusion_pytorch_model.safetensors"
JUDGE_CONFIG, JUDGE_WEIGHTS = "judge.json", "judge.safetensors"


def write_clip(folder: Path, clip: Clip, tokenizer: ClipTokenizer) -> None:
    """A folder that transformers' CLIPModel and CLIPTokenizer read.

    Raises:
        OutputError: it cannot be written; nothing is left then.
    """
    text, vision = clip.text_model.config, clip.vision_model.config
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": text.projection_width,
        TEXT_SECTION: configs.text_json(text),
        VISION_SECTION: configs.vision_json(vision),
    }
    with staged_folder(folder, CONFIG) as staging:
        write_tensors(staging / CLIP_WEIGHTS, clip.state_dict())
        write_tokenizer(staging, tokenizer)
        write_json(staging / CONFIG, config)


def read_clip(folder: Path) -> tuple[Clip, ClipTokenizer]:
    """What `write_clip` wrote.

    Raises:
        ModelFileError: a file is missing or does not fit.
    """
    path = folder / CONFIG
    text = configs.read_text(path, TEXT_SECTION)
    tokenizer = read_tokenizer(folder, text)
    text = settled(text, tokenizer)
    with torch.device("meta"):
        clip = Clip(text, configs.read_vision(path, VISION_SECTION))
    _fill(clip, folder / CLIP_WEIGHTS)
    return clip, tokenizer


def write_autoencoder(folder: Path, autoencoder: Autoencoder, latent_scale: float, size: int) -> None:
    """A folder that diffusers' AutoencoderKL reads. `size`: pixels on a side that it was trained on.

    Raises:
        OutputError: it cannot be written; nothing is left then.
    """
    with staged_folder(folder, CONFIG) as staging:
        write_tensors(staging / AUTOENCODER_WEIGHTS, autoencoder.state_dict())
        write_json(staging / CONFIG, configs.autoencoder_json(autoencoder.config, latent_scale, size))


def read_autoencoder(folder: Path) -> tuple[Autoencoder, float]:
    """What `write_autoencoder` wrote: the network and its latent scale.

    Raises:
        ModelFileError: a file is missing or does not fit.
    """
    config, latent_scale = configs.read_autoencoder(folder / CONFIG)
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
    _fill(autoencoder, folder / AUTOENCODER_WEIGHTS)
    return autoencoder, latent_scale


def write_judge(folder: Path, judge: Judge) -> None:
    """A judge's shape, and its weights in half precision.

    Raises:
        OutputError: it cannot be written; nothing is left then.
    """
    with staged_folder(folder, JUDGE_CONFIG) as staging:
        write_tensors(staging / JUDGE_WEIGHTS, {k: tensor.half() for k, tensor in judge.state_dict().items()})
        write_json(staging / JUDGE_CONFIG, asdict(judge.config))


def read_judge(folder: Path) -> Judge:
    """What `write_judge` wrote, in float32.

    Raises:
        ModelFileError: a file is missing or does not fit.
    """
    fields = Fields(folder / JUDGE_CONFIG)
    channels = fields.wholes("channels", [], most=4096)
    config = JudgeConfig(
        objects=fields.whole("objects", 0),
        grounds=fields.whole("grounds", 0),
        layouts=fields.whole("layouts", 0),
        channels=channels,
        blocks=fields.wholes("blocks", [], most=64),
        norm_groups=fields.whole("norm_groups", 0),
        image_size=fields.whole("image_size", 0, most=4096),
    )
    fields.done()
    if len(config.blocks) != len(channels):
        raise fields.bad("blocks", config.blocks, f"one number for each of {len(channels)} levels")
    if any(width % config.norm_groups for width in channels):
        raise fields.bad("norm_groups", config.norm_groups, f"a number that divides each of {channels}")
    if config.image_size % config.factor:
        raise fields.bad("image_size", config.image_size, f"a multiple of {config.factor}")
    with torch.device("meta"):
        judge = Judge(config)
    _fill(judge, folder / JUDGE_WEIGHTS)
    return judge


def read_lpips(path: Path) -> LPIPS:
    """LPIPS weights in one file, VGG-16 included.

    Raises:
        ModelFileError: a key is missing, unexpected or of another shape.
    """
    lpips = LPIPS()
    fixed = {key: tensor for key, tensor in lpips.state_dict().items() if key.startswith("scaling_layer.")}
    tensors = read_tensors(path) | fixed
    _check(lpips, path, tensors)
    lpips.load_state_dict(tensors, strict=True, assign=True)
    return lpips


def _fill(module: nn.Module, path: Path) -> None:
    tensors = {key: tensor.float() for key, tensor in read_tensors(path).items()}
    _check(module, path, tensors)
    module.load_state_dict(tensors, strict=True, assign=True)


def _check(module: nn.Module, path: Path, tensors: dict[str, torch.Tensor]) -> None:
    wanted = cast("dict[str, torch.Tensor]", module.state_dict())
    for key in sorted(wanted.keys() | tensors.keys()):
        if key not in tensors or key not in wanted or wanted[key].shape != tensors[key].shape:
            has = tuple(tensors[key].shape) if key in tensors else "nothing"
            wants = tuple(wanted[key].shape) if key in wanted else "nothing"
            raise ModelFileError(f"{path}: {key} is {has} but {wants} is needed; the file belongs to another model")
