"""Samplers on data whose denoiser is known in closed form: the right answer at the right order. No network.

The table of errors: `python benchmarks/orders.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_oracles import SD, no_noise, walk
from mixture import (
    DETERMINISTIC,
    DEVIATIONS,
    MEAN,
    MEANS,
    VARIANCE,
    VARIANTS,
    WEIGHTS,
    levels_between,
    measured_order,
    mixture_mean,
    ode_answer,
    ode_errors,
    path_errors,
    rms,
)
from safelight.diffusion.denoiser import Denoise, Denoiser, Prediction
from safelight.diffusion.guidance import classifier_free, conditioned, keep_known
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import (
    SAMPLERS,
    Churn,
    SampleFunction,
    ddim,
    ddpm,
    dpm_2,
    dpm_adaptive,
    dpm_fast,
    dpmpp_2m_sde,
    dpmpp_sde,
    er_sde,
    euler,
    euler_a,
    finish,
    heun,
    ipndm,
    lcm,
    lms,
    tcd,
)
from safelight.diffusion.samplers.registry import a_step_each
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import karras, sigmas
from safelight.doors import Conditioning

COUNTS = (40, 160)
"""Both leave a remainder of 1 when divided by 3, which decides how `dpm_fast` ends."""
MAY_BE_BETTER = {"lms", "deis", "unipc order 3", "dpmpp_3m_sde eta 0", "er_sde, phi of the ODE"}
"""Their first steps, of low order, decide in the end, and weigh little before it."""


@pytest.mark.parametrize("spacing", ["exponential", "karras"])
@pytest.mark.parametrize("name", [*DETERMINISTIC, *VARIANTS])
def test_deterministic_samplers_converge_with_their_order(name: str, spacing: str) -> None:
    sampler, stated = {**DETERMINISTIC, **VARIANTS}[name]
    found = ode_errors(sampler, COUNTS, spacing)
    order = measured_order(COUNTS, found)
    if name in MAY_BE_BETTER:
        assert order > stated - 0.25, f"{name}: order {order:.2f} of {found}"
    else:
        assert order == pytest.approx(stated, abs=0.25), f"{name}: order {order:.2f} of {found}"
    assert found[-1] < (2e-2 if stated == 1 else 1e-3)


def test_an_adaptive_walk_is_as_exact_as_it_is_asked_to_be() -> None:
    first, exact = ode_answer()
    before = math.inf
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        steps = walk(dpm_adaptive(mixture_mean, first, levels_between(2), no_noise, rtol=tolerance, atol=tolerance / 5))
        error = rms(steps[-1].x - exact)
        assert error < min(5 * tolerance, before), f"{len(steps)} steps at {tolerance}"
        before = error


def test_an_adaptive_walk_shows_what_is_not_finite_and_ends() -> None:
    steps = walk(dpm_adaptive(lambda x, s: x * math.nan, ode_answer()[0], levels_between(2), no_noise))
    assert 0 < len(steps) < 3 and bool(steps[0].x.isnan().all())


@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "er_sde"])
def test_the_picture_of_a_brownian_path_converges_as_steps_grow(name: str) -> None:
    """To one picture for one seed, with order 1; samplers that draw anew in every step have none to converge to."""
    counts = (20, 80)
    found = path_errors(SAMPLERS[name].function, counts, 640)
    assert found[-1] < 0.04 and measured_order(counts, found) > 0.75, found
    assert min(path_errors(euler_a, counts, 640)) > 1.0


def test_the_noise_of_the_sde_is_exact_at_any_number_of_steps() -> None:
    """Data at one point leave nothing but noise: in the path's own clock no step makes an error in it."""
    ends = []
    for steps in (1, 3, 40):
        noise, levels = Noise([1, 2], (1, 16, 16)), levels_between(steps)
        x = noise().double() * levels[0]
        ends.append(walk(dpmpp_2m_sde(lambda x, s: torch.zeros_like(x), x, levels, noise))[-1].x)
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ends[2], ends[0], rtol=0, atol=1e-6)


