"""Recipe: DreamBooth, all of a network taught one thing by few pictures (Ruiz et al. 2023).

So few pictures would soon be all that the network can draw of their class. What keeps that from happening is prior
preservation (sec. 3.3, eq. 2): pictures of the class by the model itself are trained on, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from safelight.checkpoints import write_folder
from safelight.doors import Conditioning
from safelight.presets.preset import UNET
from safelight.training.config import LoopConfig
from safelight.training.folders import read_entries
from safelight.training.recipes.foundation import Foundation
from safelight.training.recipes.prior import with_class
from safelight.training.recipes.tuning import Tuning
from safelight.training.recipes.tuning_settings import DreamBoothSettings, TuningData


class DreamBooth(Tuning):
    """The UNet and, if asked for, the text towers."""

    settings: DreamBoothSettings

    def __init__(self, settings: DreamBoothSettings, data: TuningData, loop: LoopConfig) -> None:
        """Read the pictures, draw those of the class that are missing, and encode them all.

        Raises:
            DataError, ModelFileError, TrainingError: as `read_entries`, `Foundation` and `Tuning`.
            OutputError: pictures of the class could not be written.
        """
        entries = read_entries(data.data, data.caption)
        foundation = Foundation(settings.model)
        super().__init__(settings, data, with_class(settings, entries, loop), foundation, loop)
        self._text_pace = 1.0 if settings.text_lr is None else settings.text_lr / loop.lr
        self._trained = nn.ModuleDict({UNET: foundation.unet})
        if settings.train_text:
            self._trained.update(foundation.towers)
        self._trained.requires_grad_(True)

    @property
    def trained(self) -> nn.Module:
        return self._trained

    def pace(self, part: str, parameter: str) -> float:
        """As `Paced.pace`."""
        return 1.0 if parameter.startswith(f"{UNET}.") else self._text_pace

    def says(self, captions: Sequence[str]) -> Conditioning:
        said = self.foundation.says if self.settings.train_text else self.foundation.remembers
        return said(captions)

    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        """A whole model in the diffusers layout."""
        [trained] = weights.values()
        assert isinstance(trained, nn.ModuleDict)
        origin = self.foundation.checkpoint()
        parts = {**origin.parts, **{part: dict(network.state_dict()) for part, network in trained.items()}}
        write_folder(folder, replace(origin, parts=parts, source=None))
