"""The only author of sigmas: which noise levels a sampler visits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from safelight.diffusion.beta import beta_quantile
from safelight.diffusion.schedule import Aligned, Schedule
from safelight.errors import RequestError

EndsAt = Literal["zero", "first"]
Spacing = Callable[[Schedule, int], Tensor]
"""(schedule, steps) -> sigmas (steps,) float64, descending, without the end. Write
`functools.partial(karras, rho=3.0)` for other parameters than a spacing's defaults."""


def sigmas(schedule: Schedule, steps: int, spacing: str | Spacing, ends_at: EndsAt = "zero") -> Tensor:
    """The noise levels of a sampling run: (steps + 1,) float32 on the CPU, strictly descending.

    spacing: a name in SPACINGS, or a function. ends_at: the last level is 0 ("zero"), or that of timestep 0
    ("first": the original DDIM; in diffusers set_alpha_to_one=False), also if the spacing itself goes there.
    Raises RequestError: unknown spacing, steps below 1, or more steps than there are distinct levels.
    """
    if steps < 1:
        raise RequestError(f"steps must be at least 1, not {steps}")
    if isinstance(spacing, str):
        if spacing not in SPACINGS:
            raise RequestError(f"unknown schedule {spacing!r}: choose one of {', '.join(SPACINGS)}")
        name, function = spacing, SPACINGS[spacing]
    else:
        name, function = "given", spacing
    inner = function(schedule, steps)
    end = torch.zeros(1, dtype=torch.float64) if ends_at == "zero" else schedule.sigmas[:1]
    if ends_at == "first" and math.isclose(float(inner[-1]), float(end), rel_tol=1e-6):
        # This spacing goes to timestep 0 by itself: its last level is the end, and no step stands still.
        inner, end = function(schedule, steps + 1), end[:0]
    levels = torch.cat([inner, end]).float()
    if not bool((levels[1:] < levels[:-1]).all()):
        raise RequestError(
            f"{steps} steps are more than the {name} schedule, ending at {ends_at}, has levels for: use fewer"
        )
    return levels


def tail(levels: Tensor, strength: float) -> Tensor:
    """The last part of `levels` that a picture is redrawn with at a strength in (0, 1]; 1.0 is all of it.

    Of n steps the last int(n * strength) remain (rounded down, as in diffusers), at least one.
    Raises RequestError when the strength is out of range or leaves no step.
    """
    steps = len(levels) - 1
    if not 0 < strength <= 1:
        raise RequestError(f"strength must be above 0 and at most 1, not {strength}")
    kept = min(int(steps * strength), steps)
    if kept == 0:
        raise RequestError(f"strength {strength} of {steps} steps is less than one step: raise either")
    return levels[steps - kept :]


Rounding = Literal["exact", "straight", "nearest", "down"]
"""What becomes of fractional timesteps: kept as they are, log(sigma) or (straight) sigma linear between whole ones;
or made whole."""


def _at(schedule: Schedule, t: Tensor, rounding: Rounding = "exact") -> Tensor:
    """float64 sigmas at timesteps t. `Schedule.sigma` answers in float32, one cast too early for here."""
    if rounding == "straight":
        lows = t.floor().long().clamp(max=schedule.steps - 2)
        return torch.lerp(schedule.sigmas[lows], schedule.sigmas[lows + 1], t.double() - lows)
    if rounding != "exact":
        t = t.round() if rounding == "nearest" else t.floor()
    return torch.tensor([schedule.sigma(v) for v in t.tolist()], dtype=torch.float64)


# Over the timesteps


