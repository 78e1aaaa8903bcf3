"""SDXL's numbers to the vector door: sizes, crops and a score (Podell et al. 2023, sec. 2.2).

Every number is told by sinusoids of its own, and all of them stand behind the pooled words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safelight.doors import Conditioning
from safelight.models.layers import sinusoids

AESTHETIC, NEGATIVE_AESTHETIC = 6.0, 2.5
"""The scores, 0 to 10, that the refiner is told to go to and to stay away from, unless it is told others."""

Size = tuple[float, float]
"""Height, then width, in pixels. Of a crop: its top, then its left."""


def base_numbers(original: Size, target: Size, crop: Size = (0, 0)) -> tuple[float, ...]:
    """What SDXL base is told: six numbers.

    Args:
        original: the size that the picture had before training scaled it.
        target: the size that is asked for.
        crop: what training cut off above and at the left; 0, 0 centres what is shown.
    """
    return (*original, *crop, *target)


def refiner_numbers(original: Size, crop: Size = (0, 0), aesthetic: float = AESTHETIC) -> tuple[float, ...]:
    """What the refiner is told: five numbers, of `base_numbers`' kinds, and a score."""
    return (*original, *crop, aesthetic)


def numbers_door(
    numbers: Sequence[Sequence[float]] | Tensor, width: int, device: torch.device | str | None = None
) -> Conditioning:
    """N numbers for each of B pictures -> `vector` (B, N width), float32: to stand `beside` the pooled words.

    `width`: of the sinusoids of each number, `UNetConfig.size_width`.
    """
    values = torch.as_tensor(numbers, dtype=torch.float32, device=device)  # (B, N)
    return Conditioning(vector=sinusoids(values.flatten(), width).reshape(len(values), -1))
