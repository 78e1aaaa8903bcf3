"""A model of the real classes at toy size with random weights, for tests of the rooms above."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.networks import NETWORKS
from safelight.models.tokenizer import ClipTokenizer
from safelight.models.unet import UNet, UNetConfig
from safelight.presets import PRESETS
from safelight.presets.conditions import Words
from safelight.tasks.model import Model


def toy_model(seed: int = 0) -> Model:
    """Random weights, the same for the same seed; latents at an eighth of the pixels, as in SD."""
    tokenizer = ClipTokenizer.train([], vocab_size=514)  # no merges, so no ties between them
    last = len(tokenizer.vocab) - 1
    preset = replace(
        PRESETS["tiny"],
        unet=UNetConfig(
            channels=(16, 32),
            blocks_per_level=1,
            transformer_depth=(1, 0),
            heads=(2, 2),
            context_width=24,
            norm_groups=8,
        ),
        autoencoder=AutoencoderConfig(channels=(8, 8, 16, 16), blocks_per_level=1, norm_groups=4),
        conditions=(
            Words(
                ClipTextConfig(
                    vocab_size=last + 1,
                    width=24,
                    layers=2,
                    heads=2,
                    mlp_width=48,
                    projection_width=24,
                    start_token=last - 1,
                    end_token=last,
                    pad_token=last,
                )
            ),
        ),
        prediction="eps",
        steps=4,
    )
    torch.manual_seed(seed)
    networks = {part: NETWORKS[type(config)](config) for part, config in preset.networks.items()}
    return Model(preset, networks, {"text": tokenizer})


def toy_folder(folder: Path) -> Path:
    """The toy model saved as a diffusers folder."""
    toy_model().save(folder)
    return folder


def toy_unet(linear: bool = False, context: int | None = 24) -> UNet:
    """A UNet of two levels with weights drawn from seed 0, without gradients; context None: without words."""
    torch.manual_seed(0)
    config = UNetConfig(
        channels=(32, 64), blocks_per_level=1, transformer_depth=(1, 1), heads=(2, 4), context_width=context,
        linear_projection=linear, norm_groups=8,
    )  # fmt: skip
    return UNet(config).eval().requires_grad_(False)
