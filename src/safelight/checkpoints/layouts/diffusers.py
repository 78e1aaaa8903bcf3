"""UNet and autoencoder as diffusers names them. Our names are the same; only old and odd writings differ."""

from __future__ import annotations

import re
from collections.abc import Collection

from safelight.checkpoints.keys import LINEAR, SAME, Layout, Op, Pair
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.networks import shapes_of
from safelight.models.unet import UNetConfig

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""diffusers until 0.15 named attention over the positions so, and most files on the hub still do."""

_POSITION_ATTENTION = re.compile(r"(.*\battentions\.\d+\.)(to_q|to_k|to_v|to_out\.0)\.(weight|bias)")


def unet(config: UNetConfig, *, old_names: bool = False) -> tuple[Pair, ...]:
    """Pairs of a `unet` file. old_names: see `OLD_ATTENTION`; of a UNet without a context."""
    return tuple(_pair(name, shape, old_names) for name, shape in shapes_of(config).items())


def unet_layout(config: UNetConfig, *, old_names: bool = False) -> Layout:
    """The layout of a `unet` file."""
    return Layout({"unet": unet(config, old_names=old_names)}, {"unet": shapes_of(config)})


def autoencoder(config: AutoencoderConfig, *, old_names: bool = False) -> tuple[Pair, ...]:
    """Pairs of a `vae` or `vqvae` file."""
    return tuple(_pair(name, shape, old_names) for name, shape in shapes_of(config).items())


def _pair(name: str, shape: tuple[int, ...], old_names: bool) -> Pair:
    """Matrices among the weights may be written as 1x1 convolutions; they are read so, and written as the config's."""
    if name.endswith((".proj_in.weight", ".proj_out.weight")):  # of the transformers
        return Pair(name, name, Op(rank=len(shape)))
    if found := _POSITION_ATTENTION.fullmatch(name):
        place, layer, kind = found.groups()
        theirs = f"{place}{OLD_ATTENTION[layer]}.{kind}" if old_names else name
        return Pair(theirs, name, LINEAR if kind == "weight" else SAME)
    return Pair(name, name)


def autoencoder_layout(config: AutoencoderConfig, *, old_names: bool = False) -> Layout:
    """The layout of a `vae` or `vqvae` file."""
    return Layout({"autoencoder": autoencoder(config, old_names=old_names)}, {"autoencoder": shapes_of(config)})


def has_old_names(keys: Collection[str]) -> bool:
    """Whether the keys of a `vae` or `unet` file are of the old kind."""
    return any(re.search(r"\battentions\.\d+\.query\.", key) is not None for key in keys)
