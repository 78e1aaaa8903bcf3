"""Checkpoints of a run: whole or not there, and verified before they are trusted. No pickle anywhere.

checkpoints/000000012800/          named after the images seen
    weights.safetensors            "part/parameter" -> tensor; so are the next two
    ema.safetensors
    optimizer.safetensors
    state.json                     counters, the run's settings, the recipe's own numbers
    manifest.json                  size and SHA-256 of the others; written last
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from safelight.checkpoints.writing import SUFFIX, staged_folder, write_json, write_tensors
from safelight.errors import OutputError, TrainingError
from safelight.training.config import LoopConfig

FORMAT = 1
STATE, MANIFEST = "state.json", "manifest.json"
REJECTED = "rejected-"
LATER: Mapping[str, str] = {"optimizer": "adamw"}
"""Settings that earlier versions did not know, and what their runs did."""


@dataclass(frozen=True)
class State:
    """Where a run stands, beside its tensors."""

    micro: int
    """Batches done; the next one has this number."""
    skipped: int
    """Steps skipped because a loss or gradient was not finite."""
    bad_in_a_row: int
    """Such steps up to now without a good one in between."""
    images: int
    """The length that the run was to have."""
    processes: int
    """Among which each batch was divided."""
    ema_updates: Mapping[str, int]
    """Part -> updates of its average."""
    recipe: Mapping[str, float]
    """The recipe's own numbers."""
    settings: Mapping[str, int | float | str | list[float]]
    """`LoopConfig.fixed()`."""
    format: int = FORMAT


@dataclass(frozen=True)
class Found:
    """What a run can continue from: the newest valid checkpoint, and the newer ones that are not."""

    path: Path | None
    rejected: list[tuple[Path, str]] = field(default_factory=list)
    """(folder, why), newest first."""


class Store:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """Oldest first; finished ones and damaged ones."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))

    def find(self) -> Found:
        """Look from the newest one back to the first that is whole.

        Raises:
            TrainingError: there are checkpoints, but no valid one.
        """
        rejected: list[tuple[Path, str]] = []
        for path in reversed(self.all()):
            fault = damage(path)
            if fault is None:
                return Found(path, rejected)
            rejected.append((path, fault))
        if rejected:
            why = "; ".join(f"{path.name}: {fault}" for path, fault in rejected)
            raise TrainingError(f"no checkpoint in {self.folder} is whole ({why}): train anew into another --output")
        return Found(None)

    def set_aside(self, rejected: list[tuple[Path, str]]) -> None:
        """Rename damaged checkpoints, so that they are neither counted nor taken, and nothing is lost."""
        for path, _ in rejected:
            aside = path.with_name(REJECTED + path.name)
            try:
                shutil.rmtree(aside, ignore_errors=True)
                path.replace(aside)
            except OSError as error:
                raise OutputError(f"{path} could not be set aside ({error.strerror}): delete it") from error

    def clean(self) -> None:
        """Delete what a killed process left half-written or half-deleted."""
        if self.folder.is_dir():
            for path in self.folder.glob(f".*{SUFFIX}"):
                shutil.rmtree(path, ignore_errors=True)

    def path(self, images: int) -> Path:
        """Where the checkpoint after so many images is, or would be."""
        return self.folder / f"{images:012d}"

    def save(self, images: int, tensors: Mapping[str, Mapping[str, Tensor]], state: State) -> None:
        """Write one checkpoint, verify it, and only then delete those beyond `keep`.

        Args:
            tensors: file name without suffix -> key -> tensor.

        Raises:
            OutputError: it could not be written; nothing of it is left, and the earlier ones are all there.
        """
        target = self.path(images)
        with staged_folder(target, MANIFEST) as staging:
            for name, content in tensors.items():
                write_tensors(staging / f"{name}.safetensors", content)
            write_json(staging / STATE, asdict(state))
            written = sorted(p for p in staging.iterdir() if p.name != MANIFEST)
            write_json(
                staging / MANIFEST,
                {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in written},
            )
        fault = damage(target)
        if fault is not None:
            raise OutputError(
                f"{target} was not read back as it was written ({fault}): check the disk; "
                "the earlier checkpoints are kept"
            )
        self._prune()

    def _prune(self) -> None:
        for path in self.all()[: -self.keep]:
            leaving = path.with_name(f".{path.name}{SUFFIX}")  # half-deleted, it must not look like a checkpoint
            shutil.rmtree(leaving, ignore_errors=True)
            try:
                path.replace(leaving)
            except OSError as error:
                raise OutputError(f"{path} could not be deleted ({error.strerror}): delete it") from error
            shutil.rmtree(leaving, ignore_errors=True)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if every byte is the one that was written."""
    try:
        return next(_faults(path), None)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is not a list of files"


def _faults(path: Path) -> Iterator[str]:
    manifest = json.loads((path / MANIFEST).read_bytes())
    if STATE not in manifest:
        yield f"{MANIFEST} does not list {STATE}"
    for name, entry in manifest.items():
        file = path / name
        if not file.is_file():
            yield f"{name} is missing"
        elif file.stat().st_size != entry["bytes"]:
            yield f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
        elif _sha256(file) != entry["sha256"]:
            yield f"{name} is not the file that was written (SHA-256 differs)"


def read_state(path: Path) -> State:
    """The counters of a valid checkpoint.

    Raises:
        TrainingError: another version of Safelight wrote it.
    """
    content: dict[str, Any] = json.loads((path / STATE).read_bytes())
    if content.get("format") != FORMAT:
        raise TrainingError(
            f"{path} has format {content.get('format')}, this version reads {FORMAT}: "
            "resume with the version of Safelight that wrote it"
        )
    return State(**content)


def read_tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a valid checkpoint, memory-mapped: file name without suffix -> key -> tensor."""
    return {p.stem: load_file(p) for p in sorted(path.glob("*.safetensors"))}


def require_same_run(path: Path, state: State, config: LoopConfig, processes: int) -> None:
    """Refuse to continue a run as another one.

    Raises:
        TrainingError: names the first setting that differs, both its values, and the mend.
    """
    now, settings = config.fixed(), {**LATER, **state.settings}
    for name in now.keys() | settings.keys():
        before = settings.get(name)
        if name not in now or name not in settings or now[name] != before:
            raise TrainingError(
                f"{path} was trained with {name} {_shown(before)}, not {_shown(now.get(name))}: "
                f"resume with --{name.replace('_', '-')} {_shown(before)}, or train into another --output"
            )
    if processes != state.processes:
        raise TrainingError(f"{path} was trained by {state.processes} processes, not {processes}: resume with as many")
    if config.images < state.images:
        raise TrainingError(
            f"{path} belongs to a run of {state.images} images, more than {config.images}: "
            f"resume with --images {state.images} or more"
        )


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
