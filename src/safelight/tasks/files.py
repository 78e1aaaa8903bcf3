"""Models as files: which are known, what one holds, and one layout to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from safelight.checkpoints import Checkpoint, write_folder
from safelight.checkpoints.alone import lone_file, presets_for
from safelight.checkpoints.detect import same
from safelight.checkpoints.files import read_tensors
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
    absent: list[str]
    """Parts that it lacks, which must be given beside it."""
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
        lines += [f"  {part:<12}{'not in it':>14}: give one by {original.BROUGHT[part]}" for part in self.absent]
        if self.alike:
            lines.append(f"  the same networks as {', '.join(self.alike)}: their habits by --preset")
        reasons: dict[str, list[str]] = {}
        for key, why in self.dropped:
            reasons.setdefault(why, []).append(key)
        for why, (first, *others) in reasons.items():
            lines.append(f"  not used: {first}{f' and {len(others)} more' if others else ''} ({why})")
        return "\n".join(lines)


class FileCard(BaseModel):
    """What a file holds that is no model: a part of one, or what goes on top of one."""

    model_config = ConfigDict(frozen=True)

    source: str
    kind: str
    """Like autoencoder, text encoder, lora."""
    what: str
    """The same for people."""
    use: str
    """What to do with it."""
    tensors: int
    parameters: int
    dtypes: list[str]
    presets: list[str]
    """Of a part: the members whose own has the same keys and shapes."""

    def text(self) -> str:
        """For people."""
        numbers = f"{self.parameters:,} parameters in {self.tensors} tensors, {', '.join(self.dtypes)}"
        fits = [f"  fits {', '.join(self.presets)}"] if self.presets else []
        return "\n".join([f"{self.what}: {numbers}", *fits, f"  {self.use}"])


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


def describe(source: str, reading: Reading = PLAIN) -> ModelCard | FileCard:
    """Look into a model, a part of one or what goes on top of one, without filling networks.

    Raises:
        ModelFileError: as `load`.
    """
    if source not in shipped() and (lone := lone_file(source)) is not None:
        path, sort, tensors = lone
        return FileCard(
            source=str(path),
            kind=sort.name,
            what=sort.what,
            use=sort.use,
            tensors=len(tensors),
            parameters=_count(tensors),
            dtypes=_dtypes(tensors),
            presets=presets_for(tensors, sort),
        )
    checkpoint = open_checkpoint(source, reading)
    preset = checkpoint.preset
    return ModelCard(
        source=source,
        preset=preset.name,
        title=preset.title,
        prediction=preset.prediction,
        width=preset.width,
        height=preset.height,
        parts=[
            PartCard(name=name, parameters=_count(tensors), dtypes=_dtypes(tensors))
            for name, tensors in checkpoint.parts.items()
        ],
        absent=checkpoint.absent(),
        alike=[other.name for other in PRESETS.values() if other.name != preset.name and same(other, preset)],
        dropped=[(key, why) for key, why in checkpoint.dropped],
    )


def _count(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _dtypes(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})


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
    _check(output, dtype, layout)
    checkpoint = open_checkpoint(source, reading)
    # What the file of a text tower has beside it is of no use here, but some programs know the model by it.
    beside = {} if layout == "diffusers" or reading.text_encoder else _of_towers(Path(source), checkpoint)
    write_model(checkpoint, output, dtype, layout, beside)


def write_model(
    checkpoint: Checkpoint,
    output: Path,
    dtype: str | None = None,
    layout: Literal["diffusers", "original"] = "diffusers",
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Write what was read, or made of what was read.

    Args:
        dtype, layout: as `convert_model`.
        beside: further tensors of a single file, by its names.

    Raises:
        As `convert_model`.
    """
    _check(output, dtype, layout)
    more = {} if beside is None else beside
    if dtype is not None:
        wanted = choose_dtype(dtype)
        checkpoint = replace(checkpoint, parts={name: _cast(part, wanted) for name, part in checkpoint.parts.items()})
        more = _cast(more, wanted)
    if layout == "diffusers":
        checkpoint.require_whole()
        write_folder(output, checkpoint)
    else:
        write_tensors(output, {**original.save(checkpoint.preset, checkpoint.parts), **more})


def _check(output: Path, dtype: str | None, layout: str) -> None:
    """What can be wrong before anything is read."""
    if layout == "original" and output.suffix != ".safetensors":
        raise RequestError(f"the original layout is one file: {str(output)!r} must end in .safetensors")
    if dtype is not None:
        choose_dtype(dtype)


def _of_towers(path: Path, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors that an original file has beside those that are used of what its UNet is told by."""
    if not path.is_file():
        return {}
    keys = [key for key, _ in checkpoint.dropped if key.startswith((original.OLD_STAGE, original.NEW_STAGE))]
    tensors = read_tensors(path) if keys else {}
    return {key: tensors[key] for key in keys}


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    cast = {}
    for key, tensor in tensors.items():
        cast[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if not bool(cast[key].isfinite().all()):
            raise ModelFileError(f"{key} is beyond the range of {str(dtype).removeprefix('torch.')}: use bfloat16")
    return cast
