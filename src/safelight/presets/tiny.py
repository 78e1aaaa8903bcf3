"""Our own small member, trained by this project on scenes and shipped in the wheel (card: assets/tiny)."""

from __future__ import annotations

from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.clip import ClipTextConfig, ClipVisionConfig
from safelight.models.unet import UNetConfig
from safelight.presets.preset import Preset
from safelight.presets.sd1 import SCHEDULE

TINY_VOCAB = 929
"""Most tokens that its vocabulary may have; what it has is read from the trained one."""

TINY = Preset(
    name="tiny",
    title="Safelight tiny",
    unet=UNetConfig(
        channels=(64, 96, 160),
        blocks_per_level=1,
        transformer_depth=(0, 1, 1),
        heads=(2, 3, 5),
        context_width=128,
        norm_groups=8,
    ),
    autoencoder=AutoencoderConfig(channels=(16, 32, 64), blocks_per_level=1, norm_groups=4),
    text=ClipTextConfig(
        vocab_size=TINY_VOCAB,
        width=128,
        layers=4,
        heads=4,
        mlp_width=512,
        projection_width=128,
        start_token=TINY_VOCAB - 2,
        end_token=TINY_VOCAB - 1,
        pad_token=TINY_VOCAB - 1,
    ),
    schedule=SCHEDULE,
    prediction="v",
    latent_scale=0.43136346340179443,  # measured when its autoencoder was trained
    width=64,
    height=64,
    steps=20,
    sampler="dpmpp_2m",
    spacing="trailing",
    guidance=4.0,
)

TINY_VISION = ClipVisionConfig(
    width=128, layers=4, heads=4, mlp_width=512, image_size=64, patch=8, projection_width=128
)
"""The image tower beside tiny's text tower."""
