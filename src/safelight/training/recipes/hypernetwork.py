"""Recipe: a hypernetwork, small networks before the keys and values of a UNet, which stays as it is.

For every width that the UNet attends to, or for those that are named, whichever member of the family it is: those of
SD 1, SD 2 and SDXL alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from safelight.adapters.hypernetwork_files import write_hypernetwork
from safelight.adapters.hypernetworks import Hypernetwork, HypernetworkConfig, attended_widths, bent
from safelight.adapters.origin import Origin
from safelight.doors import Conditioning
from safelight.errors import TrainingError
from safelight.models.tokenizer import Tokenizing
from safelight.training.config import LoopConfig
from safelight.training.folders import read_entries
from safelight.training.recipes.foundation import Foundation
from safelight.training.recipes.prior import with_class
from safelight.training.recipes.tuning import Tuning
from safelight.training.recipes.tuning_settings import HypernetworkSettings, TuningData


class HypernetworkRecipe(Tuning):
    """One pair of networks for each width."""

    settings: HypernetworkSettings

    def __init__(self, settings: HypernetworkSettings, data: TuningData, loop: LoopConfig) -> None:
        """Read the pictures, and build the networks.

        Raises:
            DataError, ModelFileError, TrainingError: as `read_entries`, `Foundation` and `Tuning`; the networks cannot
                be built.
        """
        entries = read_entries(data.data, data.caption)
        foundation = Foundation(settings.model, dtype=torch.bfloat16 if loop.precision == "bf16" else torch.float32)
        self._name = loop.output.absolute().name if settings.name is None else settings.name
        origin = Origin(self._name, -(-loop.images // loop.step_images), Path(settings.model).name)
        try:
            config = HypernetworkConfig(
                settings.structure, settings.activation, settings.activate_output, settings.layer_norm, settings.dropout
            )
            widths = _widths(foundation.unet, settings.widths)
            self._trained = Hypernetwork(widths, config, initialisation=settings.initialisation, origin=origin)
            self._trained.initialise(torch.Generator().manual_seed(loop.seed), zero_last=settings.zero_last)
        except ValueError as error:
            raise TrainingError(f"no hypernetwork can be built so: {error}") from error
        super().__init__(settings, data, with_class(settings, entries, loop), foundation, loop)

    @property
    def trained(self) -> nn.Module:
        return self._trained

    def says(self, captions: Sequence[str]) -> Conditioning:
        return self.foundation.remembers(captions)

    @contextmanager
    def acting(self, drawing: bool) -> Iterator[Mapping[str, Tokenizing]]:
        with bent(self.foundation.unet, [(self._trained, 1.0)]):
            yield self.foundation.tokenizers

    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        """One file, of the web UI's kind or our own."""
        [trained] = weights.values()
        assert isinstance(trained, Hypernetwork)
        folder.mkdir(parents=True, exist_ok=True)
        write_hypernetwork(folder / f"{self._name}.{self.settings.file_format}", trained)


def _widths(unet: nn.Module, named: Sequence[int]) -> Sequence[int]:
    """Those named, or all that there are.

    Raises:
        ValueError: the UNet attends to nothing so wide.
    """
    met = attended_widths(unet)
    if strange := [width for width in named if width not in met]:
        there_are = ", ".join(map(str, met))
        raise ValueError(f"this model attends to nothing {strange[0]} wide: --widths are of {there_are}")
    return named or met
