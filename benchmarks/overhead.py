"""What a step costs beside its network calls: a network that does nothing, walked by us and by diffusers in turns.

    pip install '.[test]' && python benchmarks/overhead.py

At 16x16 latents, batch 1, guided: both sides of guidance are in one call, as in a drawing. Ours is the walk of
`safelight.tasks.walk` (sampler, guidance, denoiser, the check of every step); theirs is the loop of
StableDiffusionPipeline, with its scheduler and its guidance. The time of the network's own calls, which only hand back
what they got, is part of both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import diffusers
import torch
from torch import Tensor

from measuring import Report, arguments
from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.guidance import classifier_free
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import SAMPLERS, start
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import sigmas
from safelight.doors import Conditioning
from safelight.presets import PRESETS
from safelight.tasks.told import Clock
from safelight.tasks.walk import Walk

SHAPE, STEPS, GUIDANCE = (4, 16, 16), 50, 7.5
THEIRS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "plms": "PNDMScheduler",
    "lcm": "LCMScheduler",
}


def nothing(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """A network that answers at once."""
    return x


def ours(sampler: str) -> Callable[[], int]:
    """A whole walk; how many steps it took."""
    schedule = Schedule(PRESETS["sd1"].schedule)
    entry = SAMPLERS[sampler]
    levels = sigmas(schedule, STEPS, "leading", entry.ends_at)
    cond, uncond = (Conditioning(context=torch.randn(1, 77, 768)) for _ in range(2))

    def begin() -> Walk:
        with torch.inference_mode():
            noise = Noise([1], SHAPE)
            denoise = classifier_free(Denoiser(nothing, schedule), cond, uncond, GUIDANCE)
            begun = start(noise(), levels)
        return Walk(entry.function, levels, begun, denoise, noise, None, Clock(), begin, lambda: None)

    return lambda: sum(1 for _ in begin().steps())


def theirs(sampler: str) -> Callable[[], int]:
    """The loop of their pipeline."""
    scheduler = getattr(diffusers, THEIRS[sampler])(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="leading", steps_offset=1
    )

    def walk() -> int:
        with torch.inference_mode():
            scheduler.set_timesteps(STEPS)
            x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                both = scheduler.scale_model_input(torch.cat([x, x]), t)
                u, c = both.chunk(2)
                x = scheduler.step(u + GUIDANCE * (c - u), t, x, return_dict=False)[0]
            return STEPS

    return walk


def milliseconds(walk: Callable[[], int]) -> float:
    """Of one step."""
    begun = time.perf_counter()
    steps = walk()
    return (time.perf_counter() - begun) / steps * 1000


def main() -> None:
    """Print a table: the median of the turns, in milliseconds a step."""
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int, default=30)
    options = parser.parse_args()
    turns, report = options.turns, Report.of(options, "diffusers")
    print(f"{'sampler':<20}{'safelight, ms':>14}{'diffusers, ms':>15}{'ratio':>8}")
    for sampler in SAMPLERS:
        mine, other = ours(sampler), theirs(sampler) if sampler in THEIRS else None
        mine()
        times: list[float] = []
        others: list[float] = []
        for _ in range(turns):
            times.append(milliseconds(mine))
            if other is not None:
                others.append(milliseconds(other))
        line = f"{sampler:<20}{statistics.median(times):>14.3f}"
        if others:
            line += f"{statistics.median(others):>15.3f}{statistics.median(times) / statistics.median(others):>8.2f}"
        report.add(line, sampler=sampler, milliseconds=times, diffusers_milliseconds=others, aim=0.3)


if __name__ == "__main__":
    main()
