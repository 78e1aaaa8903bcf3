"""Data whose denoiser is known in closed form, and how far samplers stay from the exact answer on them.

A mixture of Gaussians along each number of the latent; its denoiser is the posterior mean. The diffusion ODE is
solved to 1e-11 by scipy. Used by `test_diffusion_exact.py` and by `benchmarks/orders.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diffusion_oracles import SD, no_noise, walk
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import (
    SAMPLERS,
    SampleFunction,
    dpm_2_a,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_a,
    dpmpp_3m_sde,
    dpmpp_sde,
    er_sde,
    tcd,
    unipc,
)
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import exponential, karras

WEIGHTS, MEANS, DEVIATIONS = (0.3, 0.5, 0.2), (-1.0, 0.4, 1.5), (0.3, 0.25, 0.4)
MEAN = sum(w * m for w, m in zip(WEIGHTS, MEANS, strict=True))
VARIANCE = sum(w * (m**2 + d**2) for w, m, d in zip(WEIGHTS, MEANS, DEVIATIONS, strict=True)) - MEAN**2
HIGH, LOW = 10.0, 0.1

DETERMINISTIC: dict[str, tuple[SampleFunction, int]] = {
    name: (sampler.function, sampler.order) for name, sampler in SAMPLERS.items() if sampler.order is not None
}
VARIANTS: dict[str, tuple[SampleFunction, int]] = {
    "dpmpp_2m heun": (partial(dpmpp_2m, kind="heun"), 2),
    "unipc bh1": (partial(unipc, variant="bh1"), 3),
    "unipc order 1": (partial(unipc, order=1), 2),
    "unipc order 3": (partial(unipc, order=3), 3),
    "dpm_2_a eta 0": (partial(dpm_2_a, eta=0.0), 2),
    "dpmpp_2s_a eta 0": (partial(dpmpp_2s_a, eta=0.0), 2),
    "dpmpp_sde eta 0": (partial(dpmpp_sde, eta=0.0), 2),
    "dpmpp_2m_sde eta 0": (partial(dpmpp_2m_sde, eta=0.0), 2),
    "dpmpp_3m_sde eta 0": (partial(dpmpp_3m_sde, eta=0.0), 2),
    "er_sde, phi of the ODE": (partial(er_sde, phi=lambda sigma: sigma), 2),
    "tcd eta 0": (partial(tcd, eta=0.0), 1),
}
"""Other kinds of registered samplers, and stochastic ones without their noise: (sampler, stated order)."""


def mixture_mean(x: Tensor, sigma: Tensor | float) -> Tensor:
    """E[x0 | x] where x = x0 + sigma * noise and x0 is from the mixture. sigma: a number, (), or (B,)."""
    if isinstance(sigma, Tensor) and sigma.ndim == 1:
        sigma = sigma.view(-1, 1, 1, 1)
    answers, logs = [], []
    for weight, mean, deviation in zip(WEIGHTS, MEANS, DEVIATIONS, strict=True):
        variance = deviation**2 + sigma**2
        height = math.log(weight) - 0.5 * torch.log(torch.as_tensor(variance, dtype=x.dtype))
        logs.append(height - (x - mean) ** 2 / (2 * variance))
        answers.append(mean + (x - mean) * (deviation**2 / variance))
    shares = torch.softmax(torch.stack(logs), dim=0)
    return (shares * torch.stack(answers)).sum(dim=0)


def levels_between(steps: int, spacing: str = "exponential", low: float = LOW) -> Tensor:
    """(steps + 1,) float64, from HIGH to LOW: an order shows where sigma does not jump to zero."""
    function = karras if spacing == "karras" else exponential
    return partial(function, low=low, high=HIGH)(Schedule(SD), steps + 1)


@cache
def ode_answer() -> tuple[Tensor, Tensor]:
    """(x at HIGH, x at LOW): 64 paths of the diffusion ODE, by an eighth-order method at 1e-11."""
    x = torch.linspace(-2, 2, 64, dtype=torch.float64) * HIGH

    def slope(log_sigma: float, values: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(values)
        return (state - mixture_mean(state, math.exp(log_sigma))).numpy()  # dx / dlog(sigma)

    span = (math.log(HIGH), math.log(LOW))
    solved = solve_ivp(slope, span, x.numpy(), method="DOP853", rtol=1e-11, atol=1e-11)
    return x.view(1, 1, 8, 8), torch.from_numpy(solved.y[:, -1]).view(1, 1, 8, 8)


def rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def ode_errors(sampler: SampleFunction, counts: Sequence[int], spacing: str = "exponential") -> list[float]:
    """Root mean square distance from the ODE's answer, for each number of steps."""
    first, exact = ode_answer()
    return [
        rms(walk(sampler(mixture_mean, first, levels_between(steps, spacing), no_noise))[-1].x - exact)
        for steps in counts
    ]


def path_errors(sampler: SampleFunction, counts: Sequence[int], steps_of_the_limit: int) -> list[float]:
    """Root mean square distance from the picture of many steps, drawn by the same noise, for each number of steps."""

    def picture(steps: int) -> Tensor:
        noise = Noise(range(4), (1, 24, 24))
        levels = levels_between(steps)
        return walk(sampler(mixture_mean, noise().double() * HIGH, levels, noise))[-1].x

    limit = picture(steps_of_the_limit)
    return [rms(picture(steps) - limit) for steps in counts]


def measured_order(counts: Sequence[int], found: Sequence[float]) -> float:
    """The slope of the error between the last two counts."""
    return math.log(found[-2] / found[-1]) / math.log(counts[-1] / counts[-2])
