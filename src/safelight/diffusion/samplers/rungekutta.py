"""Samplers that ask the network more than once a step, and forget what it said after the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Denoise
from safelight.diffusion.noise import NoiseSource
from safelight.diffusion.samplers.walk import NO_CHURN, Churn, Step, ancestral


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, churn: Churn = NO_CHURN) -> Iterator[Step]:
    """Heun's method (Karras et al. 2022, algorithms 1 and 2). Second order. Two calls a step, one to 0."""
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        x, raised = churn(x, s, len(sigmas) - 1, noise)
        denoised = denoise(x, sigmas.new_tensor(raised))
        landed = torch.lerp(denoised, x, s_next / raised)
        if s_next > 0:
            slope = (x - denoised) / raised
            slope_next = (landed - denoise(landed, sigmas.new_tensor(s_next))) / s_next
            landed = x + (slope + slope_next) * ((s_next - raised) / 2)
        x = landed
        yield Step(i, s, s_next, x, denoised)


def restart(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    low: float = 0.1,
    high: float = 2.0,
    times: int = 1,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Restart sampling (Xu et al. 2023, section 3): Heun, and a part of the way again under fresh noise.

    The noise contracts the errors of the walk so far; the deterministic steps make few new ones.
    low, high: the part is walked between the outermost levels in this range. times: how often it is repeated.
    """
    levels: list[float] = sigmas.tolist()
    index = here = 0
    for first, last in restart_legs(levels, low, high, times):
        if first != here:
            x = x + noise().to(x.device) * (s_noise * (levels[first] ** 2 - levels[here] ** 2) ** 0.5)
        for step in heun(denoise, x, sigmas[first : last + 1], noise):
            x = step.x
            yield replace(step, index=index)
            index += 1
        here = last


def restart_legs(levels: Sequence[float], low: float = 0.1, high: float = 2.0, times: int = 1) -> list[tuple[int, int]]:
    """The walk of `restart` as pieces (first level, last level): one if fewer than two levels are in range."""
    within = [k for k, s in enumerate(levels) if s > 0 and low <= s <= high]
    if len(within) < 2:
        return [(0, len(levels) - 1)]
    part = (within[0], within[-1])
    return [(0, part[1]), *([part] * times), (part[1], len(levels) - 1)]


def dpm_2(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, churn: Churn = NO_CHURN
) -> Iterator[Step]:
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 1 with r1 1/2; in k-diffusion after Karras et al. 2022).

    The slope in the middle of log(sigma) takes the whole step. Second order. Two calls a step, one to 0.
    """
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        x, raised = churn(x, s, len(sigmas) - 1, noise)
        denoised = denoise(x, sigmas.new_tensor(raised))
        x = by_the_middle_slope(denoise, x, sigmas, denoised, raised, s_next)
        yield Step(i, s, s_next, x, denoised)


def dpm_2_a(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """`dpm_2` with ancestral noise (k-diffusion): second order at eta 0. Two calls a step, one to 0."""
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        denoised = denoise(x, sigmas.new_tensor(s))
        down, up = ancestral(s, s_next, eta)
        x = by_the_middle_slope(denoise, x, sigmas, denoised, s, down)
        if up > 0:
            x = x + noise().to(x.device) * (up * s_noise)
        yield Step(i, s, s_next, x, denoised)


def by_the_middle_slope(
    denoise: Denoise, x: Tensor, sigmas: Tensor, denoised: Tensor, s: float, s_next: float
) -> Tensor:
    """x at s_next, by the slope at sqrt(s * s_next); `denoised` is what there is at s. Into 0 by Euler."""
    if s_next == 0:
        return torch.lerp(denoised, x, 0.0)
    middle = (s * s_next) ** 0.5
    halfway = torch.lerp(denoised, x, middle / s)
    slope = halfway - denoise(halfway, sigmas.new_tensor(middle))  # times middle
    return torch.add(x, slope, alpha=(s_next - s) / middle)


def dpmpp_2s(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource) -> Iterator[Step]:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1) on pairs of levels: the first of two is the inner point.

    Second order in x at every other level; in between, and into 0, x is of first order. One call a step.
    """
    before, older, far = x, x, 0.0
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        denoised = denoise(x, sigmas.new_tensor(s))
        if i % 2 == 0 or s_next == 0:
            before, older, far = x, denoised, s
            x = torch.lerp(denoised, x, s_next / s)
        else:
            part = math.log(far / s) / math.log(far / s_next)
            x = torch.lerp(torch.lerp(older, denoised, 1 / (2 * part)), before, s_next / far)
        yield Step(i, s, s_next, x, denoised)


def dpmpp_2s_a(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1, r1 1/2) with ancestral noise (k-diffusion).

    The estimate in the middle of log(sigma) takes the whole step. Second order at eta 0. Two calls a step,
    one to 0.
    """
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        denoised = denoise(x, sigmas.new_tensor(s))
        down, up = ancestral(s, s_next, eta)
        aim = denoised
        if down > 0:
            middle = (s * down) ** 0.5
            aim = denoise(torch.lerp(denoised, x, middle / s), sigmas.new_tensor(middle))
        x = torch.lerp(aim, x, down / s)
        if up > 0:
            x = x + noise().to(x.device) * (up * s_noise)
        yield Step(i, s, s_next, x, denoised)
