"""The engine that turns one naming of the weights into another, strictly, and back.

A layout is made by a program from the configs: pairs (theirs, ours, op). What a file has beyond that must
stand in the layout's list of what is dropped, with the reason. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from safelight.checkpoints.files import printable
from safelight.errors import ModelFileError
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.clip import ClipText, ClipTextConfig
from safelight.models.unet import UNet, UNetConfig

Shape = tuple[int, ...]
Config = UNetConfig | AutoencoderConfig | ClipTextConfig


@dataclass(frozen=True)
class Op:
    """How a weight is turned on its way in; the way out is its inverse.

    A 1x1 convolution and a linear layer are the same matrix, written (out, in, 1, 1) or (out, in). Files
    differ even within one layout, so both are read; `rank` is the one that is written.
    """

    rank: int | None = None
    """Dimensions in their file, for such a matrix; None for a weight that is the same on both sides."""

    def accepts(self, theirs: Shape, ours: Shape) -> bool:
        """Whether a tensor of shape `theirs` becomes one of shape `ours`."""
        return theirs == ours if self.rank is None else _matrix(theirs) == _matrix(ours)

    def into(self, tensor: Tensor, ours: Shape) -> Tensor:
        """Their tensor -> ours. A view, never a copy."""
        return tensor if self.rank is None else tensor.reshape(ours)

    def shape(self, ours: Shape) -> Shape:
        """The shape in their file of our tensor of shape `ours`."""
        return ours if self.rank is None else _matrix(ours) + (1,) * (self.rank - 2)

    def out_of(self, tensor: Tensor) -> Tensor:
        """Our tensor -> theirs."""
        return tensor.reshape(self.shape(tuple(tensor.shape)))


def _matrix(shape: Shape) -> Shape:
    """(out, in) of a matrix written (o, i), (o, i, 1) or (o, i, 1, 1); other shapes as they are."""
    return shape[:2] if len(shape) > 2 and set(shape[2:]) == {1} else shape


SAME, LINEAR, CONV_1X1 = Op(), Op(rank=2), Op(rank=4)


@dataclass(frozen=True)
class Pair:
    """One weight: its name in their file, its name in our module, and how to turn it."""

    theirs: str
    ours: str
    op: Op = SAME


@dataclass(frozen=True)
class Drop:
    """Keys that a file may have and that we have no use for."""

    pattern: str
    """With `*` for anything; case counts."""
    why: str


class Dropped(NamedTuple):
    """A key that was in the file and was not loaded."""

    key: str
    why: str


@dataclass(frozen=True)
class Misfit:
    """How a file differs from a layout. Empty in all three: it fits."""

    missing: tuple[tuple[str, Shape], ...]
    """Key and expected shape."""
    unexpected: tuple[str, ...]
    wrong: tuple[tuple[str, Shape, str], ...]
    """Key, expected shape, what was found."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.wrong)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.wrong)

    def __str__(self) -> str:
        said = []
        if self.wrong:
            wrong = [f"{key}: expected {expected}, found {found}" for key, expected, found in self.wrong]
            said.append(f"{_count(wrong, 'key')} of the wrong shape ({_first(wrong)})")
        if self.missing:
            said.append(f"{_count(self.missing, 'key')} missing ({_first([key for key, _ in self.missing])})")
        if self.unexpected:
            said.append(f"{_count(self.unexpected, 'key')} unexpected ({_first(self.unexpected)})")
        return "; ".join(said)


def _count(items: tuple[object, ...] | list[str], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _first(keys: tuple[str, ...] | list[str], at_most: int = 3) -> str:
    return ", ".join([*(printable(key) for key in keys[:at_most]), *(["..."] if len(keys) > at_most else [])])


@dataclass(frozen=True)
class Layout:
    """How one kind of file names the weights of one or more parts."""

    pairs: Mapping[str, tuple[Pair, ...]]
    """By part: "unet", "autoencoder", "text"."""
    shapes: Mapping[str, Mapping[str, Shape]]
    """By part, by our name."""
    drops: tuple[Drop, ...] = ()

    def misfit(self, tensors: Mapping[str, Tensor]) -> Misfit:
        """How the tensors of a file differ from this layout."""
        missing, wrong, known = [], [], set()
        for part, pair in self._each():
            known.add(pair.theirs)
            ours = self.shapes[part][pair.ours]
            tensor = tensors.get(pair.theirs)
            if tensor is None:
                missing.append((pair.theirs, pair.op.shape(ours)))
            elif not pair.op.accepts(tuple(tensor.shape), ours):
                wrong.append((pair.theirs, pair.op.shape(ours), str(tuple(tensor.shape))))
            elif not tensor.is_floating_point():
                wrong.append((pair.theirs, pair.op.shape(ours), f"whole numbers ({tensor.dtype})"))
        unexpected = [key for key in tensors if key not in known and self._reason(key) is None]
        return Misfit(tuple(missing), tuple(unexpected), tuple(wrong))

    def load(self, tensors: Mapping[str, Tensor], file: str) -> tuple[dict[str, dict[str, Tensor]], list[Dropped]]:
        """Their tensors -> ours by part, and what was dropped. Views of the same memory.

        Raises:
            ModelFileError: a key is missing, unexpected or of the wrong shape.
        """
        if misfit := self.misfit(tensors):
            raise ModelFileError(f"{file} does not fit: {misfit}; check that it is complete and of this kind")
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in self.pairs}
        known = set()
        for part, pair in self._each():
            known.add(pair.theirs)
            parts[part][pair.ours] = pair.op.into(tensors[pair.theirs], self.shapes[part][pair.ours])
        dropped = [Dropped(key, why) for key in tensors if key not in known and (why := self._reason(key)) is not None]
        return parts, dropped

    def save(self, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Our tensors by part -> theirs. The inverse of `load`, but for what it dropped."""
        return {pair.theirs: pair.op.out_of(parts[part][pair.ours]) for part, pair in self._each()}

    def _each(self) -> Iterator[tuple[str, Pair]]:
        return ((part, pair) for part, pairs in self.pairs.items() for pair in pairs)

    def _reason(self, key: str) -> str | None:
        return next((drop.why for drop in self.drops if fnmatchcase(key, drop.pattern)), None)


@lru_cache(maxsize=64)
def shapes_of(config: Config) -> Mapping[str, Shape]:
    """Our name -> shape of every weight of the network that a config describes. Takes no memory for them."""
    with torch.device("meta"):
        network: torch.nn.Module
        if isinstance(config, UNetConfig):
            network = UNet(config)
        elif isinstance(config, AutoencoderConfig):
            network = Autoencoder(config)
        else:
            network = ClipText(config)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
