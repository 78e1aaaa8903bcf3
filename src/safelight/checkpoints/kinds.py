"""The classes of networks that diffusers' folders hold: how each is described, named and laid out, both ways."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safelight.checkpoints import configs
from safelight.checkpoints.configs import autoencoder as autoencoders
from safelight.checkpoints.configs import bert as berts
from safelight.checkpoints.configs import clip as clips
from safelight.checkpoints.configs import depth as depths
from safelight.checkpoints.configs import unet as unets
from safelight.checkpoints.keys import Layout, Pair
from safelight.checkpoints.layouts import bert, diffusers, midas, transformers
from safelight.errors import ModelFileError
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.bert import BertConfig
from safelight.models.clip import ClipTextConfig, ClipVisionConfig
from safelight.models.depth import DepthConfig
from safelight.models.networks import Config, shapes_of
from safelight.models.normalizer import NormalizerConfig
from safelight.models.unet import UNetConfig
from safelight.presets import Preset

Stems = tuple[str, str]
"""Name of the weights without their ending: as safetensors, and as a PyTorch file."""
_DIFFUSERS: Stems = ("diffusion_pytorch_model", "diffusion_pytorch_model")
_TRANSFORMERS: Stems = ("model", "pytorch_model")


@dataclass(frozen=True)
class Found:
    """What the config.json of a network says."""

    config: Config
    latent_size: int | None = None
    """On a side, that a UNet was trained at."""
    latent_scale: float | None = None
    """Of an autoencoder."""


@dataclass(frozen=True)
class Kind:
    """A class of network that a folder may hold."""

    read: Callable[[Path], Found]
    """From its config.json."""
    library: str = "diffusers"
    """Where model_index.json says that it is from."""
    stems: Stems = _DIFFUSERS


def _unet(kind: str) -> Kind:
    def read(path: Path) -> Found:
        config, size = configs.read_unet(path, kind)
        return Found(config, latent_size=size)

    return Kind(read)


def _autoencoder(kind: str) -> Kind:
    def read(path: Path) -> Found:
        config, scale = configs.read_autoencoder_as_stated(path, kind)
        return Found(config, latent_scale=scale)

    return Kind(read)


def _of_transformers(read: Callable[[Path], Config], library: str = "transformers") -> Kind:
    return Kind(lambda path: Found(read(path)), library, _TRANSFORMERS)


KINDS: Mapping[str, Kind] = {
    unets.CONDITIONAL: _unet(unets.CONDITIONAL),
    unets.UNCONDITIONAL: _unet(unets.UNCONDITIONAL),
    autoencoders.KL: _autoencoder(autoencoders.KL),
    autoencoders.VQ: _autoencoder(autoencoders.VQ),
    clips.NORMALIZER: Kind(lambda path: Found(configs.read_normalizer(path)), "stable_diffusion"),
    clips.TEXT: _of_transformers(configs.read_text),
    clips.TEXT_PROJECTED: _of_transformers(partial(configs.read_text, projected=True)),
    clips.VISION_PROJECTED: _of_transformers(partial(configs.read_vision, projected=True)),
    berts.BERT: _of_transformers(configs.read_bert, "latent_diffusion"),
    depths.DEPTH: _of_transformers(configs.read_depth),
}


def class_of(config: Config) -> str | None:
    """The class of a network of such a config, a key of `KINDS`; None: the libraries have none."""
    found: str | None = None
    match config:
        case UNetConfig():
            found = unets.unet_class(config)
        case AutoencoderConfig():
            found = autoencoders.autoencoder_class(config)
        case ClipTextConfig():
            found = clips.text_class(config)
        case ClipVisionConfig(projected=True):
            found = clips.VISION_PROJECTED
        case NormalizerConfig():
            found = clips.NORMALIZER
        case BertConfig():
            found = berts.BERT
        case DepthConfig():
            found = depths.DEPTH
    return found


def config_json(config: Config, preset: Preset) -> dict[str, object]:
    """The config.json of one of a preset's networks.

    Raises:
        ModelFileError: the libraries have no such network.
    """
    match config:
        case UNetConfig():
            content = configs.unet_json(config, preset.height // preset.factor)
        case AutoencoderConfig():
            content = configs.autoencoder_json(config, preset.latent_scale, preset.height)
        case ClipTextConfig():
            content = configs.text_json(config)
        case ClipVisionConfig():
            content = configs.vision_json(config)
        case NormalizerConfig():
            content = configs.normalizer_json(config)
        case BertConfig():
            content = configs.bert_json(config)
        case DepthConfig():
            content = configs.depth_json(config)
        case _:
            raise ModelFileError(f"diffusers has no network of the kind {type(config).__name__.removesuffix('Config')}")
    return content


def layout_of(config: Config, part: str, keys: Collection[str] = ()) -> Layout:
    """The layout of the weights of a network, for a file with these keys; none: as they are written."""
    match config:
        case UNetConfig():
            layout = diffusers.unet_layout(config, old_names=diffusers.has_old_names(keys))
        case AutoencoderConfig():
            layout = diffusers.autoencoder_layout(config, old_names=diffusers.has_old_names(keys))
        case ClipTextConfig():
            layout = transformers.text_layout(config, transformers.prefix_of(keys) if keys else transformers.PREFIX)
        case ClipVisionConfig():
            prefix = transformers.VISION_PREFIX
            layout = transformers.vision_layout(config, transformers.prefix_of(keys, prefix=prefix) if keys else prefix)
        case BertConfig():
            layout = bert.diffusers_layout(config)
        case DepthConfig():
            layout = midas.folder_layout(config)
        case _:
            layout = Layout({part: tuple(Pair(name, name) for name in shapes_of(config))}, {part: shapes_of(config)})
    [pairs], [shapes] = layout.pairs.values(), layout.shapes.values()
    return Layout({part: pairs}, {part: shapes}, layout.drops)


def extractor_json(networks: Mapping[str, Config]) -> dict[str, object] | None:
    """The preprocessor_config.json of what prepares pictures for a network; None: none is shown pictures so."""
    for config in networks.values():
        if isinstance(config, ClipVisionConfig):
            return configs.clip_extractor_json(config)
        if isinstance(config, DepthConfig):
            return configs.depth_extractor_json(config)
    return None
