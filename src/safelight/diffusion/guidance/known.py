"""Inpainting with any model.

Shapes: B batch, C latent channels, h w latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Denoise
from safelight.diffusion.guidance.formulas import beside
from safelight.diffusion.noise import NoiseSource
from safelight.sending import sent


def keep_known(denoise: Denoise, known: Tensor, mask: Tensor, noise: NoiseSource | None = None) -> Denoise:
    """Inpainting with any model: where mask is 1 the answer is `known`, where it is 0 the network's.

    known: (B, C, h, w) clean latent. mask: (B, 1, h, w) in [0, 1], 1 = keep. Both on the device of x.
    noise: when given, the kept part of what the network sees is `known` under fresh noise at every call, as
    in RePaint (Lugmayr et al. 2022, eq. 8a) and latent diffusion; without it the kept part keeps its first
    noise.
    """

    def kept(x: Tensor, sigma: Tensor) -> Tensor:
        if noise is not None:
            x = torch.lerp(x, known + beside(sigma, x) * sent(noise(), x.device), mask)
        return torch.lerp(denoise(x, sigma), known, mask)

    return kept
