"""What makes a member of the family: data, never code."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from safelight.diffusion.denoiser import Prediction
from safelight.diffusion.schedule import ScheduleConfig
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.unet import UNetConfig


@dataclass(frozen=True)
class Preset:
    """One member: the shapes of its three networks, its noise schedule, and how it likes to be asked."""

    name: str
    title: str
    """What people call it."""
    unet: UNetConfig
    autoencoder: AutoencoderConfig
    text: ClipTextConfig
    schedule: ScheduleConfig
    prediction: Prediction
    latent_scale: float
    """What a latent is multiplied by so that its variance is about 1."""
    width: int
    """Pixels; the size that the member was trained at."""
    height: int
    steps: int
    """Default number of sampling steps; this and the following are defaults of a request."""
    sampler: str
    spacing: str
    guidance: float

    def to_json(self) -> str:
        """Lossless, readable, stable text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Preset:
        """Inverse of `to_json`.

        Raises:
            pydantic.ValidationError: a field is missing, unknown or of the wrong type.
        """
        return TypeAdapter(cls).validate_json(text, extra="forbid")
