"""Merging for good: adapters into a model, and models into one, whole or block by block.

All is computed in float32 and kept in the dtype of the first model. What is not changed stays a view of its file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from safelight.adapters.lora import Adapter, Strength, changes
from safelight.adapters.patching import summed
from safelight.checkpoints import Checkpoint
from safelight.checkpoints.layouts import ldm
from safelight.errors import RequestError
from safelight.models.unet import UNetConfig
from safelight.presets.preset import UNET

_INPUT = "conv_in.weight"


def with_adapters(checkpoint: Checkpoint, adapters: Sequence[tuple[Adapter, Strength]]) -> Checkpoint:
    """A model with adapters in its weights, as they act while they are patched on."""
    parts = {}
    for part, weights in checkpoint.parts.items():
        merged = dict(weights)
        for layer, kinds in changes(adapters, part).items():
            names = f"{layer}.weight", f"{layer}.bias"
            new, bias = summed(weights[names[0]], weights.get(names[1]), kinds)
            merged[names[0]] = new
            if bias is not None:
                if names[1] not in weights:
                    raise RequestError(
                        f"an adapter gives {part}'s {layer} a bias, which a model cannot store: patch it on instead"
                    )
                merged[names[1]] = bias
        parts[part] = merged
    return replace(checkpoint, parts=parts, source=None)


@dataclass(frozen=True)
class Shares:
    """How much of the other model there is in a merge: 0 none, 1 all; other numbers go beyond both."""

    base: float = 0.5
    """In all that no entry below is for: text towers, the autoencoder, and the blocks not named."""
    blocks: Mapping[str, float] = field(default_factory=dict)
    """By block of the UNet (`blocks_of`)."""

    def at(self, block: str | None) -> float:
        """In a block; None: outside of the UNet."""
        return self.base if block is None else self.blocks.get(block, self.base)


def weighted_sum(first: Checkpoint, second: Checkpoint, shares: Shares) -> Checkpoint:
    """first + share * (second - first).

    Raises:
        RequestError: the models are not of one shape, or a share is for a block that they have not.
    """
    _check((first, second), shares)
    return _merged(first, (second,), shares, lambda a, share, b: torch.lerp(a, b, share))


def add_difference(first: Checkpoint, second: Checkpoint, third: Checkpoint, shares: Shares) -> Checkpoint:
    """first + share * (second - third): what the second learned beyond the third, added to the first.

    The first may have more channels in, as for inpainting: what the others have not, stays as it is.

    Raises:
        RequestError: as `weighted_sum`.
    """
    _check((first, second, third), shares)
    return _merged(first, (second, third), shares, lambda a, share, b, c: torch.add(a, b - c, alpha=share))


def blocks_of(config: UNetConfig) -> tuple[str, ...]:
    """The blocks of a UNet as people number them when they merge: IN00 ..., M00, OUT00 ..."""
    found = {
        block_of(f"{side}_blocks.{level}.{kind}.{index}.conv.weight", config)
        for side, level, kind, index in _places(config)
    }
    return tuple(sorted(found | {"IN00", "M00"}, key=lambda name: (("IN", "M0", "OU").index(name[:2]), name)))


def block_of(name: str, config: UNetConfig) -> str:
    """The block that one of a UNet's weights is in. The time goes with the first, the last layers with the last."""
    theirs = ldm.unet_name(name, config)
    if found := re.match(r"(input|output)_blocks\.(\d+)\.", theirs):
        return f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02d}"
    if theirs.startswith("middle_block."):
        return "M00"
    if theirs.startswith("out."):
        return f"OUT{len(config.channels) * (config.blocks_per_level + 1) - 1:02d}"
    return "IN00"


def _places(config: UNetConfig) -> list[tuple[str, int, str, int]]:
    levels, n = len(config.channels), config.blocks_per_level
    down = [("down", level, "resnets", i) for level in range(levels) for i in range(n)]
    ways = [("down", level, "downsamplers", 0) for level in range(levels - 1)]
    return down + ways + [("up", level, "resnets", i) for level in range(levels) for i in range(n + 1)]


def _merged(first: Checkpoint, others: Sequence[Checkpoint], shares: Shares, join: Callable[..., Tensor]) -> Checkpoint:
    config = first.preset.unet
    parts: dict[str, dict[str, Tensor]] = {}
    for part, weights in first.parts.items():
        parts[part] = dict(weights)
        if any(part not in other.parts for other in others):
            continue
        for name, tensor in weights.items():
            share = shares.at(block_of(name, config) if part == UNET else None)
            theirs = [other.parts[part][name] for other in others]
            if share != 0:
                parts[part][name] = _joined(tensor, theirs, share, join)
    return replace(first, parts=parts, source=None)


def _joined(tensor: Tensor, others: Sequence[Tensor], share: float, join: Callable[..., Tensor]) -> Tensor:
    if all(other.shape == tensor.shape for other in others):
        return join(tensor.float(), share, *(other.float() for other in others)).to(tensor.dtype)
    channels = others[0].shape[1]
    return torch.cat([_joined(tensor[:, :channels], others, share, join), tensor[:, channels:]], dim=1)


def _check(models: Sequence[Checkpoint], shares: Shares) -> None:
    first, *others = models
    known = blocks_of(first.preset.unet)
    for block in shares.blocks:
        if block not in known:
            raise RequestError(f"there is no block {block!r} to merge by: this model has {', '.join(known)}")
    for share in (shares.base, *shares.blocks.values()):
        if not math.isfinite(share):
            raise RequestError(f"a share of {share} cannot be merged by: give numbers, such as 0.5")
    for other in others:
        for part in first.parts.keys() & other.parts.keys():
            shapes = {name: tuple(tensor.shape) for name, tensor in first.parts[part].items()}
            theirs = {name: tuple(tensor.shape) for name, tensor in other.parts[part].items()}
            if len(models) > 2 and part == UNET and _INPUT in theirs and theirs[_INPUT][1] < shapes[_INPUT][1]:
                theirs[_INPUT] = shapes[_INPUT]
            if shapes != theirs:
                wrong = sorted(k for k in shapes.keys() | theirs.keys() if shapes.get(k) != theirs.get(k))[0]
                raise RequestError(
                    f"models of different kinds cannot be merged: {part}'s {wrong} is {shapes.get(wrong, 'missing')} "
                    f"in the first and {theirs.get(wrong, 'missing')} in another; give models of one family"
                )
        if len(models) > 2 and other.parts[UNET][_INPUT].shape != models[-1].parts[UNET][_INPUT].shape:
            raise RequestError("the second and the third model differ in their channels in: give two of one kind")
