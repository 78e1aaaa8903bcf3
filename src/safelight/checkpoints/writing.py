"""Writing that leaves either the whole result or nothing: a temporary neighbour, fsync, rename."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from safelight.errors import OutputError

SUFFIX = ".part"
"""Ends the name of what is not finished. One that a crash left behind may be deleted."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write to the path that this gives; on leaving, it is in place of `path`. On any error neither is touched.

    Raises:
        OutputError: the disk is full, the folder is missing or not writable.
    """
    temporary = _beside(path)
    try:
        with temporary.open("xb"):
            mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # a writer that puts its own file in place brings its own mode
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staged_folder(target: Path, marker: str) -> Iterator[Path]:
    """Write into the folder that this gives; on leaving, its content is at `target`. On any error nothing is changed.

    A target that is there already must be empty or have the file `marker`: it is then an earlier result, and is
    replaced file by file, the marker last.

    Raises:
        OutputError: the target is something else, or cannot be written.
    """
    if target.exists() and not (
        target.is_dir() and (not any(target.iterdir()) or (target / marker).is_file())
    ):
        raise OutputError(f"{target} exists and is no model folder; choose another name, or an empty folder")
    staging = _beside(target)
    try:
        staging.mkdir(parents=True)
        yield staging
        for folder, _, files in os.walk(staging):
            for name in files:
                _sync(Path(folder) / name)
            _sync(Path(folder))
        if target.is_dir() and any(target.iterdir()):
            _replace(staging, target, marker)
        else:
            staging.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise _failed(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A `.safetensors` file, atomically. Views are made whole; a tensor that stands there twice is written twice.

    Raises:
        OutputError: see `atomic`.
    """
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        whole = tensor.detach().contiguous()
        if whole.data_ptr() in seen:
            whole = whole.clone()
        seen.add(whole.data_ptr())
        plain[key] = whole
    with atomic(path) as temporary:
        try:
            save_file(
                plain, temporary, metadata={"format": "pt", **(metadata if metadata is not None else {})}
            )
        except SafetensorError as error:
            raise _failed(path, error) from error


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """A JSON file, atomically, indented, in the order given."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, content: str) -> None:
    """A UTF-8 text file, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{SUFFIX}")


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(path: Path, error: OSError | SafetensorError) -> OutputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OutputError(
        f"{path} could not be written ({reason}); make room, or choose another folder with --output"
    )


def _replace(staging: Path, target: Path, marker: str) -> None:
    """Move every file of staging over its namesake in target, and drop the weights there that it does not have."""
    new = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
    for name in sorted(new, key=lambda n: n.name == marker and n.parent == Path()):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(target / name)
    for folder in {target / name.parent for name in new} - {target}:
        for path in folder.iterdir():
            if path.relative_to(target) not in new and path.name.endswith(
                (".safetensors", ".bin", ".index.json")
            ):
                path.unlink()  # else a reader might prefer the earlier model's weights to these
