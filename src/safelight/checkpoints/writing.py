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

WEIGHTS = (".safetensors", ".bin", ".index.json")
SUFFIX = ".part"
"""Ends the name of what is not finished. One that a crash left behind may be deleted."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write to the path that this gives; on leaving, it takes the place of `path`. On errors nothing is left.

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
    """Write into the folder that this gives; on leaving, its content is at `target`. On any error nothing is.

    A target that is there already must be empty or have the file `marker`: it is then an earlier result. Its files of
    the same names are replaced, and weights beside them dropped; all else in it stays. The marker goes first and
    comes last, so that no reader takes a mixture for a model.

    Raises:
        OutputError: the target is something else, or cannot be written.
    """
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or (target / marker).is_file())):
        raise OutputError(f"{target} exists and is no model folder; choose another name, or an empty folder")
    # Inside a folder that is there, which may be a disk of its own; else beside, to take its place in one step.
    staging = _beside(target / target.name if target.is_dir() else target)
    try:
        staging.mkdir(parents=True)
        yield staging
        for folder, _, files in os.walk(staging):
            for name in files:
                _sync(Path(folder) / name)
            _sync(Path(folder))
        if target.is_dir():
            _replace(staging, target, marker)
        else:
            staging.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise _failed(target, error) from error
    except OutputError as error:  # of a file in the staging folder, which nobody knows
        cause = error.__cause__
        raise _failed(target, cause if isinstance(cause, OSError | SafetensorError) else error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A `.safetensors` file, atomically. Views are made whole; what stands there twice is written twice.

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
            save_file(plain, temporary, metadata={"format": "pt", **(metadata if metadata is not None else {})})
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
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and needs none opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(path: Path, error: Exception) -> OutputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OutputError(f"{path} could not be written ({reason}); make room, or choose another folder with --output")


def _replace(staging: Path, target: Path, marker: str) -> None:
    """Move every file of staging into target, what they replace aside and away; on any error, all of it back."""
    new = [path.relative_to(staging) for path in sorted(staging.rglob("*")) if path.is_file()]
    new.sort(key=lambda name: name == Path(marker))
    replaced = [name for name in reversed(new) if (target / name).exists()]
    for folder in {target / name.parent for name in new} - {target}:
        # Else a reader might prefer the earlier model's weights to these.
        weights = [path for path in folder.glob("*") if path.name.endswith(WEIGHTS)]
        replaced += [n for path in weights if (n := path.relative_to(target)) not in new]
    aside = staging.with_suffix(".old")
    moves = [(target / name, aside / name) for name in replaced] + [(staging / n, target / n) for n in new]
    done: list[tuple[Path, Path]] = []
    try:
        for source, goal in moves:
            goal.parent.mkdir(parents=True, exist_ok=True)
            source.replace(goal)
            done.append((source, goal))
    except BaseException:
        for source, goal in reversed(done):
            goal.replace(source)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)
