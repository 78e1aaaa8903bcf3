"""Whole walks against recorded ones of k-diffusion, latent diffusion, generative-models and diffusers.

Tolerances are 1e-5 of the size of the latent, unless said.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_oracles import (
    SD,
    Replay,
    close,
    formula_denoise,
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
    Churn,
    SampleFunction,
    ddim,
    ddpm,
    dpmpp_2m,
    euler,
    euler_a,
    finish,
    heun,
    lms,
    start,
)
from safelight.diffusion.schedule import Schedule, ScheduleConfig
from safelight.diffusion.sigmas import Spacing, exponential, karras, leading, linspace, sigmas, trailing
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
    ],
)
def test_k_diffusion(case: str, sampler: SampleFunction) -> None:
    data = golden(f"k_diffusion/{case}")
    noise = Replay(data["noise"]) if "noise" in data else no_noise
    steps = walk(sampler(k_denoise, data["x"], data["sigmas"], noise))
    assert len(steps) == len(data["sigmas"]) - 1
    for step, before, denoised in zip(
        steps, [*data["x_at_callback"][1:], data["out"]], data["denoised_at_callback"], strict=True
    ):
        close(step.x, before, what=f"x after step {step.index}")
        close(step.denoised, denoised, what=f"denoised of step {step.index}")
    for k, step in enumerate(steps):
        assert step.index == k
        assert (step.sigma, step.sigma_next) == tuple(data["sigmas"][k : k + 2].tolist())


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


@pytest.mark.parametrize(
    ("case", "sampler"),
    [("euler_edm", euler), ("euler_ancestral", euler_a), ("lms", lms), ("dpmpp2m", dpmpp_2m)],
)
def test_generative_models(case: str, sampler: SampleFunction) -> None:
    data, about = golden(f"sgm/{case}"), meta(f"sgm/{case}")
    levels = sigmas(SCHEDULE, 10, partial(room.sgm_uniform, rounding="down"))
    torch.testing.assert_close(levels, data["sigmas"], rtol=2e-6, atol=0)
    prediction: Prediction = "v" if about["scaling"] == "VScaling" else "eps"
    denoise = classifier_free(
        Denoiser(sgm_network, SCHEDULE, prediction),
        Conditioning(context=data["c_crossattn"], vector=data["c_vector"]),
        Conditioning(context=data["uc_crossattn"], vector=data["uc_vector"]),
        about["guidance"],
    )
    noise = Replay(data["noise"]) if "noise" in data else no_noise
    steps = walk(sampler(denoise, start(data["x_T"], levels), levels, noise))
    close(steps[-1].x, data["out"])


# diffusers


def outer_karras(schedule: Schedule, steps: int) -> Tensor:
    """karras over the levels of the leading spacing, as diffusers' Euler has it."""
    ends = leading(schedule, steps)
    return karras(schedule, steps, low=float(ends[-1]), high=float(ends[0]))


def leading_of_one_more(schedule: Schedule, steps: int) -> Tensor:
    """diffusers' DPM-Solver++ spaces one timestep more than it needs, and leaves the lowest out."""
    return leading(schedule, steps + 1)[:-1]


