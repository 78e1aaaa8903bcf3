"""Adapters in requests: put on for a picture, off afterwards to the bit, named in prompts, recorded."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sd_parsers import ParserManager
from torch import Tensor

import safelight
from adapter_cases import random_lora
from metadata_cases import a1111_reading
from safelight.adapters.embedding_files import write_embedding
from safelight.adapters.embeddings import Embedding
from safelight.adapters.hypernetwork_files import write_hypernetwork
from safelight.adapters.hypernetworks import Hypernetwork, HypernetworkConfig, attended_widths
from safelight.adapters.lora import write_lora
from safelight.errors import ModelFileError, RequestError
from safelight.presets import PRESETS
from safelight.presets.conditions import TEXT
from safelight.tasks import pictures
from safelight.tasks.metadata import RECORD_CHUNK, TEXT_CHUNK, Record, recover
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
    for name, bundle in (("pivotal", vectors), ("wide", torch.zeros(1, 999)), ("bad", torch.zeros(1, 1, width))):
        both = load_file(made / "style.safetensors") | {"bundle_emb.jojo.string_to_param.*": bundle}
        save_file(both, made / f"{name}.safetensors")
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
        ({"lora": ("FOLDER/style.safetensors:nan",)}, "has a strength that is no number: write "),
        ({"embedding": ("FOLDER/jojo.safetensors=",)}, "lacks a file or a name: write FILE, or FILE=NAME"),
        ({"embedding": ("FOLDER/gone.safetensors=jojo",)}, "gone.safetensors' (No such file"),
        ({"lora": ("FOLDER/wide.safetensors",)}, "wide.safetensors is of an unknown family: its vectors are 999 wide"),
        ({"lora": ("FOLDER/bad.safetensors",)}, "the word 'jojo' in "),
        ({"prompt": "a <lora:style:1>"}, "<lora:style:1>: say in which folder that is by --adapters"),
        ({"prompt": "a <lora:none:1>", "adapters": "FOLDER"}, "there is no none.safetensors in"),
        ({"prompt": "a <lora:../style:1>", "adapters": "FOLDER"}, "'../style' is not the name of a file in"),
        ({"prompt": "a <lora:/etc/passwd:1>", "adapters": "FOLDER"}, "is not the name of a file in"),
        ({"prompt": "a <lora:style:much>", "adapters": "FOLDER"}, "'much' is no number"),
        ({"hypernetwork": ("FOLDER/style.safetensors",)}, "style.safetensors is a LoRA, not a hypernetwork; give the"),
        ({"hypernetwork": ("FOLDER/jojo.safetensors",)}, "(words for a prompt), not a hypernetwork; give the"),
        ({"embedding": ("FOLDER/style.safetensors",)}, "style.safetensors is a LoRA, not an embedding; give the"),
        ({"embedding": ("FOLDER/bend.pt",)}, "bend.pt"),
        ({"lora": ("FOLDER/jojo.safetensors",)}, "jojo.safetensors is a textual inversion (words for a prompt), not a"),
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


# -- words that come with a LoRA, and names of words


def test_a_lora_teaches_the_words_that_come_with_it(model: Model, folder: Path) -> None:
    said = PLAIN.changed(prompt="a jojo apple")
    word = (str(folder / "jojo.safetensors"),)
    apart = said.changed(lora=(f"{folder / 'style.safetensors'}:0.8",), embedding=word)
    (both,) = model.draw(apart)
    for request in (
        said.changed(lora=(f"{folder / 'pivotal.safetensors'}:0.8",)),
        said.changed(prompt="a jojo apple<lora:pivotal:0.8>", adapters=str(folder)),
        said.changed(lora=(f"{folder / 'pivotal.safetensors'}:0.8", f"{folder / 'pivotal.safetensors'}:0:0")),
    ):
        assert model.draw(request)[0].tobytes() == both.tobytes()
    twice = said.changed(lora=(f"{folder / 'pivotal.safetensors'}:0.3", f"{folder / 'pivotal.safetensors'}:0.5"))
    once = said.changed(lora=(f"{folder / 'style.safetensors'}:0.3", f"{folder / 'style.safetensors'}:0.5"))
    assert model.draw(twice)[0].tobytes() == model.draw(once.changed(embedding=word))[0].tobytes()
    off = said.changed(lora=(f"{folder / 'pivotal.safetensors'}:0",))
    assert model.draw(off)[0].tobytes() == model.draw(said)[0].tobytes()
    with pytest.raises(RequestError, match="two embeddings are called 'jojo'"):
        model.draw(said.changed(lora=(str(folder / "pivotal.safetensors"),), embedding=word))


def test_an_embedding_is_called_what_the_request_calls_it(model: Model, folder: Path, tmp_path: Path) -> None:
    word = str(folder / "jojo.safetensors")
    (named,) = model.draw(PLAIN.changed(prompt="a jojo apple", embedding=(word,)))
    renamed = PLAIN.changed(prompt="a my-cat apple", embedding=(f"{word}=my-cat",))
    (image,) = model.draw(renamed)
    assert image.tobytes() == named.tobytes()
    record = Record.read(image.info[RECORD_CHUNK], "the picture").asked()
    assert isinstance(record, TextToImage)
    assert record.embedding == (f"{word}=my-cat",)
    assert model.draw(record)[0].tobytes() == image.tobytes()
    odd = tmp_path / "a=b.safetensors"  # is a file, and no name
    odd.write_bytes(Path(word).read_bytes())
    assert model.draw(PLAIN.changed(prompt="a a=b apple", embedding=(str(odd),)))[0].tobytes() == named.tobytes()


# -- what others read


def test_the_text_for_other_tools_has_names_and_hashes(model: Model, folder: Path) -> None:
    """As AUTOMATIC1111's web UI writes them: of a LoRA the hash of its tensors, of an embedding that of its file."""
    style, jojo = folder / "style.safetensors", folder / "jojo.safetensors"
    request = PLAIN.changed(
        prompt="a jojo apple <lora:other:0.5>",
        lora=(f"{style}:0.8:0.4",),
        hypernetwork=(f"{folder / 'bend.pt'}:0.7",),
        embedding=(str(jojo), f"{jojo}=unsaid"),
        adapters=str(folder),
    )
    (image,) = model.draw(request)

    def of_tensors(path: Path) -> str:
        content = path.read_bytes()
        return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()[:12]

    text = image.info[TEXT_CHUNK]
    prompt, _, keys = a1111_reading(text)
    assert prompt == "a jojo apple <lora:other:0.5><lora:style:0.8:0.4><hypernet:bend:0.7>"
    wanted = f"style: {of_tensors(style)}, other: {of_tensors(folder / 'other.safetensors')}"
    assert keys["Lora hashes"] == wanted
    digits = hashlib.sha256(jojo.read_bytes()).hexdigest()[:12]
    assert keys["TI hashes"] == f"jojo: {digits}"

    data = pictures.encode(image, "PNG")
    info = ParserManager().parse(Image.open(io.BytesIO(data)))
    assert info is not None
    assert info.samplers[0].parameters["steps"] == "2"

    del image.info[RECORD_CHUNK]
    found = recover(pictures.encode(image, "PNG"))
    assert found.fields["prompt"] == prompt
    assert f"it was drawn with the LoRA style (hash {of_tensors(style)}): give the folder" in " ".join(found.notes)
    assert f"its word jojo (hash {digits}) is of an embedding: give the file by --embedding" in found.notes
    again = request.changed(prompt=prompt, lora=(), hypernetwork=())
    pairs = zip(model.draw(again)[0].tobytes(), image.tobytes(), strict=True)  # summed in another order
    assert max(abs(one - other) for one, other in pairs) <= 1


