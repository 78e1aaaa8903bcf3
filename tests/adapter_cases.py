"""What the tests of adapters share: manifests of their files, and random ones for members at toy size."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.adapters.card import Card
from safelight.adapters.kinds import Kind, LoRA
from safelight.adapters.lora import Adapter
from safelight.adapters.names import adapted, layers, targets
from safelight.presets import Preset

HERE = Path(__file__).parent


def manifests(name: str) -> Any:
    """The JSON of `manifests/NAME.json.xz`: file -> key -> shape and dtype."""
    return json.loads(lzma.decompress((HERE / "manifests" / f"{name}.json.xz").read_bytes()))


def filled(name: str, keys: Mapping[str, list[Any]]) -> dict[str, Tensor]:
    """A file of a manifest with numbers: ones, which take no time."""
    return {key: torch.ones(shape[:-1], dtype=getattr(torch, shape[-1])) for key, shape in keys.items()}


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def shapes(preset: Preset, *, convolutions: bool = False) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Part, layer and the shape of its weight, of all that kohya's tools train."""
    for part, config in adapted(preset.networks).items():
        for layer in targets(config, convolutions=convolutions):
            yield part, layer, layers(config)[layer]


def random_lora(
    preset: Preset, *, rank: int = 4, convolutions: bool = False, seed: int = 0, dora: bool = False, scale: float = 0.7
) -> Adapter:
    """One that changes every layer that kohya's tools train, well above rounding; alpha is half the rank."""
    generator = torch.Generator().manual_seed(seed)
    kinds: dict[str, dict[str, Kind]] = {}
    for part, layer, shape in shapes(preset, convolutions=convolutions):
        kind = LoRA.fresh(shape, rank, rank / 2, generator)
        with torch.no_grad():
            kind.lora_up.weight.copy_(torch.randn(kind.lora_up.weight.shape, generator=generator) * scale)
            if dora:
                lengths = torch.rand(shape[0], *(1 for _ in shape[1:]), generator=generator) + 0.5
                kind.dora_scale = torch.nn.Parameter(lengths)
        kinds.setdefault(part, {})[layer] = kind.requires_grad_(False)
    return Adapter(kinds, Card("random"))
