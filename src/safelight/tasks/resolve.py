"""From what was asked to what will be done: no None is left, and every name and size is checked."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from safelight.diffusion.samplers import SAMPLERS, SamplerOptions, bind
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import SPACINGS, sigmas, tail
from safelight.errors import RequestError
from safelight.presets import Preset
from safelight.presets import conditions as told_by
from safelight.tasks import inputs
from safelight.tasks.prompts.wording import Wording
from safelight.tasks.request import MAX_PIXELS, MAX_SEED, Request
from safelight.tasks.requests import (
    SWITCH,
    ClassToImage,
    DepthToImage,
    ImageToImage,
    Inpaint,
    LayoutToImage,
    Prompted,
    Refine,
    SemanticToImage,
    TextToImage,
    Unconditional,
    Upscale,
    Variations,
)

T = TypeVar("T")
R = TypeVar("R", bound=Request)

RANDOM_SEEDS = 2**32
"""A seed that is drawn is one that a person can type again."""


UPSCALER_NOISE, VARIATION_NOISE = 20, 0
"""Levels of the noise on the picture that is enlarged or varied, unless others are asked for."""


def tasks_of(preset: Preset) -> tuple[type[Request], ...]:
    """What a member can be asked: it follows from what it is told by."""
    kinds = {type(condition) for condition in preset.conditions}
    for kind, task in _TASK_OF.items():
        if kind in kinds:
            return (task,)
    if told_by.Words in kinds:
        drawn = (TextToImage, ImageToImage, Inpaint)
        return (*drawn, Refine) if any(told_by.Numbers(aesthetic=True) == c for c in preset.conditions) else drawn
    return (Unconditional,)


_TASK_OF: dict[type, type[Request]] = {
    told_by.HiddenPicture: Inpaint,
    told_by.DepthMap: DepthToImage,
    told_by.SmallPicture: Upscale,
    told_by.SeenPicture: Variations,
    told_by.Label: ClassToImage,
    told_by.Boxes: LayoutToImage,
    told_by.LabelMap: SemanticToImage,
}
_GUIDES = (told_by.Words, told_by.Label, told_by.Boxes, told_by.SeenPicture)
"""Conditions that can be left unsaid, so that guidance has something to steer away from."""


def resolve(request: R, preset: Preset, refiner: Preset | None = None, *, guided: bool = False) -> R:
    """The same request with nothing left open, for a model of this preset.

    Args:
        refiner: the preset of the model that goes on at the request's `switch`.
        guided: whether there is a weaker model for the request's `autoguidance`.

    Raises:
        RequestError: the model does not do this task; an unknown sampler or spacing, a size that the autoencoder
            cannot make, too many pixels.
    """
    if type(request) not in tasks_of(preset):
        can = ", ".join(task.task for task in tasks_of(preset))
        raise RequestError(f"{preset.name} does not do {request.task}, but {can}: ask for that, or use another model")
    _unread(request, preset)
    _second(request, preset)
    _shortcuts(request)
    sampler = preset.sampler if request.sampler is None else request.sampler
    bind(sampler, sampler_options(request))
    spacing = request.spacing
    if spacing is None:
        spacing = preset.spacing if sampler == preset.sampler else SAMPLERS[sampler].spacing
    if spacing not in SPACINGS:
        raise RequestError(f"there is no schedule {spacing!r}: the schedules are {', '.join(sorted(SPACINGS))}")
    guidance = _guidance(request, preset)
    if (guidance != 1.0 or request.cfg_pp) and not any(
        isinstance(condition, _GUIDES) for condition in preset.conditions
    ):
        raise RequestError(f"{preset.name} is told nothing that guidance could strengthen: use --guidance 1")
    width = _side("width", preset.width if request.width is None else request.width, preset.factor)
    height = _side("height", preset.height if request.height is None else request.height, preset.factor)
    if width * height * request.batch > MAX_PIXELS:
        raise RequestError(
            f"{request.batch} x {width}x{height} is more than {MAX_PIXELS} pixels: ask for a smaller batch or size"
        )
    resolved = request.changed(
        seed=secrets.randbelow(RANDOM_SEEDS) if request.seed is None else request.seed,
        steps=preset.steps if request.steps is None else request.steps,
        sampler=sampler,
        spacing=spacing,
        guidance=guidance,
        width=width,
        height=height,
        **_numbers(request, preset, refiner, (width, height)),
        **_switch(request, preset, refiner),
        **_regions(request),
        autoguidance=_autoguidance(request, preset, guided),
        **_noise_level(request, preset),
    )
    if needed(resolved.seed) + resolved.batch - 1 > MAX_SEED:
        raise RequestError(f"seed {resolved.seed} is too large for {resolved.batch} pictures: use a smaller one")
    return resolved


_NUMBERS = (
    *("original_size", "crop", "target_size", "negative_original_size", "negative_crop", "negative_target_size"),
    *("aesthetic", "negative_aesthetic"),
)


def _numbers(request: Request, preset: Preset, refiner: Preset | None, size: tuple[int, int]) -> dict[str, object]:
    """Sizes and scores for members that are told them; for others, there must be none."""
    if not isinstance(request, Prompted):
        return {}
    members = [preset] if refiner is None else [preset, refiner]
    numbers = [c for member in members for c in member.conditions if isinstance(c, told_by.Numbers)]
    told = {"aesthetic": any(c.aesthetic for c in numbers), "target_size": any(not c.aesthetic for c in numbers)}
    given = {name: value for name in _NUMBERS if (value := getattr(request, name)) is not None}
    for name in given:
        kind = next((kind for kind in told if name.endswith(kind)), None)
        if not numbers or (kind is not None and not told[kind]):
            raise RequestError(f"{preset.name} is not told {name.replace('_', ' ')}: leave it out, or use an SDXL")
    if not numbers:
        return {}
    default: dict[str, object] = {"original_size": size, "crop": (0, 0)}
    if told["target_size"]:
        default["target_size"] = size
    return {name: value for name, value in default.items() if name not in given}


def _switch(request: Request, preset: Preset, refiner: Preset | None) -> dict[str, object]:
    """Where a refiner goes on."""
    if isinstance(request, Prompted) and refiner is not None:
        return {"switch": SWITCH if request.switch is None else request.switch}
    if refiner is not None:
        raise RequestError(f"{request.task} has no prompt that a refiner could be told: leave out --refiner")
    if isinstance(request, Prompted) and request.switch is not None:
        raise RequestError(f"{preset.name} has none to hand over to at --switch {request.switch}: give a --refiner")
    return {}


PLUS_PLUS = 0.6
"""Guidance by CFG++ unless another is asked for; the paper's lambda (Chung et al. 2024, sec. 5)."""
AUTOGUIDANCE = 1.0


