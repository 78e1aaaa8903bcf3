"""diffusers' and transformers' `config.json` <-> our configs, both ways, and the files that stand beside them.

The defaults are those that the two libraries document: a file that lacks a field means them.
"""

from __future__ import annotations

from safelight.checkpoints.configs.autoencoder import autoencoder_json, read_autoencoder, read_autoencoder_as_stated
from safelight.checkpoints.configs.bert import bert_json, read_bert
from safelight.checkpoints.configs.clip import (
    normalizer_json,
    read_normalizer,
    read_text,
    read_vision,
    text_json,
    vision_json,
)
from safelight.checkpoints.configs.depth import depth_json, read_depth
from safelight.checkpoints.configs.extractor import clip_extractor_json, depth_extractor_json
from safelight.checkpoints.configs.scheduler import (
    Scheduling,
    noise_json,
    read_habits,
    read_noise,
    read_schedule,
    read_scheduler,
    scheduler_json,
)
from safelight.checkpoints.configs.scheduler_classes import SCHEDULERS
from safelight.checkpoints.configs.unet import read_unet, unet_json

__all__ = [
    "SCHEDULERS",
    "Scheduling",
    "autoencoder_json",
    "bert_json",
    "clip_extractor_json",
    "depth_extractor_json",
    "depth_json",
    "noise_json",
    "normalizer_json",
    "read_autoencoder",
    "read_autoencoder_as_stated",
    "read_bert",
    "read_depth",
    "read_habits",
    "read_noise",
    "read_normalizer",
    "read_schedule",
    "read_scheduler",
    "read_text",
    "read_unet",
    "read_vision",
    "scheduler_json",
    "text_json",
    "unet_json",
    "vision_json",
]
