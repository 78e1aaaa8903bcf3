"""Stable Diffusion 2.x and what was trained from it (configurations of Stability AI's released checkpoints)."""

from __future__ import annotations

from dataclasses import replace

from safelight.diffusion.schedule import ScheduleConfig
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.clip import ClipTextConfig, ClipVisionConfig
from safelight.models.depth import DepthConfig
from safelight.models.normalizer import NormalizerConfig
from safelight.models.unet import UNetConfig
from safelight.presets.conditions import DepthMap, HiddenPicture, SeenPicture, SmallPicture, Words
from safelight.presets.sd1 import SD1

SD2_UNET = UNetConfig(heads=(5, 10, 20, 20), context_width=1024, linear_projection=True)
"""2.0 and 2.1, both sizes and both kinds of prediction; SD-Turbo."""

SD2_INPAINTING_UNET = replace(SD2_UNET, in_channels=9)
SD2_DEPTH_UNET = replace(SD2_UNET, in_channels=5)

UNCLIP_L_UNET = replace(SD2_UNET, vector_width=1536)
"""Told the embedding of a picture by CLIP ViT-L/14, 768, and the sinusoids of its noise level, 768."""

UNCLIP_H_UNET = replace(SD2_UNET, vector_width=2048)
"""The same of OpenCLIP ViT-H/14: 1024 and 1024."""

X4_UNET = UNetConfig(
    in_channels=7,
    channels=(256, 512, 512, 1024),
    transformer_depth=(0, 1, 1, 1),
    context_width=1024,
    linear_projection=True,
    context_only=(0, 1, 2),
    classes=1000,
)
"""The upscaler: a latent of 4 channels and a small picture of 3; the label is the level of that picture's noise."""

X4_AUTOENCODER = AutoencoderConfig(channels=(128, 256, 512))

SD2_TOWER = ClipTextConfig(
    width=1024, layers=23, heads=16, mlp_width=4096, activation="gelu", projection_width=512, pad_token=0
)
"""OpenCLIP ViT-H/14 without its last layer: the states that enter that one, through the final norm, are attended to."""

SD2_BASE = replace(
    SD1, name="sd2-base", title="Stable Diffusion 2 base (512 pixels)", unet=SD2_UNET, conditions=(Words(SD2_TOWER),)
)
SD2_V = replace(SD2_BASE, name="sd2-v", title="Stable Diffusion 2 (768 pixels)", prediction="v", width=768, height=768)
SD2_INPAINTING = replace(
    SD2_BASE,
    name="sd2-inpainting",
    title="Stable Diffusion 2 inpainting",
    unet=SD2_INPAINTING_UNET,
    conditions=(Words(SD2_TOWER), HiddenPicture()),
)
SD2_DEPTH = replace(
    SD2_BASE,
    name="sd2-depth",
    title="Stable Diffusion 2 depth",
    unet=SD2_DEPTH_UNET,
    conditions=(Words(SD2_TOWER), DepthMap(DepthConfig())),
)
UNCLIP_NOISE = ScheduleConfig(kind="cosine", steps=1000)
"""By which the embedding of a picture is put under noise."""

UNCLIP_L = replace(
    SD2_V,
    name="unclip-l",
    title="Stable unCLIP 2.1 (ViT-L)",
    unet=UNCLIP_L_UNET,
    conditions=(
        Words(SD2_TOWER),
        SeenPicture(ClipVisionConfig(projected=True), NormalizerConfig(), UNCLIP_NOISE),
    ),
)
UNCLIP_H = replace(
    UNCLIP_L,
    name="unclip-h",
    title="Stable unCLIP 2.1 (ViT-H)",
    unet=UNCLIP_H_UNET,
    conditions=(
        Words(SD2_TOWER),
        SeenPicture(
            ClipVisionConfig(
                width=1280,
                layers=32,
                mlp_width=5120,
                activation="gelu",
                projection_width=1024,
                projected=True,
            ),
            NormalizerConfig(1024),
            UNCLIP_NOISE,
        ),
    ),
)
X4_NOISE = ScheduleConfig(kind="scaled_linear", start=0.0001, end=0.02, steps=1000)
"""Of the upscaler's latents, and of the small picture that it is told."""

X4_UPSCALER = replace(
    SD2_V,
    name="x4-upscaler",
    title="Stable Diffusion x4 upscaler",
    unet=X4_UNET,
    autoencoder=X4_AUTOENCODER,
    conditions=(Words(SD2_TOWER), SmallPicture(X4_NOISE, most=350)),
    schedule=X4_NOISE,
    latent_scale=0.08333,
    width=512,
    height=512,
)
