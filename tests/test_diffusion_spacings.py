"""Every spacing of the noise levels: against recorded tables, closed forms, and the definition of its origin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from diffusion_oracles import SD
from golden_cases import golden, meta, off
from safelight.diffusion import sigmas as room
from safelight.diffusion.beta import beta_below, beta_quantile
from safelight.diffusion.names import SPACING_NAMES
from safelight.diffusion.schedule import Schedule, ScheduleConfig
from safelight.diffusion.sigmas import ALIGNED, SPACINGS, Spacing, exponential, karras, leading, polyexponential, sigmas
from safelight.errors import RequestError
from safelight.presets import PRESETS

SCHEDULE = Schedule(SD)
TABLE = SCHEDULE.sigmas.numpy()
ALL_STEPS = (1, 2, 4, 8, 10, 20, 30, 50)


def timesteps(levels: Tensor, schedule: Schedule = SCHEDULE) -> Tensor:
    return torch.tensor([schedule.t(v) for v in levels.tolist()], dtype=torch.float64)


# The registry


def test_the_names_are_those_of_the_registry() -> None:
    assert list(SPACING_NAMES) == sorted(SPACINGS)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("ends_at", ["zero", "first"])
@pytest.mark.parametrize(
    "config",
    [SD, replace(SD, zero_snr=True), ScheduleConfig("linear", 0.0001, 0.02), ScheduleConfig("cosine")],
    ids=["sd", "zero_snr", "linear", "cosine"],
)
def test_every_spacing_descends_within_the_schedule(config: ScheduleConfig, spacing: str, ends_at: room.EndsAt) -> None:
    schedule, made = Schedule(config), 0
    for steps in (1, 2, 3, 7, 20, 33, 999, 1000, 1001):
        try:
            levels = sigmas(schedule, steps, spacing, ends_at)
        except RequestError as error:
            assert "\n" not in str(error) and "schedule" in str(error)
            assert "use fewer" in str(error) or spacing == "align_your_steps"
            continue
        made += 1
        assert levels.shape == (steps + 1,) and levels.dtype == torch.float32
        assert bool((levels[1:] < levels[:-1]).all())
        assert float(levels[0]) <= schedule.sigmas[-1].float() * (1 + 1e-6)
        assert float(levels[-2]) >= schedule.sigmas[0].float() * (1 - 1e-6)
        assert float(levels[-1]) == pytest.approx(0.0 if ends_at == "zero" else schedule.sigma_min, rel=1e-6)
    assert made >= (4 if spacing == "turbo" else 5) or (spacing == "align_your_steps" and config != SD and made == 0)


def test_wrong_spacings_and_steps_say_what_to_do() -> None:
    with pytest.raises(RequestError, match=r"unknown schedule 'karas'.*leading.*karras"):
        sigmas(SCHEDULE, 20, "karas")
    for steps in (0, -3):
        with pytest.raises(RequestError, match="steps must be at least 1"):
            sigmas(SCHEDULE, steps, "karras")
    for spacing in ("leading", "trailing", "simple", "linspace_whole"):
        with pytest.raises(RequestError, match=f"1001 steps are more than the {spacing} schedule"):
            sigmas(SCHEDULE, 1001, spacing)
    for spacing, most in (("turbo", 10), ("lcm", 50)):
        assert len(sigmas(SCHEDULE, most, spacing)) == most + 1
        with pytest.raises(RequestError, match=f"{most + 1} steps are more than the {spacing} schedule"):
            sigmas(SCHEDULE, most + 1, spacing)


# Recorded tables


def test_k_diffusion_spacings() -> None:
    data = golden("k_diffusion/sigma_schedules")
    low, high = 0.0292, 14.6146
    cases: dict[str, Spacing] = {
        "karras10": partial(karras, low=low, high=high),
        "karras10_rho3": partial(karras, rho=3.0, low=low, high=high),
        "exponential10": partial(exponential, low=low, high=high),
        "polyexponential10": partial(polyexponential, rho=1.5, low=low, high=high),
        "vp10": partial(room.vp, rise=19.9, first=0.1),
    }
    assert cases.keys() == data.keys()
    for name, spacing in cases.items():
        levels = sigmas(SCHEDULE, 10, spacing)
        print(f"k_diffusion/sigma_schedules {name}: {off(levels, data[name]):.1e}")
        # vp10 was recorded from exp(x) - 1 in float32, which loses three digits at its low end.
        torch.testing.assert_close(levels, data[name], rtol=1e-5, atol=5e-6 if name == "vp10" else 0)
    data = golden("k_diffusion/compvis_denoiser")
    for steps in (1, 10, 20):
        expected = data[f"get_sigmas_{steps}"]
        torch.testing.assert_close(sigmas(SCHEDULE, steps, "linspace"), expected, rtol=2e-5, atol=0)


def test_generative_models_spacing() -> None:
    data = golden("sgm/discretization")
    spacing = partial(room.sgm_uniform, rounding="down")
    for steps in (1, 2, 4, 7, 10, 20, 25, 30, 40, 50, 999):
        levels = sigmas(SCHEDULE, steps, spacing)
        torch.testing.assert_close(levels, data[f"legacy_{steps}"], rtol=2e-6, atol=0)
        assert timesteps(levels[:-1].flip(0)).round().tolist() == data[f"legacy_timesteps_{steps}"].tolist()
    for steps in (1, 2, 3, 4):
        expected = data[f"turbo_{steps}_step_sigmas"]
        torch.testing.assert_close(sigmas(SCHEDULE, steps, "turbo"), expected, rtol=2e-6, atol=0)
    edm = partial(karras, low=0.002, high=80.0)
    for steps in (1, 10, 40):
        torch.testing.assert_close(sigmas(SCHEDULE, steps, edm), data[f"edm_default_{steps}"], rtol=1e-5, atol=0)


TABLES: dict[str, tuple[str, room.EndsAt]] = {
    "ddim_ldm_0195": ("leading_0", "zero"),
    "ddim_set_alpha_to_one_offset0": ("leading_0", "zero"),
    "ddim_sd": ("leading", "first"),
    "ddim_sd_eta1": ("leading", "first"),
    "ddim_v_sd2": ("leading", "first"),
    "ddim_linspace": ("linspace_whole", "zero"),
    "ddpm_sd": ("leading_0", "zero"),
    "ddpm_v": ("leading_0", "zero"),
    "ddpm_fixed_large": ("leading_0", "zero"),
    "ddpm_squaredcos": ("leading_0", "zero"),
    "pndm_sd": ("leading", "first"),
    "lcm": ("lcm", "zero"),
    "tcd": ("lcm", "first"),
    "lms": ("leading", "zero"),
    "heun": ("leading", "zero"),
    "kdpm2": ("leading", "zero"),
    "euler_leading": ("leading", "zero"),
    "euler_churn": ("leading", "zero"),
    "euler_sdxl_base": ("leading", "zero"),
    "euler_trailing": ("trailing", "zero"),
    "euler_zero_snr": ("trailing", "zero"),
    "euler_linspace": ("linspace_straight", "zero"),
    "euler_exponential": ("exponential", "zero"),
    "euler_ancestral_leading": ("leading", "zero"),
    "euler_ancestral_trailing": ("trailing", "zero"),
    "euler_ancestral_linspace": ("linspace_straight", "zero"),
    "dpm_2m": ("sgm_uniform_whole", "first"),
    "dpmpp_2m_linspace": ("sgm_uniform_whole", "zero"),
    "dpmpp_2m_euler_final": ("sgm_uniform_whole", "zero"),
    "dpmpp_2m_heun": ("sgm_uniform_whole", "zero"),
    "dpmpp_2m_sde": ("sgm_uniform_whole", "zero"),
    "dpmpp_2m_thresholding": ("sgm_uniform_whole", "zero"),
    "dpmpp_2m_leading": ("leading_dpm", "zero"),
    "dpmpp_2m_karras": ("karras", "zero"),
    "dpmpp_2m_lu": ("exponential", "zero"),
    "dpmpp_2s": ("sgm_uniform_whole", "zero"),
    "dpmpp_2s_karras": ("karras", "zero"),
    "unipc_leading": ("leading_dpm", "zero"),
    "unipc_linspace": ("sgm_uniform_whole", "zero"),
    "unipc_trailing": ("trailing", "zero"),
    "unipc_bh1_order3": ("sgm_uniform_whole", "first"),
    "deis": ("sgm_uniform_whole", "first"),
}
"""Recorded tables of diffusers that a registered spacing makes. Two are left: euler_karras is karras over the levels
of another spacing (below), and pndm_prk takes Runge-Kutta steps between them."""


@pytest.mark.parametrize("case", TABLES)
def test_diffusers_tables(case: str) -> None:
    config, data = meta(f"diffusers_schedulers/{case}")["config"], golden(f"diffusers_schedulers/{case}")
    zero_snr = config.get("rescale_betas_zero_snr", False)
    if config["beta_schedule"] == "squaredcos_cap_v2":
        schedule = Schedule(ScheduleConfig("cosine"))
    else:
        betas = config["beta_start"], config["beta_end"]
        schedule = Schedule(ScheduleConfig("scaled_linear", *betas, zero_snr=zero_snr))
    spacing, ends_at = TABLES[case]
    worst, compared = 0.0, 0
    for steps in ALL_STEPS:
        if f"timesteps_{steps}" not in data:
            continue
        levels = sigmas(schedule, steps, spacing, ends_at)
        # One step of numpy's linspace is its start: diffusers' only step is at timestep 0. Nothing to match.
        if steps == 1 and float(data["timesteps_1"][0]) == 0 and float(levels[0]) > 1:
            continue
        compared += 1
        if f"sigmas_{steps}" in data:  # twice where a step asks twice
            expected = torch.unique_consecutive(data[f"sigmas_{steps}"])
            worst = max(worst, float(((levels - expected).abs() / expected.clamp(min=0.01)).max()))
        told = data[f"timesteps_{steps}"].double()
        if case in ("pndm_sd", "heun"):
            told = told.unique().flip(0)
        if case == "kdpm2":
            told = told[[0, *range(2, len(told), 2)]]
        # Some round what the network is told of a fractional timestep, or cut it off.
        slack = 0.51 if case.startswith("dpm") and spacing in ("karras", "exponential") else 0.02
        assert float((timesteps(levels[:-1], schedule) - told[:steps]).abs().max()) <= slack, f"{steps} steps"
    print(f"{case}: sigmas to {worst:.1e}")
    assert compared >= 4
    assert worst <= 1e-4


def test_a_karras_range_of_their_own() -> None:
    """diffusers' Euler spans karras over the levels of its spacing, not over the whole schedule."""
    data = golden("diffusers_schedulers/euler_karras")
    for steps in (2, 10, 50):
        outer = leading(SCHEDULE, steps)
        spacing = partial(karras, low=float(outer[-1]), high=float(outer[0]))
        torch.testing.assert_close(sigmas(SCHEDULE, steps, spacing), data[f"sigmas_{steps}"], rtol=5e-6, atol=0)


