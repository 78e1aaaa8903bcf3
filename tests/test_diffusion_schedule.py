"""Schedules and sigmas against the tables of the original code."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_oracles import (
    SD,
    close,
)
from golden_cases import golden, meta
from safelight.diffusion import sigmas as room
from safelight.diffusion.schedule import Schedule, ScheduleConfig
from safelight.diffusion.sigmas import SPACINGS, Spacing, exponential, karras, leading, linspace, sigmas, tail
from safelight.errors import RequestError

SCHEDULE = Schedule(SD)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sd", SD),
        ("ldm_0195", ScheduleConfig("scaled_linear", 0.0015, 0.0195)),
        ("ldm_0205", ScheduleConfig("scaled_linear", 0.0015, 0.0205)),
        ("ldm_0155", ScheduleConfig("scaled_linear", 0.0015, 0.0155)),
        ("rdm_015", ScheduleConfig("scaled_linear", 0.0015, 0.015)),
        ("upscaler_0.0001_0.02", ScheduleConfig("scaled_linear", 0.0001, 0.02)),
        ("sqrt_linear", ScheduleConfig("linear", 0.0001, 0.02)),
        ("cosine", ScheduleConfig("cosine")),
        ("squaredcos_cap_v2", ScheduleConfig("cosine")),
    ],
)
def test_betas_are_those_of_the_original_code(name: str, config: ScheduleConfig) -> None:
    tables, schedule = golden("schedules/betas"), Schedule(config)
    # squaredcos_cap_v2 was recorded from float32 tables, whatever its name says.
    tolerance = 1e-6 if name == "squaredcos_cap_v2" else 1e-12
    torch.testing.assert_close(schedule.betas, tables[f"{name}.betas_f64"], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        schedule.alphas_cumprod, tables[f"{name}.alphas_cumprod_f64"], rtol=tolerance, atol=tolerance
    )


def test_sigma_and_t_are_those_of_k_diffusion() -> None:
    data = golden("k_diffusion/compvis_denoiser")
    torch.testing.assert_close(SCHEDULE.sigmas.float(), data["sigmas"], rtol=2e-6, atol=5e-7)
    torch.testing.assert_close(SCHEDULE.sigma(data["probe_t"]), data["t_to_sigma"], rtol=2e-6, atol=5e-7)
    # Over there sigma is interpolated in float32: half a millionth in log(sigma) is 1e-4 of a timestep.
    expected = data["sigma_to_t_quantize_False"]
    torch.testing.assert_close(SCHEDULE.t(data["probe_sigma"]), expected, rtol=0, atol=2e-4)
    assert torch.equal(SCHEDULE.t(data["probe_sigma"]).round(), data["sigma_to_t_quantize_True"])


def test_sigma_and_t_are_inverse_for_numbers_and_tensors() -> None:
    t = torch.cat([torch.linspace(0, 999, 777, dtype=torch.float64), torch.arange(1000.0)])
    torch.testing.assert_close(SCHEDULE.t(SCHEDULE.sigma(t)).double(), t, rtol=1e-6, atol=1e-5)
    for number in (0.0, 0.25, 1.0, 500.5, 998.9, 999.0):
        assert SCHEDULE.t(SCHEDULE.sigma(number)) == pytest.approx(number, rel=1e-9, abs=1e-9)
        one = torch.tensor(number)
        assert float(SCHEDULE.sigma(one)) == pytest.approx(SCHEDULE.sigma(float(one)), rel=1e-6)
    assert SCHEDULE.sigma(torch.tensor([[3, 7]])).shape == (1, 2)  # whole timesteps of any shape
    assert torch.equal(SCHEDULE.sigma(torch.arange(1000)), SCHEDULE.sigmas.float())


def test_beyond_the_ends() -> None:
    assert SCHEDULE.t(0.0) == 0 and SCHEDULE.t(1e9) == 999
    assert SCHEDULE.t(torch.tensor([0.0, 1e9])).tolist() == [0, 999]
    for wrong in (-1.0, 999.5, float("nan")):
        with pytest.raises(ValueError, match="outside"):
            SCHEDULE.sigma(wrong)
        with pytest.raises(ValueError, match="outside"):
            SCHEDULE.sigma(torch.tensor([1.0, wrong]))


@pytest.mark.parametrize(
    "wrong", [{"steps": 1}, {"start": 0.02}, {"start": 0.0}, {"end": 1.5}, {"start": float("nan")}]
)
def test_a_schedule_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"steps|betas"):
        ScheduleConfig(**wrong)  # type: ignore[arg-type]  # steps is whole in each case


def timesteps(levels: Tensor) -> list[int]:
    return [round(SCHEDULE.t(v)) for v in levels.tolist()]


def test_ddim_timesteps() -> None:
    data = golden("schedules/ddim")
    for name, expected in data.items():
        kind, _, rest = name.partition("_")
        # The original code makes 31 steps where 30 are asked for; we, like diffusers, make 30. See below.
        if "." in name or len(expected) != int(rest):
            continue
        spacing = room.quadratic if kind == "quad" else leading
        assert timesteps(spacing(SCHEDULE, int(rest)).flip(0)) == expected.tolist(), name
    assert timesteps(leading(SCHEDULE, 30).flip(0)) == data["uniform_30"].tolist()[:30]


def test_ddim_levels_with_their_end() -> None:
    data = golden("schedules/ddim")
    for steps in (10, 50):
        levels = sigmas(SCHEDULE, steps, "leading", ends_at="first").double()
        abar = (1 / (1 + levels**2)).flip(0)
        close(abar[1:], data[f"uniform_{steps}.alphas"], 1e-6)
        close(abar[:-1], data[f"uniform_{steps}.alphas_prev"], 1e-6)


def test_k_diffusion_spacings() -> None:
    data = golden("k_diffusion/sigma_schedules")
    low, high = 0.0292, 14.6146
    cases: dict[str, Spacing] = {
        "karras10": partial(karras, low=low, high=high),
        "karras10_rho3": partial(karras, rho=3.0, low=low, high=high),
        "exponential10": partial(exponential, low=low, high=high),
    }
    for name, spacing in cases.items():
        torch.testing.assert_close(sigmas(SCHEDULE, 10, spacing), data[name], rtol=3e-6, atol=0)
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
        assert timesteps(levels[:-1].flip(0)) == data[f"legacy_timesteps_{steps}"].tolist()


@pytest.mark.parametrize(
    ("case", "spacing", "exactly"),
    [
        ("ddim_ldm_0195", partial(leading, offset=0), True),
        ("ddim_sd", leading, True),
        ("ddim_set_alpha_to_one_offset0", partial(leading, offset=0), True),
        ("ddim_linspace", partial(linspace, rounding="nearest"), True),
        ("ddpm_sd", partial(leading, offset=0), True),
        ("euler_leading", leading, True),
        ("lms", leading, True),
        ("euler_ancestral_leading", leading, True),
        ("euler_trailing", room.trailing, True),
        ("euler_ancestral_trailing", room.trailing, True),
        # Between whole timesteps diffusers' Euler has sigma linear, we (like k-diffusion) log(sigma).
        ("euler_linspace", linspace, False),
        ("euler_ancestral_linspace", linspace, False),
        ("dpmpp_2m_linspace", partial(room.sgm_uniform, rounding="nearest"), True),
        ("dpmpp_2m_karras", karras, True),
        ("dpmpp_2m_lu", exponential, True),
        ("euler_exponential", exponential, True),
    ],
)
def test_diffusers_spacings(case: str, spacing: Spacing, exactly: bool) -> None:
    config, data = meta(f"diffusers_schedulers/{case}")["config"], golden(f"diffusers_schedulers/{case}")
    schedule = Schedule(ScheduleConfig("scaled_linear", config["beta_start"], config["beta_end"]))
    # One step of numpy's linspace is its start: diffusers' only step is at timestep 0. Nothing to match.
    begins_low = "timesteps_1" in data and int(data["timesteps_1"]) == 0 and float(spacing(schedule, 1)) > 1
    for steps in (2, 4, 10, 20, 30, 50) if begins_low else (1, 2, 4, 10, 20, 30, 50):
        levels = spacing(schedule, steps).float()
        if f"sigmas_{steps}" in data:
            expected = data[f"sigmas_{steps}"][:steps]
            torch.testing.assert_close(levels, expected, rtol=1e-5 if exactly else 5e-4, atol=1e-6)
        expected_t = data[f"timesteps_{steps}"].double()
        t = torch.tensor([schedule.t(v) for v in levels.tolist()], dtype=torch.float64)
        slack = 0.51 if spacing in (karras, exponential) and case.startswith("dpm") else 0.02
        assert float((t - expected_t).abs().max()) <= slack, f"{steps} steps: {t} instead of {expected_t}"


def test_a_karras_range_of_their_own() -> None:
    """diffusers' Euler spans karras over the levels of its spacing, not over the whole schedule."""
    data = golden("diffusers_schedulers/euler_karras")
    for steps in (2, 10, 50):
        outer = leading(SCHEDULE, steps)
        spacing = partial(karras, low=float(outer[-1]), high=float(outer[0]))
        torch.testing.assert_close(sigmas(SCHEDULE, steps, spacing), data[f"sigmas_{steps}"], rtol=5e-6, atol=0)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("ends_at", ["zero", "first"])
