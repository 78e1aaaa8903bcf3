"""The formulas of guidance, each a function of answers that are already there. Nothing here asks a network.

All answers are x0, float32. On x0 guidance is the same formula as on eps or v, for at a given x and sigma these are
affine in each other; where it is not the same (rescaling), the function says in which it works.

Shapes: B batch, C latent channels, h w latent size.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Prediction
from safelight.sending import sent

_ALL = (1, 2, 3)
_SAME = 1e-6
"""Sigmas closer than this, relatively, are the same: one may have been through float32 and the other not."""
Projecting = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(what guidance adds, the conditional answer, both (B, C, h, w); where it counts (B, 1, 1, 1), None: everywhere)
-> what it adds instead."""


def rescaled(guided: Tensor, cond: Tensor, amount: float) -> Tensor:
    """Guidance that does not raise the contrast (Lin et al. 2023, eq. 15 and 16).

    guided, cond: (B, C, h, w), what the network predicts (eps, v or x0), with guidance and without.
    amount: phi in [0, 1]: 0 changes nothing, 1 gives each picture the deviation of cond.
    """
    before, aim = guided.std(dim=_ALL, keepdim=True), cond.std(dim=_ALL, keepdim=True)
    ratio = torch.where(before > 0, aim / before, 1.0)
    return guided * (amount * ratio + (1 - amount))


def rescaled_x0(guided: Tensor, cond: Tensor, amount: float, x: Tensor, sigma: Tensor, kind: Prediction) -> Tensor:
    """`rescaled` in what the network predicts, of answers that are x0, as x0.

    At x and sigma, x0 is the prediction times a number plus: x where it is eps, x / (1 + sigma^2) where it is v,
    nothing where it is x0 (Karras et al. 2022, Table 1). The number does not matter here.
    """
    if kind == "x0":
        return rescaled(guided, cond, amount)
    level = beside(sigma, x)
    nothing = x if kind == "eps" else x / (1 + level * level)
    return nothing + rescaled(guided - nothing, cond - nothing, amount)