def test_on_even_levels_the_weights_of_even_steps_are_exact() -> None:
    """Where steps are even, iPNDM and linear multistep are the same Adams-Bashforth."""
    levels = torch.linspace(10, 0, 12, dtype=torch.float64)
    x = ode_answer()[0]
    for one, other in zip(
        ipndm(mixture_mean, x, levels, no_noise), lms(mixture_mean, x, levels, no_noise), strict=True
    ):
        torch.testing.assert_close(one.x, other.x, rtol=1e-12, atol=1e-12)


CONSISTENCY = {"lcm", "tcd"}
"""They take what the network says for the end of the path, not for the mean of all ends."""
STOCHASTIC: dict[str, tuple[SampleFunction, int]] = {
    **{n: (s.function, 250 if s.calls == 1 else 100) for n, s in SAMPLERS.items() if n not in CONSISTENCY},
    "dpm_adaptive": (partial(dpm_adaptive, rtol=0.005, atol=0.001), 100),
    "ddpm large": (partial(ddpm, variance="large"), 400),
    "euler_a eta 0.5": (partial(euler_a, eta=0.5), 250),
    "ddim eta 1": (partial(ddim, eta=1.0), 250),
    "euler churn": (partial(euler, churn=Churn(amount=8.0)), 250),
    "heun churn": (partial(heun, churn=Churn(amount=8.0)), 60),
    "dpm_2 churn": (partial(dpm_2, churn=Churn(amount=8.0)), 60),
    "dpm_fast eta 1": (partial(dpm_fast, eta=1.0), 250),
    "dpmpp_sde eta 0.5": (partial(dpmpp_sde, eta=0.5), 100),
    "dpmpp_2m_sde eta 0.5": (partial(dpmpp_2m_sde, eta=0.5), 250),
    "er_sde, phi of the SDE": (partial(er_sde, phi=lambda sigma: sigma**2), 250),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samplers_reach_the_mixture(name: str) -> None:
    """Mean, variance and the share of each mode, over 32768 numbers drawn from noise."""
    sampler, steps = STOCHASTIC[name]
    levels = sigmas(Schedule(SD), steps, partial(karras, rho=7.0))
    noise = Noise(range(8), (1, 64, 64))
    x = walk(sampler(mixture_mean, noise() * levels[0], levels, noise))[-1].x
    # A standard error of the mean is 0.005, of the variance 0.006; so many steps leave about as much.
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.var()) == pytest.approx(VARIANCE, abs=0.025)
    for low, high in ((-9.0, -0.4), (-0.4, 1.1), (1.1, 9.0)):
        share = float(((x > low) & (x < high)).double().mean())
        exact = sum(
            w * 0.5 * (math.erf((high - m) / (d * 2**0.5)) - math.erf((low - m) / (d * 2**0.5)))
            for w, m, d in zip(WEIGHTS, MEANS, DEVIATIONS, strict=True)
        )
        assert share == pytest.approx(exact, abs=0.015), f"between {low} and {high}"


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in CONSISTENCY])
def test_the_covariance_of_neighbours_is_right(name: str) -> None:
    """Data N(0, C) over pairs of numbers: the denoiser mixes them, and the pictures must have C."""
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma.flatten()[0])  # of adaptive steps one for each picture: one picture here
        gain = covariance @ torch.linalg.inv(covariance + level**2 * torch.eye(2))
        return torch.einsum("ij,bjhw->bihw", gain, x)

    sampler, steps = STOCHASTIC[name]
    levels = sigmas(Schedule(SD), steps, partial(karras, rho=7.0))
    noise = Noise([4], (2, 160, 160))
    x = walk(sampler(denoise, noise() * levels[0], levels, noise))[-1].x
    found = torch.cov(x[0].flatten(1))
    torch.testing.assert_close(found, covariance, rtol=0, atol=0.03)  # a standard error is 0.009


