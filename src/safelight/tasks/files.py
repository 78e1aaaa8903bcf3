"""Models as files: which are known, what one holds, and one layout to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from safelight.checkpoints import write_folder
from safelight.checkpoints.detect import same
from safelight.checkpoints.layouts import original
from safelight.checkpoints.writing import write_tensors
from safelight.errors import ModelFileError, RequestError
from safelight.presets import PRESETS
from safelight.tasks.loading import choose_dtype, open_checkpoint, shipped
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
    """"shipped", or "not shipped" and how to give them."""


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
    alike: list[str]
    """Presets that compute the same, with other habits."""
    dropped: list[tuple[str, str]]
    """(key, why) of everything in the file that is not used."""

    def text(self) -> str:
        """For people."""
        size = f"{self.width}x{self.height}"
        lines = [
            f"{self.title} ({self.preset}), predicts {self.prediction}, native size {size}",
            *(f"  {part.name:<12}{part.parameters:>14,}  {', '.join(part.dtypes)}" for part in self.parts),
        ]
        if self.alike:
            lines.append(f"  the same networks as {', '.join(self.alike)}: their habits by --preset")
        reasons: dict[str, list[str]] = {}
        for key, why in self.dropped:
            reasons.setdefault(why, []).append(key)
        for why, (first, *others) in reasons.items():
            lines.append(f"  not used: {first}{f' and {len(others)} more' if others else ''} ({why})")
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
            weights="shipped" if preset.name in here else "not shipped: give a file, a folder or a hub id by --model",
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
        alike=[other.name for other in PRESETS.values() if other.name != preset.name and same(other, preset)],
        dropped=[(key, why) for key, why in checkpoint.dropped],
    )


def convert_model(
    source: str,
    output: Path,
    reading: Reading = PLAIN,
    dtype: str | None = None,
    layout: Literal["diffusers", "original"] = "diffusers",
) -> None:
    """Write a model, of whatever layout, as a diffusers folder or as a single file of the original layout.

    Args:
        dtype: of its weights; None: as they are.

    Raises:
        RequestError: no such dtype, or the name of a single file does not end in .safetensors.
        ModelFileError: as `load`; a weight is beyond the range of the dtype; diffusers has no such model.
        OutputError: the folder holds something else than an earlier model, or it could not be written.
    """
    if layout == "original" and output.suffix != ".safetensors":
        raise RequestError(f"the original layout is one file: {str(output)!r} must end in .safetensors")
    wanted = None if dtype is None else choose_dtype(dtype)
    checkpoint = open_checkpoint(source, reading)
    if wanted is not None:
        parts = {name: _cast(tensors, wanted) for name, tensors in checkpoint.parts.items()}
        checkpoint = replace(checkpoint, parts=parts)
    if layout == "diffusers":
        write_folder(output, checkpoint)
        return
    written = original.layout(checkpoint.preset)
    parts = {part: dict(tensors) for part, tensors in checkpoint.parts.items() if part in written.pairs}
    write_tensors(output, written.save(parts))


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    cast = {}
    for key, tensor in tensors.items():
        cast[key] = tensor.to(dtype)
        if not bool(cast[key].isfinite().all()):
            raise ModelFileError(f"{key} is beyond the range of {str(dtype).removeprefix('torch.')}: use bfloat16")
    return cast
