"""DPM-Solver in single steps of up to third order: as many calls as one asks for, or as few as the errors allow.

Lu et al. 2022a ("DPM-Solver"), in sigma space, where lambda = -log(sigma) and the network is asked for the
noise (x - x0) / sigma. Both samplers choose their own levels, between the first of `sigmas` and the last
above 0; a last call then takes x into 0 if `sigmas` end there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Denoise
from safelight.diffusion.noise import NoiseSource
from safelight.diffusion.samplers.rungekutta import by_the_middle_slope
from safelight.diffusion.samplers.walk import Step, ancestral


def dpm_fast(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, eta: float = 0.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver-fast (Lu et al. 2022a; in k-diffusion): in all, a call for each step of `sigmas`.

    It takes them as steps of third order, evenly in log(sigma), and one or two of lower order for the rest.
    """
    high, low, calls = _range_of(sigmas)
    orders = fast_orders(calls)
    levels = [high * (low / high) ** (k / len(orders)) for k in range(len(orders))] + [low]
    for i, (order, (s, s_next)) in enumerate(zip(orders, pairwise(levels), strict=True)):
        down = max(ancestral(s, s_next, eta)[0], low)
        if order == 3:
            points, gains = _third(s, down)
            denoised, _, x = _third_order(denoise, x, [sigmas.new_tensor(point) for point in points], gains)
        else:
            denoised = denoise(x, sigmas.new_tensor(s))
            euler = torch.lerp(denoised, x, down / s)
            x = euler if order == 1 else by_the_middle_slope(denoise, x, sigmas, denoised, s, down)
        if s_next > down:
            x = x + noise().to(x.device) * ((s_next**2 - down**2) ** 0.5 * s_noise)
        yield Step(i, s, s_next, x, denoised)
    if float(sigmas[-1]) == 0:
        x = denoise(x, sigmas.new_tensor(low))
        yield Step(len(orders), low, 0.0, x, x)


def fast_orders(calls: int) -> list[int]:
    """The orders of the steps of `dpm_fast` above 0: their sum is `calls`, and the last is below 3."""
    if calls % 3 == 0:
        return [3] * (calls // 3 - 1) + [2, 1] if calls else []
    return [3] * (calls // 3) + [calls % 3]


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    rtol: float = 0.05,
    atol: float = 0.0078,
    stride: float = 0.05,
) -> Iterator[Step]:
    """DPM-Solver-23 with steps of its own size (Lu et al. 2022a, appendix C; defaults of k-diffusion).

    A step of second and one of third order from the same three calls: it is taken, and the next is longer,
    where they agree to atol + rtol of x. Every picture has its own levels, lest it depend on its batch: the
    network is asked with sigma (B,), and a Step reports the picture that is furthest behind.
    rtol, atol: relative and absolute tolerance. stride: the first step, in log(sigma).
    """
    high, low, _ = _range_of(sigmas)
    now, strides, before, index = [high] * len(x), [stride] * len(x), x, 0
    while max(now) > low:
        aims = [max(low, s * math.exp(-h)) for s, h in zip(now, strides, strict=True)]
        denoised, second, third = _each_to_its_own(denoise, x, sigmas, now, aims)
        answers = zip(second, third, before, strict=True)
        factors = [1 + math.atan(_error(*of, rtol, atol) ** (-1 / 3) - 1) for of in answers]
        taken = [not factor < 0.81 for factor in factors]  # also what is not finite: the caller shall see it
        chosen = torch.tensor(taken).view(-1, 1, 1, 1).to(x.device)
        x, before = torch.where(chosen, third, x), torch.where(chosen, second, before)
        strides = [h * factor for h, factor in zip(strides, factors, strict=True)]
        behind, now = max(now), [aim if good else s for s, aim, good in zip(now, aims, taken, strict=True)]
        if any(taken):
            yield Step(index, behind, max(now), x, denoised)
            index += 1
    if float(sigmas[-1]) == 0:
        x = denoise(x, sigmas.new_tensor(low))
        yield Step(index, low, 0.0, x, x)


def _each_to_its_own(
    denoise: Denoise, x: Tensor, sigmas: Tensor, now: Sequence[float], aims: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """`_third_order` with every picture from its own level to its own."""
    points, gains = zip(*(_third(s, aim) for s, aim in zip(now, aims, strict=True)), strict=True)
    # One number for all where it is one, as for a picture alone: the denoiser is quicker with it.
    levels = [sigmas.new_tensor(point[0] if len({*point}) == 1 else point) for point in zip(*points, strict=True)]
    columns = [sigmas.new_tensor(gain).view(-1, 1, 1, 1).to(x) for gain in zip(*gains, strict=True)]
    return _third_order(denoise, x, levels, columns)


def _error(second: Tensor, third: Tensor, before: Tensor, rtol: float, atol: float) -> float:
    """By how many tolerances two answers (C, h, w) differ, as a root mean square; above 0."""
    allowed = (torch.maximum(second.abs(), before.abs()) * rtol).clamp(min=atol)
    return float(((second - third) / allowed).square().mean().sqrt()) + 1e-8


def _range_of(sigmas: Tensor) -> tuple[float, float, int]:
    """The highest level, the lowest above 0, and the number of steps between them."""
    levels: list[float] = sigmas.tolist()
    last = len(levels) - (2 if levels[-1] == 0 else 1)
    return levels[0], levels[last], last


def _third(s: float, s_next: float) -> tuple[tuple[float, float, float], tuple[float, ...]]:
    """Where a step of third order asks the network, and its factors (Lu et al. 2022a, algorithm 2; r1 1/3, r2 2/3)."""
    h = math.log(s / s_next)
    inner, outer = s * math.exp(-h / 3), s * math.exp(-2 * h / 3)
    bend = 2 * ((s - outer) / (2 * h / 3) - outer) if h > 0 else 0.0
    last = 1.5 * ((s - s_next) / h - s_next) if h > 0 else 0.0
    return (s, inner, outer), (s - inner, s - outer, bend, s - s_next, last)


def _third_order(
    denoise: Denoise, x: Tensor, levels: Sequence[Tensor], gains: Sequence[float | Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(denoised at the first level, x after a step of second order, x after one of third order).

    levels: three, () or (B,). gains: as of `_third`, numbers or (B, 1, 1, 1).
    """

    def slope(x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        denoised = denoise(x, level)
        return denoised, (x - denoised) / (level if level.ndim == 0 else level.view(-1, 1, 1, 1).to(x))

    to_inner, to_outer, bend, to_end, last = gains
    denoised, first = slope(x, levels[0])
    change = slope(x - first * to_inner, levels[1])[1] - first
    end = x - first * to_end
    outer = slope(x - first * to_outer - change * bend, levels[2])[1]
    return denoised, end - change * (to_end * 1.5), end - (outer - first) * last