# What the originals do, said another way


def simple(steps: int) -> list[float]:
    """ComfyUI's, A1111's: counted from the end of the table."""
    return [float(TABLE[-(1 + int(k * (len(TABLE) / steps)))]) for k in range(steps)]


def beta_timesteps(steps: int) -> list[float]:
    """ComfyUI's."""
    t = np.rint(stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6) * 999)
    return [float(TABLE[int(v)]) for v in t]


def beta(steps: int) -> list[float]:
    """A1111's and diffusers'."""
    parts = stats.beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6)
    return [float(v) for v in TABLE[0] + parts * (TABLE[-1] - TABLE[0])]


def kl_optimal(steps: int) -> list[float]:
    """ComfyUI's; A1111 has one step more and none to zero."""
    low, high = math.atan(TABLE[0]), math.atan(TABLE[-1])
    return [math.tan(k / (steps - 1) * low + (1 - k / (steps - 1)) * high) for k in range(steps)]


def linear_quadratic(steps: int) -> list[float]:
    """The two pieces must meet in value and slope, and end at 1: three equations for c0 + c1 k + c2 k^2."""
    even = steps // 2
    rows = np.array([[1, even, even**2], [0, 1, 2 * even], [1, steps, steps**2]], dtype=float)
    c = np.linalg.solve(rows, np.array([0.025, 0.025 / even, 1.0]))
    passed = [0.025 * k / even if k < even else c[0] + c[1] * k + c[2] * k**2 for k in range(steps)]
    return [float(TABLE[-1]) * (1 - v) for v in passed]


