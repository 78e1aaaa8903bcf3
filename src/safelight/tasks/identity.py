"""Which weights are these: one SHA-256 for a file, a folder, or networks in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

WEIGHTS_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")


def hash_files(path: Path) -> str:
    """Of a file, the SHA-256 of its bytes, as other tools show it; of a folder, over its names and hashes."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    # Configuration is left out: it holds no weights, and tools that only read may rewrite it.
    weights = sorted(p for p in path.rglob("*") if p.suffix in WEIGHTS_SUFFIXES and p.is_file())
    lines = [f"{p.relative_to(path).as_posix()} {hash_files(p)}\n" for p in weights]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_parts(parts: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Of networks in memory: over name, dtype, shape and bytes of every tensor, in order of their names."""
    digest = hashlib.sha256()
    for part in sorted(parts):
        for key, tensor in sorted(parts[part].items()):
            digest.update(f"{part}.{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
