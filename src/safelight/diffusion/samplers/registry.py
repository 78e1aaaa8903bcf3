"""The samplers by name: what each is used with, what may be asked of it, and how its options are bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import cast

from safelight.diffusion.samplers import (
    distilled,
    dpmsolver,
    multistep,
    onestep,
    rungekutta,
    stochastic,
    unipc,
)
from safelight.diffusion.samplers.walk import Churn, SampleFunction, Step
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import EndsAt
from safelight.errors import RequestError


@dataclass(frozen=True)
class SamplerOptions:
    """What a user may set on a sampler; None leaves its default. All are numbers from 0 up.

    eta: how much noise is exchanged in every step. s_noise: multiplies all noise that is added. s_churn, s_tmin,
    s_tmax: noise added before steps, and the noise levels between which that is done (see `Churn`).
    """

    eta: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None


NOISE = ("s_noise",)
ANCESTRAL = ("eta", "s_noise")
CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")


def a_step_each(levels: Sequence[float]) -> int | None:
    """The count of most samplers: from each level to the next."""
    return len(levels) - 1


def _fast_count(levels: Sequence[float]) -> int | None:
    calls = len(levels) - 1
    return len(dpmsolver.fast_orders(calls)) if levels[-1] > 0 else len(dpmsolver.fast_orders(calls - 1)) + 1


def _restart_count(levels: Sequence[float]) -> int | None:
    return sum(last - first for first, last in rungekutta.restart_legs(levels))


def _unknown(levels: Sequence[float]) -> int | None:
    return None


@dataclass(frozen=True)
class Sampler:
    """A sampler by name, with what it is used with unless asked otherwise."""

    function: SampleFunction
    title: str
    """For people: the method, and where it comes from."""
    spacing: str = "leading"
    """A name in SPACINGS."""
    ends_at: EndsAt = "zero"
    """Where its sigmas end."""
    order: int | None = None
    """How its error falls with the number of steps (error ~ steps^-order), or better; None if it is stochastic,
    or chooses its own steps."""
    calls: int = 1
    """Network calls of a step that is not the first few and does not end at 0."""
    takes: tuple[str, ...] = ()
    """The fields of SamplerOptions that it has a use for."""
    eta_up_to: float = math.inf
    """The largest eta that means anything."""
    timesteps: bool = False
    """Whether it takes `schedule=`, to find noise levels by timestep."""
    count: Callable[[Sequence[float]], int | None] = a_step_each
    """How many `Step`s it yields for these levels; None if only the walk will show."""


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(onestep.ddpm, "DDPM ancestral sampling (Ho et al. 2020)"),
    "ddim": Sampler(onestep.ddim, "DDIM (Song et al. 2021)", ends_at="first", order=1, takes=ANCESTRAL),
    "plms": Sampler(multistep.plms, "PLMS (Liu et al. 2022)", ends_at="first", order=2),
    "pndm": Sampler(
        multistep.pndm, "PNDM with Runge-Kutta warm-up (Liu et al. 2022)", ends_at="first", order=2, timesteps=True
    ),
    "ipndm": Sampler(multistep.ipndm, "improved PNDM (Zhang & Chen 2022)", ends_at="first", order=2),
    "lms": Sampler(multistep.lms, "linear multistep (k-diffusion)", order=2),
    "deis": Sampler(multistep.deis, "DEIS (Zhang & Chen 2022)", spacing="sgm_uniform", order=2),
    "euler": Sampler(onestep.euler, "Euler (Karras et al. 2022)", order=1, takes=CHURN),
    "euler_a": Sampler(onestep.euler_a, "Euler ancestral (k-diffusion)", takes=ANCESTRAL),
    "heun": Sampler(rungekutta.heun, "Heun (Karras et al. 2022)", order=2, calls=2, takes=CHURN),
    "restart": Sampler(
        rungekutta.restart,
        "Restart (Xu et al. 2023)",
        spacing="karras",
        calls=2,
        takes=NOISE,
        count=_restart_count,
    ),
    "dpm_2": Sampler(
        rungekutta.dpm_2, "DPM-Solver-2 (Lu et al. 2022)", spacing="karras", order=2, calls=2, takes=CHURN
    ),
    "dpm_2_a": Sampler(
        rungekutta.dpm_2_a, "DPM-Solver-2 ancestral (k-diffusion)", spacing="karras", calls=2, takes=ANCESTRAL
    ),
    "dpm_2m": Sampler(multistep.dpm_2m, "DPM-Solver(2M) (Lu et al. 2022)", spacing="karras", order=2),
    "dpm_fast": Sampler(
        dpmsolver.dpm_fast,
        "DPM-Solver-fast (Lu et al. 2022)",
        spacing="karras",
        order=2,
        calls=3,
        takes=ANCESTRAL,
        count=_fast_count,
    ),
    "dpm_adaptive": Sampler(
        dpmsolver.dpm_adaptive, "DPM-Solver-23 (Lu et al. 2022)", spacing="karras", calls=3, count=_unknown
    ),
    "dpmpp_2s": Sampler(rungekutta.dpmpp_2s, "DPM-Solver++(2S) (Lu et al. 2022)", spacing="karras", order=2),
    "dpmpp_2s_a": Sampler(
        rungekutta.dpmpp_2s_a, "DPM-Solver++(2S) ancestral (k-diffusion)", spacing="karras", calls=2, takes=ANCESTRAL
    ),
    "dpmpp_2m": Sampler(multistep.dpmpp_2m, "DPM-Solver++(2M) (Lu et al. 2022)", spacing="karras", order=2),
    "dpmpp_sde": Sampler(
        stochastic.dpmpp_sde, "DPM-Solver++ SDE (k-diffusion)", spacing="karras", calls=2, takes=ANCESTRAL
    ),
    "dpmpp_2m_sde": Sampler(
        stochastic.dpmpp_2m_sde, "DPM-Solver++(2M) SDE (Lu et al. 2022)", spacing="exponential", takes=ANCESTRAL
    ),
    "dpmpp_2m_sde_heun": Sampler(
        partial(stochastic.dpmpp_2m_sde, kind="heun"),
        "DPM-Solver++(2M) SDE, Heun's kind (k-diffusion)",
        spacing="exponential",
        takes=ANCESTRAL,
    ),
    "dpmpp_3m_sde": Sampler(
        stochastic.dpmpp_3m_sde, "DPM-Solver++(3M) SDE (k-diffusion)", spacing="exponential", takes=ANCESTRAL
    ),
    "er_sde": Sampler(stochastic.er_sde, "ER-SDE-Solver-3 (Cui et al. 2023)", spacing="sgm_uniform", takes=NOISE),
    "unipc": Sampler(unipc.unipc, "UniPC (Zhao et al. 2023)", spacing="sgm_uniform", order=3),
    "lcm": Sampler(distilled.lcm, "latent consistency (Luo et al. 2023)", spacing="lcm", takes=NOISE),
    "tcd": Sampler(
        distilled.tcd,
        "trajectory consistency (Zheng et al. 2024)",
        spacing="lcm",
        ends_at="first",
        takes=ANCESTRAL,
        eta_up_to=1.0,
        timesteps=True,
    ),
}


def bind(name: str, options: SamplerOptions | None = None, schedule: Schedule | None = None) -> SampleFunction:
    """The sampler of that name with these options; schedule, where given, tells timesteps to those that count in them.

    Raises RequestError, naming the field: an unknown sampler, an option that it has no use for or whose value is
    out of range.
    """
    if name not in SAMPLERS:
        raise RequestError(f"there is no sampler {name!r}: the samplers are {', '.join(sorted(SAMPLERS))}")
    entry = SAMPLERS[name]
    given = _given(SamplerOptions() if options is None else options)
    for field, value in given.items():
        if field not in entry.takes:
            others = ", ".join(sorted(n for n, sampler in SAMPLERS.items() if field in sampler.takes))
            raise RequestError(f"{field}: the sampler {name} has no use for it; leave it out, or use one of {others}")
        most = entry.eta_up_to if field == "eta" else math.inf
        if not 0 <= value <= most or (math.isinf(value) and field != "s_tmax"):
            limit = "at least 0" if math.isinf(most) else f"from 0 to {most:g}"
            raise RequestError(f"{field} must be a number {limit} for the sampler {name}, not {value:g}")
    bound: dict[str, object] = {}
    if "s_churn" in entry.takes and given:
        bound["churn"] = _churn(given)
    elif given:
        bound |= given
    if entry.timesteps and schedule is not None:
        bound["schedule"] = schedule
    if not bound:
        return entry.function
    return partial(cast(Callable[..., Iterator[Step]], entry.function), **bound)


def _given(options: SamplerOptions) -> dict[str, float]:
    """The options that are not left open."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: float(value) for name, value in values.items() if value is not None}


def _churn(given: dict[str, float]) -> Churn:
    churn = Churn(
        given.get("s_churn", 0.0), given.get("s_tmin", 0.0), given.get("s_tmax", math.inf), given.get("s_noise", 1.0)
    )
    if churn.low > churn.high:
        raise RequestError(f"s_tmin must not be above s_tmax, but is {churn.low:g} with s_tmax {churn.high:g}")
    return churn
