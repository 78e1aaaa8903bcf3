"""Self-attention guidance: away from the answer to a picture whose most attended places are blurred (Hong et al. 2023).

Shapes: B batch, C latent channels, h w latent size, h' w' size of the level whose attention was watched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.diffusion.denoiser import C, Denoiser
from safelight.diffusion.guidance.asking import Watch


@dataclass(frozen=True)
class SelfAttention:
    """What self-attention guidance needs beside the denoiser."""

    watch: Watch
    """Tells of the network's last answer how much attention each position received, (B, 1, h', w'), 1 on average."""
    scale: float = 0.75
    """0 is none; 0.5 to 1 is usual."""
    blur: float = 1.0
    """Deviation of the blur, in positions of the latent."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.blur) and self.blur > 0):
            raise ValueError(f"scale must be finite and blur above 0, not {self.scale} and {self.blur}")

    def added(
        self, denoiser: Denoiser[C], x: Tensor, sigma: Tensor, cond: C, answer: Tensor, received: Tensor
    ) -> Tensor:
        """What is added to the guided x0 (their algorithm 1, with the threshold 1).

        In sigma space, where noise is the same in x and in the degraded x~: with y the answer and y~ the blurred
        answer, x~ = x + y~ - y, and eps(x) - eps(x~) is what x0 is moved against, times -sigma: y~ - D(x~).

        answer: (B, C, h, w) what the denoiser said of x told cond. received: (B, 1, h', w') while it did.
        """
        mask = F.interpolate((received > 1.0).to(answer.dtype), answer.shape[-2:])
        degraded = torch.lerp(answer, blurred(answer, self.blur), mask)
        return (degraded - denoiser(x + (degraded - answer), sigma, cond)) * self.scale


def blurred(x: Tensor, deviation: float) -> Tensor:
    """Gaussian blur (B, C, h, w), cut at four deviations, mirrored at the edges."""
    for axis in (2, 3):
        reach = min(math.ceil(4 * deviation), x.shape[axis] - 1)  # a mirror shows no more than there is
        steps = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        weights = torch.exp(-0.5 * (steps / deviation) ** 2)
        weights = weights / weights.sum()
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        kernel = weights.view(1, 1, -1, 1) if axis == 2 else weights.view(1, 1, 1, -1)
        channels = x.shape[1]
        x = F.conv2d(F.pad(x, pad, mode="reflect"), kernel.expand(channels, -1, -1, -1), groups=channels)
    return x
