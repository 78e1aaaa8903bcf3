"""MultiDiffusion: a latent larger than what the network knows, by overlapping windows (Bar-Tal et al. 2023).

Shapes: B batch, C latent channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Denoise
from safelight.sending import sent


class Window(NamedTuple):
    """A part of a latent, in its positions."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, height, width), a view."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]


def windows(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> list[Window]:
    """All windows of a latent, row by row; the last of a row or column ends at the edge.

    size: (h, w) of the latent. window: (height, width), each at most the latent's. stride: (down, right), from 1 to the
    window's. Raises ValueError when the window or the stride does not fit.
    """
    for whole, part, step in zip(size, window, stride, strict=True):
        if not 1 <= part <= whole:
            raise ValueError(f"a window of {part} does not fit a latent of {whole}")
        if not 1 <= step <= part:
            raise ValueError(f"windows of {part} must follow each other after 1 to {part}, not {step}")
    tops, lefts = (
        sorted({*range(0, whole - part, step), whole - part})
        for whole, part, step in zip(size, window, stride, strict=True)
    )
    return [Window(top, left, *window) for top in tops for left in lefts]


def multi_diffusion(
    denoise: Callable[[Window], Denoise], size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> Denoise:
    """The average of the answers of all windows that see a place (Bar-Tal et al. 2023, eq. 5, with equal weights).

    Theirs averages after the step; a step is affine in x0 with the same numbers everywhere, so it is the same for
    samplers without memory, and here every sampler can have it. Windows are asked one after the other: memory is that
    of one.

    denoise: makes the denoiser of one window, which knows what is told about this part (what is stacked under the
    latent, and masks of regions, must be cut to it: `Window.cut`). Called once for each window, at once: what remembers
    (a momentum) must be made anew by each call.
    size, window, stride: as in `windows`.
    """
    parts = [(part, denoise(part)) for part in windows(size, window, stride)]
    seen = torch.zeros(1, 1, *size)
    for part, _ in parts:
        part.cut(seen).add_(1)

    def whole(x: Tensor, sigma: Tensor) -> Tensor:
        if x.shape[-2:] != size:
            raise ValueError(f"windows were made for a latent of {size}, not {tuple(x.shape[-2:])}")
        total = torch.zeros_like(x)
        for part, answer in parts:
            part.cut(total).add_(answer(part.cut(x), sigma))
        return total / sent(seen, x.device, x.dtype)

    return whole
