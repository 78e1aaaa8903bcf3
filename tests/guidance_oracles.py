"""For the tests of guidance: a denoiser with a closed form that notes what it is asked, and what is told to it."""

from __future__ import annotations

from torch import Tensor, full

from diffusion_oracles import SD, scheduler_network
from safelight.diffusion.denoiser import Denoiser, Prediction
from safelight.diffusion.guidance import Branch, always
from safelight.diffusion.schedule import Schedule
from safelight.doors import Conditioning

DEVIATION = 0.5


def gaussian(x: Tensor, sigma: Tensor, mean: Tensor | float) -> Tensor:
    """E[x0 | x] where x0 is N(mean, DEVIATION^2) and x = x0 + sigma * noise."""
    level = sigma.to(x).view(-1, 1, 1, 1)
    return mean + (x - mean) * (DEVIATION**2 / (DEVIATION**2 + level**2))


class Gaussian(Denoiser[Conditioning]):
    """The denoiser of N(m, DEVIATION^2), where m is the first number of the context, by a pattern over the latent.

    Notes the sizes it is asked.
    """

    def __init__(self, pattern: Tensor | float = 1.0, prediction: Prediction = "eps") -> None:
        super().__init__(scheduler_network, Schedule(SD), prediction)
        self.pattern = pattern
        self.asked: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        assert cond.context is not None and len(cond.context) == len(x)
        self.asked.append(len(x))
        return gaussian(x, sigma, cond.context[:, 0, 0].view(-1, 1, 1, 1) * self.pattern)


def say(mean: float, batch: int = 2, tokens: int = 3) -> Conditioning:
    """What tells the denoiser the mean of a batch."""
    return Conditioning(context=full((batch, tokens, 4), mean))


def branch(mean: float, weight: float = 1.0, mask: Tensor | None = None) -> Branch[Conditioning]:
    """The same as one of several conditions."""
    return Branch(always(say(mean)), weight, mask)
