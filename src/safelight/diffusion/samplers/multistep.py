"""Samplers that ask the network once a step, and remember what it said in the steps before."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Denoise
from safelight.diffusion.noise import NoiseSource
from safelight.diffusion.samplers.quadrature import integral, lagrange
from safelight.diffusion.samplers.walk import Step, order_of
from safelight.diffusion.schedule import Schedule

Kind = Literal["midpoint", "heun"]


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, order: int = 4) -> Iterator[Step]:
    """Linear multistep (Adams-Bashforth in sigma with uneven steps; k-diffusion, after Liu et al. 2022).

    order: up to how many slopes, of this step and the ones before, are fitted by a polynomial: 1 to 4.
    """
    levels: list[float] = sigmas.tolist()
    slopes: deque[Tensor] = deque(maxlen=order)
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigmas.new_tensor(s))
        slopes.appendleft((x - denoised) / s)
        nodes = levels[i::-1][: len(slopes)]
        for k, slope in enumerate(slopes):
            x = torch.add(x, slope, alpha=_lagrange_integral(nodes, k, s, s_next))
        yield Step(i, s, s_next, x, denoised)


def _lagrange_integral(nodes: list[float], k: int, low: float, high: float) -> float:
    """The integral from low to high of the polynomial that is 1 at nodes[k], 0 at the others (up to 4 nodes).

    By Gauss-Legendre quadrature with two points, which is exact up to degree 3.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    return sum(half * lagrange(nodes, k, point) for point in (middle - half / 3**0.5, middle + half / 3**0.5))


def deis(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    order: int = 3,
    lower_order_final: bool = False,
) -> Iterator[Step]:
    """AB-DEIS (Zhang & Chen 2022, eq. 14 and 15) with polynomials in log(rho), where rho is our sigma.

    It is `lms` with another variable. order: up to how many slopes are fitted, 1 to 4.
    lower_order_final: see `order_of`.
    """
    levels: list[float] = sigmas.tolist()
    slopes: deque[Tensor] = deque(maxlen=order)
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigmas.new_tensor(s))
        slopes.appendleft((x - denoised) / s)
        count = order_of(order, i, len(levels) - 1, s_next, lower_order_final)
        if count == 1:
            x = torch.lerp(denoised, x, s_next / s)
        else:
            nodes = [math.log(level) for level in levels[i::-1][:count]]
            for k in range(count):
                x = torch.add(x, slopes[k], alpha=_log_lagrange_integral(nodes, k, math.log(s_next)))
        yield Step(i, s, s_next, x, denoised)


def _log_lagrange_integral(nodes: list[float], k: int, high: float) -> float:
    """The integral over sigma = e^u, u from nodes[0] to high, of the polynomial in u that is 1 at nodes[k] only."""
    return integral(lambda u: lagrange(nodes, k, u) * math.exp(u), nodes[0], high)


def plms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource) -> Iterator[Step]:
    """PLMS: pseudo linear multistep (Liu et al. 2022, eq. 12; original latent diffusion).

    Adams-Bashforth of fourth order with the weights of even steps, on any levels; in sigma space the paper's
    transfer is Euler's step. Begins with improved Euler: one call more in the first step. Second order.
    """
    slopes: deque[Tensor] = deque(maxlen=4)
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        denoised = denoise(x, sigmas.new_tensor(s))
        slopes.appendleft((x - denoised) / s)
        slope = _adams_bashforth(slopes)
        if i == 0 and s_next > 0:
            slope = (slope + _slope(denoise, torch.lerp(denoised, x, s_next / s), sigmas, s_next)) / 2
        aim = torch.sub(x, slope, alpha=s)
        x = torch.lerp(aim, x, s_next / s)
        yield Step(i, s, s_next, x, aim)


def ipndm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource) -> Iterator[Step]:
    """iPNDM (Zhang & Chen 2022): `plms` that begins with its own lower orders, so that a step is one call."""
    slopes: deque[Tensor] = deque(maxlen=4)
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        slopes.appendleft(_slope(denoise, x, sigmas, s))
        aim = torch.sub(x, _adams_bashforth(slopes), alpha=s)
        x = torch.lerp(aim, x, s_next / s)
        yield Step(i, s, s_next, x, aim)


