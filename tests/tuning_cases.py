"""Fine-tuning at toy size, for the tests: a model, a few pictures, and runs that are interrupted."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import toy
import toy_family
from runs import require_equal
from safelight.presets import PRESETS
from safelight.training.loop import train
from safelight.training.recipe import Turn
from safelight.training.recipes.tuning import Tuning, TuningBatch
from safelight.training.recipes.tuning_settings import TuningData, TuningLoop
from safelight.training.store import read_tensors

Make = Callable[[TuningLoop], Tuning]


def toy_model(folder: Path, preset: str = "toy") -> Path:
    """A model folder: the smallest there is, or a member of the family with its towers and prediction."""
    if preset == "toy":
        return toy.toy_folder(folder)
    toy_family.toy_model(PRESETS[preset]).save(folder)
    return folder


def pictures(folder: Path, captions: tuple[str, ...] = ("a jojo cat", "a jojo cat, red", "jojo", "")) -> Path:
    """One picture for each caption, of noise, lying and standing."""
    folder.mkdir(parents=True)
    for k, caption in enumerate(captions):
        size = [(64, 64), (96, 48), (48, 96)][k % 3]
        noise = np.random.default_rng(k).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(caption, "utf-8")
    return folder


def loop(output: Path, **changes: object) -> TuningLoop:
    """A dozen steps of two batches of one."""
    config = TuningLoop(
        output, images=12, batch=1, accumulate=2, lr=0.01, save_every=4, workers=0, device="cpu", log_every=100
    )
    return replace(config, **changes)  # type: ignore[arg-type]  # names and types are the test's own


def data(folder: Path, **changes: object) -> TuningData:
    return replace(TuningData(folder, size=64), **changes)  # type: ignore[arg-type]  # as above


def stopping(recipe: Tuning, at: int) -> Tuning:
    """The same, interrupted in the step that begins after `at` images."""
    turns = recipe.turns

    def stopped(batch: TuningBatch, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
        if images_seen == at:
            signal.raise_signal(signal.SIGTERM)
        yield from turns(batch, generator, images_seen)

    recipe.turns = stopped  # type: ignore[method-assign]  # of this object alone
    return recipe


def newest(output: Path) -> dict[str, Tensor]:
    """Every tensor of the last checkpoint, and of the files that the run was for."""
    last = sorted(p for p in (output / "checkpoints").glob("*") if p.name.isdigit())[-1]
    found = {f"{file}/{key}": t for file, content in read_tensors(last).items() for key, t in content.items()}
    for path in sorted(output.rglob("*.safetensors")):
        if not {"checkpoints", "class"} & set(path.parts) and not path.name.startswith("latents-"):
            where = path.relative_to(output).as_posix()
            found |= {f"{where}:{key}": tensor for key, tensor in load_file(path).items()}
    return found


def require_exact_resume(make: Make, folder: Path, stops: tuple[int, ...], **changes: object) -> dict[str, Tensor]:
    """A run interrupted at each of these and resumed ends with the bits of one that was not; which are given."""
    whole = loop(folder / "whole" / "run", **changes)
    train(make(whole), whole)
    wanted = newest(whole.output)
    for at in stops:
        config = loop(folder / f"stopped{at}" / "run", **changes)
        with pytest.raises(SystemExit) as left:
            train(stopping(make(config), at), config)
        assert left.value.code == 143
        again = replace(config, resume=True)
        train(make(again), again)
        require_equal(newest(config.output), wanted)
    return wanted