def ddim_uniform(steps: int) -> list[float]:
    """ComfyUI's, where the table divides by the steps; elsewhere it makes more steps than were asked for."""
    levels = [float(v) for v in TABLE[1 :: len(TABLE) // steps]][::-1]
    assert len(levels) == steps
    return levels


def normal(steps: int) -> list[float]:
    """ComfyUI's, A1111's: log(sigma) linear between whole timesteps."""
    t = np.linspace(999, 0, steps)
    return [float(v) for v in np.exp(np.interp(t, np.arange(1000), np.log(TABLE)))]


def straight(steps: int) -> list[float]:
    return [float(v) for v in np.interp(np.linspace(999, 0, steps), np.arange(1000), TABLE)]


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("simple", simple),
        ("beta_timesteps", beta_timesteps),
        ("beta", beta),
        ("kl_optimal", kl_optimal),
        ("linear_quadratic", linear_quadratic),
        ("ddim_uniform", ddim_uniform),
        ("linspace", normal),
        ("linspace_straight", straight),
    ],
)
def test_a_spacing_is_what_its_origin_defines(name: str, definition: Callable[[int], list[float]]) -> None:
    for steps in (2, 4, 5, 10, 20, 25, 50):
        expected = torch.tensor([*definition(steps), 0.0], dtype=torch.float64)
        torch.testing.assert_close(sigmas(SCHEDULE, steps, name).double(), expected, rtol=3e-6, atol=1e-6)


