"""For the tests of the diffusion room: noise and networks with a formula."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Denoise, Denoiser, Prediction
from safelight.diffusion.guidance import conditioned
from safelight.diffusion.samplers import Step
from safelight.diffusion.schedule import Schedule, ScheduleConfig
from safelight.doors import Conditioning

SD = ScheduleConfig(kind="scaled_linear", start=0.00085, end=0.012, steps=1000)


class Replay:
    """A noise source that plays recorded draws (n, B, C, h, w)."""

    def __init__(self, draws: Tensor) -> None:
        self.draws = draws
        self.used = 0
        self.asked: list[tuple[float, float]] = []
        """The noise levels between which noise was asked for."""

    def __call__(self) -> Tensor:
        self.used += 1
        return self.draws[self.used - 1]

    def between(self, s: float, s_next: float) -> Tensor:
        self.asked.append((s, s_next))
        return self()


class NoNoise:
    """A noise source for walks that need none."""

    def __call__(self) -> Tensor:
        raise AssertionError("this sampler must not draw noise")

    def between(self, s: float, s_next: float) -> Tensor:
        raise AssertionError("this sampler must not ask for noise")


no_noise = NoNoise()


def scheduler_network(x: Tensor, t: Tensor, cond: Conditioning | None) -> Tensor:
    """The network of the recorded scheduler cases."""
    return torch.tanh(0.9 * x) * (0.7 + 0.3 * torch.cos(t / 300)).view(-1, 1, 1, 1)


def whole_t_network(x: Tensor, t: Tensor, cond: Conditioning | None) -> Tensor:
    """The same, for schedulers that round the timestep that the network is told."""
    return scheduler_network(x, t.round(), cond)


def ldm_network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """The network of the recorded latent diffusion cases: its context is (B, 3, 4)."""
    assert cond.context is not None
    shift = cond.context.mean(dim=(1, 2)).view(-1, 1, 1, 1)
    return torch.tanh(0.9 * x + 0.2 * shift) * (0.7 + 0.3 * torch.cos(t / 300)).view(-1, 1, 1, 1)


def sgm_network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """The network of the recorded generative-models cases."""
    assert cond.context is not None and cond.vector is not None
    shift = (cond.vector.mean(dim=1) + cond.context.mean(dim=(1, 2))).view(-1, 1, 1, 1)
    return torch.tanh(0.9 * x + 0.2 * shift) * (0.7 + 0.3 * torch.cos(t / 300)).view(-1, 1, 1, 1)


def k_denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of the recorded k-diffusion cases."""
    return torch.tanh(0.8 * x / torch.sqrt(1 + sigma**2)) * (0.6 + 0.4 / (1 + sigma))


def formula_denoise(schedule: Schedule, prediction: Prediction = "eps", whole_t: bool = False) -> Denoise:
    """A Denoise of the scheduler network."""
    network = whole_t_network if whole_t else scheduler_network
    return conditioned(Denoiser(network, schedule, prediction), None)


def walk(steps: Iterator[Step]) -> list[Step]:
    return list(steps)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5, what: str = "") -> None:
    """Equal up to atol of the size of what is expected."""
    expected = expected.to(actual.dtype)
    scale = max(1.0, float(expected.abs().max()))
    worst = float((actual - expected).abs().max())
    assert worst <= atol * scale, f"{what}: off by {worst:.2e} where the size is {scale:.3g}"
