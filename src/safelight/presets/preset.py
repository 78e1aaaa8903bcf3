"""What makes a member of the family: data, never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from pydantic import TypeAdapter

from safelight.diffusion.denoiser import Prediction
from safelight.diffusion.schedule import ScheduleConfig
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.networks import Config
from safelight.models.unet import UNetConfig

UNET, AUTOENCODER, TEXT, TEXT_2 = "unet", "autoencoder", "text", "text_2"
"""Parts of a member: the names of its networks, in presets, checkpoints and models alike."""

States = Literal["last", "penultimate", "penultimate_normed"]
"""Which states of a text tower are attended to: the last (always after the final norm), or those before its
last layer, without or with the final norm."""


@dataclass(frozen=True)
class Words:
    """The prompt through a text tower, to the context door. Several towers stand side by side, in their order."""

    tower: ClipTextConfig
    part: str = TEXT
    states: States = "last"
    pooled: bool = False
    """Whether the tower's projected summary goes to the vector door, too."""
    kind: Literal["words"] = "words"

    @property
    def network(self) -> ClipTextConfig:
        """What the condition is made by."""
        return self.tower


Condition = Words
"""What a member is told by, and through which door."""


@dataclass(frozen=True)
class Preset:
    """One member: the shapes of its networks, what it is told by, its noise schedule, and how it likes to be asked."""

    name: str
    title: str
    """What people call it."""
    unet: UNetConfig
    autoencoder: AutoencoderConfig
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
        told = {condition.part: condition.network for condition in self.conditions}
        return {UNET: self.unet, AUTOENCODER: self.autoencoder, **told}

    @property
    def words(self) -> tuple[Words, ...]:
        """The text towers, in order."""
        return tuple(condition for condition in self.conditions if isinstance(condition, Words))

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