def pndm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, schedule: Schedule | None = None
) -> Iterator[Step]:
    """PNDM (Liu et al. 2022, eq. 12 and 13): `plms` after three steps of pseudo Runge-Kutta, four calls each.

    schedule: the middle of a step is that of its timesteps, as in the paper; without it, that of log(sigma).
    """
    slopes: deque[Tensor] = deque(maxlen=4)
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        slopes.appendleft(_slope(denoise, x, sigmas, s))
        slope = _adams_bashforth(slopes)
        if i < 3 and s_next > 0:
            middle = (s * s_next) ** 0.5
            if schedule is not None:
                middle = schedule.sigma((schedule.t(s) + schedule.t(s_next)) / 2)
            slope = _runge_kutta(denoise, x, sigmas, slopes[0], (s, middle, s_next))
        aim = torch.sub(x, slope, alpha=s)
        x = torch.lerp(aim, x, s_next / s)
        yield Step(i, s, s_next, x, aim)


def _slope(denoise: Denoise, x: Tensor, sigmas: Tensor, s: float) -> Tensor:
    """dx / dsigma, which is the noise that the network sees."""
    return (x - denoise(x, sigmas.new_tensor(s))) / s


_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _adams_bashforth(slopes: Sequence[Tensor]) -> Tensor:
    """What up to four slopes, the newest first, say of the next step, if steps are even (Liu et al. 2022, eq. 12)."""
    weights = _ADAMS_BASHFORTH[len(slopes) - 1]
    total = slopes[0] * weights[0]
    for slope, weight in zip(list(slopes)[1:], weights[1:], strict=True):
        total.add_(slope, alpha=weight)
    return total


def _runge_kutta(
    denoise: Denoise, x: Tensor, sigmas: Tensor, first: Tensor, levels: tuple[float, float, float]
) -> Tensor:
    """The slope of a step by four calls (Liu et al. 2022, eq. 13), the first of which has been made."""
    s, middle, s_next = levels
    second = _slope(denoise, torch.add(x, first, alpha=middle - s), sigmas, middle)
    third = _slope(denoise, torch.add(x, second, alpha=middle - s), sigmas, middle)
    fourth = _slope(denoise, torch.add(x, third, alpha=s_next - s), sigmas, s_next)
    return (first + (second + third) * 2 + fourth) / 6


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    kind: Kind = "midpoint",
    lower_order_final: bool = False,
) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2) in lambda = -log(sigma). Second order, one call a step.

    The first step, and one to sigma 0 (where lambda has no end), are of first order.
    kind: how the change of the estimate is weighed ("midpoint" is the paper's). lower_order_final: see
    `order_of`.
    """
    levels: list[float] = sigmas.tolist()
    before: Tensor | None = None
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigmas.new_tensor(s))
        aim = denoised
        if before is not None and order_of(2, i, len(levels) - 1, s_next, lower_order_final) == 2:
            # The steps in lambda: logarithms only of ratios.
            h = math.log(s / s_next)
            ratio = math.log(levels[i - 1] / s) / h
            aim = torch.lerp(before, denoised, 1 + change_weight(h, kind) / ratio)
        x = torch.lerp(aim, x, s_next / s)
        before = denoised
        yield Step(i, s, s_next, x, denoised)


def change_weight(h: float, kind: Kind) -> float:
    """How much of a change of the estimate per h is added to it for a step of h (kinds of the DPM-Solver code).

    "heun" integrates a straight line exactly; "midpoint" takes its value in the middle.
    """
    return 0.5 if kind == "midpoint" else -1 / math.expm1(-h) - 1 / h


def dpm_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, lower_order_final: bool = False
) -> Iterator[Step]:
    """DPM-Solver(2M): the multistep form of DPM-Solver-2 (Lu et al. 2022a), which extrapolates the noise, not x0.

    Second order, one call a step. lower_order_final: see `order_of`.
    """
    levels: list[float] = sigmas.tolist()
    before: Tensor | None = None
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigmas.new_tensor(s))
        slope = (x - denoised) / s
        if before is None or order_of(2, i, len(levels) - 1, s_next, lower_order_final) == 1:
            x = torch.lerp(denoised, x, s_next / s)
        else:
            ratio = math.log(levels[i - 1] / s) / math.log(s / s_next)
            x = torch.add(x, torch.lerp(before, slope, 1 + 0.5 / ratio), alpha=s_next - s)
        before = slope
        yield Step(i, s, s_next, x, denoised)
