"""Time per step of the tiny UNet, and of a whole guided sampler step, ours against diffusers'.

    pip install '.[test]' && python benchmarks/step.py

Both have the same random weights (they do not change the time) and take turns in one process, on the CPU, in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

from measuring import Times, alternate, print_machine, ratio
from safelight.checkpoints.configs import unet_json
from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.guidance import classifier_free
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import SAMPLERS
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import sigmas
from safelight.doors import Conditioning
from safelight.models.unet import UNet
from safelight.presets import PRESETS, Preset

GUIDANCE = 4.0


@dataclass(frozen=True)
class Pair:
    """The same network twice, and something to give to it."""

    preset: Preset
    ours: UNet
    theirs: UNet2DConditionModel
    latent: int

    @classmethod
    def of(cls, preset: Preset, size: int) -> Pair:
        torch.manual_seed(0)
        latent = size // preset.factor
        ours = UNet(preset.unet).eval()
        theirs = UNet2DConditionModel.from_config(unet_json(preset.unet, latent)).eval()
        theirs.load_state_dict(ours.state_dict(), strict=True)
        return cls(preset, ours, theirs, latent)

    def inputs(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x (B, C, h, w) and a context (B, L, D)."""
        x = torch.randn(batch, self.preset.unet.in_channels, self.latent, self.latent)
        tokens = self.preset.words[0].tower.context_length
        return x, torch.randn(batch, tokens, self.preset.unet.context_width)


def network(pair: Pair, batch: int) -> dict[str, Callable[[], object]]:
    """One call of the network."""
    x, context = pair.inputs(batch)
    cond, t = Conditioning(context=context), torch.full((batch,), 500.0)
    difference = (pair.ours(x, t, cond) - pair.theirs(x, t, context).sample).abs().max()
    assert difference < 1e-4, f"the two networks differ by {difference}: their times mean nothing"
    return {
        "safelight": lambda: pair.ours(x, t, cond),
        "diffusers": lambda: pair.theirs(x, t, context).sample,
    }


def walk(pair: Pair, steps: int) -> dict[str, Callable[[], object]]:
    """A whole walk of `steps` guided Euler steps: the network on a batch of two, guidance, and the sampler."""
    x, context = pair.inputs(1)
    cond, uncond = Conditioning(context=context), Conditioning(context=torch.zeros_like(context))
    schedule = Schedule(pair.preset.schedule)
    levels = sigmas(schedule, steps, "leading")
    denoise = classifier_free(Denoiser(pair.ours, schedule), cond, uncond, GUIDANCE)
    both, t = torch.cat([torch.zeros_like(context), context]), torch.full((2,), 500.0)
    noise = Noise([0], (x.shape[1], x.shape[2], x.shape[3]))
    config = pair.preset.schedule

    def ours() -> None:
        for _ in SAMPLERS["euler"].function(denoise, x, levels, noise):
            pass

    def theirs() -> None:
        scheduler = EulerDiscreteScheduler(
            num_train_timesteps=config.steps,
            beta_start=config.start,
            beta_end=config.end,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        )
        scheduler.set_timesteps(steps)
        now = x
        for step in scheduler.timesteps:
            given = scheduler.scale_model_input(torch.cat([now, now]), step)
            u, c = pair.theirs(given, step, both).sample.chunk(2)
            now = scheduler.step(u + GUIDANCE * (c - u), step, now).prev_sample

    def bare() -> None:
        given = torch.cat([x, x])
        for _ in range(steps):
            pair.ours(given, t, Conditioning(context=both))

    return {"safelight": ours, "diffusers": theirs, "network alone": bare}


def report(title: str, times: dict[str, Times], calls: int = 1) -> None:
    """Print milliseconds per call of each, and the ratio of the first two."""
    print(title)
    for name, taken in times.items():
        print(f"  {name:<24}{taken.text(1e-3 * calls, 'ms')}")
    print(f"  {'safelight / diffusers':<24}{ratio(times['safelight'], times['diffusers'])}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--size", type=int, help="pixels of a side; default: the preset's own")
    parser.add_argument("--turns", type=int, default=50, help="how often each is run")
    parser.add_argument("--steps", type=int, default=10, help="steps of a walk")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    size = preset.width if options.size is None else options.size
    print_machine("diffusers")
    with torch.inference_mode():
        pair = Pair.of(preset, size)
        count = sum(p.numel() for p in pair.ours.parameters())
        print(f"{preset.title}: {count:,} parameters, {size}x{size} pixels, {torch.get_num_threads()} threads\n")
        report("the network, batch 1", alternate(network(pair, 1), options.turns))
        report("the network, batch 2 (guided)", alternate(network(pair, 2), options.turns))
        times = alternate(walk(pair, options.steps), max(options.turns // options.steps, 4), warmup=1)
        report("a guided Euler step, whole", times, options.steps)
    beside = [1 - b / a for a, b in zip(times["safelight"].seconds, times["network alone"].seconds, strict=True)]
    print(f"our sampler and guidance beside the network: {100 * sorted(beside)[len(beside) // 2]:.1f} % of a step")


if __name__ == "__main__":
    main()
