"""Members distilled to one to four steps, without guidance (Sauer et al. 2023: adversarial diffusion distillation)."""

from __future__ import annotations

from dataclasses import replace

from safelight.presets.sd2 import SD2_BASE
from safelight.presets.sdxl import SDXL

SD_TURBO = replace(
    SD2_BASE, name="sd-turbo", title="SD-Turbo", steps=1, sampler="euler_a", spacing="trailing", guidance=1.0
)
SDXL_TURBO = replace(
    SDXL,
    name="sdxl-turbo",
    title="SDXL-Turbo",
    width=512,
    height=512,
    steps=1,
    sampler="euler_a",
    spacing="trailing",
    guidance=1.0,
)
