"""The registry of members. To add one: write it as data in a module of this room, and name it here."""

from __future__ import annotations

from safelight.models.clip import ClipVisionConfig
from safelight.presets.preset import Preset
from safelight.presets.sd1 import SD1
from safelight.presets.tiny import TINY, TINY_VISION

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (SD1, TINY)}

VISION: dict[str, ClipVisionConfig] = {SD1.name: ClipVisionConfig(), TINY.name: TINY_VISION}
"""The image tower that belongs beside a member's text tower, for training a CLIP of one's own."""

__all__ = ["PRESETS", "VISION", "Preset"]
