"""A UNet's weights in whole numbers, made once and kept in the user's cache: the next start only maps the file.

A safetensors file for each UNet: of every weight what `Quantised` has, as `NAME.codes`, `NAME.scales`, `NAME.sums`.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.checkpoints.writing import atomic
from safelight.errors import OutputError
from safelight.models.int8 import multiplied, rounded_weights
from safelight.models.int8_products import HIGHEST, Quantised
from safelight.models.unet import UNet
from safelight.tasks.identity import WEIGHTS_SUFFIXES
from safelight.tasks.machine import cache_folder

FORMAT = f"safelight int8 2, up to {HIGHEST}"
"""What a file is of; another way of rounding is another format."""
_FIELDS = [field.name for field in fields(Quantised)]
SAMPLED = 32
"""Numbers of each weight that tell one UNet from another."""


class QuantisedWarning(UserWarning):
    """Something was written to the cache, or could not be."""


def known_numbers(network: UNet, source: Path | None) -> dict[str, Quantised]:
    """The whole numbers of a UNet's weights, by name: those kept, or made now and kept.

    A `QuantisedWarning` says where they are kept when they are made.

    Args:
        source: the file or folder that its weights came from.
    """
    weights = rounded_weights(network)
    path = cache_folder("int8") / f"{_fingerprint(weights, source)}.safetensors"
    sizes = {name: multiplied(network, name, weight.detach().to("meta")).shape for name, weight in weights.items()}
    if (kept := _read(path, sizes)) is not None:
        return kept
    made = {name: Quantised.of(multiplied(network, name, weight.detach())) for name, weight in weights.items()}
    tensors = {f"{name}.{field}": tensor for name, weight in made.items() for field, tensor in vars(weight).items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            save_file(tensors, temporary, {"format": FORMAT})
    except (OSError, OutputError, safetensors.SafetensorError) as error:
        warnings.warn(f"int8 weights are made anew at every start: {error}", QuantisedWarning, stacklevel=2)
        return made
    told = f"int8 weights are kept for the next start in {path} ({size / 1e9:.2f} GB; it may be deleted)"
    warnings.warn(told, QuantisedWarning, stacklevel=2)
    kept = _read(path, sizes)
    return made if kept is None else kept


def _read(path: Path, sizes: Mapping[str, torch.Size]) -> dict[str, Quantised] | None:
    """What is kept of weights of these names and sizes, mapped from the file; None: nothing, or it is damaged."""
    if not path.is_file():
        return None
    try:
        found = load_file(path)
    except (OSError, safetensors.SafetensorError):
        return None
    if {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} != _forms(sizes):
        return None
    return {name: Quantised(**{field: found[f"{name}.{field}"] for field in _FIELDS}) for name in sizes}


def _forms(sizes: Mapping[str, torch.Size]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Dtype and shape of each tensor of a file."""
    forms: dict[str, tuple[torch.dtype, torch.Size]] = {}
    for name, size in sizes.items():
        outputs = torch.float32, size[:1]
        forms |= {f"{name}.codes": (torch.int8, size), f"{name}.scales": outputs, f"{name}.sums": outputs}
    return forms


def _fingerprint(weights: Mapping[str, Tensor], source: Path | None) -> str:
    """Of these weights, without reading all of them: sizes and times of the files, and some numbers of each weight."""
    digest = hashlib.sha256(FORMAT.encode())
    if source is not None:
        files = [source] if source.is_file() else sorted(source.rglob("*"))
        for stat in (file.stat() for file in files if file.suffix in WEIGHTS_SUFFIXES and file.is_file()):
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    for name, weight in sorted(weights.items()):
        flat = weight.detach().flatten()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(flat[:: max(len(flat) // SAMPLED, 1)].float().numpy().tobytes())
    return digest.hexdigest()
