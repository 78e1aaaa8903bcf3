"""diffusers' schedulers: what each class is by its fields, and which of our samplers and spacings say the same.

Only facts stand here: `scheduler` reads and writes by them. A class that is not here has noise that is not ours: EDM's,
or that of flow matching.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# How a class spaces its timesteps: its word -> our spacing.
WHOLE = {"leading": "leading", "trailing": "trailing", "linspace": "linspace_whole"}
FRACTIONAL = {"leading": "leading", "trailing": "trailing", "linspace": "linspace_straight"}
SOLVERS = {"leading": "leading_dpm", "trailing": "trailing", "linspace": "sgm_uniform_whole"}
# Some have no choice, whatever their file says.
SGM = dict.fromkeys(("linspace", "leading", "trailing"), "sgm_uniform_whole")
LCM = dict.fromkeys(("leading", "linspace", "trailing"), "lcm")

# What replaces them: the flag -> our spacing.
SIGMAS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
SIGMAS_LU = {**SIGMAS, "use_lu_lambdas": "exponential"}

OFFSETS: dict[tuple[str, int], str] = {
    ("leading", 1): "leading",
    ("leading", 0): "leading_0",
    ("leading_dpm", 1): "leading_dpm",
}
"""Our spacing for `timestep_spacing` "leading" and a `steps_offset`."""
ALIKE = {"ddim_uniform": "leading", "polyexponential": "exponential"}
"""Spacings that make the very levels of another one."""
_EVENLY = ("linspace_straight", "linspace_whole", "sgm_uniform_whole")
_SHIFTED = ("sgm_uniform_whole", "linspace_straight", "linspace_whole")
NEAREST: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("linspace", "linspace_straight", "linspace_whole"), _EVENLY),
    **dict.fromkeys(("sgm_uniform", "sgm_uniform_whole"), _SHIFTED),
    "simple": ("trailing",),
    "leading": ("leading_dpm",),
    "leading_0": ("leading", "leading_dpm"),
    "leading_dpm": ("leading",),
}
"""What is written of a spacing that a class does not know, best first; of others, the class's "leading"."""
REACHES_ZERO = {"leading_0", "linspace_whole", "linspace_straight", *SIGMAS.values()}
"""Spacings that go to timestep 0. Of those samplers that end there, diffusers' stand still in their last step; ours
take as many steps as they are asked for."""


@dataclass(frozen=True)
class SchedulerClass:
    """A class of diffusers: what an absent field means, and what it can say."""

    words: Mapping[str, str]
    """`timestep_spacing` -> our spacing."""
    word: Literal["leading", "linspace"] = "linspace"
    """`timestep_spacing`, if absent."""
    sigmas: Mapping[str, str] = field(default_factory=dict)
    """Flags that replace it -> our spacing."""
    sigmas_of_all: bool = False
    """Whether such sigmas span the schedule, or else from the first to the last of the spaced timesteps."""
    start: float = 0.0001
    end: float = 0.02
    kind: str = "linear"
    zero_snr: bool = False
    """Whether it knows `rescale_betas_zero_snr`."""
    spaced: bool = True
    """Whether it knows `timestep_spacing` and `steps_offset`."""
    fields: Mapping[str, object] = field(default_factory=dict)
    """Everything else that changes what it computes, with its default."""


_CLIP = {"clip_sample": True, "thresholding": False}
_SOLVER = {"solver_order": 2, "thresholding": False}
_RANGE = {"sigma_min": None, "sigma_max": None}
_TAUGHT = {
    **{"original_inference_steps": 50, "clip_sample": False, "thresholding": False},
    **{"set_alpha_to_one": True, "timestep_scaling": 10.0},
}

