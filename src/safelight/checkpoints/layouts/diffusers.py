"""UNet and autoencoder as diffusers names them. Our names are the same; only old and odd writings differ."""

from __future__ import annotations

from collections.abc import Collection

from safelight.checkpoints.keys import LINEAR, SAME, Layout, Op, Pair, shapes_of
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.unet import UNetConfig

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""diffusers until 0.15 named the autoencoder's attention so, and most files on the hub still do."""


def unet(config: UNetConfig) -> tuple[Pair, ...]:
    """Pairs of a `unet` file."""
    return tuple(Pair(name, name, _projection(name, shape)) for name, shape in shapes_of(config).items())


def _projection(name: str, shape: tuple[int, ...]) -> Op:
    """The transformers' ways in and out are matrices: written with the config's rank, read with either."""
    return Op(rank=len(shape)) if name.endswith((".proj_in.weight", ".proj_out.weight")) else SAME


def unet_layout(config: UNetConfig) -> Layout:
    """The layout of a `unet` file."""
    return Layout({"unet": unet(config)}, {"unet": shapes_of(config)})


def autoencoder(config: AutoencoderConfig, *, old_names: bool = False) -> tuple[Pair, ...]:
    """Pairs of a `vae` file."""
    return tuple(_attention(name, old_names) for name in shapes_of(config))


def _attention(name: str, old_names: bool) -> Pair:
    for new, old in OLD_ATTENTION.items():
        head, found, tail = name.partition(f".attentions.0.{new}.")
        if found:
            theirs = f"{head}.attentions.0.{old}.{tail}" if old_names else name
            return Pair(theirs, name, LINEAR if tail == "weight" else SAME)
    return Pair(name, name)


def autoencoder_layout(config: AutoencoderConfig, *, old_names: bool = False) -> Layout:
    """The layout of a `vae` file."""
    return Layout({"autoencoder": autoencoder(config, old_names=old_names)}, {"autoencoder": shapes_of(config)})


def has_old_names(keys: Collection[str]) -> bool:
    """Whether the keys of a `vae` file are of the old kind."""
    return any(".attentions.0.query." in key for key in keys)
