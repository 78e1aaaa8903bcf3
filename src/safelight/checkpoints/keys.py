"""The engine that turns one naming of the weights into another, strictly, and back.

A layout is made by a program from the configs: pairs (theirs, ours, op). What a file has beyond that must
stand in the layout's list of what is dropped, with the reason. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor

from safelight.checkpoints.files import printable
from safelight.errors import ModelFileError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """How a weight is turned on its way in; the way out is its inverse.

    A 1x1 convolution and a linear layer are the same matrix, written (out, in, 1, 1) or (out, in). Files
    differ even within one layout, so both are read; `rank` is the one that is written.
    """

    rank: int | None = None
    """Dimensions in their file, for such a matrix; None for a weight that is the same on both sides."""
    part: int = 0
    parts: int = 1
    """Ours is piece `part` of `parts` equal ones of their rows: queries, keys and values are often one matrix."""
    heads: int = 1
    """In so many groups their rows are cut first, each of which holds all parts (one group per attention head)."""
    transposed: bool = False
    """A matrix that they multiply from the other side."""

    def accepts(self, theirs: Shape, ours: Shape) -> bool:
        """Whether a tensor of shape `theirs` becomes (with its other parts) one of shape `ours`."""
        expected = self.shape(ours)
        return theirs == expected if self.rank is None else _matrix(theirs) == _matrix(expected)

    def into(self, tensor: Tensor, ours: Shape) -> Tensor:
        """Their tensor -> ours. A view; a copy only where heads are interleaved."""
        if self.parts > 1:
            rows = tensor.shape[0] // (self.heads * self.parts)
            tensor = tensor.reshape(self.heads, self.parts, rows, *tensor.shape[1:])[:, self.part]
            return tensor.reshape(ours)
        if self.transposed:
            return tensor.T
        return tensor if self.rank is None else tensor.reshape(ours)

    def shape(self, ours: Shape) -> Shape:
        """The shape in their file, whole, of our tensor of shape `ours`."""
        if self.transposed:
            return ours[::-1]
        theirs = ours if self.rank is None else _matrix(ours) + (1,) * (self.rank - 2)
        return (self.parts * theirs[0], *theirs[1:]) if self.parts > 1 else theirs

    def out_of(self, pieces: Sequence[Tensor]) -> Tensor:
        """Our tensors, one per part in order -> theirs."""
        if self.parts > 1:
            grouped = [t.reshape(self.heads, -1, *t.shape[1:]) for t in pieces]
            return torch.stack(grouped, dim=1).reshape(self.shape(tuple(pieces[0].shape)))
        [tensor] = pieces
        return tensor.T.contiguous() if self.transposed else tensor.reshape(self.shape(tuple(tensor.shape)))


def _matrix(shape: Shape) -> Shape:
    """(out, in) of a matrix written (o, i), (o, i, 1) or (o, i, 1, 1); other shapes as they are."""
    return shape[:2] if len(shape) > 2 and set(shape[2:]) == {1} else shape


SAME, LINEAR, CONV_1X1 = Op(), Op(rank=2), Op(rank=4)


@dataclass(frozen=True)
class Pair:
    """One weight: its name in their file, its name in our module, and how to turn it."""

    theirs: str
    """Shared by all parts of a weight that is one in their file."""
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
            if pair.theirs in known:  # another part of the same weight
                continue
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
        pieces: dict[str, list[tuple[Op, Tensor]]] = {}
        for part, pair in self._each():
            pieces.setdefault(pair.theirs, []).append((pair.op, parts[part][pair.ours]))
        whole = {}
        for theirs, found in pieces.items():
            found.sort(key=lambda piece: piece[0].part)
            whole[theirs] = found[0][0].out_of([tensor for _, tensor in found])
        return whole

    def _each(self) -> Iterator[tuple[str, Pair]]:
        return ((part, pair) for part, pairs in self.pairs.items() for pair in pairs)

    def _reason(self, key: str) -> str | None:
        return next((drop.why for drop in self.drops if fnmatchcase(key, drop.pattern)), None)