def test_the_variance_preserving_sde_is_the_limit_of_linear_betas() -> None:
    """beta(t) = 0.1 + 19.9 t is what a thousand betas from 1e-4 to 0.02 add up to."""
    schedule = Schedule(ScheduleConfig("linear", 0.0001, 0.02))
    levels = room.vp(schedule, 11)
    assert float(levels[0]) == pytest.approx(schedule.sigma_max) and float(levels[-1]) == pytest.approx(
        schedule.sigma_min
    )
    t = torch.linspace(1000, 1, 11, dtype=torch.float64) - 1
    torch.testing.assert_close(timesteps(levels, schedule), t, rtol=0, atol=1.0)


@pytest.mark.parametrize(("name", "model"), [("sd1", "sd1"), ("sdxl", "sdxl"), ("sdxl", "sdxl-turbo"), ("sd1", "tiny")])
def test_align_your_steps_is_the_published_table_of_the_model(name: str, model: str) -> None:
    published = {
        "sd1": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
        "sdxl": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
    }
    schedule = Schedule(PRESETS[model].schedule)
    levels = sigmas(schedule, 10, "align_your_steps")
    table = torch.tensor(ALIGNED[schedule.config.aligned])
    torch.testing.assert_close(levels[:-1], table[:-1], rtol=1e-4, atol=0)
    # The authors give the levels, and timesteps for programs that know only those: they agree to the three digits.
    expected = torch.tensor(published[name], dtype=torch.float64)
    torch.testing.assert_close(timesteps(levels[:-1]), expected, rtol=0, atol=1.5)
    twenty = sigmas(schedule, 20, "align_your_steps")
    torch.testing.assert_close(twenty[:-1:2], levels[:-1], rtol=1e-6, atol=0)
    between = (levels[:-2] * levels[1:-1]).sqrt()
    torch.testing.assert_close(twenty[1:-2:2], between, rtol=1e-4, atol=0)
    assert float(sigmas(schedule, 10, "align_your_steps", "first")[-1]) == pytest.approx(0.029, abs=5e-4)


@pytest.mark.parametrize("config", [PRESETS["ldm-celeba"].schedule, replace(SD, zero_snr=True)], ids=str)
def test_align_your_steps_refuses_other_noise(config: ScheduleConfig) -> None:
    with pytest.raises(RequestError, match=r"the schedule align_your_steps was made for .* 14\.615; .* choose another"):
        sigmas(Schedule(config), 10, "align_your_steps")


# The quantiles


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 0.5), (0.1, 0.1), (1, 1), (0.3, 2), (5, 0.7), (30, 20)])
def test_quantiles_of_beta_are_scipys(a: float, b: float) -> None:
    p = [0.0, 1e-12, 1e-6, *np.linspace(0.001, 0.999, 101).tolist(), 1 - 1e-6, 1.0]
    ours = np.array([beta_quantile(v, a, b) for v in p])
    np.testing.assert_allclose(ours, stats.beta.ppf(p, a, b), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose([beta_below(v, a, b) for v in p], stats.beta.cdf(p, a, b), rtol=1e-11, atol=1e-13)


def test_quantiles_of_beta_have_closed_forms() -> None:
    for p in (0.01, 0.3, 0.5, 0.9):
        assert beta_quantile(p, 1, 1) == pytest.approx(p, abs=1e-14)
        assert beta_quantile(p, 0.5, 0.5) == pytest.approx(math.sin(math.pi * p / 2) ** 2, abs=1e-13)  # arcsine's law
        assert beta_quantile(p, 3, 1) == pytest.approx(p ** (1 / 3), abs=1e-14)
    for wrong in ((-0.1, 1, 1), (1.1, 1, 1), (0.5, 0, 1), (0.5, 1, -2), (float("nan"), 1, 1)):
        with pytest.raises(ValueError, match="quantile"):
            beta_quantile(*wrong)
