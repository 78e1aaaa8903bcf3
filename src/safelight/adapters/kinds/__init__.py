"""The kinds of adapters, one small module each; to add one, see `choosing`."""

from __future__ import annotations

from safelight.adapters.kinds.additive import Additive
from safelight.adapters.kinds.choosing import KINDS, Unfit, built, unfit
from safelight.adapters.kinds.kind import Changed, Kind, Shape
from safelight.adapters.kinds.lora import LoRA
from safelight.adapters.kinds.products import LoHa, LoKr
from safelight.adapters.kinds.rotations import OFT
from safelight.adapters.kinds.whole import IA3, Full, GLoRA, Norm

__all__ = [
    "IA3",
    "KINDS",
    "OFT",
    "Additive",
    "Changed",
    "Full",
    "GLoRA",
    "Kind",
    "LoHa",
    "LoKr",
    "LoRA",
    "Norm",
    "Shape",
    "Unfit",
    "built",
    "unfit",
]
