"""Which weights are these: one SHA-256 for a file, a folder, or networks in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from safelight.checkpoints.writing import write_text
from safelight.errors import OutputError
from safelight.tasks.machine import cache_folder

LARGE = 1 << 27
"""Bytes of a file whose hash is kept in the user's cache."""
WEIGHTS_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")


def hash_files(path: Path) -> str:
    """Of a file, the SHA-256 of its bytes, as other tools show it; of a folder, over its names and hashes."""
    if path.is_file():
        return _hash_file(path)
    # Configuration is left out: it holds no weights, and tools that only read may rewrite it.
    weights = sorted(p for p in path.rglob("*") if p.suffix in WEIGHTS_SUFFIXES and p.is_file())
    lines = [f"{p.relative_to(path).as_posix()} {hash_files(p)}\n" for p in weights]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    """Of a large file what was found before, as long as the file is the same: reading it again takes seconds."""
    stat = path.stat()
    kept = None
    if stat.st_size >= LARGE:
        same = f"{path.resolve()} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        kept = cache_folder("hashes") / hashlib.sha256(same.encode()).hexdigest()
        with suppress(OSError):
            known = kept.read_text("ascii")
            if len(known) == hashlib.sha256().digest_size * 2:
                return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if kept is not None:
        with suppress(OSError, OutputError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(kept, digest)
    return digest


def hash_parts(parts: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Of networks in memory: over name, dtype, shape and bytes of every tensor, in order of their names."""
    digest = hashlib.sha256()
    for part in sorted(parts):
        for key, tensor in sorted(parts[part].items()):
            digest.update(f"{part}.{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
