"""Whole walks against recorded ones of diffusers' schedulers, every case of `golden/diffusers_schedulers`.

Tolerances are 1e-5 of the size of the latent, unless said.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_oracles import SD, Replay, close, formula_denoise, no_noise, scheduler_network, walk
from golden_cases import GOLDEN, golden, meta
from safelight.diffusion import sigmas as room
from safelight.diffusion.denoiser import Denoise, Prediction
from safelight.diffusion.samplers import (
    Churn,
    SampleFunction,
    ddim,
    ddpm,
    deis,
    dpm_2,
    dpm_2m,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    euler,
    euler_a,
    finish,
    heun,
    lcm,
    lms,
    plms,
    pndm,
    start,
    tcd,
    unipc,
)
from safelight.diffusion.schedule import Schedule, ScheduleConfig
from safelight.diffusion.sigmas import Spacing, exponential, karras, leading, linspace, sigmas, trailing


def outer_karras(schedule: Schedule, steps: int) -> Tensor:
    """karras over the levels of the leading spacing, as diffusers' Euler has it."""
    ends = leading(schedule, steps)
    return karras(schedule, steps, low=float(ends[-1]), high=float(ends[0]))


def leading_of_one_more(schedule: Schedule, steps: int) -> Tensor:
    """diffusers' DPM-Solver++ spaces one timestep more than it needs, and leaves the lowest out."""
    return leading(schedule, steps + 1)[:-1]


SGM_NEAREST = partial(room.sgm_uniform, rounding="nearest")
LEADING_0 = partial(leading, offset=0)
VARIANCE_PRESERVING: dict[str, tuple[SampleFunction, Spacing, room.EndsAt]] = {
    "ddim_sd": (ddim, leading, "first"),
    "ddim_sd_eta1": (partial(ddim, eta=1.0), leading, "first"),
    "ddim_v_sd2": (ddim, leading, "first"),
    "ddim_ldm_0195": (ddim, LEADING_0, "zero"),
    "ddim_set_alpha_to_one_offset0": (ddim, LEADING_0, "zero"),
    "ddpm_sd": (ddpm, LEADING_0, "zero"),
    "ddpm_v": (ddpm, LEADING_0, "zero"),
    "ddpm_squaredcos": (ddpm, LEADING_0, "zero"),
    "ddpm_fixed_large": (partial(ddpm, variance="large"), LEADING_0, "zero"),
    "dpmpp_2m_linspace": (dpmpp_2m, SGM_NEAREST, "zero"),
    "dpmpp_2m_euler_final": (dpmpp_2m, SGM_NEAREST, "zero"),
    "dpmpp_2m_leading": (dpmpp_2m, leading_of_one_more, "zero"),
    "dpmpp_2m_karras": (dpmpp_2m, karras, "zero"),
    "dpmpp_2m_lu": (dpmpp_2m, exponential, "zero"),
    "dpmpp_2m_heun": (partial(dpmpp_2m, kind="heun"), SGM_NEAREST, "zero"),
    "dpmpp_2m_thresholding": (dpmpp_2m, SGM_NEAREST, "zero"),
    "dpmpp_2m_sde": (dpmpp_2m_sde, SGM_NEAREST, "zero"),
    "dpm_2m": (partial(dpm_2m, lower_order_final=True), SGM_NEAREST, "first"),
    "dpmpp_2s": (dpmpp_2s, SGM_NEAREST, "zero"),
    "dpmpp_2s_karras": (dpmpp_2s, karras, "zero"),
    "deis": (partial(deis, order=2, lower_order_final=True), SGM_NEAREST, "first"),
    "unipc_linspace": (unipc, SGM_NEAREST, "zero"),
    "unipc_leading": (unipc, leading_of_one_more, "zero"),
    "unipc_trailing": (unipc, trailing, "zero"),
    "unipc_bh1_order3": (partial(unipc, order=3, variant="bh1", lower_order_final=True), SGM_NEAREST, "first"),
    "pndm_sd": (plms, leading, "first"),
    "pndm_prk": (partial(pndm, schedule=Schedule(SD)), LEADING_0, "first"),
    "lcm": (lcm, room.lcm, "zero"),
    "tcd": (tcd, room.lcm, "first"),
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
    "kdpm2": (dpm_2, leading),
}
BY_HAND = {"ddim_linspace", "euler_churn", "euler_zero_snr"}


def test_every_recorded_case_is_walked() -> None:
    recorded = {path.name for path in (GOLDEN / "diffusers_schedulers").iterdir()}
    assert recorded == {*VARIANCE_PRESERVING, *SIGMA_SPACE, *BY_HAND}


def scheduler_case(case: str) -> tuple[dict[str, Tensor], Schedule, Prediction]:
    """(arrays, schedule, prediction) of a recorded scheduler."""
    config = meta(f"diffusers_schedulers/{case}")["config"]
    if config["beta_schedule"] == "squaredcos_cap_v2":
        schedule = Schedule(ScheduleConfig("cosine"))
    else:
        schedule = Schedule(ScheduleConfig("scaled_linear", config["beta_start"], config["beta_end"]))
    kinds: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
    prediction = kinds[config.get("prediction_type", "epsilon")]
    return golden(f"diffusers_schedulers/{case}"), schedule, prediction


def thresholded(denoise: Denoise) -> Denoise:
    """Dynamic thresholding as diffusers configures it (Saharia et al. 2022, section 2.3): 99.5 %, never above 1."""

    def within(x: Tensor, sigma: Tensor) -> Tensor:
        clean = denoise(x, sigma)
        bound = torch.quantile(clean.abs().flatten(1), 0.995, dim=1).clamp(min=1.0, max=1.0).view(-1, 1, 1, 1)
        return clean.clamp(-bound, bound) / bound

    return within