def _guidance(request: Request, preset: Preset) -> float:
    """The scale, which CFG++ counts otherwise."""
    if not request.cfg_pp:
        return preset.guidance if request.guidance is None else request.guidance
    if request.guidance is not None and request.guidance > 1:
        raise RequestError(f"guidance {request.guidance:g} is too much for CFG++, where it goes from 0 to 1")
    return PLUS_PLUS if request.guidance is None else request.guidance


def _autoguidance(request: Request, preset: Preset, guided: bool) -> float | None:
    if not guided and request.autoguidance is not None:
        raise RequestError(f"{preset.name} has no weaker model for --autoguidance: give one by --guide")
    return AUTOGUIDANCE if guided and request.autoguidance is None else request.autoguidance


def _regions(request: Request) -> dict[str, object]:
    """Where parts of the prompt act: pictures go into the record whole."""
    if not isinstance(request, Prompted) or request.regions is None:
        return {}
    return {"regions": tuple(inputs.region_kept(text) for text in request.regions)}


def _unread(request: Request, preset: Preset) -> None:
    """A prompt for a member that reads none would be left out without a word."""
    if not isinstance(request, Prompted) or preset.words:
        return
    for name in ("prompt", "negative_prompt"):
        if getattr(request, name) != "":
            raise RequestError(f"{preset.name} reads no words: leave out the {name.replace('_', ' ')}")


