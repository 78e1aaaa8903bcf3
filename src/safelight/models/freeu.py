"""FreeU: another balance of the two sides of the U (Si et al. 2023). No weight is changed, nothing is trained.

Shapes: B batch, C channels, h w size of a level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from safelight.models.unet import UNet


@dataclass(frozen=True)
class FreeU:
    """How much the deepest two levels of the way up weigh what comes from below and what was kept beside it.

    The defaults are those usual for SD 1.5; for SD 2.1 b1, b2, s1, s2 are 1.4, 1.6, 0.9, 0.2, for SDXL 1.3, 1.4, 0.9,
    0.2. All ones is the network itself.
    """

    b1: float = 1.5
    """What comes from below is multiplied by this, on the deepest level, in the first half of its channels."""
    b2: float = 1.6
    """The same on the level above."""
    s1: float = 0.9
    """The lowest frequencies of what was kept are multiplied by this, on the deepest level."""
    s2: float = 0.2
    """The same on the level above."""
    version: Literal[1, 2] = 1
    """1: by the same factor everywhere (the released code). 2: the more, the larger the mean over the channels is at a
    place (the published paper)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"FreeU's {field.name} must be a number from 0, not {value}")
        if self.version not in (1, 2):
            raise ValueError(f"FreeU's version is 1 or 2, not {self.version}")


@contextmanager
def freeu(unet: UNet, settings: FreeU) -> Iterator[None]:
    """Within it the two sides of the U meet as FreeU says; afterwards the network is as it was.

    It acts on the network itself: enter it around a single question.
    """
    before = unet.joining

    def joining(level: int, x: Tensor, kept: Tensor) -> Tensor:
        if level < 2:
            b, s = ((settings.b1, settings.s1), (settings.b2, settings.s2))[level]
            x, kept = _louder(x, b, settings.version), _without_lows(kept, s)
        return before(level, x, kept)

    unet.joining = joining
    try:
        yield
    finally:
        unet.joining = before


def _louder(x: Tensor, b: float, version: Literal[1, 2]) -> Tensor:
    """The first half of the channels (B, C, h, w) times b; by version 2, times 1 to b."""
    half = x.shape[1] // 2
    if version == 1:
        return torch.cat([x[:, :half] * b, x[:, half:]], dim=1)
    mean = x.mean(dim=1, keepdim=True)  # (B, 1, h, w)
    low, high = mean.amin(dim=(2, 3), keepdim=True), mean.amax(dim=(2, 3), keepdim=True)
    place = (mean - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny)
    return torch.cat([x[:, :half] * (1 + (b - 1) * place), x[:, half:]], dim=1)


def _without_lows(kept: Tensor, s: float) -> Tensor:
    """The lowest frequencies times s: those of index 0 and -1 in each direction, (B, C, h, w).

    They are one square of the shifted spectrum; that it is not symmetric is of the released code, whence the real part.
    In float32: half precision has no transform of every size.
    """
    spectrum = torch.fft.fft2(kept.float())
    for row in {0, kept.shape[-2] - 1}:
        for column in {0, kept.shape[-1] - 1}:
            spectrum[..., row, column] *= s
    y: Tensor = torch.fft.ifft2(spectrum).real
    return y.to(kept.dtype)