def after_steps(case: str, trajectory: Tensor) -> Tensor:
    """The recorded x after each step of ours; theirs is recorded at every call of the network."""
    if case in ("heun", "kdpm2"):  # two a step, one in the last
        return torch.cat([trajectory[2::2], trajectory[-1:]])
    if case == "pndm_sd":  # two in the first step
        return trajectory[2:]
    if case == "pndm_prk":  # four in three steps; at the end one that does not move
        assert torch.equal(trajectory[-1], trajectory[-2])
        return torch.cat([trajectory[4:12:4], trajectory[12:-1]])
    return trajectory[1:]


@pytest.mark.parametrize("case", VARIANCE_PRESERVING)
def test_diffusers_schedulers_of_unit_variance(case: str) -> None:
    sampler, spacing, ends_at = VARIANCE_PRESERVING[case]
    data, schedule, prediction = scheduler_case(case)
    levels = sigmas(schedule, 9 if case == "pndm_prk" else 10, spacing, ends_at)
    plain, config = formula_denoise(schedule, prediction, whole_t=True), meta(f"diffusers_schedulers/{case}")["config"]
    denoise: Denoise = (lambda x, s: plain(x, s).clamp(-1, 1)) if config.get("clip_sample") else plain
    denoise = thresholded(plain) if config.get("thresholding") else denoise
    noise = Replay(data["noise"]) if "noise" in data else no_noise
    steps = walk(sampler(denoise, start(data["x_T"], levels), levels, noise))
    for step, x in zip(steps, after_steps(case, data["trajectory"]), strict=True):
        close(finish(step.x, torch.tensor([step.sigma_next])), x, what=f"step {step.index}")
    close(finish(steps[-1].x, levels), data["out"])


@pytest.mark.parametrize("case", SIGMA_SPACE)
def test_diffusers_schedulers_in_sigma_space(case: str) -> None:
    sampler, spacing = SIGMA_SPACE[case]
    data, schedule, prediction = scheduler_case(case)
    levels = sigmas(schedule, 10, spacing)
    x = data["x_T"] * data["init_noise_sigma_10"]
    if meta(f"diffusers_schedulers/{case}")["config"].get("timestep_spacing") == "leading":
        close(start(data["x_T"], levels), x)  # elsewhere diffusers leaves out the variance of the latent
    noise = Replay(data["noise"]) if "noise" in data else no_noise
    steps = walk(sampler(formula_denoise(schedule, prediction), x.float(), levels, noise))
    for step, expected in zip(steps, after_steps(case, data["trajectory"]), strict=True):
        close(step.x, expected, what=f"step {step.index}")
    close(steps[-1].x, data["out"])


def test_diffusers_ddim_whose_levels_do_not_meet() -> None:
    """With linspace its steps go to t - 100, whatever the next t is: ours, a step at a time, with the gaps."""
    data, schedule, _ = scheduler_case("ddim_linspace")
    denoise, x = formula_denoise(schedule, whole_t=True), data["x_T"]
    for t, expected in zip(data["timesteps_10"].tolist(), data["trajectory"][1:], strict=True):
        levels = torch.tensor([schedule.sigma(float(t)), schedule.sigma(float(max(t - 100, 0)))])
        if t == 0:  # both ends of the last step are at timestep 0: it stands still
            close(x, expected, what="the last step")
            break
        (step,) = ddim(denoise, start(x, levels), levels, no_noise)
        x = finish(step.x, levels)
        close(x, expected, what=f"from {t}")


def test_diffusers_churn_whose_network_is_asked_before_the_noise() -> None:
    """Ours adds the noise and asks then (Karras et al. 2022, algorithm 2); theirs uses the answer of before."""
    data, schedule, _ = scheduler_case("euler_churn")
    levels = sigmas(schedule, 10, leading)
    about = meta("diffusers_schedulers/euler_churn")["step_kwargs"]
    churn, noise = Churn(amount=about["s_churn"], s_noise=about["s_noise"]), Replay(data["noise"])
    plain = formula_denoise(schedule)

    def answer_of_before(x: Tensor, raised: Tensor) -> Tensor:
        s = raised / (1 + churn.amount / 10)
        calm = x - noise.draws[noise.used - 1] * (churn.s_noise * (raised**2 - s**2).sqrt())
        eps = (calm - plain(calm, s)) / s
        return x - raised * eps

    x = (data["x_T"] * data["init_noise_sigma_10"]).float()
    for step, expected in zip(
        walk(euler(answer_of_before, x, levels, noise, churn=churn)), data["trajectory"][1:], strict=True
    ):
        close(step.x, expected, what=f"step {step.index}")


def test_diffusers_zero_terminal_snr() -> None:
    """A schedule that ends at sigma 4096, which stands for infinity; the network answers with v."""
    data = golden("diffusers_schedulers/euler_zero_snr")
    levels, timesteps = data["sigmas_10"], data["timesteps_10"]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        (k,) = (levels == sigma).nonzero()
        variance = 1 + sigma**2
        v = scheduler_network(x / variance.sqrt(), timesteps[k].float().expand(len(x)), None)
        return x / variance - v * sigma / variance.sqrt()

    x = (data["x_T"] * data["init_noise_sigma_10"]).float()
    steps = walk(euler(denoise, x, levels, no_noise))
    for step, expected in zip(steps, data["trajectory"][1:], strict=True):
        # x begins at a size of 1e4, where the last digit of a float32 is 1e-3.
        close(step.x, expected, 1e-4, what=f"step {step.index}")
