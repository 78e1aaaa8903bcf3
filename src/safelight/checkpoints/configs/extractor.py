"""`feature_extractor/preprocessor_config.json`: how diffusers prepares pictures where its pipelines demand one.

What we do to pictures is code of our own and reads no such file.
"""

from __future__ import annotations

from safelight.models.clip import PIXEL_MEAN, PIXEL_STD, ClipVisionConfig
from safelight.models.depth import DepthConfig

CLIP, DPT = "CLIPImageProcessor", "DPTImageProcessor"
BICUBIC = 3
"""Pillow's number for it."""
_STEPS: dict[str, object] = {
    "do_resize": True,
    "resample": BICUBIC,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}


def clip_extractor_json(config: ClipVisionConfig) -> dict[str, object]:
    """For an image tower: its shorter side to the tower's size, the middle of it, CLIP's mean and deviation."""
    size = config.image_size
    return {
        "image_processor_type": CLIP,
        **_STEPS,
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_convert_rgb": True,
        "image_mean": list(PIXEL_MEAN),
        "image_std": list(PIXEL_STD),
    }


def depth_extractor_json(config: DepthConfig) -> dict[str, object]:
    """For the depth network: a square of its size, pixels from -1 to 1."""
    size = config.image_size
    return {
        "image_processor_type": DPT,
        **_STEPS,
        "size": {"height": size, "width": size},
        "keep_aspect_ratio": False,
        "ensure_multiple_of": 1,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