def test_a_hash_that_a_file_says_of_itself_is_its_hash_and_that_of_nothing_none(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a, b: c.safetensors"
    write_lora(path, random_lora(model.preset), model.preset)
    tensors = load_file(path)
    said = {"2" * 64: "a b c: 222222222222", hashlib.sha256().hexdigest(): None}
    for digest, written in said.items():
        save_file(tensors, path, {"sshs_model_hash": digest})
        (image,) = model.draw(PLAIN.changed(lora=(str(path),)))
        prompt, _, keys = a1111_reading(image.info[TEXT_CHUNK])
        assert keys.get("Lora hashes") == written
        assert prompt == "a red apple<lora:a b c:1>"
        path.unlink()


# -- what does nothing is said


def test_what_does_nothing_with_a_model_is_said(model: Model, folder: Path, tmp_path: Path) -> None:
    assert model.notes(PLAIN.changed(**asked(folder, "hypernetwork"))) == []
    [line] = model.notes(PLAIN.changed(prompt="a <wish:1> apple"))
    assert line == "nobody here knows what <wish:1> means: it does nothing"
    context = model.preset.unet.context_width
    assert context is not None
    many = Hypernetwork([context, 768, 2048], HypernetworkConfig())
    many.initialise(torch.Generator().manual_seed(0))
    write_hypernetwork(tmp_path / "many.pt", many)
    [line] = model.notes(PLAIN.changed(hypernetwork=(str(tmp_path / "many.pt"),)))
    assert line.endswith("many.pt: not used: what it has for the width 768 and 2048, which this model lacks")
    sd2 = toy_model(PRESETS["sd2-base"])
    write_lora(tmp_path / "a.safetensors", random_lora(sd2.preset), sd2.preset)
    tensors = load_file(tmp_path / "a.safetensors")
    [first] = [key for key in tensors if "layers_0_mlp_fc1.lora_down" in key]
    last = len({key.split("layers_")[1].split("_")[0] for key in tensors if "text_model_encoder_layers_" in key})
    above = {k.replace("layers_0_", f"layers_{last}_"): v.clone() for k, v in tensors.items() if "s_0_mlp_fc1" in k}
    save_file(tensors | above, tmp_path / "whole.safetensors")
    assert first.replace("layers_0_", f"layers_{last}_") in above
    [line] = sd2.notes(PLAIN.changed(lora=(str(tmp_path / "whole.safetensors"),)))
    assert "whole.safetensors: not used: lora_te" in line
    assert "and 2 more (of the last layer of a whole text tower" in line
