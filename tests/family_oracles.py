"""A member at toy size on both sides: ours, and diffusers' pipeline of the folder that we write of it.

What the two libraries do otherwise by intention is made the same here, once for all cases:

- Where a picture is encoded, theirs draws a latent from the encoder's distribution and ours takes its mean.
- Ours takes noise for a condition from the picture's generator after the initial noise, theirs before. Theirs is given
  the initial noise, and generators that have drawn it.
- Under Euler's spacings other than "leading" theirs begin at noise of deviation sigma instead of sqrt(1 + sigma^2).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safelight.presets import PRESETS
from safelight.tasks.model import Model
from safelight.tasks.request import Request
from toy_family import toy_model

SEED, STEPS = 11, 4
SHORT = "a red apple"
LONG = "a small red apple to the left of a dog on a blue background"
"""Of one token a letter: 48, a whole chunk but a few. Theirs cuts what is longer, ours reads it in chunks."""
PROMPTS, NEGATIVE = (SHORT, LONG), "ugly, é"
BATCH = len(PROMPTS)

SCHEDULERS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
}
NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
"""What of a scheduler belongs to the weights, and is taken from the folder."""


@dataclass(frozen=True)
class Both:
    """A model, and the folder that diffusers reads it from."""

    model: Model
    folder: Path

    def theirs(self, pipeline: str, sampler: str, spacing: str) -> Any:
        """diffusers' pipeline of that name with the scheduler that is our sampler."""
        found = getattr(diffusers, pipeline).from_pretrained(self.folder)
        found.set_progress_bar_config(disable=True)
        name, fields = SCHEDULERS[sampler]
        noise = {field: found.scheduler.config[field] for field in NOISE}
        scheduler = getattr(diffusers, name)(**noise, **fields, timestep_spacing=spacing, steps_offset=1)
        found.scheduler = scheduler
        return found

    def noise(self, width: int, height: int, batch: int = BATCH) -> Tensor:
        """The initial noise of a batch of pictures of so many pixels, (B, C, h, w): the README's formula."""
        shape = self._shape(width, height)
        return torch.stack([torch.randn(shape, generator=g) for g in fresh(batch)])

    def after(self, width: int, height: int, batch: int = BATCH) -> list[torch.Generator]:
        """The generators of the pictures when they have drawn that."""
        generators = fresh(batch)
        for generator in generators:
            torch.randn(self._shape(width, height), generator=generator)
        return generators

    def _shape(self, width: int, height: int) -> tuple[int, int, int]:
        factor = self.model.preset.factor
        return self.model.preset.unet.out_channels, height // factor, width // factor


def fresh(batch: int = BATCH) -> list[torch.Generator]:
    """One generator for each picture."""
    return [torch.Generator("cpu").manual_seed(SEED + k) for k in range(batch)]


def begun(noise: Tensor, pipeline: Any, steps: int) -> Tensor:
    """The noise that a pipeline turns into sqrt(1 + sigma^2) noise, which is what the original code begins with."""
    pipeline.scheduler.set_timesteps(steps)
    sigma = float(pipeline.scheduler.sigmas[0])
    return noise * ((1 + sigma**2) ** 0.5 / float(pipeline.scheduler.init_noise_sigma))


def made(name: str, folder: Path) -> Both:
    """The member at toy size, written to the folder."""
    model = toy_model(PRESETS[name])
    if (depth := model.networks.get("depth")) is not None:
        # Depths in the thousands, as the published network's: beside them the original's slack, which theirs lacks, is
        # nothing.
        for parameter in list(depth.parameters())[-2:]:
            parameter.mul_(1e4)
    model.save(folder)
    return Both(model, folder)


# Pictures


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random soft colours."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def uri(image: Image.Image) -> str:
    """The picture, of any mode, as a request names it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def values(images: Sequence[Image.Image]) -> np.ndarray:
    """(B, H, W, 3), whole numbers that can be subtracted."""
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def alike(
    what: str, ours: Sequence[Image.Image], theirs: Sequence[Image.Image], where: np.ndarray | None = None
) -> None:
    """The same pictures to 1/255 on 99.9 % of the values: of all, or of the pixels where `where` (H, W) is true."""
    a, b = values(ours), values(theirs)
    assert a.shape == b.shape
    if where is not None:
        a, b = a[:, where], b[:, where]
    far = np.abs(a - b)
    share = float((far <= 1).mean())
    inner = float(((b > 0) & (b < 255)).mean())
    print(f"{what}: {share:.4%} within 1/255, {float((far == 0).mean()):.4%} equal, at most {far.max()}/255 ", end="")
    print(f"(deviation {b.std():.0f}, {inner:.0%} neither black nor white)")
    assert b.std() > 10, "a flat picture would prove nothing"
    assert inner > 0.5, "clamped values would prove little"
    assert share >= 0.999, f"{what}: only {share:.4%} of the values agree to 1/255, at most {far.max()}"


def matters(model: Model, request: Request, prompts: Sequence[str] | None, *changes: Mapping[str, object]) -> None:
    """Every one of these changes is seen in the picture: else agreement about what they change would prove nothing."""
    plain = values(model.draw(request, prompts=prompts))
    for change in changes:
        other = values(model.draw(request.changed(**change), prompts=prompts))
        share = float((np.abs(plain - other) > 1).mean())
        assert share > 0.05, f"{list(change)} change {share:.2%} of the picture"
