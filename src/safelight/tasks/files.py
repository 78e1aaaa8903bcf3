"""Models as files: which are known, what one holds, and one layout to another."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from safelight.checkpoints import write_folder
from safelight.presets import PRESETS
from safelight.tasks.loading import open_checkpoint, shipped
from safelight.tasks.sources import PLAIN, Reading


class KnownModel(BaseModel):
    """A member of the family that this version draws with."""

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    width: int
    """Native, in pixels."""
    height: int
    weights: str
    """"shipped", or "give a file"."""


class PartCard(BaseModel):
    """One network of a model."""

    model_config = ConfigDict(frozen=True)

    name: str
    parameters: int
    dtypes: list[str]


class ModelCard(BaseModel):
    """What a model is made of."""

    model_config = ConfigDict(frozen=True)

    source: str
    preset: str
    title: str
    prediction: str
    width: int
    height: int
    parts: list[PartCard]
    dropped: list[tuple[str, str]]
    """(key, why) of everything in the file that is not used."""

    def text(self) -> str:
        """For people."""
        size = f"{self.width}x{self.height}"
        lines = [
            f"{self.title} ({self.preset}), predicts {self.prediction}, native size {size}",
            *(f"  {part.name:<12}{part.parameters:>14,}  {', '.join(part.dtypes)}" for part in self.parts),
        ]
        lines += [f"  not used: {key} ({why})" for key, why in self.dropped]
        return "\n".join(lines)


def known_models() -> list[KnownModel]:
    """Every preset, and whether its weights come with the package."""
    here = shipped()
    return [
        KnownModel(
            name=preset.name,
            title=preset.title,
            width=preset.width,
            height=preset.height,
            weights="shipped" if preset.name in here else "give a file",
        )
        for preset in PRESETS.values()
    ]


def describe(source: str, reading: Reading = PLAIN) -> ModelCard:
    """Look into a model without filling networks.

    Raises:
        ModelFileError: as `load`.
    """
    checkpoint = open_checkpoint(source, reading)
    preset = checkpoint.preset
    parts = [
        PartCard(
            name=name,
            parameters=sum(tensor.numel() for tensor in tensors.values()),
            dtypes=sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        )
        for name, tensors in checkpoint.parts.items()
    ]
    return ModelCard(
        source=source,
        preset=preset.name,
        title=preset.title,
        prediction=preset.prediction,
        width=preset.width,
        height=preset.height,
        parts=parts,
        dropped=[(key, why) for key, why in checkpoint.dropped],
    )


def convert_model(source: str, folder: Path, reading: Reading = PLAIN) -> None:
    """Write a model, of whatever layout, as a diffusers folder; tensors keep their dtype.

    Raises:
        ModelFileError: as `load`.
        OutputError: the folder holds something else than an earlier model, or could not be written.
    """
    write_folder(folder, open_checkpoint(source, reading))