def _second(request: Request, preset: Preset) -> None:
    """Second prompts are for a second text tower."""
    if not isinstance(request, Prompted) or len(preset.words) > 1:
        return
    for name in ("prompt_2", "negative_prompt_2"):
        if getattr(request, name) is not None:
            raise RequestError(f"{preset.name} has one text tower: leave out {name}, or use an SDXL")


def _shortcuts(request: Request) -> None:
    """Ways to do less, with which not everything goes. What a network has not is said by `steering`."""
    if request.deep_every is None and request.deep_below is not None:
        raise RequestError("deep_below says what is deep where it is not asked at every step: give --deep-every, too")
    if request.deep_every is not None and request.deep_every > 1 and request.sag is not None:
        raise RequestError("--sag looks into the deep part of the network at every step: leave out --deep-every")


def _noise_level(request: Request, preset: Preset) -> dict[str, object]:
    """The level of the noise on the picture that the member is told."""
    if not isinstance(request, Upscale | Variations):
        return {}
    for condition in preset.conditions:
        if isinstance(condition, told_by.SmallPicture) and condition.schedule is not None:
            level = UPSCALER_NOISE if request.noise_level is None else request.noise_level
            if level > condition.most:
                raise RequestError(f"noise level {level} is more than {preset.name} was trained on: {condition.most}")
            return {"noise_level": level}
        if isinstance(condition, told_by.SeenPicture):
            return {"noise_level": VARIATION_NOISE if request.noise_level is None else request.noise_level}
    if request.noise_level is not None:
        raise RequestError(f"{preset.name} puts no noise on the picture: leave out --noise-level")
    return {}


def wording_of(request: Prompted) -> Wording:
    """The words of a request as they were given."""
    return Wording(
        request.prompt,
        request.negative_prompt,
        request.prompt_2,
        request.negative_prompt_2,
        request.style,
        None if request.styles is None else Path(request.styles),
        None if request.wildcards is None else Path(request.wildcards),
    )


def sampler_options(request: Request) -> SamplerOptions:
    """What the request asks of its sampler."""
    return SamplerOptions(request.eta, request.s_churn, request.s_tmin, request.s_tmax, request.s_noise)


def needed(value: T | None) -> T:
    """A field of a resolved request, which is never None."""
    if value is None:
        raise ValueError("the request is not resolved")
    return value


def noise_levels(request: Request, schedule: Schedule) -> Tensor:
    """The sigmas (n + 1,) of the n steps that a resolved request takes, descending, on the CPU.

    Raises:
        RequestError: the spacing has no so many levels, or the strength leaves no step.
    """
    sampler = SAMPLERS[needed(request.sampler)]
    levels = sigmas(schedule, needed(request.steps), needed(request.spacing), sampler.ends_at)
    return tail(levels, request.strength) if isinstance(request, ImageToImage) else levels


def count_steps(request: Request, levels: Tensor) -> int | None:
    """How many steps a resolved request's sampler takes over these levels; None: only the walk will show."""
    return SAMPLERS[needed(request.sampler)].count(levels.tolist())


def steps_of(request: Request, levels: Tensor) -> int:
    """The steps that prompts count: those of the sampler, or of the levels where nobody knows."""
    counted = count_steps(request, levels)
    return len(levels) - 1 if counted is None else counted


def _side(name: str, size: int, factor: int) -> int:
    """The size, if the autoencoder can make it."""
    if size % factor != 0:
        below, above = size // factor * factor, (size // factor + 1) * factor
        nearest = f"{below} or {above}" if below > 0 else f"{above}"
        raise RequestError(
            f"{name} {size} is not a multiple of {factor}, the autoencoder's factor: "
            f"the nearest that work are {nearest}"
        )
    return size