def test_every_spacing_descends_within_the_schedule(spacing: str, ends_at: room.EndsAt) -> None:
    made = 0
    for steps in (1, 2, 3, 7, 20, 33, 999, 1000, 1001):
        try:
            levels = sigmas(SCHEDULE, steps, spacing, ends_at)
        except RequestError as error:
            assert "use fewer" in str(error)
            continue
        made += 1
        assert levels.shape == (steps + 1,) and levels.dtype == torch.float32
        assert bool((levels[1:] < levels[:-1]).all())
        assert float(levels[0]) <= SCHEDULE.sigmas[-1].float() * (1 + 1e-6)
        assert float(levels[-1]) == (0.0 if ends_at == "zero" else SCHEDULE.sigmas[0].float())
    assert made >= 5


def test_wrong_spacings_and_steps_say_what_to_do() -> None:
    with pytest.raises(RequestError, match=r"unknown schedule 'karas'.*leading.*karras"):
        sigmas(SCHEDULE, 20, "karas")
    for steps in (0, -3):
        with pytest.raises(RequestError, match="at least 1"):
            sigmas(SCHEDULE, steps, "karras")
    for spacing in ("leading", "trailing"):
        with pytest.raises(RequestError, match="1001 steps are more"):
            sigmas(SCHEDULE, 1001, spacing)


def test_tail_is_diffusers_rule() -> None:
    levels = sigmas(SCHEDULE, 50, "leading")
    for strength in (0.02, 0.1, 0.3, 0.58, 0.75, 0.999, 1.0):
        kept = tail(levels, strength)
        assert len(kept) - 1 == min(int(50 * strength), 50)
        assert torch.equal(kept, levels[len(levels) - len(kept) :])
    for wrong in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(RequestError, match="strength"):
            tail(levels, wrong)
    with pytest.raises(RequestError, match="less than one step"):
        tail(levels, 0.01)
