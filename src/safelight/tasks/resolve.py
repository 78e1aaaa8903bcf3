"""From what was asked to what will be done: no None is left, and every name and size is checked."""

from __future__ import annotations

import secrets
from typing import TypeVar

from torch import Tensor

from safelight.diffusion.samplers import SAMPLERS
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import SPACINGS, sigmas, tail
from safelight.errors import RequestError
from safelight.presets import Preset
from safelight.tasks.requests import MAX_PIXELS, MAX_SEED, ImageToImage, Request

T = TypeVar("T")
R = TypeVar("R", bound=Request)

RANDOM_SEEDS = 2**32
"""A seed that is drawn is one that a person can type again."""


def resolve(request: R, preset: Preset) -> R:
    """The same request with nothing left open, for a model of this preset.

    Raises:
        RequestError: an unknown sampler or spacing, a size that the autoencoder cannot make, too many pixels.
    """
    sampler = preset.sampler if request.sampler is None else request.sampler
    if sampler not in SAMPLERS:
        raise RequestError(f"there is no sampler {sampler!r}: the samplers are {', '.join(sorted(SAMPLERS))}")
    spacing = request.spacing
    if spacing is None:
        spacing = preset.spacing if sampler == preset.sampler else SAMPLERS[sampler].spacing
    if spacing not in SPACINGS:
        raise RequestError(f"there is no schedule {spacing!r}: the schedules are {', '.join(sorted(SPACINGS))}")
    factor = preset.autoencoder.factor
    width = _side("width", preset.width if request.width is None else request.width, factor)
    height = _side("height", preset.height if request.height is None else request.height, factor)
    if width * height * request.batch > MAX_PIXELS:
        raise RequestError(
            f"{request.batch} x {width}x{height} is more than {MAX_PIXELS} pixels: ask for a smaller batch or size"
        )
    resolved = request.changed(
        seed=secrets.randbelow(RANDOM_SEEDS) if request.seed is None else request.seed,
        steps=preset.steps if request.steps is None else request.steps,
        sampler=sampler,
        spacing=spacing,
        guidance=preset.guidance if request.guidance is None else request.guidance,
        width=width,
        height=height,
    )
    if needed(resolved.seed) + resolved.batch - 1 > MAX_SEED:
        raise RequestError(f"seed {resolved.seed} is too large for {resolved.batch} pictures: use a smaller one")
    return resolved


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
