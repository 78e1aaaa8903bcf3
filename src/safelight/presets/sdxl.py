"""Stable Diffusion XL (Podell et al. 2023, table 1; configurations of Stability AI's released checkpoints)."""

from __future__ import annotations

from dataclasses import replace

from safelight.models.clip import ClipTextConfig
from safelight.models.unet import UNetConfig
from safelight.presets.conditions import TEXT_2, Numbers, Words
from safelight.presets.sd1 import SCHEDULE, SD1

SIZE_WIDTH = 256
"""Width of the sinusoids of each size, or of the aesthetic score, that the model is told."""

SDXL_UNET = UNetConfig(
    channels=(320, 640, 1280),
    transformer_depth=(0, 2, 10),
    middle_depth=10,
    heads=(5, 10, 20),
    context_width=2048,
    linear_projection=True,
    vector_width=1280 + 6 * SIZE_WIDTH,
    size_width=SIZE_WIDTH,
)
"""The base and SDXL-Turbo: told the pooled text, and the original size, the crop's corner and the target size."""

SDXL_REFINER_UNET = UNetConfig(
    channels=(384, 768, 1536, 1536),
    transformer_depth=(0, 4, 4, 0),
    middle_depth=4,
    heads=(6, 12, 24, 24),
    context_width=1280,
    linear_projection=True,
    vector_width=1280 + 5 * SIZE_WIDTH,
    size_width=SIZE_WIDTH,
)
"""The refiner: told the aesthetic score in place of the target size."""

BIG_G = ClipTextConfig(
    width=1280,
    layers=32,
    heads=20,
    mlp_width=5120,
    activation="gelu",
    projection_width=1280,
    pad_token=0,
    projected=True,
)
"""OpenCLIP ViT-bigG/14."""

SDXL = replace(
    SD1,
    name="sdxl",
    title="Stable Diffusion XL base",
    unet=SDXL_UNET,
    conditions=(
        Words(ClipTextConfig(), states="penultimate", zeros=True),
        Words(BIG_G, TEXT_2, states="penultimate", pooled=True, zeros=True),
        Numbers(),
    ),
    schedule=replace(SCHEDULE, aligned="sdxl"),
    latent_scale=0.13025,
    width=1024,
    height=1024,
    guidance=7.0,
)
SDXL_REFINER = replace(
    SDXL,
    name="sdxl-refiner",
    title="Stable Diffusion XL refiner",
    unet=SDXL_REFINER_UNET,
    conditions=(Words(BIG_G, TEXT_2, states="penultimate", pooled=True), Numbers(aesthetic=True)),
)
