"""Recorded numbers of the original code: their arrays, and the rule that all their weights follow.

A case is a folder under `golden/`: `data.npz` (inputs and outputs), `meta.json` (what made them) and, for
modules, `state_dict_keys.json.gz` (their keys with shape and dtype). Weights are not stored: see `weight`.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safelight.models.clip import ClipTextConfig

GOLDEN = Path(__file__).parent / "golden"
RELATIVE = 1e-4
TEXT_TOWER = ClipTextConfig(
    vocab_size=300,
    width=32,
    layers=4,
    heads=4,
    mlp_width=64,
    projection_width=24,
    start_token=298,
    end_token=299,
    pad_token=299,
)
"""Of the recorded text towers, as far as they are alike."""


def golden(case: str) -> dict[str, Tensor]:
    """The arrays of a recorded case."""
    with np.load(GOLDEN / case / "data.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def meta(case: str, name: str = "meta") -> dict[str, Any]:
    """How a recorded case was made, or another of its JSON files."""
    return json.loads((GOLDEN / case / f"{name}.json").read_text("utf-8"))  # type: ignore[no-any-return]  # json


def zipped(name: str) -> Any:
    """The JSON of a file `golden/NAME.gz`."""
    return json.loads(gzip.decompress((GOLDEN / f"{name}.gz").read_bytes()))


def shapes(case: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the floating-point tensors in the original module's state dict."""
    keys = zipped(f"{case}/state_dict_keys.json")
    return {key: tuple(kind[:-1]) for key, kind in keys.items() if kind[-1].startswith("float")}


def weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """The parameter of that name: standard normals seeded by the name, scaled by what it is."""
    x = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape)
    if len(shape) >= 2:
        x = x / math.sqrt(math.prod(shape[1:]))
    elif len(shape) == 1 and key.endswith("weight"):
        x = 1 + 0.1 * x
    else:
        x = 0.1 * x
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def weights(case: str, *, within: str = "", before: str = "") -> dict[str, Tensor]:
    """A module's parameters by its original keys.

    Args:
        within: only the keys that begin so, without that beginning; the rule sees the whole key.
        before: put before each key once the rule has been applied, as in a file of several modules.
    """
    found = {key: shape for key, shape in shapes(case).items() if key.startswith(within)}
    return {before + key.removeprefix(within): weight(key, shape) for key, shape in found.items()}


def off(actual: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest expected value."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} instead of {tuple(expected.shape)}"
    actual, expected = actual.detach(), expected.detach()
    error = (actual.double() - expected.double()).abs().max()
    return float(error / expected.double().abs().max())


def agree(what: str, actual: Tensor, expected: Tensor, relative: float = RELATIVE) -> None:
    """Prints how far off (pytest -rP shows it), and fails if it is too far."""
    error = off(actual, expected)
    print(f"{what}: {error:.1e}")
    assert error <= relative, f"{what} is off by {error:.1e} of its size, {relative:.0e} is allowed"
