"""A whole request against diffusers' pipelines: the same saved folder, the same noise, the same picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

import safelight
from safelight.tasks.model import Model
from toy import toy_folder

PROMPT, NEGATIVE = "a red apple on a blue background", "ugly, é"
SD1 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
SCHEDULERS = {
    "ddim": DDIMScheduler(**SD1, set_alpha_to_one=False, clip_sample=False),
    "euler": EulerDiscreteScheduler(**SD1),
    "heun": HeunDiscreteScheduler(**SD1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return safelight.load(folder)


def noise(seed: int, batch: int, size: int) -> torch.Tensor:
    draws = [torch.Generator("cpu").manual_seed(seed + k) for k in range(batch)]
    return torch.stack([torch.randn((4, size // 8, size // 8), generator=g) for g in draws])


def assert_alike(ours: list[Image.Image], theirs: list[Image.Image]) -> None:
    a = np.stack([np.asarray(image, dtype=np.int16) for image in ours])
    b = np.stack([np.asarray(image, dtype=np.int16) for image in theirs])
    assert a.std() > 10, "a flat picture would prove nothing"
    share = float((np.abs(a - b) <= 1).mean())
    assert share >= 0.999, f"only {share:.4%} of the values agree to 1/255 (most: {np.abs(a - b).max()})"


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_txt2img_draws_what_diffusers_draws(folder: Path, model: Model, sampler: str, guidance: float) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[sampler]
    theirs = pipeline(
        [PROMPT] * 2,
        negative_prompt=[NEGATIVE] * 2,
        num_inference_steps=10,
        guidance_scale=guidance,
        latents=noise(7, 2, 64),
        width=64,
        height=64,
    ).images
    ours = model.txt2img(
        PROMPT,
        negative_prompt=NEGATIVE,
        seed=7,
        batch=2,
        steps=10,
        sampler=sampler,
        spacing="leading",
        guidance=guidance,
        width=64,
        height=64,
    )
    assert_alike(ours, theirs)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("strength", [0.35, 0.8])
def test_img2img_draws_what_diffusers_draws(folder: Path, model: Model, sampler: str, strength: float) -> None:
    start = Image.effect_noise((64, 64), 80).convert("RGB")
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[sampler]
    theirs = pipeline(
        PROMPT,
        image=model.encode(start).clone(),  # given the latent, because diffusers would draw one at random
        strength=strength,
        num_inference_steps=10,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images
    ours = model.img2img(
        PROMPT, start, strength=strength, seed=7, steps=10, sampler=sampler, spacing="leading", guidance=5.0
    )
    assert_alike(ours, theirs)
