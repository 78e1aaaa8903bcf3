"""A LoRA from two models: the best of a rank for what one has learned beyond the other (Eckart & Young 1936)."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from safelight.adapters.card import Card
from safelight.adapters.kinds import Kind, LoRA
from safelight.adapters.lora import Adapter
from safelight.adapters.names import adapted, targets
from safelight.checkpoints import Checkpoint
from safelight.errors import RequestError


@dataclass(frozen=True)
class Extraction:
    """A LoRA made of a difference, and how much of the difference is in it."""

    adapter: Adapter
    kept: float
    """Of the sum of squares of what differs in the layers that it changes: 1 is all."""
    left_out: tuple[str, ...]
    """Weights that differ, too, which a LoRA of these layers does not hold: "part: name"."""


@torch.no_grad()
def extracted(
    tuned: Checkpoint, original: Checkpoint, rank: int, convolution_rank: int | None = None, name: str = "extracted"
) -> Extraction:
    """The LoRA that makes the original into the tuned model, as nearly as its rank allows.

    Args:
        rank: of matrices and 1x1 convolutions; of smaller layers, as much as they can have.
        convolution_rank: of larger convolutions; None: only what kohya's tools train by default, which is what attends
            and the text towers.
        name: what it is called.

    Raises:
        RequestError: the models are not of one shape or are the same, or a rank is below 1.
    """
    ranks = [rank] if convolution_rank is None else [rank, convolution_rank]
    if min(ranks) < 1:
        raise RequestError(f"a LoRA has a rank of 1 at least, not {min(ranks)}")
    kinds: dict[str, dict[str, Kind]] = defaultdict(dict)
    left, held, whole = [], 0.0, 0.0
    for part, config in adapted(original.preset.networks).items():
        if part not in original.parts or part not in tuned.parts:
            continue
        chosen = set(targets(config, convolutions=convolution_rank is not None))
        for weight, before in original.parts[part].items():
            after = tuned.parts[part].get(weight)
            if after is None or after.shape != before.shape:
                raise RequestError(f"the two models differ in kind: {part}'s {weight}; give two of one family")
            if torch.equal(after, before):
                continue
            layer = weight.removesuffix(".weight")
            if layer not in chosen or not weight.endswith(".weight"):
                left.append(f"{part}: {weight}")
                continue
            wide = before.ndim > 2 and math.prod(before.shape[2:]) > 1
            kind, energy, total = _nearest(after.float() - before.float(), ranks[-1] if wide else rank)
            kinds[part][layer] = kind
            held, whole = held + energy, whole + total
    if not kinds:
        raise RequestError("the two models do not differ where a LoRA could: give two that do, or --convolution-rank")
    return Extraction(Adapter(dict(kinds), Card(name)), held / whole, tuple(left))


def _nearest(difference: Tensor, rank: int) -> tuple[LoRA, float, float]:
    """The LoRA nearest to a difference (O, I, *k), the squares that it holds, and those of the difference.

    By the eigenvectors of the smaller Gram matrix, in float64: its squares are then as exact as float32's values.
    """
    matrix = difference.flatten(1).double()
    tall = matrix.shape[0] > matrix.shape[1]
    values, vectors = torch.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)  # ascending
    rank = min(rank, len(values))
    squares, vectors = values[-rank:].flip(0).clamp(min=0), vectors[:, -rank:].flip(1)
    # Both factors get the root of each singular value, so that neither is lost in half precision.
    root = squares.sqrt().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    if tall:
        up, down = matrix @ vectors / root, vectors.T * root[:, None]
    else:
        up, down = vectors * root, vectors.T @ matrix / root[:, None]
    ones = (1,) * (difference.ndim - 2)
    lora = LoRA(
        down.float().reshape(rank, *difference.shape[1:]),
        up.float().reshape(-1, rank, *ones),
        alpha=float(rank),
    )
    return lora.requires_grad_(False), float(squares.sum()), float(values.clamp(min=0).sum())