CLASSES: dict[str, SchedulerClass] = {
    "DDIMScheduler": SchedulerClass(WHOLE, "leading", zero_snr=True, fields={**_CLIP, "set_alpha_to_one": True}),
    "DDPMScheduler": SchedulerClass(WHOLE, "leading", zero_snr=True, fields={**_CLIP, "variance_type": "fixed_small"}),
    "PNDMScheduler": SchedulerClass(WHOLE, "leading", fields={"skip_prk_steps": False, "set_alpha_to_one": False}),
    "LMSDiscreteScheduler": SchedulerClass(FRACTIONAL, sigmas=SIGMAS),
    "EulerDiscreteScheduler": SchedulerClass(
        FRACTIONAL,
        sigmas=SIGMAS,
        zero_snr=True,
        fields={"interpolation_type": "linear", "final_sigmas_type": "zero", **_RANGE},
    ),
    "EulerAncestralDiscreteScheduler": SchedulerClass(FRACTIONAL, zero_snr=True),
    "HeunDiscreteScheduler": SchedulerClass(
        FRACTIONAL, sigmas=SIGMAS, start=0.00085, end=0.012, fields={"clip_sample": False}
    ),
    "KDPM2DiscreteScheduler": SchedulerClass(FRACTIONAL, sigmas=SIGMAS, start=0.00085, end=0.012),
    "KDPM2AncestralDiscreteScheduler": SchedulerClass(FRACTIONAL, sigmas=SIGMAS, start=0.00085, end=0.012),
    "DPMSolverSDEScheduler": SchedulerClass(FRACTIONAL, sigmas=SIGMAS, start=0.00085, end=0.012),
    "DPMSolverMultistepScheduler": SchedulerClass(
        SOLVERS,
        sigmas=SIGMAS_LU,
        sigmas_of_all=True,
        zero_snr=True,
        fields={
            **{"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "final_sigmas_type": "zero"},
            **{"lambda_min_clipped": -math.inf, "variance_type": None},
            **_SOLVER,
        },
    ),
    "DPMSolverSinglestepScheduler": SchedulerClass(
        SGM,
        sigmas=SIGMAS,
        sigmas_of_all=True,
        spaced=False,
        fields={
            **{"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "final_sigmas_type": "zero"},
            **{"lambda_min_clipped": -math.inf, "variance_type": None},
            **_SOLVER,
        },
    ),
    "UniPCMultistepScheduler": SchedulerClass(
        SOLVERS,
        sigmas=SIGMAS,
        sigmas_of_all=True,
        zero_snr=True,
        fields={
            **{"solver_type": "bh2", "predict_x0": True, "lower_order_final": True, "disable_corrector": []},
            **{"solver_p": None, "final_sigmas_type": "zero", **_RANGE, **_SOLVER},
        },
    ),
    "DEISMultistepScheduler": SchedulerClass(
        SOLVERS,
        sigmas=SIGMAS,
        sigmas_of_all=True,
        fields={"algorithm_type": "deis", "solver_type": "logrho", "lower_order_final": True, **_SOLVER},
    ),
    "LCMScheduler": SchedulerClass(
        LCM, "leading", start=0.00085, end=0.012, kind="scaled_linear", zero_snr=True, fields=_TAUGHT
    ),
    "TCDScheduler": SchedulerClass(
        LCM, "leading", start=0.00085, end=0.012, kind="scaled_linear", zero_snr=True, fields=_TAUGHT
    ),
    # Ways to sample that we have not, over noise that we have:
    "DDIMInverseScheduler": SchedulerClass(WHOLE, "leading", zero_snr=True),
    "DDIMParallelScheduler": SchedulerClass(WHOLE, "leading", zero_snr=True),
    "DDPMParallelScheduler": SchedulerClass(WHOLE, "leading", zero_snr=True),
    "DPMSolverMultistepInverseScheduler": SchedulerClass(SOLVERS, sigmas=SIGMAS, sigmas_of_all=True),
    "SASolverScheduler": SchedulerClass(SOLVERS, sigmas=SIGMAS, sigmas_of_all=True),
}

BY_NAME = frozenset(
    {
        *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "prediction_type"),
        *("timestep_spacing", "steps_offset", "rescale_betas_zero_snr", *SIGMAS_LU),
        *(name for known in CLASSES.values() for name in known.fields),
    }
)
"""Fields that some class computes by."""
NEVER = frozenset(
    {
        *("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"),  # of what is noted as such if on
        *("noise_sampler_seed", "euler_at_final", "flow_shift", "time_shift_type", "shift_terminal", "timestep_type"),
        *("lower_order_final", "tau_func", "predictor_order", "corrector_order"),
        *("use_flow_sigmas", "use_dynamic_shifting"),  # must be off, or the file is refused
    }
)
"""Fields by which what we read of a file does not change."""


@dataclass(frozen=True)
class Scheduler:
    """One of our samplers as a class of diffusers with such fields."""

    sampler: str
    class_name: str
    fields: Mapping[str, object] = field(default_factory=dict)
    """Those that make it compute as our sampler does, beyond its defaults."""
    ends_at: Literal["zero", "first"] = "zero"
    """The last noise level of the walk, as `sigmas` takes it."""
    differs: str | None = None
    """In what it computes otherwise all the same."""


_MULTISTEP, _MIDPOINT = "DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "midpoint"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_ENDS_EARLIER = "theirs ends at the level of timestep 0, ours at 0"
_ALL: tuple[Scheduler, ...] = (
    Scheduler("ddim", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, "first"),
    Scheduler("ddpm", "DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_small"}),
    Scheduler("plms", "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}, "first"),
    Scheduler("pndm", "PNDMScheduler", {"skip_prk_steps": False, "set_alpha_to_one": False}, "first"),
    Scheduler("lms", "LMSDiscreteScheduler"),
    Scheduler("euler", "EulerDiscreteScheduler"),
    Scheduler("euler_a", "EulerAncestralDiscreteScheduler"),
    Scheduler("heun", "HeunDiscreteScheduler", {"clip_sample": False}),
    Scheduler("dpm_2", "KDPM2DiscreteScheduler"),
    Scheduler("dpm_2_a", "KDPM2AncestralDiscreteScheduler"),
    Scheduler("dpmpp_sde", "DPMSolverSDEScheduler"),
    Scheduler("dpmpp_2s", "DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++", **_MIDPOINT}),
    Scheduler("dpmpp_2m", _MULTISTEP, {"algorithm_type": "dpmsolver++", **_MIDPOINT}),
    Scheduler("dpmpp_2m_sde", _MULTISTEP, {**_SDE, **_MIDPOINT}),
    Scheduler("dpmpp_2m_sde_heun", _MULTISTEP, {**_SDE, "solver_order": 2, "solver_type": "heun"}),
    Scheduler(
        "dpmpp_3m_sde",
        _MULTISTEP,
        {**_SDE, "solver_order": 3, "solver_type": "midpoint"},
        differs="solver_order: diffusers' third order has another coefficient than k-diffusion's",
    ),
    Scheduler(
        "dpm_2m",
        _MULTISTEP,
        {"algorithm_type": "dpmsolver", **_MIDPOINT, "final_sigmas_type": "sigma_min"},
        "first",
        f"final_sigmas_type: {_ENDS_EARLIER}",
    ),
    Scheduler("unipc", "UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
    Scheduler(
        "deis",
        "DEISMultistepScheduler",
        {"algorithm_type": "deis", "solver_order": 3, "solver_type": "logrho"},
        "first",
        f"algorithm_type: {_ENDS_EARLIER}",
    ),
    Scheduler("lcm", "LCMScheduler", {"original_inference_steps": 50}),
    Scheduler("tcd", "TCDScheduler", {"original_inference_steps": 50}, "first"),
    # Without noise added in its steps, DDIM to the clean picture is Euler's method, and so is the first order's solver.
    Scheduler("euler", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    Scheduler("euler", _MULTISTEP, {"algorithm_type": "dpmsolver++", "solver_order": 1, "solver_type": "midpoint"}),
)
"""The first of a sampler is how it is written, where a pipeline can do with it."""

SCHEDULERS: dict[str, Scheduler] = {scheduler.sampler: scheduler for scheduler in _ALL[::-1]}
"""Our sampler -> theirs. Others are written as DDIM; `safelight.json` keeps the true one."""


def schedulers(sampler: str | None = None, class_name: str | None = None) -> tuple[Scheduler, ...]:
    """All of a sampler, or of a class, best first."""
    return tuple(s for s in _ALL if sampler in (None, s.sampler) and class_name in (None, s.class_name))