def beside(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma () or (B,), to be reckoned with x: a single number may stay on the CPU, and nobody waits for it."""
    return sigma.to(x.dtype) if sigma.ndim == 0 else sent(sigma, x.device, x.dtype).view(-1, 1, 1, 1)


def thresholded(x0: Tensor, percentile: float, reach: Tensor | float = 1.0) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, sec. 2.3): the largest values are clipped, and the rest follows.

    x0: (B, C, h, w). percentile: in (0, 1], that of the absolute values at which a picture is clipped.
    reach: a number or (B, 1, 1, 1): what may be there unclipped, and what a clipped picture is scaled to: 1 for pixels.
    """
    edge = _percentile(x0, percentile)
    edge = edge.clamp_min(reach).clamp_min(torch.finfo(edge.dtype).tiny)
    return x0.clamp(-edge, edge) * (reach / edge)


def thresholded_like(x0: Tensor, cond: Tensor, percentile: float) -> Tensor:
    """`thresholded` where nobody knows how far values reach (latents): to the largest of cond, which stays as it is."""
    return thresholded(x0, percentile, cond.abs().amax(dim=_ALL, keepdim=True))


def _percentile(x0: Tensor, percentile: float) -> Tensor:
    """Of the absolute values of each picture, (B, 1, 1, 1). As torch.quantile, in a third of its time."""
    values = x0.abs().flatten(1).sort(dim=1).values
    place = percentile * (values.shape[1] - 1)
    below, above = values[:, math.floor(place)], values[:, math.ceil(place)]
    return torch.lerp(below, above, place - math.floor(place)).view(-1, 1, 1, 1)


def perpendicular(y: Tensor, to: Tensor) -> Tensor:
    """The part of y that is perpendicular to another, picture by picture, (B, C, h, w)."""
    return y - along(y, to)


def along(y: Tensor, other: Tensor) -> Tensor:
    """The part of y that is along another, picture by picture, (B, C, h, w)."""
    square = other.square().sum(dim=_ALL, keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)
    return other * ((y * other).sum(dim=_ALL, keepdim=True) / square)


def from_negative(cond: Tensor, empty: Tensor, negative: Tensor, weight: float) -> Tensor:
    """Where to aim so that only what is new in the negative is avoided (Perp-Neg: Armandpour et al. 2023).

    cond, empty, negative: x0 (B, C, h, w) when told the prompt, nothing, and what to avoid. weight: how much of the
    negative counts. Guidance goes from `empty` to what is returned.
    """
    return cond - perpendicular(negative - empty, cond - empty) * weight


@dataclass(frozen=True)
class Projection:
    """Adaptive projected guidance (Sadat et al. 2024, algorithm 1): what guidance adds, without what burns it in."""

    eta: float = 0.0
    """How much of the part along the conditional answer remains, which raises contrast and saturation: 1 is all."""
    norm: float | None = None
    """Each picture's addition is shortened to this length (their r: 2.5 to 15); None: it is not."""
    momentum: float = 0.0
    """How much of the additions of the calls before is added in, in (-1, 1): below 0 the change from step to step is
    amplified (theirs is -0.5 to -0.75), above 0 it is damped."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eta) and abs(self.momentum) < 1):
            raise ValueError(f"eta must be finite, the momentum between -1 and 1: not {self.eta} and {self.momentum}")
        if self.norm is not None and not (math.isfinite(self.norm) and self.norm > 0):
            raise ValueError(f"the length that guidance is shortened to must be above 0, not {self.norm}")

    def begin(self) -> Projecting:
        """The function of one run, that remembers."""
        average: Tensor | None = None

        def project(added: Tensor, cond: Tensor, counts: Tensor | None) -> Tensor:
            nonlocal average
            if self.momentum != 0.0:
                before = torch.zeros_like(added) if average is None else average
                added = added + before * self.momentum
                average = added if counts is None else torch.where(counts, added, before)
            if self.norm is not None:
                length = added.square().sum(dim=_ALL, keepdim=True).sqrt()
                added = added * (self.norm / length.clamp_min(torch.finfo(added.dtype).tiny)).clamp_max(1.0)
            return added - along(added, cond) * (1 - self.eta)

        return project


def plus_plus(levels: Tensor, scale: float) -> Callable[[float], float]:
    """CFG++ (Chung et al. 2024, algorithm 2) as guidance whose scale depends on the step.

    Theirs steps from sigma s to s' by u + scale (c - u) + s' (x - u) / s: to the guided answer, with the noise of the
    unconditional one. Euler's method with a guided answer D goes to D + s' (x - D) / s. With D = u + omega (c - u) the
    two are the same if omega = scale / (1 - s' / s). So it is the same for `euler` and `ddim` without added noise, and
    for other samplers guidance by the same scales.

    levels: (n + 1,) sigmas, strictly descending, only the last may be 0. scale: their lambda, 0 to 1 (and somewhat
    above). Returns sigma -> omega; a sigma between two levels is of the step that it lies in.
    """
    rising: list[float] = levels.tolist()[::-1]

    def omega(sigma: float) -> float:
        k = min(max(bisect_left(rising, sigma * (1 - _SAME)), 1), len(rising) - 1)
        return scale / (1 - rising[k - 1] / rising[k])

    return omega


def interval_of_steps(levels: Tensor, start: float, stop: float) -> tuple[float, float]:
    """The guidance interval, in sigma, of some of the steps: of n, those from int(start * n) up to int(stop * n).

    levels: (n + 1,) sigmas, strictly descending. start, stop: parts of the steps, 0 <= start <= stop <= 1.
    Returns (low, high): step i is in it where low < sigma <= high.
    """
    if not 0 <= start <= stop <= 1:
        raise ValueError(f"guidance must start and stop between 0 and 1 of the steps, not at {start} and {stop}")
    n = len(levels) - 1
    first, last = int(start * n), int(stop * n)
    high = math.inf if first == 0 else float(levels[first]) * (1 + _SAME)  # the first step may begin by adding noise
    return 0.0 if last == n else float(levels[last]) * (1 + _SAME), high