SGM_NEAREST = partial(room.sgm_uniform, rounding="nearest")
VARIANCE_PRESERVING: dict[str, tuple[SampleFunction, Spacing, room.EndsAt]] = {
    "ddim_sd": (ddim, leading, "first"),
    "ddim_sd_eta1": (partial(ddim, eta=1.0), leading, "first"),
    "ddim_v_sd2": (ddim, leading, "first"),
    "ddim_ldm_0195": (ddim, partial(leading, offset=0), "zero"),
    "ddim_set_alpha_to_one_offset0": (ddim, partial(leading, offset=0), "zero"),
    "ddpm_sd": (ddpm, partial(leading, offset=0), "zero"),
    "ddpm_v": (ddpm, partial(leading, offset=0), "zero"),
    "ddpm_squaredcos": (ddpm, partial(leading, offset=0), "zero"),
    "ddpm_fixed_large": (partial(ddpm, variance="large"), partial(leading, offset=0), "zero"),
    "dpmpp_2m_linspace": (dpmpp_2m, SGM_NEAREST, "zero"),
    "dpmpp_2m_euler_final": (dpmpp_2m, SGM_NEAREST, "zero"),
    "dpmpp_2m_leading": (dpmpp_2m, leading_of_one_more, "zero"),
    "dpmpp_2m_karras": (dpmpp_2m, karras, "zero"),
    "dpmpp_2m_lu": (dpmpp_2m, exponential, "zero"),
}
SIGMA_SPACE: dict[str, tuple[SampleFunction, Spacing]] = {
    "euler_leading": (euler, leading),
    "euler_linspace": (euler, linspace),
    "euler_trailing": (euler, trailing),
    "euler_sdxl_base": (euler, leading),
    "euler_karras": (euler, outer_karras),
    "euler_exponential": (euler, exponential),
    "euler_ancestral_leading": (euler_a, leading),
    "euler_ancestral_linspace": (euler_a, linspace),
    "euler_ancestral_trailing": (euler_a, trailing),
    "heun": (heun, leading),
    "lms": (lms, leading),
}


def scheduler_case(case: str) -> tuple[dict[str, Tensor], Schedule, Prediction, bool]:
    """(arrays, schedule, prediction, whether the network hears whole timesteps) of a recorded scheduler."""
    config = meta(f"diffusers_schedulers/{case}")["config"]
    if config["beta_schedule"] == "squaredcos_cap_v2":
        schedule = Schedule(ScheduleConfig("cosine"))
    else:
        schedule = Schedule(ScheduleConfig("scaled_linear", config["beta_start"], config["beta_end"]))
    kinds: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
    prediction = kinds[config.get("prediction_type", "epsilon")]
    return golden(f"diffusers_schedulers/{case}"), schedule, prediction, case.startswith("dpmpp")


@pytest.mark.parametrize("case", VARIANCE_PRESERVING)
def test_diffusers_schedulers_of_unit_variance(case: str) -> None:
    sampler, spacing, ends_at = VARIANCE_PRESERVING[case]
    data, schedule, prediction, whole_t = scheduler_case(case)
    levels = sigmas(schedule, 10, spacing, ends_at)
    plain = formula_denoise(schedule, prediction, whole_t)
    clipped = meta(f"diffusers_schedulers/{case}")["config"].get("clip_sample", False)
    denoise: Denoise = (lambda x, s: plain(x, s).clamp(-1, 1)) if clipped else plain
    noise = Replay(data["noise"]) if "noise" in data else no_noise
    steps = walk(sampler(denoise, start(data["x_T"], levels), levels, noise))
    for step, x in zip(steps, data["trajectory"][1:], strict=True):
        close(finish(step.x, torch.tensor([step.sigma_next])), x, what=f"step {step.index}")
    close(finish(steps[-1].x, levels), data["out"])


@pytest.mark.parametrize("case", SIGMA_SPACE)
def test_diffusers_schedulers_in_sigma_space(case: str) -> None:
    sampler, spacing = SIGMA_SPACE[case]
    data, schedule, prediction, whole_t = scheduler_case(case)
    levels = sigmas(schedule, 10, spacing)
    x = data["x_T"] * data["init_noise_sigma_10"]
    if meta(f"diffusers_schedulers/{case}")["config"].get("timestep_spacing") == "leading":
        close(start(data["x_T"], levels), x)  # elsewhere diffusers leaves out the variance of the latent
    noise = Replay(data["noise"]) if "noise" in data else no_noise
    steps = walk(sampler(formula_denoise(schedule, prediction, whole_t), x.float(), levels, noise))
    recorded = data["trajectory"][1:]
    if case == "heun":  # recorded at every call of the network: two a step, one in the last
        recorded = torch.cat([recorded[1::2], recorded[-1:]])
    for step, expected in zip(steps, recorded, strict=True):
        close(step.x, expected, what=f"step {step.index}")
    close(steps[-1].x, data["out"])
