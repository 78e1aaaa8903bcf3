"""The only author of sigmas: which noise levels a sampler visits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from safelight.diffusion.schedule import Schedule
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
    if ends_at == "first" and inner[-1].float() == end.float():
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


Rounding = Literal["exact", "nearest", "down"]
"""What becomes of fractional timesteps: kept as they are, or made whole."""


def _at(schedule: Schedule, t: Tensor, rounding: Rounding = "exact") -> Tensor:
    """float64 sigmas at timesteps t. `Schedule.sigma` answers in float32, one cast too early for here."""
    if rounding != "exact":
        t = t.round() if rounding == "nearest" else t.floor()
    return torch.tensor([schedule.sigma(v) for v in t.tolist()], dtype=torch.float64)


def leading(schedule: Schedule, steps: int, offset: int = 1) -> Tensor:
    """Timesteps offset + k * (T // steps) (DDIM, Song et al. 2021, appendix D.2; latent diffusion adds 1).

    The highest may stay far below T - 1, but never passes it.
    """
    t = torch.arange(steps).flip(0) * (schedule.steps // steps) + offset
    return _at(schedule, t.clamp(max=schedule.steps - 1))


def trailing(schedule: Schedule, steps: int) -> Tensor:
    """Timesteps counted down from T - 1 in strides of T / steps, rounded (Lin et al. 2023, Table 2)."""
    stride = schedule.steps / steps
    return _at(schedule, (schedule.steps - torch.arange(steps, dtype=torch.float64) * stride).round() - 1)


def linspace(schedule: Schedule, steps: int, rounding: Rounding = "exact") -> Tensor:
    """Timesteps from T - 1 to 0, both ends included, evenly (k-diffusion; Lin et al. 2023, Table 2)."""
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


def karras(
    schedule: Schedule, steps: int, rho: float = 7.0, low: float | None = None, high: float | None = None
) -> Tensor:
    """Evenly in sigma^(1/rho) from high to low (Karras et al. 2022, eq. 5); by default all the schedule."""
    high, low = _range(schedule, low, high)
    return torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=torch.float64) ** rho


def exponential(schedule: Schedule, steps: int, low: float | None = None, high: float | None = None) -> Tensor:
    """Evenly in log(sigma) from high to low (k-diffusion); by default the schedule's range."""
    high, low = _range(schedule, low, high)
    return torch.linspace(math.log(high), math.log(low), steps, dtype=torch.float64).exp()


def _range(schedule: Schedule, low: float | None, high: float | None) -> tuple[float, float]:
    """(high, low) sigma, where not given that of the schedule."""
    return schedule.sigma_max if high is None else high, schedule.sigma_min if low is None else low


SPACINGS: dict[str, Spacing] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "sgm_uniform": sgm_uniform,
    "quadratic": quadratic,
    "karras": karras,
    "exponential": exponential,
}
