"""The registry of members. To add one: write it as data in a module of this room, and name it here."""

from __future__ import annotations

from safelight.models.clip import ClipVisionConfig
from safelight.presets import ldm, pixels, sd1, sd2, sdxl, tiny, turbo
from safelight.presets.preset import Preset

_MEMBERS = (
    *(sd1.SD1, sd1.SD1_INPAINTING),
    *(sd2.SD2_BASE, sd2.SD2_V, sd2.SD2_INPAINTING, sd2.SD2_DEPTH, sd2.UNCLIP_L, sd2.UNCLIP_H, sd2.X4_UPSCALER),
    *(sdxl.SDXL, sdxl.SDXL_REFINER, turbo.SD_TURBO, turbo.SDXL_TURBO),
    *(ldm.CELEBA, ldm.FFHQ, ldm.BEDROOMS, ldm.CHURCHES, ldm.CLASS_F8, ldm.CLASS, ldm.TEXT, ldm.TEXT_F4, ldm.RETRIEVAL),
    *(ldm.LAYOUT, ldm.SEMANTIC, ldm.SEMANTIC_512, ldm.UPSCALING, ldm.INPAINTING),
    *(pixels.DDPM, pixels.DDPM_CIFAR10, pixels.DDPM_256, tiny.TINY),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _MEMBERS}

VISION: dict[str, ClipVisionConfig] = {sd1.SD1.name: ClipVisionConfig(), tiny.TINY.name: tiny.TINY_VISION}
"""The image tower that belongs beside a member's text tower, for training a CLIP of one's own."""

__all__ = ["PRESETS", "VISION", "Preset"]
