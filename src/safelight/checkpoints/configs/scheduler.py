"""`scheduler/scheduler_config.json`, and those of the schedules that conditions are put under noise by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from safelight.checkpoints.fields import Fields
from safelight.diffusion.schedule import ScheduleConfig
from safelight.errors import ModelFileError
from safelight.presets import PRESETS, Preset

KINDS: dict[str, Literal["scaled_linear", "linear", "cosine"]] = {
    "scaled_linear": "scaled_linear",
    "linear": "linear",
    "squaredcos_cap_v2": "cosine",
}
PREDICTIONS: dict[str, Literal["eps", "v", "x0"]] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class _Scheduler:
    """A diffusers scheduler: its class, and what makes it compute as our sampler does."""

    class_name: str
    fields: Mapping[str, object]
    sigmas: bool = False
    """Whether it knows Karras' and exponential sigmas."""


_LIKE_OURS: dict[str, object] = {"clip_sample": False}
SCHEDULERS: dict[str, _Scheduler] = {
    "ddim": _Scheduler("DDIMScheduler", {**_LIKE_OURS, "set_alpha_to_one": False}),
    "ddpm": _Scheduler("DDPMScheduler", _LIKE_OURS),
    "lms": _Scheduler("LMSDiscreteScheduler", {}, sigmas=True),
    "euler": _Scheduler("EulerDiscreteScheduler", {}, sigmas=True),
    "euler_a": _Scheduler("EulerAncestralDiscreteScheduler", {}),
    "heun": _Scheduler("HeunDiscreteScheduler", _LIKE_OURS, sigmas=True),
    "dpmpp_2m": _Scheduler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, sigmas=True),
}
"""Our sampler -> theirs. Others are written as DDIM; `safelight.json` keeps the true one."""


def read_schedule(path: Path, base: Preset) -> Preset:
    """`scheduler/scheduler_config.json` -> the preset with its schedule and prediction kind.

    Which sampler it names is a habit, not a property of the weights: the preset's own stays.

    Raises:
        ModelFileError: a schedule that we do not have.
    """
    schedule = read_noise(path)
    prediction = PREDICTIONS[Fields(path).word("prediction_type", "epsilon", PREDICTIONS)]
    return replace(base, schedule=schedule, prediction=prediction)


def read_noise(path: Path) -> ScheduleConfig:
    """The noise schedule alone.

    Raises:
        ModelFileError: a schedule that we do not have.
    """
    fields = Fields(path)
    fields.must({"trained_betas": None, "rescale_betas_zero_snr": False})
    kind = KINDS[fields.word("beta_schedule", "linear", KINDS)]
    sd1 = PRESETS["sd1"].schedule  # whose betas are this one scheduler's defaults
    start, end = (sd1.start, sd1.end) if fields.class_name == "HeunDiscreteScheduler" else (0.0001, 0.02)
    start, end = fields.number("beta_start", start), fields.number("beta_end", end)
    steps = fields.whole("num_train_timesteps", 1000)
    try:
        if kind == "cosine":  # whose betas are not these, whatever the file says of them
            return ScheduleConfig(kind, steps=steps)
        return ScheduleConfig(kind, start, end, steps)
    except ValueError as error:
        raise ModelFileError(f"{path}: beta_start, beta_end, num_train_timesteps: {error}") from error


def read_habits(path: Path) -> tuple[str | None, str]:
    """The sampler that the file names, if we have it, and its spacing: not of the weights, but of their use."""
    fields = Fields(path)
    sampler = next((ours for ours, theirs in SCHEDULERS.items() if theirs.class_name == fields.class_name), None)
    spaced = [spacing for spacing in ("karras", "exponential") if fields.get(f"use_{spacing}_sigmas", None) is True]
    return sampler, spaced[0] if spaced else str(fields.get("timestep_spacing", "leading"))


def schedule_json(preset: Preset, allowed: Collection[str] = ()) -> dict[str, object]:
    """The preset's schedule, prediction kind and sampler -> `scheduler/scheduler_config.json`.

    allowed: the classes that a pipeline can do with, the first in place of others; none: all.
    """
    scheduler = SCHEDULERS.get(preset.sampler, SCHEDULERS["ddim"])
    if allowed and scheduler.class_name not in allowed:
        scheduler = next(known for known in SCHEDULERS.values() if known.class_name in allowed)
    spacing = preset.spacing if preset.spacing in ("leading", "linspace", "trailing") else "leading"
    sigmas: dict[str, object] = {}
    if scheduler.sigmas and preset.spacing in ("karras", "exponential"):
        # Theirs reach from the first to the last of the spaced timesteps, ours over the whole schedule.
        spacing, sigmas = "linspace", {f"use_{preset.spacing}_sigmas": True}
    if preset.sampler == "dpmpp_2m" and preset.spacing == "sgm_uniform":
        spacing = "linspace"  # what this one scheduler calls so
    return {
        "_class_name": scheduler.class_name,
        **_noise(preset.schedule),
        "prediction_type": next(theirs for theirs, ours in PREDICTIONS.items() if ours == preset.prediction),
        "timestep_spacing": spacing,
        "steps_offset": 1,
        **scheduler.fields,
        **sigmas,
    }


def noise_json(schedule: ScheduleConfig) -> dict[str, object]:
    """The config of a scheduler by which nothing is sampled: it only puts a condition under noise."""
    return {"_class_name": SCHEDULERS["ddpm"].class_name, **_noise(schedule), **SCHEDULERS["ddpm"].fields}


def _noise(schedule: ScheduleConfig) -> dict[str, object]:
    return {
        "num_train_timesteps": schedule.steps,
        "beta_schedule": next(theirs for theirs, ours in KINDS.items() if ours == schedule.kind),
        "beta_start": schedule.start,
        "beta_end": schedule.end,
        "trained_betas": None,
    }
