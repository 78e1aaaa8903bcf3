"""Whole walks against recorded ones of k-diffusion, latent diffusion and generative-models.

Tolerances are 1e-5 of the size of the latent, unless said.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_oracles import (
    SD,
    Replay,
    close,
    k_denoise,
    ldm_network,
    no_noise,
    sgm_network,
    walk,
)
from golden_cases import golden, meta
from safelight.diffusion import sigmas as room
from safelight.diffusion.denoiser import Denoise, Denoiser, Prediction
from safelight.diffusion.guidance import classifier_free, conditioned, keep_known
from safelight.diffusion.samplers import (
    SAMPLERS,
    Churn,
    SampleFunction,
    ddim,
    ddpm,
    dpm_2,
    dpm_2_a,
    dpm_fast,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_a,
    dpmpp_3m_sde,
    dpmpp_sde,
    euler,
    euler_a,
    finish,
    heun,
    lms,
    plms,
    start,
)
from safelight.diffusion.schedule import Schedule, ScheduleConfig
from safelight.diffusion.sigmas import Spacing, leading, sigmas
from safelight.doors import Conditioning

SCHEDULE = Schedule(SD)


# k-diffusion


@pytest.mark.parametrize(
    ("case", "sampler"),
    [
        ("euler", euler),
        ("euler_ancestral", euler_a),
        ("heun", heun),
        ("lms", lms),
        ("dpmpp_2m", dpmpp_2m),
        ("dpm_2", dpm_2),
        ("dpm_2_ancestral", dpm_2_a),
        ("dpmpp_2s_ancestral", dpmpp_2s_a),
        ("dpmpp_sde", dpmpp_sde),
        ("dpmpp_2m_sde_midpoint", dpmpp_2m_sde),
        ("dpmpp_3m_sde", dpmpp_3m_sde),
    ],
)
def test_k_diffusion(case: str, sampler: SampleFunction) -> None:
    data = golden(f"k_diffusion/{case}")
    noise = Replay(data["noise"]) if "noise" in data else no_noise
    steps = walk(sampler(k_denoise, data["x"], data["sigmas"], noise))
    assert len(steps) == len(data["sigmas"]) - 1
    if isinstance(noise, Replay):
        assert noise.used == len(data["noise"])
        asked = torch.tensor(noise.asked, dtype=torch.float64).view(-1, 2)
        torch.testing.assert_close(asked, data["noise_sampler_args_sigma_from_to"][: len(asked)], rtol=1e-5, atol=0)
    for step, before, denoised in zip(
        steps, [*data["x_at_callback"][1:], data["out"]], data["denoised_at_callback"], strict=True
    ):
        close(step.x, before, what=f"x after step {step.index}")
        close(step.denoised, denoised, what=f"denoised of step {step.index}")
    for k, step in enumerate(steps):
        assert step.index == k
        assert (step.sigma, step.sigma_next) == tuple(data["sigmas"][k : k + 2].tolist())


def test_k_diffusion_dpm_fast() -> None:
    data, about = golden("k_diffusion/dpm_fast"), meta("k_diffusion/dpm_fast")["kwargs"]
    ends = (math.log(about["sigma_max"]), math.log(about["sigma_min"]))
    levels = torch.linspace(*ends, about["n"] + 1, dtype=torch.float64).exp()
    steps = walk(dpm_fast(k_denoise, data["x"], levels, no_noise))
    assert len(steps) == len(data["x_at_callback"]) == SAMPLERS["dpm_fast"].count(levels.tolist())
    for step, before, denoised in zip(
        steps, [*data["x_at_callback"][1:], data["out"]], data["denoised_at_callback"], strict=True
    ):
        close(step.x, before, what=f"x after step {step.index}")
        close(step.denoised, denoised, what=f"denoised of step {step.index}")


def test_k_diffusion_churn() -> None:
    data = golden("k_diffusion/euler_churn")
    churn = Churn(amount=5.0, low=0.05, high=10.0, s_noise=1.003)
    # Over there a draw is made in every step; here only where it is used.
    used = [k for k, s in enumerate(data["sigmas"].tolist()[:-1]) if churn.low <= s <= churn.high]
    noise = Replay(data["noise"][used])
    steps = walk(euler(k_denoise, data["x"], data["sigmas"], noise, churn=churn))
    assert 0 < noise.used == len(used) < len(steps)
    for step, denoised in zip(steps, data["denoised_at_callback"], strict=True):
        close(step.denoised, denoised, what=f"denoised of step {step.index}")
    close(steps[-1].x, data["out"])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_the_ancestral_step_is_k_diffusions(eta: float) -> None:
    """From sigma 5 to 3: of x is left sigma_down / 5, of the noise sigma_up is added."""
    data = golden("k_diffusion/ancestral_step")
    down, up = data["result"][data["etas"].tolist().index(eta)].tolist()
    x = torch.full((1, 1, 1, 1), 1.0)
    levels = torch.tensor([5.0, 3.0])
    (plain,) = walk(euler_a(lambda x, s: x * 0, x, levels, lambda: x * 0, eta=eta))
    (noised,) = walk(euler_a(lambda x, s: x * 0, x * 0, levels, lambda: x, eta=eta))
    assert float(plain.x) == pytest.approx(down / 5, abs=1e-6)
    assert float(noised.x) == pytest.approx(up, abs=1e-6)


# latent diffusion


def ldm_walk(case: str, sampler: SampleFunction, spacing: Spacing = leading, scale: float = 1.0) -> None:
    data, steps = golden(f"samplers_ldm/{case}"), meta(f"samplers_ldm/{case}")["steps"]
    levels = sigmas(SCHEDULE, steps, spacing, ends_at="first")
    cond, uncond = Conditioning(context=data["cond"]), Conditioning(context=data["uncond"])
    denoise = classifier_free(Denoiser(ldm_network, SCHEDULE, "eps"), cond, uncond, scale)
    walked = walk(sampler(denoise, start(data["x_T"], levels), levels, Replay(data["noise"])))
    for step, x, denoised in zip(walked, data["x_inter"][1:], data["pred_x0"][1:], strict=True):
        close(finish(step.x, torch.tensor([step.sigma_next])), x, what=f"x after step {step.index}")
        close(step.denoised, denoised, what=f"denoised of step {step.index}")
    close(finish(walked[-1].x, levels), data["out"])


@pytest.mark.parametrize(
    ("case", "run"),
    [
        ("ddim_10_eta0", partial(ldm_walk, sampler=ddim)),
        ("ddim_10_eta1", partial(ldm_walk, sampler=partial(ddim, eta=1.0))),
        ("ddim_10_temperature0.7", partial(ldm_walk, sampler=partial(ddim, eta=1.0, s_noise=0.7))),
        ("ddim_10_cfg7.5", partial(ldm_walk, sampler=ddim, scale=7.5)),
        ("ddim_8_quad", partial(ldm_walk, sampler=ddim, spacing=room.quadratic)),
    ],
)
def test_latent_diffusion_ddim(case: str, run: Callable[[str], None]) -> None:
    run(case)


@pytest.mark.parametrize(("case", "scale"), [("plms_10", 1.0), ("plms_10_cfg5", 5.0)])
def test_latent_diffusion_plms(case: str, scale: float) -> None:
    ldm_walk(case, plms, scale=scale)


@pytest.mark.parametrize("case", ["dpm_solver_5_eps", "dpm_solver_10_eps", "dpm_solver_15_v"])
def test_latent_diffusion_dpm_solver(case: str) -> None:
    """DPM-Solver++(2M) over evenly spaced timesteps from 999 to 0, between which they make log(alpha) linear."""
    data, about = golden(f"samplers_ldm/{case}"), meta(f"samplers_ldm/{case}")
    steps = about["steps"]
    t = np.linspace(999, 0, steps + 1)
    log_alphas = np.interp(t, np.arange(1000), 0.5 * SCHEDULE.alphas_cumprod.log().numpy())
    levels = torch.from_numpy(np.expm1(-2 * log_alphas) ** 0.5)
    cond, uncond = Conditioning(context=data["cond"]), Conditioning(context=data["uncond"])

    def heard(x: Tensor, _: Tensor, told: Conditioning) -> Tensor:
        # Theirs is told the timestep that the level was made from, not the one that ours finds for it.
        return ldm_network(x, torch.full((len(x),), float(t[len(asked) - 1])), told)

    asked: list[float] = []
    guided = classifier_free(Denoiser(heard, SCHEDULE, about["parameterization"]), cond, uncond, about["guidance"])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma))
        return guided(x, sigma)

    steps_taken = walk(dpmpp_2m(denoise, start(data["x_T"], levels), levels, no_noise, lower_order_final=steps < 15))
    assert asked == levels[:-1].tolist()
    close(finish(steps_taken[-1].x, levels), data["out"])


def test_latent_diffusion_ddim_with_a_mask() -> None:
    """In the hole. What is kept, we answer exactly; they leave the last step of it to the network."""
    data = golden("samplers_ldm/ddim_10_inpaint_mask")
    levels = sigmas(SCHEDULE, 10, "leading", ends_at="first")
    denoise = conditioned(Denoiser(ldm_network, SCHEDULE, "eps"), Conditioning(context=data["cond"]))
    filled = keep_known(denoise, data["x0"], data["mask"], noise=Replay(data["q_noise"]))
    steps = walk(ddim(filled, start(data["x_T"], levels), levels, no_noise))
    hole = (1 - data["mask"]).bool().expand_as(data["x0"])
    for step, x in zip(steps, data["x_inter"][1:], strict=True):
        close(finish(step.x, torch.tensor([step.sigma_next]))[hole], x[hole], what=f"step {step.index}")
    kept = ~hole
    close(steps[-1].denoised[kept], data["x0"][kept], 1e-7)


def test_latent_diffusion_ddim_with_a_mask_step_by_step() -> None:
    """All of it, if what is kept is put under the recorded noise between steps of ours, as theirs does."""
    data = golden("samplers_ldm/ddim_10_inpaint_mask")
    levels = sigmas(SCHEDULE, 10, "leading", ends_at="first")
    denoise = conditioned(Denoiser(ldm_network, SCHEDULE, "eps"), Conditioning(context=data["cond"]))
    x = start(data["x_T"], levels)
    for k, (q_noise, expected) in enumerate(zip(data["q_noise"], data["x_inter"][1:], strict=True)):
        x = torch.lerp(x, data["x0"] + levels[k] * q_noise, data["mask"])
        (step,) = ddim(denoise, x, levels[k : k + 2], no_noise)
        x = step.x
        close(finish(x, levels[: k + 2]), expected, what=f"step {k}")


@pytest.mark.parametrize("case", ["ddpm_20", "ddpm_20_clip", "ddpm_20_x0"])
def test_latent_diffusion_ddpm(case: str) -> None:
    data = golden(f"samplers_ldm/{case}")
    schedule = Schedule(ScheduleConfig("scaled_linear", 0.0015, 0.2, 20))
    levels = sigmas(schedule, 20, partial(leading, offset=0))
    prediction: Prediction = "x0" if case.endswith("x0") else "eps"
    plain = conditioned(Denoiser(ldm_network, schedule, prediction), Conditioning(context=data["cond"]))
    denoise: Denoise = (lambda x, s: plain(x, s).clamp(-1, 1)) if case.endswith("clip") else plain
    steps = walk(ddpm(denoise, start(data["x_T"], levels), levels, Replay(data["noise"])))
    for step, x in zip(steps, data["trajectory"][1:], strict=True):
        close(finish(step.x, torch.tensor([step.sigma_next])), x, what=f"step {step.index}")
    close(finish(steps[-1].x, levels), data["out"])


# generative-models


def sgm_denoise(data: dict[str, Tensor], scale: float, prediction: Prediction = "eps") -> Denoise:
    """The recorded network under guidance."""
    cond = Conditioning(context=data["c_crossattn"], vector=data["c_vector"])
    denoiser = Denoiser(sgm_network, SCHEDULE, prediction)
    if scale == 1.0:
        return conditioned(denoiser, cond)
    return classifier_free(denoiser, cond, Conditioning(context=data["uc_crossattn"], vector=data["uc_vector"]), scale)


@pytest.mark.parametrize(
    ("case", "sampler"),
    [
        ("euler_edm", euler),
        ("euler_ancestral", euler_a),
        ("lms", lms),
        ("dpmpp2m", dpmpp_2m),
        ("dpmpp2s_ancestral", dpmpp_2s_a),
        ("euler_ancestral_1step_identity", euler_a),
    ],
)
def test_generative_models(case: str, sampler: SampleFunction) -> None:
    data, about = golden(f"sgm/{case}"), meta(f"sgm/{case}")
    levels = sigmas(SCHEDULE, about["steps"], partial(room.sgm_uniform, rounding="down"))
    torch.testing.assert_close(levels, data["sigmas"], rtol=2e-6, atol=0)
    prediction: Prediction = "v" if about["scaling"] == "VScaling" else "eps"
    denoise = sgm_denoise(data, 1.0 if about["guidance"] == "identity" else about["guidance"], prediction)
    noise = Replay(data["noise"]) if "noise" in data else no_noise
    steps = walk(sampler(denoise, start(data["x_T"], levels), levels, noise))
    close(steps[-1].x, data["out"])


def test_generative_models_between_the_levels_of_its_network() -> None:
    """Sigmas of EDM, which are not the network's own: theirs is asked for the answer at the nearest that is."""
    data, about = golden("sgm/euler_edm_edmdisc"), meta("sgm/euler_edm_edmdisc")
    plain = sgm_denoise(data, about["guidance"])

    def nearest(x: Tensor, sigma: Tensor) -> Tensor:
        known = SCHEDULE.sigmas.float()
        return plain(x, known[(known - sigma).abs().argmin()])

    levels = data["sigmas"]
    steps = walk(euler(nearest, start(data["x_T"], levels), levels, no_noise))
    close(steps[-1].x, data["out"])


@pytest.mark.parametrize("steps", [1, 4])
def test_generative_models_turbo(steps: int) -> None:
    data = golden(f"sgm/turbo_substep_{steps}")
    levels = sigmas(SCHEDULE, steps, "turbo")
    walked = walk(euler_a(sgm_denoise(data, 1.0), start(data["x_T"], levels), levels, Replay(data["noise"])))
    close(walked[-1].x, data["out"])
