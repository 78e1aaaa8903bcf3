"""The formulas of guidance: against recorded numbers, diffusers, and the papers' own equations written out here."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from diffusion_oracles import SD, close, ldm_network, no_noise, walk
from golden_cases import golden
from safelight.diffusion.denoiser import Denoiser, Prediction
from safelight.diffusion.guidance import Branch, Guidance, Projection, always, guided, interval_of_steps
from safelight.diffusion.guidance.formulas import (
    from_negative,
    perpendicular,
    plus_plus,
    rescaled,
    rescaled_x0,
    thresholded,
    thresholded_like,
)
from safelight.diffusion.samplers import SAMPLERS, start
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import sigmas
from safelight.doors import Conditioning

SCHEDULE = Schedule(SD)


def draws(count: int, *, seed: int = 0, size: tuple[int, ...] = (3, 4, 6, 5)) -> list[Tensor]:
    return list(torch.randn(count, *size, generator=torch.Generator().manual_seed(seed)).unbind(0))


# Rescaling


def test_rescaling_is_the_recorded_one() -> None:
    data = golden("schedules/guidance_rescale")
    close(rescaled(data["noise_cfg"], data["noise_pred_text"], 0.7), data["rescaled_0_7"], 1e-6)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_rescaling_of_x0_is_diffusers_of_what_the_network_predicts(kind: Prediction) -> None:
    x, guided_answer, cond_answer = draws(3)
    sigma = torch.tensor(1.7)
    answers = iter((guided_answer, cond_answer, rescale_noise_cfg(guided_answer, cond_answer, 0.6)))
    denoiser = Denoiser[None](lambda x, t, c: next(answers), SCHEDULE, kind)
    guided_x0, cond_x0, expected = (denoiser(x, sigma, None) for _ in range(3))
    close(rescaled_x0(guided_x0, cond_x0, 0.6, x, sigma, kind), expected, 3e-6)


def test_rescaling_takes_the_contrast_back_and_bears_a_flat_picture() -> None:
    guided_answer, cond = draws(2)
    whole = rescaled(5 * guided_answer, cond, 1.0)
    torch.testing.assert_close(whole.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)))
    flat = torch.full_like(cond, 0.3)
    assert torch.equal(rescaled(flat, cond, 0.5), flat)


# Dynamic thresholding


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
def test_thresholding_is_that_of_diffusers(percentile: float) -> None:
    (x0,) = draws(1, seed=3)
    x0 = x0 * torch.tensor([0.1, 1.0, 4.0]).view(-1, 1, 1, 1)  # the first is not clipped at all
    theirs = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=percentile, sample_max_value=1e9)
    close(thresholded(x0, percentile), theirs._threshold_sample(x0), 1e-6)


def test_thresholding_of_latents_reaches_as_far_as_the_unguided_answer() -> None:
    x0, cond = draws(2, seed=4)
    got = thresholded_like(6 * x0, cond, 0.95)
    edges = torch.quantile((6 * x0).double().abs().flatten(1), 0.95, dim=1).view(-1, 1, 1, 1)
    reach = cond.double().abs().amax(dim=(1, 2, 3), keepdim=True)
    assert bool((edges > reach).all())
    close(got, ((6 * x0).double().clamp(-edges, edges) * reach / edges).float(), 1e-6)
    assert torch.equal(thresholded_like(cond, cond, 0.95), cond), "without guidance nothing is clipped"
    assert torch.equal(thresholded_like(0.3 * x0, cond, 0.95), 0.3 * x0), "nor what does not reach so far"
    nothing = torch.zeros_like(x0)
    assert torch.equal(thresholded_like(nothing, nothing, 0.95), nothing)


# Perpendicular negative


def test_the_perpendicular_negative_is_the_papers() -> None:
    """eps = e + w (p - sum_i w_i n_i'), with p = c - e, n' = n - <n, p> / <p, p> p, each picture by itself."""
    cond, empty, negative = (y.double() for y in draws(3, seed=5))
    scale, weight = 7.5, 0.8
    aim = from_negative(cond, empty, negative, weight)
    for k in range(len(cond)):
        p, n = (cond - empty)[k].flatten(), (negative - empty)[k].flatten()
        straight = n - (n @ p) / (p @ p) * p
        assert abs(float(straight @ p)) < 1e-9
        expected = empty[k].flatten() + scale * (p - weight * straight)
        close(torch.lerp(empty, aim, scale)[k].flatten(), expected, 1e-12)


def test_a_negative_that_says_the_same_as_the_prompt_changes_nothing() -> None:
    cond, empty = draws(2, seed=6)
    close(from_negative(cond, empty, empty + 3 * (cond - empty), 1.0), cond, 1e-5)
    assert torch.equal(perpendicular(cond, torch.zeros_like(cond)), cond)


# Adaptive projected guidance


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("norm", [None, 2.5, 1e6])
@pytest.mark.parametrize("momentum", [0.0, -0.75, 0.4])
def test_projected_guidance_is_that_of_diffusers(eta: float, norm: float | None, momentum: float) -> None:
    project = Projection(eta, norm, momentum).begin()
    buffer = MomentumBuffer(momentum)
    for step in range(4):
        cond, uncond = draws(2, seed=10 + step)
        theirs = normalized_guidance(cond, uncond, 6.5, buffer, eta, norm or 0.0, use_original_formulation=True)
        close(cond + project(cond - uncond, cond, None) * 6.5, theirs, 2e-6, f"step {step}")


def test_momentum_of_one_run_is_not_that_of_the_next() -> None:
    cond, uncond = draws(2, seed=20)
    settings = Projection(momentum=-0.5)
    first = settings.begin()
    one = first(cond - uncond, cond, None)
    assert not torch.equal(first(cond - uncond, cond, None), one)
    assert torch.equal(settings.begin()(cond - uncond, cond, None), one)


# CFG++


def conditions() -> tuple[Tensor, Conditioning, Conditioning]:
    data = golden("samplers_ldm/ddim_10_cfg7.5")
    return data["x_T"], Conditioning(context=data["cond"]), Conditioning(context=data["uncond"])


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "karras"])
def test_cfg_plus_plus_is_the_papers_update(sampler: str, scale: float, spacing: str) -> None:
    """Their algorithm 2, at unit variance: x' = sqrt(a') x0(e_lambda) + sqrt(1 - a') e_u."""
    noise, cond, uncond = conditions()
    levels = sigmas(SCHEDULE, 10, spacing, SAMPLERS[sampler].ends_at)
    denoiser = Denoiser(ldm_network, SCHEDULE, "eps")
    run = guided(denoiser, [Branch(always(cond))], always(uncond), Guidance(scale=scale, cfg_pp=True), levels=levels)
    steps = walk(SAMPLERS[sampler].function(run, start(noise, levels), levels, no_noise))

    x = noise.double()
    for step, s, s_next in zip(steps, levels.tolist()[:-1], levels.tolist()[1:], strict=True):
        a, a_next = 1 / (1 + s**2), 1 / (1 + s_next**2)
        t = torch.full((len(x),), SCHEDULE.t(s))
        e_u, e_c = (ldm_network(x.float(), t, c).double() for c in (uncond, cond))
        clean = (x - math.sqrt(1 - a) * (e_u + scale * (e_c - e_u))) / math.sqrt(a)
        x = math.sqrt(a_next) * clean + math.sqrt(1 - a_next) * e_u
        close(step.x.double() * math.sqrt(a_next), x, 2e-5, f"step {step.index}")


def test_a_scale_of_cfg_plus_plus_belongs_to_the_step_that_sigma_lies_in() -> None:
    omega = plus_plus(torch.tensor([10.0, 4.0, 1.0, 0.0]), 0.6)
    for sigma, expected in ((10, 1.0), (7, 1.0), (4.1, 1.0), (4, 0.8), (2, 0.8), (1, 0.6), (0.5, 0.6), (14, 1.0)):
        assert omega(sigma) == pytest.approx(expected), sigma
    assert omega(4 * (1 + 1e-7)) == pytest.approx(0.8), "what float32 does to a level does not move it"


# The interval


def test_the_interval_of_some_steps_holds_just_these() -> None:
    levels = sigmas(SCHEDULE, 10, "karras")
    for start_, stop in ((0.0, 1.0), (0.0, 0.5), (0.2, 0.8), (0.35, 0.35), (0.5, 1.0), (0.0, 0.0)):
        interval = Guidance(scale=2.0, interval=interval_of_steps(levels, start_, stop))
        acting = [i for i, s in enumerate(levels.tolist()[:-1]) if interval.acts(s)]
        assert acting == list(range(int(start_ * 10), int(stop * 10))), (start_, stop)
    for wrong in ((-0.1, 1.0), (0.6, 0.5), (0.0, 1.1)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            interval_of_steps(levels, *wrong)
