"""`scheduler/scheduler_config.json`, and those of the schedules that conditions are put under noise by."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from safelight.checkpoints.configs.scheduler_classes import (
    ALIKE,
    BY_NAME,
    CLASSES,
    NEAREST,
    NEVER,
    OFFSETS,
    REACHES_ZERO,
    SCHEDULERS,
    Scheduler,
    SchedulerClass,
    schedulers,
)
from safelight.checkpoints.fields import Fields
from safelight.diffusion.denoiser import Prediction
from safelight.diffusion.schedule import ScheduleConfig
from safelight.errors import ModelFileError
from safelight.presets import Preset

KINDS: dict[str, Literal["scaled_linear", "linear", "cosine"]] = {
    "scaled_linear": "scaled_linear",
    "linear": "linear",
    "squaredcos_cap_v2": "cosine",
}
PREDICTIONS: dict[str, Literal["eps", "v", "x0"]] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
REFUSED: dict[str, object] = {
    **{"trained_betas": None, "timestep_type": "discrete"},
    **{"use_flow_sigmas": False, "use_dynamic_shifting": False},
}
"""Fields by which the noise, or what the network is told of it, is of a kind that we have not."""


@dataclass(frozen=True)
class Scheduling:
    """A scheduler of diffusers in our words: how a model is sampled, over which noise, and what it predicts."""

    sampler: str | None
    """None: diffusers' is one that we have not."""
    spacing: str
    schedule: ScheduleConfig
    prediction: Prediction
    inexact: tuple[str, ...] = ()
    """What the file says beyond that, each line beginning with the field's name: there ours computes otherwise."""

    @classmethod
    def of(cls, preset: Preset) -> Scheduling:
        """As a member likes to be sampled."""
        return cls(preset.sampler, preset.spacing, preset.schedule, preset.prediction)


def read_scheduler(path: Path) -> Scheduling:
    """`scheduler_config.json` -> all that it says.

    Raises:
        ModelFileError: noise or a prediction that we do not have. What only belongs to the way of sampling is never
            refused: `inexact` names it.
    """
    fields = Fields(path)
    schedule, prediction = _read_weights_own(fields)
    known = _class(fields)
    scheduler, notes = _read_sampler(fields, known)
    spacing, more = _read_spacing(fields, known, "zero" if scheduler is None else scheduler.ends_at)
    odd = (name for name, value in fields.content.items() if name not in BY_NAME | NEVER and value not in (None, False))
    notes += [*more, *(f"{ascii(name)[1:-1]}: Safelight does not know what it changes" for name in odd)]
    sampler = None if scheduler is None else scheduler.sampler
    return Scheduling(sampler, spacing, schedule, prediction, tuple(notes))


def read_schedule(path: Path, base: Preset) -> Preset:
    """`scheduler/scheduler_config.json` -> the preset with its schedule and prediction kind.

    Which sampler it names is a habit, not a property of the weights: the preset's own stays, and so does the table
    by which it aligns its steps.

    Raises:
        ModelFileError: a schedule that we do not have.
    """
    schedule, prediction = _read_weights_own(Fields(path))
    return replace(base, schedule=replace(schedule, aligned=base.schedule.aligned), prediction=prediction)


def read_noise(path: Path) -> ScheduleConfig:
    """The noise schedule alone.

    Raises:
        ModelFileError: a schedule that we do not have.
    """
    return _read_noise(Fields(path))


def read_habits(path: Path) -> tuple[str | None, str]:
    """The sampler that the file names, if we have it, and its spacing: not of the weights, but of their use."""
    found = read_scheduler(path)
    return found.sampler, found.spacing


def _class(fields: Fields) -> SchedulerClass:
    """What is known of the file's class; of one that is not named, what most classes have for defaults."""
    if fields.class_name is None:
        return CLASSES["DDIMParallelScheduler"]
    if not isinstance(fields.class_name, str) or fields.class_name not in CLASSES:
        expected = f"one whose noise Safelight knows: {', '.join(sorted(CLASSES))}"
        raise fields.bad("_class_name", fields.class_name, expected)
    return CLASSES[fields.class_name]


def _read_noise(fields: Fields) -> ScheduleConfig:
    known = _class(fields)
    fields.must(REFUSED)
    kind = KINDS[fields.word("beta_schedule", known.kind, KINDS)]
    start, end = fields.number("beta_start", known.start), fields.number("beta_end", known.end)
    steps = fields.whole("num_train_timesteps", 1000)
    zero_snr = fields.flag("rescale_betas_zero_snr", False)
    try:
        if kind == "cosine":  # whose betas are not these, whatever the file says of them
            return ScheduleConfig(kind, steps=steps, zero_snr=zero_snr)
        return ScheduleConfig(kind, start, end, steps, zero_snr)
    except ValueError as error:
        raise ModelFileError(f"{fields.path}: beta_start, beta_end, num_train_timesteps: {error}") from error


def _read_weights_own(fields: Fields) -> tuple[ScheduleConfig, Prediction]:
    """What the weights were trained for: the noise and the kind of prediction, which must fit each other."""
    schedule = _read_noise(fields)
    prediction = PREDICTIONS[fields.word("prediction_type", "epsilon", PREDICTIONS)]
    if schedule.zero_snr and prediction == "eps":
        expected = "false where prediction_type is epsilon: pure noise cannot be told from its noise"
        raise fields.bad("rescale_betas_zero_snr", True, expected)
    return schedule, prediction


