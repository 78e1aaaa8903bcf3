"""Samplers that ask the network once a step and remember nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Denoise
from safelight.diffusion.noise import NoiseSource
from safelight.diffusion.samplers.walk import NO_CHURN, Churn, Step, ancestral


def ddim(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, eta: float = 0.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, eq. 12 and 16), divided by sqrt(abar): walks that share their marginals.

    eta 0 is deterministic and is Euler's method; eta 1 is DDPM's posterior with the small variance. The same
    formula in sigma space is k-diffusion's ancestral Euler step. s_noise multiplies the noise that is added.
    """
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        denoised = denoise(x, sigmas.new_tensor(s))
        down, up = ancestral(s, s_next, eta)
        x = torch.lerp(denoised, x, down / s)
        if up > 0:
            x = x + noise().to(x.device) * (up * s_noise)
        yield Step(i, s, s_next, x, denoised)


def euler_a(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """Euler with ancestral noise (k-diffusion): `ddim` with eta 1, under the name of another tradition."""
    return ddim(denoise, x, sigmas, noise, eta=eta, s_noise=s_noise)


def ddpm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    variance: Literal["small", "large"] = "small",
) -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, eq. 6, 7, section 3.2), divided by sqrt(abar), over any timesteps.

    variance: that of the posterior ("small"), or beta of the step ("large"). No noise is added in a step to
    sigma 0.
    """
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        denoised = denoise(x, sigmas.new_tensor(s))
        shrink = (s_next / s) ** 2
        x = torch.lerp(denoised, x, shrink)
        if s_next > 0:
            beta = (s**2 - s_next**2) / (1 + s**2)  # 1 - abar / abar_next
            added = s_next**2 * (1 - shrink) if variance == "small" else beta * (1 + s_next**2)
            x = x + noise().to(x.device) * added**0.5
        yield Step(i, s, s_next, x, denoised)


def euler(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, churn: Churn = NO_CHURN
) -> Iterator[Step]:
    """Euler's method (Karras et al. 2022, algorithm 2 without its correction). First order."""
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        x, raised = churn(x, s, len(sigmas) - 1, noise)
        denoised = denoise(x, sigmas.new_tensor(raised))
        x = torch.lerp(denoised, x, s_next / raised)
        yield Step(i, s, s_next, x, denoised)
