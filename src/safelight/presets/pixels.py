"""Diffusion of the pixels themselves, told nothing: the plain DDPM (Ho et al. 2020, appendix B).

The first is it as it is built today, and as diffusers' example trains it; the others are the authors' own models, whose
layers differ in details.
"""

from __future__ import annotations

from dataclasses import replace

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

DDPM_CIFAR10 = replace(
    DDPM,
    name="ddpm-cifar10",
    title="DDPM CIFAR-10, 32x32 pixels",
    unet=replace(DDPM.unet, norm_eps=1e-6, time_shift=1, time_sines_first=True, halves_symmetrically=False),
)
DDPM_256 = replace(
    DDPM_CIFAR10,
    name="ddpm-256",
    title="DDPM CelebA-HQ and LSUN, 256x256 pixels",
    unet=replace(
        DDPM_CIFAR10.unet,
        channels=(128, 128, 256, 256, 512, 512),
        transformer_depth=(0, 0, 0, 0, 1, 0),
        heads=(1,) * 6,
    ),
    width=256,
    height=256,
)
