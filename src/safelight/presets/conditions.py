"""What a member is told by, and through which door: words, labels, boxes, maps, pictures, numbers. Data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Discriminator

from safelight.diffusion.schedule import ScheduleConfig
from safelight.models.bert import BertConfig
from safelight.models.boxes import BoxesConfig
from safelight.models.clip import ClipTextConfig, ClipVisionConfig, States
from safelight.models.depth import DepthConfig
from safelight.models.labels import LabelsConfig
from safelight.models.networks import Config
from safelight.models.normalizer import NormalizerConfig
from safelight.models.rescaler import RescalerConfig

TEXT, TEXT_2 = "text", "text_2"
LABELS, BOXES, RESCALER, DEPTH, VISION, NORMALIZER = "labels", "boxes", "rescaler", "depth", "vision", "normalizer"
"""Parts that conditions are made by: the names of their networks in presets, checkpoints and models alike."""


@dataclass(frozen=True)
class Words:
    """The prompt through a text tower, to the context door. Several towers stand side by side, in their order."""

    tower: ClipTextConfig | BertConfig
    part: str = TEXT
    states: States = "last"
    """Of a CLIP; a BERT has the last."""
    pooled: bool = False
    """Whether the tower's projected summary goes to the vector door, too."""
    zeros: bool = False
    """Whether an empty prompt is told by zeros in place of the tower's states for it (SDXL base)."""
    kind: Literal["words"] = "words"

    @property
    def networks(self) -> Mapping[str, Config]:
        """What the condition is made by, by part."""
        return {self.part: self.tower}


@dataclass(frozen=True)
class Label:
    """A class, to the context door."""

    labels: LabelsConfig
    empty: int | None = None
    """The class that stands for none, which guidance steers away from; None: the model was trained without."""
    kind: Literal["label"] = "label"

    @property
    def networks(self) -> Mapping[str, Config]:
        """As `Words.networks`."""
        return {LABELS: self.labels}


@dataclass(frozen=True)
class Boxes:
    """Labelled boxes, to the context door."""

    boxes: BoxesConfig
    tower: BertConfig
    kind: Literal["boxes"] = "boxes"

    @property
    def networks(self) -> Mapping[str, Config]:
        """As `Words.networks`."""
        return {BOXES: self.tower}


@dataclass(frozen=True)
class LabelMap:
    """The class of every pixel, to the concat door."""

    rescaler: RescalerConfig
    kind: Literal["label map"] = "label map"

    @property
    def networks(self) -> Mapping[str, Config]:
        """As `Words.networks`."""
        return {RESCALER: self.rescaler}


@dataclass(frozen=True)
class SmallPicture:
    """The picture to be enlarged, to the concat door as it is."""

    schedule: ScheduleConfig | None = None
    """It comes under noise of one of this schedule's levels, which is told through the vector door; None: without."""
    most: int = 0
    """The highest level that training used."""
    kind: Literal["small picture"] = "small picture"

    @property
    def networks(self) -> Mapping[str, Config]:
        """As `Words.networks`."""
        return {}


@dataclass(frozen=True)
class HiddenPicture:
    """A picture with a hole and its mask, to the concat door."""

    style: Literal["stable", "latent"] = "stable"
    """How the hole looks: Stable Diffusion's way, or latent diffusion's."""
    kind: Literal["hidden picture"] = "hidden picture"

    @property
    def networks(self) -> Mapping[str, Config]:
        """As `Words.networks`."""
        return {}


@dataclass(frozen=True)
class DepthMap:
    """How deep a picture is, to the concat door."""

    network: DepthConfig
    kind: Literal["depth map"] = "depth map"

    @property
    def networks(self) -> Mapping[str, Config]:
        """As `Words.networks`."""
        return {DEPTH: self.network}


@dataclass(frozen=True)
class SeenPicture:
    """What CLIP sees in a picture, under noise, to the vector door together with the noise level."""

    tower: ClipVisionConfig
    normalizer: NormalizerConfig
    schedule: ScheduleConfig
    """That the noise is added by."""
    kind: Literal["seen picture"] = "seen picture"

    @property
    def networks(self) -> Mapping[str, Config]:
        """As `Words.networks`."""
        return {VISION: self.tower, NORMALIZER: self.normalizer}


@dataclass(frozen=True)
class Numbers:
    """Sizes and crops, to the vector door behind the pooled words; with the aesthetic score or the target size."""

    aesthetic: bool = False
    kind: Literal["numbers"] = "numbers"

    @property
    def networks(self) -> Mapping[str, Config]:
        """As `Words.networks`."""
        return {}


Condition = Annotated[
    Words | Label | Boxes | LabelMap | SmallPicture | HiddenPicture | DepthMap | SeenPicture | Numbers,
    Discriminator("kind"),
]
