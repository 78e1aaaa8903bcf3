"""Stable Diffusion 1.1 to 1.5 (Rombach et al. 2022; configuration of the released v1 checkpoints)."""

from __future__ import annotations

from dataclasses import replace

from safelight.diffusion.schedule import ScheduleConfig
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.unet import UNetConfig
from safelight.presets.conditions import HiddenPicture, Words
from safelight.presets.preset import Preset

SD1_INPAINTING_UNET = UNetConfig(in_channels=9)
"""A latent of 4 channels, a mask, and the masked picture's latent of 4."""

SCHEDULE = ScheduleConfig(kind="scaled_linear", start=0.00085, end=0.012, steps=1000)

SD1 = Preset(
    name="sd1",
    title="Stable Diffusion 1.x",
    unet=UNetConfig(),
    autoencoder=AutoencoderConfig(),
    conditions=(Words(ClipTextConfig()),),
    schedule=SCHEDULE,
    prediction="eps",
    latent_scale=0.18215,
    width=512,
    height=512,
    steps=30,
    sampler="dpmpp_2m",
    spacing="karras",
    guidance=7.5,
)

SD1_INPAINTING = replace(
    SD1,
    name="sd1-inpainting",
    title="Stable Diffusion 1.5 inpainting",
    unet=SD1_INPAINTING_UNET,
    conditions=(*SD1.conditions, HiddenPicture()),
)
