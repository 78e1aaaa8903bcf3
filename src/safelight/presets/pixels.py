"""Diffusion of the pixels themselves, told nothing: the plain DDPM (Ho et al. 2020, appendix B)."""

from __future__ import annotations

from safelight.diffusion.schedule import ScheduleConfig
from safelight.models.unet import UNetConfig
from safelight.presets.preset import Preset

DDPM = Preset(
    name="ddpm",
    title="DDPM on 32x32 pixels",
    unet=UNetConfig(
        in_channels=3,
        out_channels=3,
        channels=(128, 256, 256, 256),
        transformer_depth=(0, 1, 0, 0),
        heads=(1, 1, 1, 1),
        context_width=None,
    ),
    autoencoder=None,
    conditions=(),
    schedule=ScheduleConfig(kind="linear", start=0.0001, end=0.02, steps=1000),
    prediction="eps",
    latent_scale=1.0,
    width=32,
    height=32,
    steps=50,
    sampler="ddim",
    spacing="leading",
    guidance=1.0,
)
