"""Weights files -> tensors by name, memory-mapped: nothing is read until it is used. No file runs code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open
from torch import Tensor

from safelight.checkpoints.torchfiles import ZIP_MAGIC, TensorRecord, open_torch, read_torch
from safelight.errors import ModelFileError

MAX_HEADER = 16 << 20
"""The header of the largest checkpoint is under 1 MB; what trainers write beside it takes some more."""
MAX_JSON = 16 << 20
MAX_VALUES = 1 << 19
"""A header has about ten for each tensor, the vocabulary of a CLIP 200,000 in all: more only keep a parser busy."""
FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".th")
"""Of weights: what ends so is a path, and never looked for elsewhere."""
LFS_POINTER = b"version https://git-lfs"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors`, `.ckpt`, `.pt`, `.pth` or `.bin` file, told apart by content.

    The tensors are views of the mapped file: writing to one copies that page, and never changes the file.

    Raises:
        ModelFileError: the file is missing, truncated, corrupted, of another kind, or tries to run code.
    """
    try:
        return _read_safetensors(path)[0] if _is_safetensors(path) else read_torch(path)
    except OSError as error:
        raise unreadable(path, error) from error


@dataclass(frozen=True)
class Contents:
    """All that a weights file says, its tensors mapped when they are asked for."""

    values: object
    """Of `.safetensors`: tensors by key. Of PyTorch's: as `open_torch` has it."""
    metadata: dict[str, str]
    """What stands beside the tensors of a `.safetensors` file."""
    tensor: Callable[[object], Tensor | None]
    """One of the values, if it is a tensor."""


def read_contents(path: Path) -> Contents:
    """As `read_tensors`, of a file whose words and numbers matter too.

    Raises:
        ModelFileError: as `read_tensors`.
    """
    try:
        if _is_safetensors(path):
            tensors, metadata = _read_safetensors(path)
            return Contents(tensors, metadata, lambda value: value if isinstance(value, Tensor) else None)
        root, tensor = open_torch(path)
        return Contents(root, {}, lambda value: tensor(value) if isinstance(value, TensorRecord) else None)
    except OSError as error:
        raise unreadable(path, error) from error


def read_sharded(index: Path) -> dict[str, Tensor]:
    """Every tensor that an `*.index.json` names, from the files beside it.

    Raises:
        ModelFileError: the index is no index, points outside its folder, or does not agree with its files.
    """
    content = read_json(index)
    placed = content.get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelFileError(f"{index} has no `weight_map`; download or copy it again")
    members = sorted({str(name) for name in placed.values()})
    for name in members:
        if not is_plain_name(name):
            raise ModelFileError(
                f"{index} is refused: it names {printable(name)!r}, which is not a file beside it; download it again, "
                "from elsewhere"
            )
    tensors: dict[str, Tensor] = {}
    for name in members:
        found = read_tensors(index.parent / name)
        for key in found:
            if placed.get(key) != name:
                raise ModelFileError(
                    f"{index} does not agree with {name}, which has {printable(key)} too; download both again"
                )
        tensors.update(found)
    for key, name in placed.items():
        if key not in tensors:
            raise ModelFileError(
                f"{index.parent / name} lacks {printable(key)}, which {index.name} promises; download both"
            )
    return tensors


def is_plain_name(name: str) -> bool:
    """Whether a name that stands in a file is that of a file in the same folder, on every system."""
    return PurePosixPath(name).name == name and not set(name) & set("\\:\0") and name not in ("", ".", "..")


def read_json(path: Path) -> dict[str, object]:
    """A JSON object.

    Raises:
        ModelFileError: the file is missing, too large, not JSON, not an object, or says a name twice.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise ModelFileError(f"{path} is refused: over {MAX_JSON:,} bytes of JSON; give the file of a model")
        return _object(path, path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error


def printable(text: str) -> str:
    """A text from a file as it can stand in one line, whatever a stranger wrote there."""
    return text if text.isprintable() and len(text) <= 200 else ascii(text)[1:-1][:200]


def unreadable(path: Path, error: OSError) -> ModelFileError:
    """A missing file, a folder in its place, no permission: one line."""
    if isinstance(error, FileNotFoundError):
        return ModelFileError(f"{path} is missing; check the path, or download it again")
    return ModelFileError(f"{path} cannot be read: {error.strerror or error}")


def _object(path: Path, text: bytes) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in pairs:
            if name in found:
                raise ModelFileError(
                    f"{path} is refused: it says {printable(name)!r} twice, so that readers differ in what it holds; "
                    "download it again, from elsewhere"
                )
            found[name] = value
        return found

    if (values := sum(map(text.count, (b"[", b"{", b",")))) > MAX_VALUES:
        raise ModelFileError(
            f"{path} is refused: {values:,} values of JSON, where no model has over {MAX_VALUES:,}; download it again, "
            "from elsewhere"
        )
    try:
        content = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is corrupted: no JSON ({error}); download or copy it again") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} is corrupted: expected a JSON object, found a {type(content).__name__}")
    return content


def _is_safetensors(path: Path) -> bool:
    """Whether it is that or PyTorch's, by content.

    Raises:
        ModelFileError: it is neither.
    """
    with path.open("rb") as file:
        head = file.read(len(LFS_POINTER))
    if not head:
        raise ModelFileError(f"{path} is empty; download or copy it again")
    if head == LFS_POINTER:
        raise ModelFileError(f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    return not head.startswith(ZIP_MAGIC) and (head[8:9] == b"{" or path.suffix == ".safetensors")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Checked for what the library lets pass or reports without numbers, then read by it, with what stands beside."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ModelFileError(
                f"{path} is refused: a header of {length:,} bytes, where no weights file has over {MAX_HEADER:,}; "
                "download it again, from elsewhere"
            )
        if 8 + length > size:
            raise ModelFileError(
                f"{path} is truncated: {size:,} bytes, expected over {8 + length:,}; download it again"
            )
        header = _object(path, file.read(length))
    expected = 8 + length + max((_end(path, k, v) for k, v in header.items() if k != "__metadata__"), default=0)
    if expected > size:
        raise ModelFileError(f"{path} is truncated: {size:,} bytes, expected {expected:,}; download it again")
    try:
        with safe_open(path, framework="pt") as content:
            metadata: dict[str, str] | None = content.metadata()
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118  (not a mapping)
            return tensors, {} if metadata is None else metadata
    except (SafetensorError, ValueError) as error:
        raise ModelFileError(f"{path} is corrupted ({error}); download or copy it again") from error


def _end(path: Path, key: str, entry: object) -> int:
    """Where a tensor's bytes end, counted from the end of the header."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(isinstance(n, int) for n in offsets):
        raise ModelFileError(f"{path} is corrupted: {printable(key)} has no place in it; download it again")
    return int(offsets[1])
