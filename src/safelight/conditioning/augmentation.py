"""Conditions under noise of a level that is told: the pictures that unCLIP varies and that the upscaler enlarges.

So a network learns not to trust its condition too far (Ho et al. 2022, "Cascaded diffusion models", sec. 4). The level
is an index of a noise schedule of its own, of T steps: 0 is nearly none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safelight.doors import Conditioning
from safelight.errors import RequestError
from safelight.models.layers import sinusoids
from safelight.models.normalizer import Normalizer


def noised(x: Tensor, noise: Tensor, levels: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """sqrt(a) x + sqrt(1 - a) noise with a = alphas_cumprod[level] (Ho et al. 2020, eq. 4), float32.

    Args:
        x, noise: (B, ...).
        levels: (B,) whole numbers below T.
        alphas_cumprod: (T,), of the schedule that noise is added by.

    Raises:
        RequestError: there is no such level.
    """
    most = len(alphas_cumprod) - 1
    if levels.numel() and not 0 <= int(levels.min()) <= int(levels.max()) <= most:
        raise RequestError(f"there is no noise level {levels.tolist()}: they are 0 to {most}")
    alphas = alphas_cumprod.double()[levels.to(alphas_cumprod.device)].to(x.device)
    alphas = alphas.reshape(-1, *[1] * (x.ndim - 1))
    return alphas.sqrt().float() * x.float() + (1 - alphas).sqrt().float() * noise.float()


def unclip_door(
    embedding: Tensor, noise: Tensor, levels: Tensor, alphas_cumprod: Tensor, normalizer: Normalizer
) -> Conditioning:
    """CLIP's embeddings of pictures under noise, and how much of it -> `vector` (B, 2 P), float32.

    For guidance, its opposite is zeros of the same shape.

    Args:
        embedding, noise: (B, P), the noise standard normal.
        levels, alphas_cumprod: as `noised`.
        normalizer: mean and deviation of such embeddings, float32.

    Raises:
        RequestError: there is no such level.
    """
    seen = normalizer.unscale(noised(normalizer.scale(embedding.float()), noise, levels, alphas_cumprod))
    told = sinusoids(levels.to(seen.device), seen.shape[1])
    return Conditioning(vector=torch.cat([seen, told], dim=1))


def upscaler_door(pixels: Tensor, noise: Tensor, levels: Tensor, alphas_cumprod: Tensor) -> Conditioning:
    """A small picture under noise, of the latent's size -> `concat` (B, 3, h, w) and `vector` (B, 1), the level.

    The network looks the level up among its classes. The original was trained on levels up to 350.

    Args:
        pixels, noise: (B, 3, h, w), pixels in [-1, 1], the noise standard normal.
        levels, alphas_cumprod: as `noised`.

    Raises:
        RequestError: there is no such level.
    """
    return Conditioning(concat=noised(pixels, noise, levels, alphas_cumprod), vector=levels.to(pixels.device)[:, None])
