"""What every sampler is: a walk that yields its steps, where it starts, where it ends, and how noise is added.

All samplers live in "variance exploding" space, x = x0 + sigma * noise, and see the network only as a
`Denoise`. There the diffusion ODE is dx/dsigma = (x - x0(x, sigma)) / sigma (Karras et al. 2022, eq. 1 with
s = 1, sigma(t) = t). A sampler's memory is in its local variables. It owns no progress bar and no `no_grad`:
whoever iterates does, and may stop at any step. Random draws are taken from `noise` only where they are
used. Sigmas are plain numbers within a sampler, so that a step costs a handful of tensor operations beside
the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from safelight.diffusion.denoiser import Denoise
from safelight.diffusion.noise import NoiseSource


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


class SampleFunction(Protocol):
    """What every sampler is; options have defaults and are bound with `functools.partial`, or by `bind`.

    x: (B, C, h, w) float32 at noise level sigmas[0]. sigmas: (n + 1,), strictly descending, only the last
    may be 0.
    noise: draws of the shape of x.
    """

    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, /) -> Iterator[Step]: ...


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


def ancestral(s: float, s_next: float, eta: float) -> tuple[float, float]:
    """(down, up): an ancestral step walks from s to down and adds up of noise: down^2 + up^2 = s_next^2.

    eta 0 adds none, eta 1 is the posterior of DDPM (Song et al. 2021, eq. 16, divided by sqrt(abar)).
    """
    up = min(s_next, eta * s_next * max(1 - (s_next / s) ** 2, 0.0) ** 0.5)
    return (s_next**2 - up**2) ** 0.5, up


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


def order_of(most: int, i: int, steps: int, s_next: float, taper: bool) -> int:
    """The order of step i of a multistep method: what its memory allows, and 1 into sigma 0.

    taper: the last steps fall back to lower orders, 2 and then 1, as original code does in short walks that
    end above zero noise.
    """
    return 1 if s_next == 0 else min(most, i + 1, steps - i if taper else most)
