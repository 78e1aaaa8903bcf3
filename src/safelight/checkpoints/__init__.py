"""Bytes <-> our parameter names: files, layouts, detection. No file ever runs code."""

from __future__ import annotations

from safelight.checkpoints.checkpoint import Checkpoint
from safelight.checkpoints.folder import write_folder
from safelight.checkpoints.reading import read

__all__ = ["Checkpoint", "read", "write_folder"]
