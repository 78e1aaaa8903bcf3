"""Kinds that rotate a layer's outputs: OFT, in blocks (Qiu et al. 2023), and BOFT, in butterflies (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from safelight.adapters.kinds.kind import Changed, Kind, Shape, kept, like, size


class OFT(Kind):
    """R W, with R block by block Cayley's (1 + Q)(1 - Q)^-1 of Q = blocks - blocks^T.

    Where `alpha` is above 0, all of Q together is no longer than alpha times the outputs. At another strength,
    R becomes strength R + (1 - strength).
    """

    title: ClassVar[str] = "OFT"
    OWN: ClassVar[frozenset[str]] = frozenset({"oft_blocks", "rescale"})

    alpha: Tensor | None

    def __init__(self, blocks: Tensor, alpha: Tensor | None = None, rescale: Tensor | None = None) -> None:
        """blocks (n, b, b) with n b = O; of a butterfly (m, n, b, b), its m stages one after the other. rescale (O, 1,
        ...): each row times it."""
        super().__init__()
        self.oft_blocks, self.rescale = kept(blocks), kept(rescale)
        self.register_buffer("alpha", None if alpha is None else alpha.detach().reshape(()))

    @classmethod
    def expected(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Mapping[str, Shape]:
        """As `Kind.expected`."""
        blocks = tensors.get("oft_blocks")
        stages = () if blocks is None or blocks.ndim < 4 else (blocks.shape[0],)
        width = size(tensors, "oft_blocks", 2 + len(stages))
        fits = width > 0 and shape[0] % width == 0 and (not stages or _butterflies(shape[0], width, stages[0]))
        found: dict[str, Shape] = {"oft_blocks": (*stages, shape[0] // width if fits else 0, width, width)}
        if "rescale" in tensors:
            found["rescale"] = (shape[0], *(1 for _ in shape[1:]))
        return {**found, "alpha": ()} if "alpha" in tensors else found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Self:
        """As `Kind.of`."""
        rescale = tensors.get("rescale")
        rescale = None if rescale is None else rescale.reshape(shape[0], *(1 for _ in shape[1:]))
        return cls(tensors["oft_blocks"], tensors.get("alpha"), rescale)

    def changed(self, weight: Tensor, bias: Tensor | None, strength: float = 1.0) -> Changed:
        """As `Kind.changed`."""
        assert self.oft_blocks is not None
        turns = _cayley(like(self.oft_blocks, weight), self._longest(len(weight)))  # (n, b, b) or (m, n, b, b)
        one = torch.eye(turns.shape[-1], device=weight.device)
        w = weight.float()
        rows = w.flatten(1)  # (O, I * prod(k))
        if turns.ndim == 3:
            rows = _by_block(strength * turns.mT + (1 - strength) * one, rows)
        else:
            for stage, turn in enumerate(turns):
                each = strength * turn + (1 - strength) * one
                half = turn.shape[-1] // 2
                rows = _unshuffled(_by_block(each, _shuffled(rows, stage, half)), stage, half)
        new = rows.reshape(w.shape)
        return new if self.rescale is None else new * like(self.rescale, weight), bias

    def _longest(self, outputs: int) -> float:
        """How long Q may be; 0: as long as it is."""
        return 0.0 if self.alpha is None else float(self.alpha) * outputs


def _cayley(blocks: Tensor, longest: float) -> Tensor:
    """(..., b, b) -> as many orthogonal matrices."""
    skew = blocks - blocks.mT
    if longest > 0:
        length = torch.linalg.vector_norm(skew) + 1e-8
        skew = skew * torch.clamp(longest / length, max=1.0)
    one = torch.eye(blocks.shape[-1], device=blocks.device)
    turned: Tensor = torch.linalg.solve(one - skew, one + skew, left=False)
    return turned


def _by_block(blocks: Tensor, rows: Tensor) -> Tensor:
    """Each (b, b) of blocks (n, b, b) times its b rows of (n b, columns)."""
    return (blocks @ rows.reshape(len(blocks), blocks.shape[-1], -1)).flatten(0, 1)


def _shuffled(rows: Tensor, stage: int, half: int) -> Tensor:
    """Rows that stand 2^stage half blocks apart come together: (c g k) -> (c k g)."""
    return rows.reshape(-1, 2, 2**stage * half, rows.shape[-1]).transpose(1, 2).flatten(0, 2)


def _unshuffled(rows: Tensor, stage: int, half: int) -> Tensor:
    return rows.reshape(-1, 2**stage * half, 2, rows.shape[-1]).transpose(1, 2).flatten(0, 2)


def _butterflies(outputs: int, width: int, stages: int) -> bool:
    """Whether rows can be brought together so often."""
    return width % 2 == 0 and 0 < stages < 32 and outputs % (2 ** (stages - 1) * width) == 0
