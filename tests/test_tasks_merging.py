"""Models made of models, by the command: the sums are what they say, and what is written loads and draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import safelight
from adapter_cases import random_lora
from safelight.adapters.lora import write_lora
from safelight.cli import main
from safelight.presets import PRESETS
from safelight.tasks.requests import TextToImage
from toy_family import toy_model

REQUEST = TextToImage(prompt="a red apple", seed=4, steps=2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three models of one kind, and a LoRA."""
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate("abc"):
        toy_model(PRESETS["sd1"], k).save(tmp_path / name)
    preset = toy_model(PRESETS["sd1"]).preset
    write_lora(tmp_path / "style.safetensors", random_lora(preset, scale=0.2), preset)
    return tmp_path


def weights(name: str) -> dict[str, torch.Tensor]:
    model = safelight.load(name)
    return {f"{part}.{key}": tensor for part, keys in model.weights().items() for key, tensor in keys.items()}


def far(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def test_a_weighted_sum_and_its_blocks(folder: Path) -> None:
    assert main(["models", "merge", "a", "b", "--output", "m", "--share", "0.25", "--block", "M00=1"]) == 0
    a, b, merged = weights("a"), weights("b"), weights("m")
    for name, tensor in merged.items():
        share = 1.0 if name.startswith("unet.mid_block.") else 0.25
        assert torch.allclose(tensor, a[name] + share * (b[name] - a[name]), atol=1e-6), name


def test_add_difference(folder: Path) -> None:
    assert main(["models", "merge", "a", "b", "c", "--output", "m", "--share", "0.5"]) == 0
    a, b, c, merged = (weights(name) for name in "abcm")
    assert all(torch.allclose(merged[n], a[n] + 0.5 * (b[n] - c[n]), atol=1e-6) for n in merged)


def test_a_lora_that_is_merged_draws_as_one_that_is_worn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "merge", "a", "--lora", "style.safetensors:0.6", "--output", "m"]) == 0
    worn = safelight.load("a").draw(REQUEST.changed(lora=("style.safetensors:0.6",)))[0]
    assert far(safelight.load("m").draw(REQUEST)[0], worn) <= 1
    capsys.readouterr()
    assert main(["models", "extract", "m", "a", "--output", "back.safetensors", "--rank", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kept"] > 0.999999
    assert found["left_out"] == []
    model = safelight.load("a")
    again = model.draw(REQUEST.changed(lora=("back.safetensors",)))[0]
    assert far(again, worn) <= 1
    assert far(model.draw(REQUEST)[0], worn) > 1


def test_the_words_of_a_lora_are_said_not_to_be_in_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file("style.safetensors") | {"bundle_emb.jojo.emb_params": torch.zeros(1, 24)}
    save_file(tensors, "pivotal.safetensors")
    assert main(["models", "merge", "a", "--lora", "pivotal.safetensors", "--output", "m"]) == 0
    assert "note: pivotal.safetensors: not merged: the word jojo, an embedding\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a", "--output", "m"], "one model alone is no merge: give a second one, or a --lora"),
        (["a", "b", "--output", "m", "--block", "IN99=1"], "there is no block 'IN99' to merge by"),
        (["a", "b", "--output", "m", "--block", "M00"], "block 'M00' is not understood: write IN04=0.3"),
        (["a", "other", "--output", "m"], "models of different kinds cannot be merged"),
        (["a", "gone", "--output", "m"], "gone does not exist"),
        (["a", "b", "--output", "m.ckpt", "--layout", "original"], "must end in .safetensors"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    folder: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_model(PRESETS["sd2-base"]).save(folder / "other")
    assert main(["models", "merge", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (folder / "m").exists()
