"""Samplers: functions that walk a latent from noise to picture and yield every step.

All of them live in "variance exploding" space, x = x0 + sigma * noise, and see the network only as a
`Denoise`. There the diffusion ODE is dx/dsigma = (x - x0(x, sigma)) / sigma (Karras et al. 2022, eq. 1 with
s = 1, sigma(t) = t). A sampler's memory is in its local variables. It owns no progress bar and no `no_grad`:
whoever iterates does, and may stop at any step. Random draws are taken from `noise` only where they are
used. Sigmas are plain numbers within a sampler, so that a step costs a handful of tensor operations beside
the network.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Denoise
from safelight.diffusion.noise import NoiseSource
from safelight.diffusion.sigmas import EndsAt


@dataclass(frozen=True)
class Step:
    """One step of a sampler, after it was taken."""

    index: int
    """0, 1, ..."""
    sigma: float
    """The noise level that the step started from."""
    sigma_next: float
    """The noise level that x has now."""
    x: Tensor
    """(B, C, h, w) the latent after the step."""
    denoised: Tensor
    """(B, C, h, w) the estimate of the clean latent that the step used: a preview."""


def start(noise: Tensor, sigmas: Tensor) -> Tensor:
    """The x that sampling begins with: as if a latent of unit variance were under sigmas[0] of noise.

    noise: (B, C, h, w) standard normal. sigmas: (n + 1,).
    """
    return noise * math.sqrt(1 + float(sigmas[0]) ** 2)


def finish(x: Tensor, sigmas: Tensor) -> Tensor:
    """The latent to decode. A walk that ends above zero noise is taken at unit variance (original DDIM).

    x: (B, C, h, w) after the last step. sigmas: (n + 1,).
    """
    end = float(sigmas[-1])
    return x if end == 0.0 else x / math.sqrt(1 + end**2)


def ddim(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, eta: float = 0.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, eq. 12 and 16), divided by sqrt(abar): walks that share their marginals.

    eta 0 is deterministic and is Euler's method; eta 1 is DDPM's posterior with the small variance. The same
    formula in sigma space is k-diffusion's ancestral Euler step. s_noise multiplies the noise that is added.
    """
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        denoised = denoise(x, sigmas.new_tensor(s))
        up = min(s_next, eta * s_next * max(1 - (s_next / s) ** 2, 0.0) ** 0.5)
        down = (s_next**2 - up**2) ** 0.5
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


@dataclass(frozen=True)
class Churn:
    """Noise added before a step, to correct the errors of earlier ones (Karras et al. 2022, algorithm 2).

    amount: S_churn, spread over all steps; 0 is none. low, high: S_tmin and S_tmax, where it acts. s_noise:
    S_noise.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = float("inf")
    s_noise: float = 1.0

    def __call__(self, x: Tensor, s: float, steps: int, noise: NoiseSource) -> tuple[Tensor, float]:
        """x and its noise level after the addition."""
        if self.amount == 0.0 or not self.low <= s <= self.high:
            return x, s
        raised = s * (1 + min(self.amount / steps, 2**0.5 - 1))
        return x + noise().to(x.device) * (self.s_noise * (raised**2 - s**2) ** 0.5), raised


NO_CHURN = Churn()


def euler(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, *, churn: Churn = NO_CHURN
) -> Iterator[Step]:
    """Euler's method (Karras et al. 2022, algorithm 2 without its correction). First order."""
    for i, (s, s_next) in enumerate(pairwise(sigmas.tolist())):
        x, raised = churn(x, s, len(sigmas) - 1, noise)
        denoised = denoise(x, sigmas.new_tensor(raised))
        x = torch.lerp(denoised, x, s_next / raised)
        yield Step(i, s, s_next, x, denoised)


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
    total = 0.0
    for point in (middle - half / 3**0.5, middle + half / 3**0.5):
        value = half
        for j, node in enumerate(nodes):
            if j != k:
                value *= (point - node) / (nodes[k] - node)
        total += value
    return total


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2) in lambda = -log(sigma). Second order, one call a step.

    The first step, and one to sigma 0 (where lambda has no end), are of first order.
    """
    levels: list[float] = sigmas.tolist()
    before: Tensor | None = None
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigmas.new_tensor(s))
        aim = denoised
        if before is not None and s_next > 0:
            # The steps in lambda: logarithms only of ratios.
            ratio = math.log(levels[i - 1] / s) / math.log(s / s_next)
            aim = torch.lerp(before, denoised, 1 + 1 / (2 * ratio))
        x = torch.lerp(aim, x, s_next / s)
        before = denoised
        yield Step(i, s, s_next, x, denoised)


class SampleFunction(Protocol):
    """What every sampler is; options have defaults and are bound with `functools.partial`.

    x: (B, C, h, w) float32 at noise level sigmas[0]. sigmas: (n + 1,), strictly descending, only the last
    may be 0.
    noise: draws of the shape of x.
    """

    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, /) -> Iterator[Step]: ...


@dataclass(frozen=True)
class Sampler:
    """A sampler by name, with what it is used with unless asked otherwise."""

    function: SampleFunction
    title: str
    """For people: the method, and where it comes from."""
    spacing: str = "leading"
    """A name in SPACINGS."""
    ends_at: EndsAt = "zero"
    """Where its sigmas end."""
    order: int | None = None
    """How its error falls with the number of steps (error ~ steps^-order); None if it is stochastic."""
    calls: int = 1
    """Network calls per step."""


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(ddpm, "DDPM ancestral sampling (Ho et al. 2020)"),
    "ddim": Sampler(ddim, "DDIM (Song et al. 2021)", ends_at="first", order=1),
    "lms": Sampler(lms, "linear multistep (k-diffusion)", order=2),
    "euler": Sampler(euler, "Euler (Karras et al. 2022)", order=1),
    "euler_a": Sampler(euler_a, "Euler ancestral (k-diffusion)"),
    "heun": Sampler(heun, "Heun (Karras et al. 2022)", order=2, calls=2),
    "dpmpp_2m": Sampler(dpmpp_2m, "DPM-Solver++(2M) (Lu et al. 2022)", spacing="karras", order=2),
}