def _read_sampler(fields: Fields, known: SchedulerClass) -> tuple[Scheduler | None, list[str]]:
    """Of our samplers as that class the most like, and in what they differ."""

    def differing(scheduler: Scheduler) -> list[str]:
        lines = [] if scheduler.differs is None else [scheduler.differs]
        for name, default in known.fields.items():
            value, wanted = fields.get(name, default), scheduler.fields.get(name, default)
            if value != wanted:
                lines.append(f"{name}: {ascii(value)[:40]}; {scheduler.sampler} computes as with {wanted!r}")
        return lines

    candidates = schedulers(class_name=str(fields.class_name))
    if not candidates:
        return None, [f"_class_name: Safelight has no sampler that computes as {fields.class_name}"]
    best = min(candidates, key=lambda scheduler: len(differing(scheduler)))
    return best, differing(best)


def _read_spacing(fields: Fields, known: SchedulerClass, ends_at: str) -> tuple[str, list[str]]:
    """Our spacing, and in what it differs from theirs."""
    flags, notes = [flag for flag in known.sigmas if fields.get(flag, False) is True], []
    word = fields.word("timestep_spacing", known.word, known.words)
    offset = fields.get("steps_offset", 0)
    if len(flags) > 1:
        raise fields.bad(flags[1], True, f"false beside {flags[0]}")
    if flags:
        spacing = known.sigmas[flags[0]]
        if word != "linspace" and not known.sigmas_of_all:
            notes.append(f"timestep_spacing: theirs spans {spacing} over its timesteps only, ours over the schedule")
    else:
        spacing = known.words[word]
        if isinstance(offset, int) and (spacing, offset) in OFFSETS:
            spacing = OFFSETS[spacing, offset]
        elif any(spacing == ours for ours, _ in OFFSETS):
            notes.append(f"steps_offset: {ascii(offset)[:40]}, where {spacing} has 1")
    if ends_at == "first" and spacing in REACHES_ZERO:
        notes.append(
            f"{flags[0] if flags else 'timestep_spacing'}: theirs stands still in its last step, ours does not"
        )
    return spacing, notes


def scheduler_json(scheduling: Scheduling, allowed: Collection[str] = ()) -> tuple[dict[str, object], tuple[str, ...]]:
    """A way of sampling -> `scheduler_config.json`, and in what diffusers computes otherwise, each line by its field.

    allowed: the classes that a pipeline can do with, the first in place of others; none: all. The noise and the kind
    of prediction are always written exactly: where they or the pipeline rule out the sampler's own class, DDIM is.
    """
    scheduler, notes = _written_as(scheduling, allowed)
    known = CLASSES[scheduler.class_name]
    spacing, fields = next(
        (choice, fields) for choice in _nearest(scheduling.spacing, known) for fields in _said(choice, known)
    )
    field = next((name for name in (*known.sigmas, "timestep_spacing") if name in fields), "_class_name")
    if spacing != ALIKE.get(scheduling.spacing, scheduling.spacing):
        notes.append(f"{field}: {scheduler.class_name} does not know {scheduling.spacing}; written as {spacing}")
    elif scheduler.ends_at == "first" and spacing in REACHES_ZERO:
        notes.append(f"{field}: theirs stands still in its last step, ours does not")
    content = {
        "_class_name": scheduler.class_name,
        **_noise(scheduling.schedule),
        "prediction_type": next(theirs for theirs, ours in PREDICTIONS.items() if ours == scheduling.prediction),
        **fields,
        **scheduler.fields,
    }
    return content, tuple(notes)


def noise_json(schedule: ScheduleConfig) -> dict[str, object]:
    """The config of a scheduler by which nothing is sampled: it only puts a condition under noise."""
    return {"_class_name": SCHEDULERS["ddpm"].class_name, **_noise(schedule), "clip_sample": False}


def _written_as(scheduling: Scheduling, allowed: Collection[str]) -> tuple[Scheduler, list[str]]:
    def able(scheduler: Scheduler) -> bool:
        knows_noise = not scheduling.schedule.zero_snr or CLASSES[scheduler.class_name].zero_snr
        return knows_noise and (not allowed or scheduler.class_name in allowed)

    found = () if scheduling.sampler is None else schedulers(scheduling.sampler)
    for scheduler in filter(able, found):
        return scheduler, [] if scheduler.differs is None else [scheduler.differs]
    scheduler = next(filter(able, (SCHEDULERS["ddim"], *schedulers())))
    return scheduler, [f"_class_name: not the sampler {scheduling.sampler}, but {scheduler.sampler}"]


def _nearest(spacing: str, known: SchedulerClass) -> tuple[str, ...]:
    """The spacing, and what is written where a class does not know it, best first; the last it does."""
    spacing = ALIKE.get(spacing, spacing)
    return (spacing, *NEAREST.get(spacing, ()), "leading", *known.words.values())


def _said(spacing: str, known: SchedulerClass) -> Iterator[dict[str, object]]:
    """The fields by which a class says a spacing, if it can."""

    def spaced(word: str, offset: int = 1) -> dict[str, object]:
        return {"timestep_spacing": word, "steps_offset": offset} if known.spaced else {}

    for flag, ours in known.sigmas.items():
        if ours == spacing:  # over all the schedule, which is what linspace spans
            yield {**spaced("linspace"), flag: True}
    for (base, offset), ours in OFFSETS.items():
        if ours == spacing and base in known.words.values():
            yield spaced("leading", offset)
    for word, ours in known.words.items():
        if ours == spacing:
            yield spaced(word)


def _noise(schedule: ScheduleConfig) -> dict[str, object]:
    rescaled = {"rescale_betas_zero_snr": True} if schedule.zero_snr else {}
    return {
        "num_train_timesteps": schedule.steps,
        "beta_schedule": next(theirs for theirs, ours in KINDS.items() if ours == schedule.kind),
        "beta_start": schedule.start,
        "beta_end": schedule.end,
        "trained_betas": None,
        **rescaled,
    }
