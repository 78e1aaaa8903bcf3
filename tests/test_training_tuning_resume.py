"""Each method of fine-tuning, interrupted at ten random steps: every time the bits of the run that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from safelight.training.recipes.dreambooth import DreamBooth
from safelight.training.recipes.hypernetwork import HypernetworkRecipe
from safelight.training.recipes.lora import LoraRecipe
from safelight.training.recipes.textual_inversion import TextualInversion
from safelight.training.recipes.tuning import Tuning
from safelight.training.recipes.tuning_settings import (
    DreamBoothSettings,
    HypernetworkSettings,
    InversionSettings,
    LoraSettings,
    TuningLoop,
)
from tuning_cases import data, pictures, require_exact_resume, toy_model

IMAGES = 24


def recipes(model: str, folder: Path) -> dict[str, Callable[[TuningLoop], Tuning]]:
    """Every method, told what makes it draw random numbers and keep more than weights."""
    some = data(folder, flip=True)
    lora = LoraSettings(model=model, rank=2, train_text=True, caption_dropout=0.3, noise_offset=0.1)
    dreambooth = DreamBoothSettings(model=model, class_prompt="a cat", class_images=2, train_text=True)
    inversion = InversionSettings(model=model, placeholder="jojo", vectors=2)
    hypernetwork = HypernetworkSettings(model=model, activation="mish", dropout=(0.0, 0.3, 0.0))
    return {
        "lora": lambda config: LoraRecipe(lora, some, config),
        "dreambooth": lambda config: DreamBooth(dreambooth, some, config),
        "textual-inversion": lambda config: TextualInversion(inversion, some, config),
        "hypernetwork": lambda config: HypernetworkRecipe(hypernetwork, some, config),
    }


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dreambooth", "textual-inversion", "hypernetwork"])
def test_interrupted_at_ten_random_steps_it_goes_on_bit_by_bit(method: str, tmp_path: Path) -> None:
    model = toy_model(tmp_path / "model")
    folder = pictures(tmp_path / "in", ("a jojo cat", "jojo, red", "jojo"))
    stops = tuple(Random(method).sample(range(IMAGES), 10))
    make = recipes(str(model), folder)[method]
    require_exact_resume(make, tmp_path / "runs", stops, images=IMAGES, ema=0.9)
