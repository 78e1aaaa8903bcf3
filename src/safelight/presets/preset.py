"""What makes a member of the family: data, never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from pydantic import TypeAdapter

from safelight.diffusion.denoiser import Prediction
from safelight.diffusion.schedule import ScheduleConfig
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.networks import Config
from safelight.models.unet import UNetConfig
from safelight.presets.conditions import Condition, Words

UNET, AUTOENCODER = "unet", "autoencoder"
"""Parts of a member, beside those that its conditions are made by (`conditions`)."""


@dataclass(frozen=True)
class Preset:
    """One member: the shapes of its networks, what it is told by, its noise schedule, and how it likes to be asked."""

    name: str
    title: str
    """What people call it."""
    unet: UNetConfig
    autoencoder: AutoencoderConfig | None
    """None: the network works on the pixels themselves."""
    conditions: tuple[Condition, ...]
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

    @property
    def networks(self) -> Mapping[str, Config]:
        """Every network of the member, by part."""
        found: dict[str, Config] = {UNET: self.unet}
        if self.autoencoder is not None:
            found[AUTOENCODER] = self.autoencoder
        for condition in self.conditions:
            found.update(condition.networks)
        return found

    @property
    def words(self) -> tuple[Words, ...]:
        """The text towers, in order."""
        return tuple(condition for condition in self.conditions if isinstance(condition, Words))

    @property
    def factor(self) -> int:
        """Pixels per latent position, on a side."""
        return 1 if self.autoencoder is None else self.autoencoder.factor

    def with_towers(self, towers: Mapping[str, ClipTextConfig]) -> Preset:
        """The same member with other text towers, by part; those not named stay."""
        changed = (
            replace(c, tower=towers[c.part]) if isinstance(c, Words) and c.part in towers else c
            for c in self.conditions
        )
        return replace(self, conditions=tuple(changed))

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
