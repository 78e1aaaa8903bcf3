"""Samplers of the reverse SDE, whose noise is a Brownian path: with more steps the same picture, more exactly.

Of lambda = -log(sigma), an SDE step of h with eta keeps (s_next / s)^(1 + eta) of x and adds noise of variance
s_next^2 (1 - e^(-2 eta h)) (Lu et al. 2022b, section 5, for eta 1; k-diffusion for others). At eta 0 each is the
solver of the ODE that it is built on, and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Denoise
from safelight.diffusion.noise import NoiseSource
from safelight.diffusion.samplers.multistep import Kind, change_weight
from safelight.diffusion.samplers.quadrature import integral
from safelight.diffusion.samplers.walk import Step, ancestral


def dpmpp_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++(2S) with the noise of the SDE (k-diffusion, after Lu et al. 2022b). Two calls a step, one to 0."""
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        denoised = denoise(x, sigmas.new_tensor(s))
        aim, down, up = denoised, *ancestral(s, s_next, eta)
        if s_next > 0:
            middle = (s * s_next) ** 0.5
            inner, added = ancestral(s, middle, eta)
            halfway = torch.lerp(denoised, x, inner / s)
            if added > 0:
                halfway = halfway + noise.between(s, middle).to(x.device) * (added * s_noise)
            aim = denoise(halfway, sigmas.new_tensor(middle))
        x = torch.lerp(aim, x, down / s)
        if up > 0:
            x = x + noise.between(s, s_next).to(x.device) * (up * s_noise)
        yield Step(i, s, s_next, x, denoised)


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    kind: Kind = "midpoint",
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, section 5; k-diffusion for eta and "heun"). One call a step.

    kind: how the change of the estimate is weighed, as in `dpmpp_2m`.
    """
    levels: list[float] = sigmas.tolist()
    before: Tensor | None = None
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigmas.new_tensor(s))
        aim = denoised
        if before is not None and s_next > 0:
            h = math.log(s / s_next)
            ratio = math.log(levels[i - 1] / s) / h
            aim = torch.lerp(before, denoised, 1 + change_weight(h * (1 + eta), kind) / ratio)
        x = torch.lerp(aim, x, (s_next / s) ** (1 + eta))
        x = _with_noise(x, s, s_next, noise, eta, s_noise)
        before = denoised
        yield Step(i, s, s_next, x, denoised)


def dpmpp_3m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++(3M) SDE (k-diffusion, after Lu et al. 2022b): the estimate as a parabola. One call a step."""
    levels: list[float] = sigmas.tolist()
    before: list[Tensor] = []  # the newest first
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigmas.new_tensor(s))
        x = torch.lerp(denoised, x, (s_next / s) ** (1 + eta))
        if before and s_next > 0:
            h = math.log(s / s_next)
            near = math.log(levels[i - 1] / s) / h
            slope, curve = (denoised - before[0]) / near, None  # per h and per h^2
            if len(before) == 2:
                far = math.log(levels[i - 2] / levels[i - 1]) / h
                curve = (slope - (before[0] - before[1]) / far) / (near + far)
                slope = torch.add(slope, curve, alpha=near)
            shrink = h * (1 + eta)
            first = math.expm1(-shrink) / shrink + 1
            x = torch.add(x, slope, alpha=first)
            if curve is not None:
                x = torch.sub(x, curve, alpha=first / shrink - 0.5)
        x = _with_noise(x, s, s_next, noise, eta, s_noise)
        before = [denoised, *before[:1]]
        yield Step(i, s, s_next, x, denoised)


def _with_noise(x: Tensor, s: float, s_next: float, noise: NoiseSource, eta: float, s_noise: float) -> Tensor:
    """x and the noise of an SDE step, s_next sqrt(1 - (s_next / s)^(2 eta))."""
    added = s_next * (1 - (s_next / s) ** (2 * eta)) ** 0.5
    return x + noise.between(s, s_next).to(x.device) * (added * s_noise) if added > 0 else x


def slow_start(sigma: float) -> float:
    """The phi of ER-SDE's picture samplers: between the ODE's, sigma, and the SDE's, sigma^2."""
    return sigma * (math.exp(sigma**0.3) + 10)


def er_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    s_noise: float = 1.0,
    phi: Callable[[float], float] = slow_start,
) -> Iterator[Step]:
    """ER-SDE-Solver-3 of the VE SDE (Cui et al. 2023): an extended reverse-time SDE. One call a step.

    phi: how much noise is exchanged on the way, by a function that rises from phi(0) = 0, at least as sigma does:
    sigma is the ODE, sigma^2 the SDE with eta 1.
    """
    levels: list[float] = sigmas.tolist()
    before, slope_before = x, x
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigmas.new_tensor(s))
        keep = phi(s_next) / phi(s) if s_next > 0 else 0.0
        x = torch.lerp(denoised, x, keep)
        if s_next > 0:
            if i > 0:
                slope = (denoised - before) / (s - levels[i - 1])
                x = torch.add(x, slope, alpha=s_next - s + _over(phi, 0, s, s_next))
                if i > 1:
                    curve = (slope - slope_before) / ((s - levels[i - 2]) / 2)
                    x = torch.add(x, curve, alpha=(s_next - s) ** 2 / 2 + _over(phi, 1, s, s_next))
                slope_before = slope
            lost = 1 - (s * keep / s_next) ** 2  # of the variance; by the ODE's phi none, but for rounding
            if lost > 1e-12:
                x = x + noise.between(s, s_next).to(x.device) * (s_next * lost**0.5 * s_noise)
        before = denoised
        yield Step(i, s, s_next, x, denoised)


def _over(phi: Callable[[float], float], power: int, s: float, s_next: float) -> float:
    """phi(s_next) times the integral from s_next to s of (sigma - s)^power / phi(sigma)."""
    inner = integral(
        lambda u: (math.exp(u) - s) ** power * math.exp(u) / phi(math.exp(u)), math.log(s_next), math.log(s)
    )
    return phi(s_next) * inner
