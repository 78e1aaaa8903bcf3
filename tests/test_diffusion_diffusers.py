"""Whole walks side by side with diffusers' schedulers as SD 1.5 configures them, to 1e-5 of the size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from torch import Tensor

from diffusion_oracles import SD, close, formula_denoise, scheduler_network, walk
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import SAMPLERS, finish, start
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import sigmas, tail

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
}


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


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50, 200])
def test_text_to_image(name: str, steps: int) -> None:
    schedule, entry = Schedule(SD), SAMPLERS[name]
    levels = sigmas(schedule, steps, entry.spacing, entry.ends_at)
    noise = Noise([0, 1], (4, 8, 8))
    first = noise()
    last = walk(entry.function(formula_denoise(schedule), start(first, levels), levels, noise))[-1]
    close(finish(last.x, levels), theirs(name, steps, first))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
def test_image_to_image(name: str, strength: float) -> None:
    schedule, entry, steps = Schedule(SD), SAMPLERS[name], 20
    levels = tail(sigmas(schedule, steps, entry.spacing, entry.ends_at), strength)
    noise = Noise([0, 1], (4, 8, 8))
    first = noise()
    x0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    x = x0 + first * levels[0]
    last = walk(entry.function(formula_denoise(schedule), x, levels, noise))[-1]
    close(finish(last.x, levels), theirs(name, steps, first, strength, x0))
