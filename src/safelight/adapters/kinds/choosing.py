"""Which kind a file has for a layer, and whether its tensors fit there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from safelight.adapters.kinds.additive import Additive
from safelight.adapters.kinds.kind import ALPHA, Kind, Shape, alike
from safelight.adapters.kinds.lora import LoRA
from safelight.adapters.kinds.products import LoHa, LoKr
from safelight.adapters.kinds.rotations import OFT
from safelight.adapters.kinds.whole import IA3, Full, GLoRA, Norm

KINDS: tuple[type[Kind], ...] = (LoRA, LoHa, LoKr, OFT, GLoRA, Full, Norm, IA3)
"""A new kind is named here; files and tests then find it. No ending is of two kinds."""

NUMBERS = frozenset({ALPHA, "on_input"})
"""Endings of single numbers, which may be whole ones."""


@dataclass(frozen=True)
class Unfit:
    """Why the tensors for a layer are refused."""

    ending: str
    """Of the key that is wrong or missing."""
    why: str
    """What is wrong with it."""


def chosen(tensors: Mapping[str, Tensor]) -> type[Kind] | Unfit:
    """The kind that these endings are of, all of them."""
    kinds = [kind for kind in KINDS if kind.OWN & tensors.keys()]
    if len(kinds) != 1:
        first = next(iter(tensors))
        if not kinds:
            return Unfit(first, "stands alone: what it belongs to is missing")
        return Unfit(first, f"is one of several kinds ({' and '.join(kind.title for kind in kinds)}) for one layer")
    [kind] = kinds
    for ending in tensors:
        if ending not in kind.OWN | kind.BESIDE:
            return Unfit(ending, f"does not belong to a {kind.title}")
    return kind


def unfit(tensors: Mapping[str, Tensor], shape: Shape) -> Unfit | None:
    """What is wrong with the tensors for a layer of a shape, by their endings; None: nothing. Reads no numbers."""
    kind = chosen(tensors)
    if isinstance(kind, Unfit):
        return kind
    if len(shape) < 2 and not issubclass(kind, Full):
        return Unfit(next(iter(tensors)), f"is a {kind.title} for a norm, which has no matrix")
    expected = kind.expected(tensors, shape)
    for ending in expected:
        if ending not in tensors:
            return Unfit(ending, f"is missing: half of a {kind.title} changes nothing")
    for ending, tensor in tensors.items():
        found = tuple(tensor.shape)
        if ending not in expected or not alike(found, expected[ending]) or 0 in found:
            wanted = f", expected {expected[ending]}" if 0 not in expected.get(ending, (0,)) else ""
            return Unfit(ending, f"has the shape {found}{wanted} for a layer of {shape}")
        if not tensor.is_floating_point() and ending not in NUMBERS:
            return Unfit(ending, f"holds whole numbers ({tensor.dtype})")
    return _too_much(kind, tensors, expected, shape)


def built(tensors: Mapping[str, Tensor], shape: Shape) -> Kind | Unfit:
    """The kind around the tensors for a layer of a shape, or what is wrong with them."""
    if (wrong := unfit(tensors, shape)) is not None:
        return wrong
    for ending, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return Unfit(ending, "holds numbers that are not finite")
    kind = chosen(tensors)
    assert not isinstance(kind, Unfit)
    expected = kind.expected(tensors, shape)
    made = kind.of({ending: tensor.reshape(expected[ending]) for ending, tensor in tensors.items()}, shape)
    return made.requires_grad_(False)


def _too_much(
    kind: type[Kind], tensors: Mapping[str, Tensor], expected: Mapping[str, Shape], shape: Shape
) -> Unfit | None:
    """A rank above both sides of a layer is no adapter of it. (Tools do write ranks above the smaller side.)"""
    if not issubclass(kind, Additive) or issubclass(kind, LoKr):
        return None
    ending = {LoRA: "lora_up.weight", LoHa: "hada_w1_b", GLoRA: "b2.weight"}[kind]
    rank = expected[ending][1 if kind is LoRA else 0]
    most = max(shape[0], math.prod(shape[1:]))
    return None if rank <= most else Unfit(ending, f"has the rank {rank}, for a layer of {shape} with at most {most}")
