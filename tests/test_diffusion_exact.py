"""Samplers on data whose denoiser is known in closed form: the right answer at the right order. No network.

The data are a mixture of Gaussians along each number of the latent. Its denoiser is the posterior mean; the
diffusion ODE is solved to 1e-10 by scipy for the deterministic samplers; moments are known exactly for the
stochastic ones.
`python tests/test_diffusion_exact.py` prints the table of errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diffusion_oracles import SD, no_noise, walk
from safelight.diffusion.denoiser import Denoise, Denoiser, Prediction
from safelight.diffusion.guidance import classifier_free, conditioned, keep_known
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import (
    SAMPLERS,
    Churn,
    SampleFunction,
    ddim,
    ddpm,
    euler,
    euler_a,
    finish,
    heun,
)
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import exponential, karras, sigmas
from safelight.doors import Conditioning

WEIGHTS, MEANS, DEVIATIONS = (0.3, 0.5, 0.2), (-1.0, 0.4, 1.5), (0.3, 0.25, 0.4)
HIGH, LOW = 10.0, 0.1
COUNTS = (5, 10, 20, 40, 80, 160)


def mixture_mean(x: Tensor, sigma: Tensor | float) -> Tensor:
    """E[x0 | x] where x = x0 + sigma * noise and x0 is from the mixture."""
    answers, logs = [], []
    for weight, mean, deviation in zip(WEIGHTS, MEANS, DEVIATIONS, strict=True):
        variance = deviation**2 + sigma**2
        height = math.log(weight) - 0.5 * torch.log(torch.as_tensor(variance, dtype=x.dtype))
        logs.append(height - (x - mean) ** 2 / (2 * variance))
        answers.append(mean + (x - mean) * (deviation**2 / variance))
    shares = torch.softmax(torch.stack(logs), dim=0)
    return (shares * torch.stack(answers)).sum(dim=0)


def levels_between(steps: int, spacing: str = "exponential") -> Tensor:
    """(steps + 1,) float64, from HIGH to LOW: an order shows where sigma does not jump to zero."""
    function = karras if spacing == "karras" else exponential
    return partial(function, low=LOW, high=HIGH)(Schedule(SD), steps + 1)


@cache
def ode_answer() -> tuple[Tensor, Tensor]:
    """(x at HIGH, x at LOW): 64 paths of the diffusion ODE, by an eighth-order method at 1e-11."""
    x = torch.linspace(-2, 2, 64, dtype=torch.float64) * HIGH

    def slope(log_sigma: float, values: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(values)
        return (state - mixture_mean(state, math.exp(log_sigma))).numpy()  # dx / dlog(sigma)

    span = (math.log(HIGH), math.log(LOW))
    solved = solve_ivp(slope, span, x.numpy(), method="DOP853", rtol=1e-11, atol=1e-11)
    return x.view(1, 1, 8, 8), torch.from_numpy(solved.y[:, -1]).view(1, 1, 8, 8)


def errors(sampler: SampleFunction, spacing: str = "exponential") -> list[float]:
    """Root mean square distance from the ODE's answer, for each of COUNTS."""
    first, exact = ode_answer()
    found = []
    for steps in COUNTS:
        last = walk(sampler(mixture_mean, first, levels_between(steps, spacing), no_noise))[-1]
        found.append(float((last.x - exact).square().mean().sqrt()))
    return found


def measured_order(found: list[float]) -> float:
    """The slope of the error between the last two counts."""
    return math.log2(found[-2] / found[-1])


DETERMINISTIC = {name: sampler for name, sampler in SAMPLERS.items() if sampler.order is not None}


