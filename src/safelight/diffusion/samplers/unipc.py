"""UniPC: a multistep predictor whose landing is corrected by the next call of the network, which it makes anyway."""

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
from safelight.diffusion.samplers.walk import Step, order_of

Variant = Literal["bh1", "bh2"]


def unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    order: int = 2,
    variant: Variant = "bh2",
    lower_order_final: bool = False,
) -> Iterator[Step]:
    """UniPC (Zhao et al. 2023, UniC-p and UniP-p of section 3) on x0, in lambda = -log(sigma). One call a step.

    order: of the predictor, 1 to 3; with the corrector, one more, up to 3 (the first steps allow no more).
    variant: the paper's B(h): h ("bh1") or e^h - 1 ("bh2"). lower_order_final: see `order_of`.
    """
    levels: list[float] = sigmas.tolist()
    answers: deque[Tensor] = deque(maxlen=order)
    begin, used = x, 0
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigmas.new_tensor(s))
        if used > 0:
            x = _unified(begin, list(answers)[:used], levels[max(i - used, 0) : i + 1], variant, denoised)
        begin = x
        answers.appendleft(denoised)
        used = order_of(order, i, len(levels) - 1, s_next, lower_order_final)
        x = _unified(begin, list(answers)[:used], levels[i + 1 - used : i + 2], variant, None)
        yield Step(i, s, s_next, x, denoised)


def _unified(
    x: Tensor, answers: Sequence[Tensor], levels: Sequence[float], variant: Variant, landed: Tensor | None
) -> Tensor:
    """x after a step: UniP, or UniC where the answer at the landing is known (Zhao et al. 2023, section 3).

    answers: of this level and those before, the newest first. levels: theirs, descending, and then where
    the step goes.
    """
    *past, s, s_next = levels
    ahead = torch.lerp(answers[0], x, s_next / s)
    if len(answers) == 1 and landed is None:
        return ahead
    h = math.log(s / s_next)
    nodes = [math.log(s / level) / h for level in reversed(past)]  # below 0
    changes = [answer - answers[0] for answer in answers[1:]]
    if landed is not None:
        nodes.append(1.0)
        changes.append(landed - answers[0])
    scale = -h if variant == "bh1" else math.expm1(-h)
    weights = [0.5] if len(nodes) == 1 else _matching(nodes, _moments(h, len(nodes), scale))
    for node, change, weight in zip(nodes, changes, weights, strict=True):
        ahead = torch.add(ahead, change, alpha=-scale * weight / node)
    return ahead


def _moments(h: float, count: int, scale: float) -> list[float]:
    """What the weights must match for x0: n! (-h) phi_(n+1)(-h) / B(h), n = 1, 2, ..."""
    found, phi = [], math.expm1(-h) / -h - 1
    for n in range(1, count + 1):
        found.append(phi * math.factorial(n) / scale)
        phi = phi / -h - 1 / math.factorial(n + 1)
    return found


def _matching(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights with sum(weight * node^n) = moments[n], n = 0, 1, ...: by the coefficients of Lagrange's polynomials."""
    weights = []
    for k, node in enumerate(nodes):
        coefficients = [1.0]  # of the polynomial that is 1 at this node, 0 at the others; lowest power first
        for other in (*nodes[:k], *nodes[k + 1 :]):
            shifted = zip([*coefficients, 0.0], [0.0, *coefficients], strict=True)
            coefficients = [(up - other * here) / (node - other) for here, up in shifted]
        weights.append(sum(c * m for c, m in zip(coefficients, moments, strict=True)))
    return weights
