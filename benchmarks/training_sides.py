"""One process of `training.py`: some steps of training by us or by diffusers and PEFT."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image

from measuring import CLOCKS, SAFELIGHT, peak
from training import ALPHA, CLIP, LR, RANK

PICTURES = 2
DEFAULT_DECAY = 1e-2


class EnoughError(Exception):
    """The steps asked for are done: what a run would write at its end is not measured."""


def ours(
    what: str, model: Path, size: int, steps: int, clock: Callable[[], float], device: str, *, checkpointing: bool
) -> list[float]:
    """Seconds of each step but the first, of the recipe in its loop."""
    from safelight.training.loop import train  # noqa: PLC0415 - a process imports one side only
    from safelight.training.recipe import Turn  # noqa: PLC0415
    from safelight.training.recipes.dreambooth import DreamBooth  # noqa: PLC0415
    from safelight.training.recipes.lora import LoraRecipe  # noqa: PLC0415
    from safelight.training.recipes.tuning import TuningBatch  # noqa: PLC0415
    from safelight.training.recipes.tuning_settings import (  # noqa: PLC0415
        DreamBoothSettings,
        LoraSettings,
        TuningData,
        TuningLoop,
    )

    began: list[float] = []

    class Watched:
        """The recipe, which notes when its steps begin, and stops after the last."""

        def turns(self, batch: TuningBatch, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
            began.append(clock())
            if len(began) > steps + 1:
                raise EnoughError
            yield from super().turns(batch, generator, images_seen)  # type: ignore[misc]

    with tempfile.TemporaryDirectory() as temporary:
        pictures = Path(temporary) / "pictures"
        pictures.mkdir()
        for k in range(PICTURES):
            pixels = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(k), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).resize((size, size)).save(pictures / f"{k}.png")
        data = TuningData(data=pictures, caption="a", size=size, square=True)
        where: Literal["auto", "cpu"] = "cpu" if device == "cpu" else "auto"
        loop = TuningLoop(
            output=Path(temporary) / "out", images=1000, lr=LR, clip=CLIP, weight_decay=DEFAULT_DECAY, device=where
        )
        common: dict[str, Any] = {"model": str(model), "gradient_checkpointing": checkpointing}
        if what == "lora":
            made = type("Lora", (Watched, LoraRecipe), {})
            recipe = made(LoraSettings(rank=RANK, alpha=ALPHA, layers="attention", **common), data, loop)
        else:
            recipe = type("Full", (Watched, DreamBooth), {})(DreamBoothSettings(**common), data, loop)
        with suppress(EnoughError):
            train(recipe, loop)
    return [b - a for a, b in pairwise(began[1:])]


def theirs(
    what: str, model: Path, size: int, steps: int, clock: Callable[[], float], device: str, *, checkpointing: bool
) -> list[float]:
    """The same of diffusers' example scripts, `train_text_to_image.py` and `train_text_to_image_lora.py`."""
    from diffusers import DDPMScheduler, UNet2DConditionModel  # noqa: PLC0415 - a process imports one side only
    from peft import LoraConfig  # noqa: PLC0415

    unet = UNet2DConditionModel.from_pretrained(model / "unet").to(device)
    scheduler = DDPMScheduler.from_pretrained(model / "scheduler")
    if what == "lora":
        unet.requires_grad_(False)
        layers = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, init_lora_weights="gaussian", target_modules=layers))
    unet.train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.999), weight_decay=DEFAULT_DECAY, eps=1e-8)
    generator = torch.Generator().manual_seed(0)
    side = size // 8 if unet.config.in_channels == 4 else size
    latents = torch.randn(PICTURES, unet.config.in_channels, side, side, generator=generator).to(device)
    context = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator).to(device)
    seconds = []
    for step in range(steps + 1):
        started = clock()
        latent = latents[step % PICTURES][None]
        noise = torch.randn(latent.shape, generator=generator).to(device)
        t = torch.randint(scheduler.config.num_train_timesteps, (1,), generator=generator).to(device)
        predicted = unet(scheduler.add_noise(latent, noise, t), t, context, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise, reduction="mean")
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(clock() - started)
    return seconds[1:]


def main() -> None:
    who, what, model, size, steps, clock, device, checkpointing = sys.argv[1:]
    side = ours if who == SAFELIGHT else theirs
    recomputes = bool(int(checkpointing))
    seconds = side(
        what, Path(model), int(size), int(steps), _waited(CLOCKS[clock], device), device, checkpointing=recomputes
    )
    most = peak() if device == "cpu" else torch.cuda.max_memory_allocated()
    print(json.dumps({"seconds": seconds, "peak": most}))


def _waited(clock: Callable[[], float], device: str) -> Callable[[], float]:
    """The clock, read when the device is done."""

    def read() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return clock()

    return read


if __name__ == "__main__":
    main()
