"""Samplers for consistency models: each answer is taken for the end, and noise leads back to the next level."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Denoise
from safelight.diffusion.noise import NoiseSource
from safelight.diffusion.samplers.walk import Step
from safelight.diffusion.schedule import Schedule, ScheduleConfig


def lcm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, s_noise: float = 1.0) -> Iterator[Step]:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1; Luo et al. 2023).

    The boundary scalings of latent consistency models, c_skip = 0.25 / ((10 t)^2 + 0.25) and c_out = 10 t /
    sqrt((10 t)^2 + 0.25), are left out: from timestep 19 on, the lowest that such a model is trained at, they
    are within 7e-6 of 0 and 1.
    """
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        x = denoised = denoise(x, sigmas.new_tensor(s))
        if s_next > 0:
            x = x + noise().to(x.device) * (s_next * s_noise)
        yield Step(i, s, s_next, x, denoised)


def tcd(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    eta: float = 0.3,
    s_noise: float = 1.0,
    schedule: Schedule | None = None,
) -> Iterator[Step]:
    """Strategic stochastic sampling of trajectory consistency models (Zheng et al. 2024).

    Of the way to the next timestep t, a step by DDIM goes on to (1 - eta) t, rounded down, and noise leads
    back; none in the last step.
    eta: gamma of the paper, 0 to 1: 0 is DDIM, 1 all but `lcm`. schedule: in whose timesteps this is counted; that
    of Stable Diffusion, which all published ones are for, unless given.
    """
    clock = _stable_diffusion() if schedule is None else schedule
    last = len(sigmas) - 2
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        denoised = denoise(x, sigmas.new_tensor(s))
        down = s_next if i == last else min(_beyond(s_next, eta, clock), s_next)
        x = torch.lerp(denoised, x, down / s)
        if down < s_next:
            x = x + noise().to(x.device) * ((s_next**2 - down**2) ** 0.5 * s_noise)
        yield Step(i, s, s_next, x, denoised)


def _beyond(sigma: float, eta: float, schedule: Schedule) -> float:
    """The noise level at timestep (1 - eta) t, rounded down, where sigma is that of t."""
    if eta == 0:
        return sigma
    # A thousandth of a timestep for the rounding errors of the way from timestep to sigma and back.
    return schedule.sigma(float(math.floor((1 - eta) * schedule.t(sigma) + 1e-3)))


@cache
def _stable_diffusion() -> Schedule:
    """The schedule that is the default of its config."""
    return Schedule(ScheduleConfig())
