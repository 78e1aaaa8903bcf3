"""Whole walks side by side with diffusers' schedulers as SD 1.5 configures them, to 1e-5 of the size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffusion_oracles import SD, close, formula_denoise, scheduler_network, walk
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import SAMPLERS, finish, start
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import sigmas, tail

pytestmark = [  # their dpm_2 gives torch's tensors to numpy's functions, one by one for every level
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning:numpy"),
]

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
MAKERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: DDIMScheduler(**CONFIG, set_alpha_to_one=False, clip_sample=False),
    "euler": lambda: EulerDiscreteScheduler(**CONFIG),
    "heun": lambda: HeunDiscreteScheduler(**CONFIG),
    "lms": lambda: LMSDiscreteScheduler(**CONFIG),
    "dpm_2": lambda: KDPM2DiscreteScheduler(**CONFIG),
    "plms": lambda: PNDMScheduler(**CONFIG, set_alpha_to_one=False, skip_prk_steps=True),
    "dpmpp_2m": lambda: DPMSolverMultistepScheduler(**CONFIG, use_karras_sigmas=True),
    "unipc": lambda: UniPCMultistepScheduler(**CONFIG | {"timestep_spacing": "linspace"}),
}
SPACING: dict[str, str] = {"dpm_2": "leading", "unipc": "sgm_uniform_whole"}
"""Where theirs, configured so, is not on what ours is registered with."""
WHOLE = {"dpmpp_2m"}
"""Their network hears whole timesteps at levels between them."""


def ours(name: str, x: Tensor, levels: Tensor, noise: Noise) -> Tensor:
    """A walk of ours from x over levels."""
    denoise = formula_denoise(Schedule(SD), whole_t=name in WHOLE)
    return finish(walk(SAMPLERS[name].function(denoise, x, levels, noise))[-1].x, levels)


def levels_of(name: str, steps: int) -> Tensor:
    entry = SAMPLERS[name]
    return sigmas(Schedule(SD), steps, SPACING.get(name, entry.spacing), entry.ends_at)


def theirs(name: str, steps: int, x: Tensor, strength: float = 1.0, x0: Tensor | None = None) -> Tensor:
    """What diffusers' pipelines do with a scheduler, text to image or (with x0) image to image."""
    scheduler = MAKERS[name]()
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    if x0 is None:
        x = x * scheduler.init_noise_sigma
    else:
        begin = (steps - min(int(steps * strength), steps)) * scheduler.order
        timesteps = timesteps[begin:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        x = scheduler.add_noise(x0, x, timesteps[:1])
    for t in timesteps:
        answer = scheduler_network(scheduler.scale_model_input(x, t), t.float().expand(len(x)), None)
        x = scheduler.step(answer, t, x).prev_sample
    return x


STEPS = (1, 2, 7, 20, 50, 200)
DRAWN = [(name, steps) for name in MAKERS for steps in STEPS if (name, steps) != ("plms", 1)]
"""All but one: diffusers leaves the second call of plms' first step out if that is the last."""


@pytest.mark.parametrize(("name", "steps"), DRAWN)
def test_text_to_image(name: str, steps: int) -> None:
    levels, noise = levels_of(name, steps), Noise([0, 1], (4, 8, 8))
    first = noise()
    close(ours(name, start(first, levels), levels, noise), theirs(name, steps, first))


BEGIN_LATE = ("plms", "lms")
"""Begun in the middle, theirs weigh by steps that were never taken."""


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in BEGIN_LATE])
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
def test_image_to_image(name: str, strength: float) -> None:
    steps = 20
    levels, noise = tail(levels_of(name, steps), strength), Noise([0, 1], (4, 8, 8))
    first = noise()
    x0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    got = ours(name, x0 + first * levels[0], levels, noise)
    close(got, theirs(name, steps, first, strength, x0))
