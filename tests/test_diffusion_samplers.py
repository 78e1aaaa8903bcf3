"""The registry of samplers: what may be asked of each, and what is said to what may not."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from diffusion_oracles import SD, walk
from mixture import mixture_mean
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import SAMPLERS, SampleFunction, SamplerOptions, bind
from safelight.diffusion.schedule import Schedule, ScheduleConfig
from safelight.diffusion.sigmas import SPACINGS, sigmas
from safelight.errors import RequestError

OPTIONS = [field.name for field in fields(SamplerOptions)]
SCHEDULE = Schedule(SD)
CHURNING = SamplerOptions(s_churn=4.0)
VALUES = {"eta": 0.6, "s_churn": 3.0, "s_tmin": 1.0, "s_tmax": 1.0, "s_noise": 0.9}


def picture(name: str, sampler: SampleFunction) -> Tensor:
    entry = SAMPLERS[name]
    levels = sigmas(SCHEDULE, 8, entry.spacing, entry.ends_at)
    noise = Noise([1], (4, 4, 4))
    return walk(sampler(mixture_mean, noise() * levels[0], levels, noise))[-1].x


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_entry_says_what_is_so(name: str) -> None:
    entry = SAMPLERS[name]
    assert entry.spacing in SPACINGS and set(entry.takes) <= set(OPTIONS)
    assert [other for other, sampler in SAMPLERS.items() if sampler.title == entry.title] == [name]


@pytest.mark.parametrize("name", SAMPLERS)
def test_without_options_a_sampler_is_itself(name: str) -> None:
    assert bind(name) is bind(name, SamplerOptions()) is SAMPLERS[name].function
    assert (bind(name, schedule=SCHEDULE) is SAMPLERS[name].function) == (not SAMPLERS[name].timesteps)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_option_does_something_or_is_refused(name: str, option: str) -> None:
    entry = SAMPLERS[name]
    if option not in entry.takes:
        with pytest.raises(RequestError, match=f"^{option}: the sampler {name} has no use for it") as caught:
            bind(name, SamplerOptions(**{option: VALUES[option]}))
        others = str(caught.value).split("use one of ")[1].split(", ")
        assert others == sorted(n for n, sampler in SAMPLERS.items() if option in sampler.takes)
        return
    base = SamplerOptions()
    if "s_churn" in entry.takes:
        base = CHURNING
    elif "eta" in entry.takes and option != "eta":
        base = SamplerOptions(eta=0.8)
    changed = picture(name, bind(name, replace(base, **{option: VALUES[option]})))
    assert not torch.equal(changed, picture(name, bind(name, base)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("eulr", SamplerOptions(), "there is no sampler 'eulr': the samplers are ddim, ddpm, "),
        ("euler_a", SamplerOptions(eta=-0.1), "eta must be a number at least 0 for the sampler euler_a, not -0.1"),
        ("ddim", SamplerOptions(eta=math.nan), "eta must be a number at least 0"),
        ("ddim", SamplerOptions(s_noise=math.inf), "s_noise must be a number at least 0"),
        ("tcd", SamplerOptions(eta=1.5), "eta must be a number from 0 to 1 for the sampler tcd, not 1.5"),
        ("heun", SamplerOptions(s_tmin=3.0, s_tmax=2.0), "s_tmin must not be above s_tmax, but is 3 with s_tmax 2"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(name: str, options: SamplerOptions, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        bind(name, options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_zero_is_a_value() -> None:
    assert not torch.equal(
        picture("euler_a", bind("euler_a", SamplerOptions(eta=0.0))), picture("euler_a", bind("euler_a"))
    )
    calm = picture("euler", bind("euler", SamplerOptions(s_churn=4.0, s_tmax=0.0)))
    assert torch.equal(calm, picture("euler", bind("euler")))
    assert not torch.equal(picture("euler", bind("euler", CHURNING)), calm)


@pytest.mark.parametrize("name", ["pndm", "tcd"])
def test_a_schedule_tells_the_timesteps(name: str) -> None:
    other = Schedule(ScheduleConfig("linear", 1e-4, 0.02))
    assert not torch.equal(picture(name, bind(name, schedule=other)), picture(name, bind(name, schedule=SCHEDULE)))
    assert torch.equal(picture(name, bind(name, schedule=SCHEDULE)), picture(name, bind(name))) == (name == "tcd")
