"""Textual inversion and hypernetworks on toy models: only what is theirs changes, and they go on where they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from safelight.adapters.embedding_files import read_embedding
from safelight.adapters.hypernetwork_files import read_hypernetwork
from safelight.adapters.hypernetworks import attended_widths, bent
from safelight.cli import main
from safelight.errors import DataError, TrainingError
from safelight.training.loop import train
from safelight.training.recipes.hypernetwork import HypernetworkRecipe
from safelight.training.recipes.textual_inversion import TextualInversion
from safelight.training.recipes.tuning import Tuning
from safelight.training.recipes.tuning_settings import HypernetworkSettings, InversionSettings
from tuning_cases import data, loop, newest, pictures, require_exact_resume, toy_model

WORD = "jojo"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "in", ("a jojo cat", "Jojo, red", "jojo"))


def frozen(recipe: Tuning) -> dict[str, Tensor]:
    networks: dict[str, nn.Module] = {"unet": recipe.foundation.unet, **recipe.foundation.towers}
    return {f"{part}/{key}": t.clone() for part, network in networks.items() for key, t in network.state_dict().items()}


def first_loss(recipe: Tuning) -> float:
    return next(recipe.turns(recipe.batch(0, 2), torch.Generator().manual_seed(1), 0)).loss.item()


# Textual inversion


def inversion(model: Path, **changes: object) -> InversionSettings:
    told = InversionSettings(model=str(model), placeholder=WORD, initial="a cat", vectors=3)
    return replace(told, **changes)  # type: ignore[arg-type]  # names and types are the test's own


def test_only_the_rows_of_the_word_change(model: Path, folder: Path, tmp_path: Path) -> None:
    config = loop(tmp_path / "run")
    recipe = TextualInversion(inversion(model), data(folder), config)
    before, rows = frozen(recipe), {part: row.detach().clone() for part, row in recipe._rows_of.items()}
    loss = first_loss(recipe)
    train(recipe, config)
    after = frozen(recipe)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert set(rows) == {"text"}
    assert all(bool((recipe._rows_of[part] != row).any(dim=1).all()) for part, row in rows.items()), "a row stayed"
    assert first_loss(recipe) != loss
    read = read_embedding(config.output / "jojo.safetensors")
    assert (read.words, read.count, read.origin.step) == (("jojo",), 3, 6)
    assert torch.equal(read.vectors[""], recipe._rows_of["text"].detach())


def test_the_initial_words_are_gone_round(model: Path, folder: Path, tmp_path: Path) -> None:
    recipe = TextualInversion(inversion(model, initial="ab", vectors=5), data(folder), loop(tmp_path / "run"))
    rows = recipe._rows_of["text"]
    count = len(recipe.foundation.tokenizers["text"].words("ab"))
    table = recipe.foundation.towers["text"].embeddings.token_embedding.weight  # type: ignore[union-attr]
    ids = recipe.foundation.tokenizers["text"].words("ab")
    assert all(torch.equal(rows[k], table[ids[k % count]]) for k in range(5))
    other = TextualInversion(inversion(model, initial=None), data(folder), loop(tmp_path / "run"))
    assert float(other._rows_of["text"].detach().std()) == pytest.approx(float(table.detach().std()), rel=0.5)


def test_a_word_for_both_towers_of_sdxl(folder: Path, tmp_path: Path) -> None:
    model = toy_model(tmp_path / "model", "sdxl")
    config = loop(tmp_path / "run", images=4)
    train(TextualInversion(inversion(model), data(folder), config), config)
    read = read_embedding(config.output / "jojo.safetensors")
    assert {part: tuple(row.shape) for part, row in read.vectors.items()} == {"text": (3, 24), "text_2": (3, 32)}


def test_previews_say_the_word(model: Path, folder: Path, tmp_path: Path) -> None:
    runs = {}
    for name, prompts in (("without", ()), ("with", ("a jojo cat", "a cat"))):
        config = loop(tmp_path / name / "run", lr=0.5)
        train(TextualInversion(inversion(model, preview=prompts, preview_every=4), data(folder), config), config)
        runs[name] = newest(config.output)
    assert all(torch.equal(runs["with"][key], tensor) for key, tensor in runs["without"].items())
    drawn = {p.name: p.read_bytes() for p in (tmp_path / "with" / "run" / "previews").iterdir()}
    assert drawn[f"{4:012}-1.png"] != drawn[f"{8:012}-1.png"], "the word did not change"
    assert drawn[f"{4:012}-2.png"] == drawn[f"{8:012}-2.png"], "a prompt without the word changed"


def test_captions_without_the_word_and_too_many_vectors_are_refused(model: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0\.png is 'a jojo cat', without sks: write the word") as caught:
        TextualInversion(inversion(model, placeholder="<sks>"), data(folder), loop(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match="--vectors 400 are more than a prompt has room for: give at most 75"):
        TextualInversion(inversion(model, vectors=400), data(folder), loop(tmp_path / "run"))
    with pytest.raises(TrainingError, match="no name of a file"):
        inversion(model, placeholder="../jojo")


def test_textual_inversion_interrupted_goes_on_bit_by_bit(model: Path, folder: Path, tmp_path: Path) -> None:
    final = require_exact_resume(lambda c: TextualInversion(inversion(model), data(folder), c), tmp_path, (2, 7))
    assert "jojo.safetensors:emb_params" in final


# Hypernetworks


DEEP = HypernetworkSettings(
    structure=(1.0, 2.0, 1.0, 1.0), activation="mish", layer_norm=True, dropout=(0.0, 0.2, 0.2, 0.0)
)


@pytest.mark.parametrize("preset", ["sd1", "sd2-v", "sdxl"])
def test_a_hypernetwork_for_every_width_of_the_family(preset: str, folder: Path, tmp_path: Path) -> None:
    model = toy_model(tmp_path / "model", preset)
    config = loop(tmp_path / "run", images=4, lr=0.001)
    recipe = HypernetworkRecipe(replace(DEEP, model=str(model)), data(folder), config)
    before = frozen(recipe)
    train(recipe, config)
    after = frozen(recipe)
    assert all(torch.equal(before[key], after[key]) for key in before)
    read = read_hypernetwork(config.output / "run.pt")
    assert read.widths == attended_widths(recipe.foundation.unet)
    assert read.config == recipe._trained.config
    recipe.trained.eval()
    trained = first_loss(recipe)
    assert not any(m._forward_pre_hooks for m in recipe.foundation.unet.modules()), "something stayed on the model"
    with bent(recipe.foundation.unet, [(read.eval(), 1.0), (recipe._trained, 0.0)]):
        recipe._trained = HypernetworkRecipe(
            HypernetworkSettings(model=str(model), initialisation="normal"), data(folder), config
        )._trained
        for parameter in recipe._trained.parameters():
            parameter.data.zero_()  # it adds nothing
        assert first_loss(recipe) == pytest.approx(trained, rel=1e-5)


def test_a_hypernetwork_for_the_words_alone(model: Path, folder: Path, tmp_path: Path) -> None:
    """The context is as wide as nothing else that the toy attends to."""
    config = loop(tmp_path / "run", images=2, lr=0.001)
    recipe = HypernetworkRecipe(HypernetworkSettings(model=str(model)), data(folder), config)
    context = recipe.foundation.unet.config.context_width
    assert context is not None and len(attended_widths(recipe.foundation.unet)) > 1
    told = HypernetworkSettings(model=str(model), widths=(context,))
    train(HypernetworkRecipe(told, data(folder), config), config)
    assert read_hypernetwork(config.output / "run.pt").widths == (context,)


def test_a_hypernetwork_interrupted_goes_on_bit_by_bit(model: Path, folder: Path, tmp_path: Path) -> None:
    told = replace(DEEP, model=str(model), file_format="safetensors")
    final = require_exact_resume(lambda c: HypernetworkRecipe(told, data(folder), c), tmp_path, (2, 9))
    assert any(key.startswith("run.safetensors:") for key in final)


def test_a_hypernetwork_of_zero_last_begins_as_the_model_is_and_its_file_says_what_the_web_ui_knows(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    told = HypernetworkSettings(model=str(model), zero_last=True, initialisation="kaiming-uniform", activation="relu")
    config = loop(tmp_path / "run", images=2)
    recipe = HypernetworkRecipe(told, data(folder), config)
    begun = first_loss(recipe)
    recipe._trained.initialise(zero_last=False)
    assert first_loss(recipe) != begun
    for parameter in recipe._trained.parameters():
        parameter.data.zero_()
    assert first_loss(recipe) == begun
    train(HypernetworkRecipe(told, data(folder), config), config)
    assert torch.load(config.output / "run.pt")["weight_initialization"] == "KaimingUniform"


ENDING = {"zero_last": True, "activation": "relu", "activate_output": True}


def test_what_cannot_be_built_is_said_in_one_line(model: Path, folder: Path, tmp_path: Path) -> None:
    for changes in (
        {"structure": (1.0, 2.0)},
        {"activation": "softmax"},
        {"dropout": (0.5,)},
        {"widths": (5,)},
        ENDING,
    ):
        told = replace(HypernetworkSettings(model=str(model)), **changes)  # type: ignore[arg-type]
        with pytest.raises(TrainingError, match="no hypernetwork can be built so") as caught:
            HypernetworkRecipe(told, data(folder), loop(tmp_path / "run"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "file"), [("textual-inversion", "jojo.safetensors"), ("hypernetwork", "run.pt")])
def test_the_commands_train(name: str, file: str, model: Path, folder: Path, tmp_path: Path) -> None:
    options = ["--placeholder", "jojo"] if name == "textual-inversion" else ["--structure", "1", "1.5", "1"]
    few = ["--model", str(model), "--size", "64", "--images", "2", "--device", "cpu", "--workers", "0", *options]
    assert main(["train", name, "--output", str(tmp_path / "run"), "--data", str(folder), *few]) == 0
    assert (tmp_path / "run" / file).is_file()
