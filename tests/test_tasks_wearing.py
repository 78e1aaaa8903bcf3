"""Adapters in requests: put on for a picture, off afterwards to the bit, named in prompts, recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import safelight
from adapter_cases import random_lora
from safelight.adapters.embedding_files import write_embedding
from safelight.adapters.embeddings import Embedding
from safelight.adapters.hypernetwork_files import write_hypernetwork
from safelight.adapters.hypernetworks import Hypernetwork, HypernetworkConfig, attended_widths
from safelight.adapters.lora import write_lora
from safelight.errors import ModelFileError, RequestError
from safelight.presets import PRESETS
from safelight.presets.conditions import TEXT
from safelight.tasks.metadata import RECORD_CHUNK, Record
from safelight.tasks.model import Model
from safelight.tasks.requests import TextToImage
from toy_family import toy_model

PLAIN = TextToImage(prompt="a red apple", seed=4, steps=2)


@pytest.fixture(scope="module")
def model() -> Model:
    return toy_model(PRESETS["sd1"])


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One adapter of each sort."""
    made = tmp_path_factory.mktemp("adapters")
    write_lora(made / "style.safetensors", random_lora(model.preset), model.preset)
    write_lora(made / "other.safetensors", random_lora(model.preset, seed=1), model.preset)
    hypernetwork = Hypernetwork(attended_widths(model.unet), HypernetworkConfig())
    for k, parameter in enumerate(hypernetwork.parameters()):
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)) * 0.3)
    write_hypernetwork(made / "bend.pt", hypernetwork)
    width = model.preset.words[0].tower.width
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(9))
    write_embedding(made / "jojo.safetensors", Embedding(("jojo",), {TEXT: vectors}))
    return made


def tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    for part, network in model.networks.items():
        for name, tensor in network.state_dict(keep_vars=True).items():
            yield f"{part}.{name}", tensor


CASES = ["lora", "hypernetwork", "embedding"]


def asked(folder: Path, sort: str) -> dict[str, object]:
    return {
        "lora": {"lora": (f"{folder / 'style.safetensors'}:0.8",)},
        "hypernetwork": {"hypernetwork": (f"{folder / 'bend.pt'}:0.7",)},
        "embedding": {"embedding": (str(folder / "jojo.safetensors"),), "prompt": "a jojo apple"},
    }[sort]


@pytest.mark.parametrize("sort", CASES)
def test_it_changes_the_picture_and_nothing_afterwards(model: Model, folder: Path, sort: str) -> None:
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in tensors(model)}
    plain = PLAIN.changed(prompt="a jojo apple") if sort == "embedding" else PLAIN
    (without,) = model.draw(plain)
    (image,) = model.draw(PLAIN.changed(**asked(folder, sort)))
    assert image.tobytes() != without.tobytes()
    after = dict(tensors(model))
    assert all(after[name] is tensor and torch.equal(tensor, value) for name, (tensor, value) in before.items())
    assert model.draw(plain)[0].tobytes() == without.tobytes()
    record = Record.read(image.info[RECORD_CHUNK], "the picture").asked()
    assert isinstance(record, TextToImage)
    assert record.adapter_sha256 is not None and len(record.adapter_sha256) == 1
    assert model.draw(record)[0].tobytes() == image.tobytes()


@pytest.mark.parametrize("sort", CASES)
def test_strength_zero_is_none_and_a_walk_left_early_takes_all_off(model: Model, folder: Path, sort: str) -> None:
    if sort != "embedding":
        [(name, [text])] = asked(folder, sort).items()
        none = PLAIN.changed(**{name: (f"{text.rpartition(':')[0]}:0",)})
        assert model.draw(none)[0].tobytes() == model.draw(PLAIN)[0].tobytes()
    before = dict(tensors(model))
    steps = model.steps(PLAIN.changed(**asked(folder, sort)))
    next(steps)
    steps.close()
    assert all(before[name] is tensor for name, tensor in tensors(model))
    assert not any(module._forward_pre_hooks for module in model.unet.modules())


