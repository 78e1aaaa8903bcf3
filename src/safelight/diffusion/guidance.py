"""Wrappers that make a `Denoise` of a denoiser and what it is told. They compose with every sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from safelight.diffusion.denoiser import C, Denoise, Denoiser
from safelight.diffusion.noise import NoiseSource


class Stackable(Protocol):
    """A condition whose batches can be joined. What it means is not known here."""

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self: ...


S = TypeVar("S", bound=Stackable)


def conditioned(denoiser: Denoiser[C], cond: C) -> Denoise:
    """The denoiser told cond, without guidance. cond has the batch of x."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(x, sigma, cond)

    return denoise


def classifier_free(denoiser: Denoiser[S], cond: S, uncond: S, scale: float) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): u + scale * (c - u), on x0.

    On x0 it is the same formula as on eps or v: at a given x and sigma these are affine in each other.
    cond, uncond: each with the batch of x; the network sees both at once, [uncond, cond]. At scale 1.0
    uncond does not count, and is not computed. Raises ValueError when scale is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"the guidance scale must be a finite number, not {scale}")
    if scale == 1.0:
        return conditioned(denoiser, cond)
    both = type(cond).stack([uncond, cond])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        twice = sigma if sigma.ndim == 0 else torch.cat([sigma, sigma])
        u, c = denoiser(torch.cat([x, x]), twice, both).chunk(2)
        return torch.lerp(u, c, scale)

    return denoise


def keep_known(denoise: Denoise, known: Tensor, mask: Tensor, noise: NoiseSource | None = None) -> Denoise:
    """Inpainting with any model: where mask is 1 the answer is `known`, where it is 0 the network's.

    known: (B, C, h, w) clean latent. mask: (B, 1, h, w) in [0, 1], 1 = keep. Both on the device of x.
    noise: when given, the kept part of what the network sees is `known` under fresh noise at every call, as
    in RePaint (Lugmayr et al. 2022, eq. 8a) and latent diffusion; without it the kept part keeps its first
    noise.
    """

    def kept(x: Tensor, sigma: Tensor) -> Tensor:
        if noise is not None:
            level = sigma.to(x).view(-1, 1, 1, 1)
            x = torch.lerp(x, known + level * noise().to(x.device), mask)
        return torch.lerp(denoise(x, sigma), known, mask)

    return kept