def leading(schedule: Schedule, steps: int, offset: int = 1, spare: int = 0) -> Tensor:
    """Timesteps offset + k * (T // steps) (DDIM, Song et al. 2021, appendix D.2; latent diffusion adds 1).

    The highest may stay far below T - 1, but never passes it. spare: strides that are counted, but not walked, at the
    low end (diffusers' DPM-Solvers count one).
    """
    t = (torch.arange(steps).flip(0) + spare) * (schedule.steps // (steps + spare)) + offset
    return _at(schedule, t.clamp(max=schedule.steps - 1))


def trailing(schedule: Schedule, steps: int) -> Tensor:
    """Timesteps counted down from T - 1 in strides of T / steps, rounded (Lin et al. 2023, Table 2)."""
    stride = schedule.steps / steps
    return _at(schedule, (schedule.steps - torch.arange(steps, dtype=torch.float64) * stride).round() - 1)


def simple(schedule: Schedule, steps: int) -> Tensor:
    """Every (T / steps)-th level of the table from its top, rounded down (ComfyUI): nearly trailing."""
    stride = schedule.steps / steps
    return _at(schedule, schedule.steps - 1 - (torch.arange(steps, dtype=torch.float64) * stride).floor())


def linspace(schedule: Schedule, steps: int, rounding: Rounding = "exact") -> Tensor:
    """Timesteps from T - 1 to 0, both ends included, evenly (k-diffusion; Lin et al. 2023, Table 2).

    k-diffusion keeps fractions "exact", diffusers' DDIM takes the "nearest", its Euler goes "straight".
    """
    t = torch.linspace(schedule.steps - 1, 0, steps, dtype=torch.float64)
    return _at(schedule, t, rounding)


def sgm_uniform(schedule: Schedule, steps: int, rounding: Rounding = "exact") -> Tensor:
    """linspace with one step more, of which the last, timestep 0, is left out.

    Stability's generative-models round it "down"; diffusers' DPM-Solver++ to "nearest", and says linspace.
    """
    t = torch.linspace(schedule.steps - 1, 0, steps + 1, dtype=torch.float64)[:-1]
    return _at(schedule, t, rounding)


def quadratic(schedule: Schedule, steps: int) -> Tensor:
    """Timesteps evenly spaced in their square root, up to 0.8 T (DDIM, Song et al. 2021, appendix D.2)."""
    roots = torch.linspace(0, (schedule.steps * 0.8) ** 0.5, steps, dtype=torch.float64)
    return _at(schedule, ((roots**2).floor().flip(0) + 1).clamp(max=schedule.steps - 1))


def beta_timesteps(
    schedule: Schedule, steps: int, a: float = 0.6, b: float = 0.6, rounding: Rounding = "nearest"
) -> Tensor:
    """Timesteps as Beta(a, b) is distributed, more at both ends (Lee et al. 2024; ComfyUI's beta)."""
    parts = [beta_quantile(1 - k / steps, a, b) for k in range(steps)]
    return _at(schedule, torch.tensor(parts, dtype=torch.float64) * (schedule.steps - 1), rounding)


def turbo(schedule: Schedule, steps: int) -> Tensor:
    """The first of ten levels, T / 10 apart, from T - 1 (Sauer et al. 2023; generative-models go four of them)."""
    return _at(schedule, schedule.steps - 1 - torch.arange(steps).clamp(max=9) * (schedule.steps // 10))


def lcm(schedule: Schedule, steps: int, taught: int = 50) -> Tensor:
    """Evenly among the `taught` timesteps at which a consistency model was distilled (Luo et al. 2023, section 4.3)."""
    kept = taught - torch.arange(steps) * taught // steps
    return _at(schedule, (kept * (schedule.steps // taught) - 1).clamp(min=0))


# Over the noise levels


def karras(
    schedule: Schedule, steps: int, rho: float = 7.0, low: float | None = None, high: float | None = None
) -> Tensor:
    """Evenly in sigma^(1/rho) from high to low (Karras et al. 2022, eq. 5); by default all the schedule."""
    high, low = _range(schedule, low, high)
    return torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=torch.float64) ** rho


def exponential(schedule: Schedule, steps: int, low: float | None = None, high: float | None = None) -> Tensor:
    """Evenly in log(sigma) from high to low (k-diffusion); by default the schedule's range."""
    return polyexponential(schedule, steps, 1.0, low, high)


def polyexponential(
    schedule: Schedule, steps: int, rho: float = 1.0, low: float | None = None, high: float | None = None
) -> Tensor:
    """log(sigma) falls from high to low as r^rho does for r from 1 to 0 (k-diffusion). rho 1 is exponential."""
    high, low = _range(schedule, low, high)
    if rho == 1.0:
        return torch.linspace(math.log(high), math.log(low), steps, dtype=torch.float64).exp()
    ramp = torch.linspace(1, 0, steps, dtype=torch.float64) ** rho
    return torch.lerp(torch.tensor(math.log(low)).double(), torch.tensor(math.log(high)).double(), ramp).exp()


def vp(
    schedule: Schedule,
    steps: int,
    rise: float | None = None,
    first: float | None = None,
    last: float = 1e-3,
) -> Tensor:
    """Evenly in the time of the variance-preserving SDE, from 1 to `last` (Song et al. 2021b; Karras et al. 2022,
    Table 1): sigma^2 + 1 = exp(rise t^2 / 2 + first t).

    rise, first: beta_d and beta_min; by default those at which it spans the schedule.
    """
    top, bottom = (math.log1p(sigma**2) for sigma in _range(schedule, None, None))
    rise = 2 * (top - bottom / last) / (1 - last) if rise is None else rise
    first = top - rise / 2 if first is None else first
    t = torch.linspace(1, last, steps, dtype=torch.float64)
    return (rise * t**2 / 2 + first * t).expm1().sqrt()


def beta(schedule: Schedule, steps: int, a: float = 0.6, b: float = 0.6) -> Tensor:
    """Noise levels as Beta(a, b) is distributed over the schedule's range (A1111's and diffusers' reading of
    Lee et al. 2024; `beta_timesteps` is the paper's)."""
    high, low = _range(schedule, None, None)
    parts = [beta_quantile(p, a, b) for p in torch.linspace(1, 0, steps, dtype=torch.float64).tolist()]
    return low + torch.tensor(parts, dtype=torch.float64) * (high - low)


def kl_optimal(schedule: Schedule, steps: int) -> Tensor:
    """Evenly in the arc tangent of sigma: the best for normally distributed data (Sabour et al. 2024, theorem 3.1)."""
    high, low = _range(schedule, None, None)
    return torch.linspace(math.atan(high), math.atan(low), steps, dtype=torch.float64).tan()


def linear_quadratic(schedule: Schedule, steps: int, threshold: float = 0.025) -> Tensor:
    """Down from the highest level: evenly by the part `threshold` of it in the first half of the steps, then
    quadratically with the same slope to 0 (Polyak et al. 2024, Movie Gen; over sigma as ComfyUI has it)."""
    even, k = max(steps // 2, 1), torch.arange(steps, dtype=torch.float64)
    bend = (1 - threshold * steps / even) / max(steps - even, 1) ** 2
    return schedule.sigma_max * (1 - threshold * k / even - bend * (k - even).clamp(min=0) ** 2)


ALIGNED: dict[Aligned, tuple[float, ...]] = {
    "sd1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
"""The levels of ten steps with their end, optimized for a model (Sabour et al. 2024; from its authors' guide)."""


def align_your_steps(schedule: Schedule, steps: int) -> Tensor:
    """The table of `ALIGNED` that the schedule names, log(sigma) linear in between (Sabour et al. 2024).

    Raises RequestError: the table was made for other noise levels.
    """
    table = torch.tensor(ALIGNED[schedule.config.aligned], dtype=torch.float64)
    if not math.isclose(schedule.sigma_max, float(table[0]), rel_tol=1e-2):
        raise RequestError(
            f"the schedule align_your_steps was made for models whose noise begins at {table[0]:g}; this one's begins "
            f"at {schedule.sigma_max:g}: choose another schedule"
        )
    at = torch.linspace(0, len(table) - 1, steps + 1, dtype=torch.float64)[:-1]
    lows = at.floor().long()
    levels = torch.lerp(table.log()[lows], table.log()[lows + 1], at - lows).exp()
    return levels.clamp(schedule.sigma_min, schedule.sigma_max)  # the table has three digits


def _range(schedule: Schedule, low: float | None, high: float | None) -> tuple[float, float]:
    """(high, low) sigma, where not given that of the schedule."""
    return schedule.sigma_max if high is None else high, schedule.sigma_min if low is None else low


SPACINGS: dict[str, Spacing] = {
    "leading": leading,
    "leading_0": partial(leading, offset=0),  # DDPM, Ho et al. 2020; in diffusers steps_offset=0
    "leading_dpm": partial(leading, spare=1),  # diffusers' DPM-Solvers, UniPC and DEIS
    "ddim_uniform": leading,  # in ComfyUI and A1111, but where these make more steps than were asked for
    "trailing": trailing,
    "simple": simple,
    "linspace": linspace,  # "normal" in ComfyUI and A1111
    "linspace_whole": partial(linspace, rounding="nearest"),  # diffusers' DDIM, DDPM and PNDM
    "linspace_straight": partial(linspace, rounding="straight"),  # diffusers' Euler, Heun, LMS, ...
    "sgm_uniform": sgm_uniform,
    "sgm_uniform_whole": partial(sgm_uniform, rounding="nearest"),  # diffusers' DPM-Solvers, UniPC and DEIS
    "quadratic": quadratic,
    "beta_timesteps": beta_timesteps,
    "turbo": turbo,
    "lcm": lcm,
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "vp": vp,
    "beta": beta,
    "kl_optimal": kl_optimal,
    "linear_quadratic": linear_quadratic,
    "align_your_steps": align_your_steps,
}