def test_tags_in_the_prompt_are_the_same_as_options(model: Model, folder: Path) -> None:
    options = PLAIN.changed(lora=(f"{folder / 'style.safetensors'}:0.8:0.4", f"{folder / 'other.safetensors'}"))
    words = "a red apple <lora:style:0.8:0.4><lora:other:1>"
    tagged = PLAIN.changed(prompt=words, adapters=str(folder))
    (image,) = model.draw(tagged)
    assert model.draw(options)[0].tobytes() == image.tobytes()
    bent = PLAIN.changed(prompt="a red apple<hypernet:bend:0.7>", adapters=str(folder))
    assert model.draw(bent)[0].tobytes() == model.draw(PLAIN.changed(**asked(folder, "hypernetwork")))[0].tobytes()


def test_low_memory_wears_the_same(model: Model, folder: Path, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    whole, frugal = safelight.load(tmp_path / "model"), safelight.load(tmp_path / "model", low_memory=True)
    request = PLAIN.changed(**asked(folder, "lora"), hypernetwork=(str(folder / "bend.pt"),))
    assert frugal.draw(request)[0].tobytes() == whole.draw(request)[0].tobytes()
    assert frugal.draw(PLAIN)[0].tobytes() == whole.draw(PLAIN)[0].tobytes()


def test_half_precision_wears_too(model: Model, folder: Path, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    half = safelight.load(tmp_path / "model", dtype="bfloat16")
    for sort in CASES:
        request = PLAIN.changed(**asked(folder, sort))
        assert (
            half.draw(request)[0].tobytes()
            != half.draw(request.changed(lora=(), hypernetwork=(), embedding=()))[0].tobytes()
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lora": ("gone.safetensors",)}, "there is no adapter 'gone.safetensors'"),
        ({"lora": (":0.5",)}, "has no file: write FILE, or FILE:0.8"),
        ({"prompt": "a <lora:style:1>"}, "<lora:style:1>: say in which folder that is by --adapters"),
        ({"prompt": "a <lora:none:1>", "adapters": "FOLDER"}, "there is no none.safetensors in"),
        ({"prompt": "a <lora:../style:1>", "adapters": "FOLDER"}, "'../style' is not the name of a file in"),
        ({"prompt": "a <lora:/etc/passwd:1>", "adapters": "FOLDER"}, "is not the name of a file in"),
        ({"prompt": "a <lora:style:much>", "adapters": "FOLDER"}, "'much' is no number"),
        ({"hypernetwork": ("FOLDER/style.safetensors",)}, "style.safetensors"),
        ({"embedding": ("FOLDER/bend.pt",)}, "bend.pt"),
        ({"lora": ("FOLDER/jojo.safetensors",)}, "jojo.safetensors"),
        ({"embedding": ("FOLDER/jojo.safetensors", "FOLDER/jojo.safetensors")}, "two embeddings are called 'jojo'"),
    ],
)
def test_a_mistake_is_one_line(model: Model, folder: Path, change: dict[str, object], words: str) -> None:
    def here(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(here(one) for one in value)
        return str(value).replace("FOLDER", str(folder))

    with pytest.raises((RequestError, ModelFileError)) as caught:
        model.draw(PLAIN.changed(**{name: here(value) for name, value in change.items()}))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model.draw(PLAIN)[0].size == (64, 64)


def test_a_file_that_was_replaced_is_not_taken_for_the_one_recorded(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    write_lora(path, random_lora(model.preset), model.preset)
    resolved = model.resolve(PLAIN.changed(lora=(str(path),)))
    write_lora(path, random_lora(model.preset, seed=5), model.preset)
    with pytest.raises(RequestError, match="no longer those of this request"):
        model.draw(resolved)
    model.draw(resolved.changed(lora=(f"{path}:0.5",)))


def test_an_adapter_of_another_family_is_named(folder: Path) -> None:
    other = toy_model(PRESETS["sdxl"])
    with pytest.raises(ModelFileError, match=r"style\.safetensors"):
        other.draw(PLAIN.changed(lora=(str(folder / "style.safetensors"),)))
