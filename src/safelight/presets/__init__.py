"""The registry of members. To add one: write it as data in a module of this room, and name it here."""

from __future__ import annotations

from safelight.presets.preset import Preset
from safelight.presets.sd1 import SD1
from safelight.presets.tiny import TINY

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (SD1, TINY)}

__all__ = ["PRESETS", "Preset"]