@pytest.mark.parametrize("spacing", ["exponential", "karras"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_converge_with_their_order(name: str, spacing: str) -> None:
    found, stated = errors(DETERMINISTIC[name].function, spacing), DETERMINISTIC[name].order
    assert stated is not None
    order = measured_order(found)
    if name == "lms":  # "at least two": the first steps, of low order, weigh less and less
        assert order > stated - 0.15, f"{name}: order {order:.2f} of {found}"
    else:
        assert order == pytest.approx(stated, abs=0.25), f"{name}: order {order:.2f} of {found}"
    assert found[-1] < (2e-2 if stated == 1 else 1e-3)


STOCHASTIC: dict[str, tuple[SampleFunction, int]] = {
    "ddpm": (ddpm, 250),
    "ddpm large": (partial(ddpm, variance="large"), 400),
    "euler_a": (euler_a, 250),
    "euler_a eta 0.5": (partial(euler_a, eta=0.5), 250),
    "ddim eta 1": (partial(ddim, eta=1.0), 250),
    "ddim eta 0": (ddim, 250),
    "euler churn": (partial(euler, churn=Churn(amount=8.0)), 250),
    "heun churn": (partial(heun, churn=Churn(amount=8.0)), 60),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samplers_reach_the_mixture(name: str) -> None:
    """Mean, variance and the share of each mode, over 32768 numbers drawn from noise."""
    sampler, steps = STOCHASTIC[name]
    levels = sigmas(Schedule(SD), steps, partial(karras, rho=7.0))
    noise = Noise(range(8), (1, 64, 64))
    x = walk(sampler(mixture_mean, noise() * levels[0], levels, noise))[-1].x
    mean = sum(w * m for w, m in zip(WEIGHTS, MEANS, strict=True))
    variance = sum(w * (m**2 + d**2) for w, m, d in zip(WEIGHTS, MEANS, DEVIATIONS, strict=True)) - mean**2
    # A standard error of the mean is 0.005, of the variance 0.006; so many steps leave about as much.
    assert float(x.mean()) == pytest.approx(mean, abs=0.02)
    assert float(x.var()) == pytest.approx(variance, abs=0.025)
    for low, high in ((-9.0, -0.4), (-0.4, 1.1), (1.1, 9.0)):
        share = float(((x > low) & (x < high)).double().mean())
        exact = sum(
            w * 0.5 * (math.erf((high - m) / (d * 2**0.5)) - math.erf((low - m) / (d * 2**0.5)))
            for w, m, d in zip(WEIGHTS, MEANS, DEVIATIONS, strict=True)
        )
        assert share == pytest.approx(exact, abs=0.015), f"between {low} and {high}"


@pytest.mark.parametrize("name", ["ddpm", "euler_a", "ddim eta 1"])
def test_one_gaussian_has_exact_moments_at_every_number_of_steps(name: str) -> None:
    """On data N(m, d^2) every step is affine in x: mean and variance follow by recursion."""
    sampler, mean, deviation = STOCHASTIC[name][0], 0.7, 0.5
    steps, per_picture = 12, 40000

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return mean + (x - mean) * (deviation**2 / (deviation**2 + sigma**2))

    levels = sigmas(Schedule(SD), steps, "karras")
    expected_mean, expected_variance = 0.0, float(levels[0]) ** 2
    for s, s_next in zip(levels.tolist()[:-1], levels.tolist()[1:], strict=True):
        gain, keep = deviation**2 / (deviation**2 + s**2), (s_next / s) ** 2
        slope = keep + (1 - keep) * gain
        expected_mean = slope * expected_mean + (1 - keep) * (1 - gain) * mean
        expected_variance = slope**2 * expected_variance + s_next**2 * (1 - keep)
    noise = Noise([3], (1, 200, per_picture // 200))
    x = walk(sampler(denoise, noise() * levels[0], levels, noise))[-1].x
    assert float(x.mean()) == pytest.approx(expected_mean, abs=4 * expected_variance**0.5 / per_picture**0.5)
    assert float(x.var()) == pytest.approx(expected_variance, rel=4 * (2 / per_picture) ** 0.5)


def mixture_network(kind: Prediction, schedule: Schedule) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
    """The perfect network of each kind for the mixture: it sees x of unit variance, and t."""

    def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        # In float64: t to sigma and back in float32 would be most of what is measured here.
        s = torch.tensor([schedule.sigma(v) for v in t.tolist()], dtype=torch.float64).view(-1, 1, 1, 1)
        noisy = x.double() * torch.sqrt(1 + s**2)
        clean = mixture_mean(noisy, s)
        eps = (noisy - clean) / s
        answer = {"x0": clean, "eps": eps, "v": (eps - s * clean) / torch.sqrt(1 + s**2)}[kind]
        return answer.float()

    return network


@pytest.mark.parametrize("name", SAMPLERS)
def test_eps_v_and_x0_draw_the_same_picture(name: str) -> None:
    """And the picture is the one of the denoiser itself. What is registered is tested here."""
    entry, schedule = SAMPLERS[name], Schedule(SD)
    levels = sigmas(schedule, 12, entry.spacing, entry.ends_at)

    def draw(denoise: Denoise) -> Tensor:
        noise = Noise([5, 6], (4, 8, 8))
        x = noise() * float(levels[0])
        return finish(walk(entry.function(denoise, x, levels, noise))[-1].x, levels)

    exact = draw(lambda x, s: mixture_mean(x.double(), s.double()).float())
    kinds: tuple[Prediction, ...] = ("eps", "v", "x0")
    for kind in kinds:
        denoiser = Denoiser(mixture_network(kind, schedule), schedule, kind)
        got = draw(conditioned(denoiser, Conditioning()))
        assert float((got - exact).abs().max()) < 2e-4, kind


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_yields_its_steps_and_can_be_left(name: str) -> None:
    entry, schedule = SAMPLERS[name], Schedule(SD)
    calls: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert x.dtype == torch.float32 and sigma.dtype == torch.float32 and sigma.ndim == 0
        calls.append(float(sigma))
        return mixture_mean(x, sigma)

    for count in (1, 2, 7):
        calls.clear()
        levels = sigmas(schedule, count, entry.spacing, entry.ends_at)
        noise = Noise([0], (4, 4, 4))
        x = noise() * levels[0]
        before = x.clone()
        steps = walk(entry.function(denoise, x, levels, noise))
        assert torch.equal(x, before), "the x that was handed in is the caller's"
        assert [s.index for s in steps] == list(range(count))
        assert [s.sigma for s in steps] + [steps[-1].sigma_next] == levels.tolist()
        assert all(s.x.dtype == torch.float32 and bool(s.x.isfinite().all()) for s in steps)
        # A step to sigma 0 has nothing to correct with.
        free = entry.calls - 1 if float(levels[-1]) == 0 else 0
        assert len(calls) == count * entry.calls - free
        if float(levels[-1]) == 0 and name != "lms":  # its polynomial goes on to zero
            assert torch.equal(steps[-1].x, steps[-1].denoised)
    calls.clear()
    for step in entry.function(denoise, x, levels, noise):
        if step.index == 1:
            break
    assert len(calls) == 2 * entry.calls, "a sampler that is left works no further"


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_assumes_where_the_latent_lives(name: str) -> None:
    """On the device without memory: sigmas and noise come from the CPU and meet a latent that does not."""
    entry, schedule = SAMPLERS[name], Schedule(SD)
    levels = sigmas(schedule, 4, entry.spacing, entry.ends_at)
    denoiser = Denoiser[Conditioning](
        lambda x, t, cond: x * t.view(-1, 1, 1, 1).to(x.dtype), schedule, "v", torch.bfloat16
    )
    x = torch.empty(2, 4, 8, 8, device="meta")
    guided = classifier_free(denoiser, Conditioning(context=x), Conditioning(context=x), 3.0)
    denoise = keep_known(guided, x, x[:, :1], noise=Noise([0, 1], (4, 8, 8)))
    for step in entry.function(denoise, x, levels, Noise([0, 1], (4, 8, 8))):
        assert step.x.device == step.denoised.device == x.device
        assert step.x.dtype == step.denoised.dtype == torch.float32
    loss = denoiser.loss(x, x, torch.tensor([1.0, 2.0]), Conditioning(), weight=torch.tensor([1.0, 2.0]))
    assert loss.device == x.device and loss.dtype == torch.float32


if __name__ == "__main__":
    print("rms error against the diffusion ODE of a Gaussian mixture, sigma 10 to 0.1, exponential spacing")
    print(f"{'sampler':<10}" + "".join(f"{n:>11}" for n in COUNTS) + "   order")
    for label, entry in DETERMINISTIC.items():
        row = errors(entry.function)
        print(f"{label:<10}" + "".join(f"{e:11.2e}" for e in row) + f"{measured_order(row):8.2f}")
