"""What the tests of the checkpoints room share: manifests of real files, and a toy checkpoint."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.checkpoints import Checkpoint
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.networks import shapes_of
from safelight.models.tokenizer import ClipTokenizer
from safelight.models.unet import UNetConfig
from safelight.presets import PRESETS, Preset
from safelight.presets.conditions import Words

HERE = Path(__file__).parent


def manifest(name: str) -> Any:
    """The JSON of `manifests/NAME.json.gz`."""
    return json.loads(gzip.decompress((HERE / "manifests" / f"{name}.json.gz").read_bytes()))


def meta(name: str) -> dict[str, Tensor]:
    """The tensors of a real checkpoint, without their numbers."""
    return {
        key: torch.empty(shape[:-1], dtype=getattr(torch, shape[-1]), device="meta")
        for key, shape in manifest(name).items()
    }


def toy_tokenizer() -> ClipTokenizer:
    return ClipTokenizer.train(["a red apple on a blue background", "a dog to the left of a car"] * 4, 600)


def toy_preset(tokenizer: ClipTokenizer) -> Preset:
    """Unlike all levels and widths of the real ones, so that nothing fits by chance."""
    return replace(
        PRESETS["tiny"],
        name="toy",
        unet=UNetConfig(
            channels=(16, 24, 32),
            blocks_per_level=1,
            transformer_depth=(0, 1, 2),
            middle_depth=2,
            heads=(2, 3, 4),
            context_width=24,
            norm_groups=8,
        ),
        autoencoder=AutoencoderConfig(channels=(8, 12, 16), blocks_per_level=1, norm_groups=4),
        conditions=(
            Words(
                ClipTextConfig(
                    vocab_size=len(tokenizer.vocab),
                    width=24,
                    layers=2,
                    heads=2,
                    mlp_width=40,
                    projection_width=24,
                    start_token=tokenizer.start_token,
                    end_token=tokenizer.end_token,
                    pad_token=tokenizer.pad_token,
                )
            ),
        ),
        prediction="eps",
        latent_scale=0.75,
        width=32,
        height=32,
    )


def toy_checkpoint(seed: int = 0, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Random weights, the same for the same seed."""
    tokenizer = toy_tokenizer()
    preset = toy_preset(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    parts = {
        part: {
            name: (torch.randn(shape, generator=generator) * 0.05).to(dtype)
            for name, shape in shapes_of(config).items()
        }
        for part, config in preset.networks.items()
    }
    return Checkpoint(preset, parts, {"text": tokenizer})


def same(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    """Whether all parts have the same names, dtypes and numbers."""
    return a.keys() == b.keys() and all(
        a[part].keys() == b[part].keys()
        and all(a[part][k].dtype == b[part][k].dtype and torch.equal(a[part][k], b[part][k]) for k in a[part])
        for part in a
    )


_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32"}


def sparse_file(path: Path, tensors: Mapping[str, Tensor], ones: tuple[str, ...] = ()) -> None:
    """A safetensors file of tensors that have no numbers: all are 0, and take no room on the disk.

    ones: the names of tensors of one number that are 1 instead.
    """
    entries: dict[str, dict[str, Any]] = {}
    end = 0
    for key, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        entries[key] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for key in {*ones} & entries.keys():
            file.seek(8 + len(text) + entries[key]["data_offsets"][0])
            file.write(struct.pack("<f", 1.0))