@pytest.mark.parametrize("steps", [1, 2, 4, 12])
def test_consistency_sampling_is_exact_for_an_exact_consistency_function(steps: int) -> None:
    """On data N(m, d^2) the ODE leads x to m + (x - m) d / sqrt(d^2 + sigma^2): then any number of steps is exact."""
    mean, deviation = 0.7, 0.5

    def ends(x: Tensor, sigma: Tensor) -> Tensor:
        return mean + (x - mean) * (deviation / math.sqrt(deviation**2 + float(sigma) ** 2))

    levels = sigmas(Schedule(SD), steps, "lcm")
    noise = Noise([3], (1, 200, 200))
    x = mean + noise() * (deviation**2 + float(levels[0]) ** 2) ** 0.5
    x = walk(lcm(ends, x, levels, noise))[-1].x
    assert float(x.mean()) == pytest.approx(mean, abs=4 * deviation / 200)
    assert float(x.var()) == pytest.approx(deviation**2, rel=4 * 2**0.5 / 200)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_trajectory_consistency_sampling_has_the_moments_of_its_steps(eta: float) -> None:
    """On data N(m, d^2) every step is affine in x: down to timestep (1 - eta) t, and by noise back up to t."""
    mean, deviation, schedule, timesteps = 0.7, 0.5, Schedule(SD), (999, 759, 499, 259, 0)
    levels = torch.tensor([schedule.sigma(float(t)) for t in timesteps])
    noise = Noise([3], (1, 200, 200))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return mean + (x - mean) * (deviation**2 / (deviation**2 + sigma**2))

    expected, variance = 0.0, float(levels[0]) ** 2
    for s, s_next, t in zip(levels.tolist(), levels.tolist()[1:], timesteps[1:], strict=False):
        down = schedule.sigma(float(math.floor(t * (1 - eta))))
        slope = down / s + (1 - down / s) * deviation**2 / (deviation**2 + s**2)
        expected = mean + slope * (expected - mean)
        variance = slope**2 * variance + s_next**2 - down**2
    x = walk(tcd(denoise, noise() * levels[0], levels, noise, eta=eta))[-1].x
    assert float(x.mean()) == pytest.approx(expected, abs=4 * variance**0.5 / 200)
    assert float(x.var()) == pytest.approx(variance, rel=4 * 2**0.5 / 200)


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
        assert x.dtype == torch.float32 and sigma.dtype == torch.float32
        # Pictures of a batch may be at levels of their own; one number stands for all where they are not.
        assert sigma.shape == () or (
            name == "dpm_adaptive" and sigma.shape == (len(x),) and len(set(sigma.tolist())) > 1
        )
        calls.extend(sigma.flatten().tolist())
        return mixture_mean(x, sigma)

    for count in (1, 2, 7):
        calls.clear()
        levels = sigmas(schedule, count, entry.spacing, entry.ends_at)
        noise = Noise([0], (4, 4, 4))
        x = noise() * levels[0]
        before = x.clone()
        steps, calls_at = [], []
        for step in entry.function(denoise, x, levels, noise):
            steps.append(step)
            calls_at.append(len(calls))
        assert torch.equal(x, before), "the x that was handed in is the caller's"
        assert [s.index for s in steps] == list(range(len(steps)))
        assert entry.count(levels.tolist()) in (len(steps), None)
        assert (steps[0].sigma, steps[-1].sigma_next) == (levels[0], levels[-1])
        ends = [s.sigma_next for s in steps]
        if name == "restart":  # it goes back up
            assert all(s.sigma > s.sigma_next for s in steps)
        else:
            assert [s.sigma for s in steps[1:]] == ends[:-1] == sorted(ends, reverse=True)[:-1]
        if entry.count is a_step_each:
            assert [*levels[1:]] == ends
        assert all(s.x.dtype == torch.float32 and bool(s.x.isfinite().all()) for s in steps)
        expected = len(steps) * entry.calls - (entry.calls - 1 if float(levels[-1]) == 0 else 0)
        expected = {"plms": count + 1, "pndm": count + 3 * min(count, 3), "dpm_fast": count}.get(name, expected)
        assert len(calls) == expected or name == "dpm_adaptive", "calls of the network"
        if float(levels[-1]) == 0 and name != "lms":  # its polynomial goes on to zero
            assert torch.equal(steps[-1].x, steps[-1].denoised)
    calls.clear()
    for step in entry.function(denoise, x, levels, Noise([0], (4, 4, 4))):
        if step.index == 1:
            break
    assert len(calls) == calls_at[1], "a sampler that is left works no further"


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "dpm_adaptive"])  # it reads its errors
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
