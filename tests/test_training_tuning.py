"""Fine-tuning on toy models: it learns, it changes what it says and nothing else, it goes on where it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

import safelight
from safelight.adapters.lora import Strength, changes, read_lora
from safelight.adapters.patching import patched
from safelight.cli import main
from safelight.errors import DataError, TrainingError
from safelight.presets import PRESETS
from safelight.tasks.requests import TextToImage
from safelight.training.loop import train
from safelight.training.recipes.dreambooth import DreamBooth
from safelight.training.recipes.lora import LoraRecipe
from safelight.training.recipes.tuning import TUNED, Tuning, buckets_for
from safelight.training.recipes.tuning_settings import (
    DreamBoothSettings,
    LoraSettings,
    TuningData,
    TuningLoop,
    TuningSettings,
)
from tuning_cases import data, loop, newest, pictures, require_exact_resume, toy_model

KINDS = ("lora", "locon", "loha", "lokr", "dora")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "in")


def descent(recipe: Tuning, steps: int, lr: float, *, number: int = 0) -> list[float]:
    """The loss of one batch, again and again, with the same random numbers."""
    batch = recipe.batch(number, 2)
    optimizer = torch.optim.AdamW(recipe.trained.parameters(), lr=lr)
    losses: list[float] = []
    for _ in range(steps):
        for turn in recipe.turns(batch, torch.Generator().manual_seed(1), 0):
            optimizer.zero_grad()
            turn.loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
            optimizer.step()
            losses.append(turn.loss.item())
    return losses


def frozen(recipe: Tuning) -> dict[str, Tensor]:
    """Every tensor of the model."""
    networks: dict[str, nn.Module] = {"unet": recipe.foundation.unet, **recipe.foundation.towers}
    return {f"{part}/{key}": t.clone() for part, network in networks.items() for key, t in network.state_dict().items()}


# LoRA


def lora(model: Path, folder: Path, output: Path, **settings: object) -> LoraRecipe:
    told = replace(LoraSettings(model=str(model), rank=4), **settings)  # type: ignore[arg-type]  # the test's own
    return LoraRecipe(told, data(folder), loop(output))


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_begins_as_nothing_learns_and_leaves_the_model_alone(
    kind: str, model: Path, folder: Path, tmp_path: Path
) -> None:
    recipe = lora(model, folder, tmp_path / "run", kind=kind, train_text=True)
    before = frozen(recipe)
    batch = recipe.batch(0, 2)
    first = next(recipe.turns(batch, torch.Generator().manual_seed(1), 0)).loss.item()
    plain = lora(model, folder, tmp_path / "run", kind=kind)
    for layer in plain.trained.modules():
        for parameter in layer.parameters(recurse=False):
            parameter.data.zero_()
    without = next(plain.turns(batch, torch.Generator().manual_seed(1), 0)).loss.item() if kind != "dora" else first
    assert first == pytest.approx(without, rel=1e-5), "a fresh one changes the picture"
    losses = descent(recipe, 12, 0.01)
    assert losses[-1] < 0.97 * losses[0], f"{kind}: the loss went {losses[0]:.4f} -> {losses[-1]:.4f}"
    after = frozen(recipe)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is not None for p in recipe.trained.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_kohyas_and_acts_as_what_was_trained(kind: str, model: Path, folder: Path, tmp_path: Path) -> None:
    config = loop(tmp_path / "jojo")
    recipe = lora(model, folder, config.output, kind=kind, train_text=True, trigger="a jojo cat", alpha=2.0)
    train(recipe, config)
    file = config.output / "jojo.safetensors"
    with safe_open(file, "pt") as content:
        metadata, keys = content.metadata(), set(content.keys())
    assert metadata["ss_network_dim"] == "4" or kind == "lokr"
    assert metadata["modelspec.trigger_phrase"] == "a jojo cat"
    assert json.loads(metadata["ss_tag_frequency"])["in"]["a jojo cat"] == 2
    assert {key.split(".")[0][:9] for key in keys} == {"lora_unet", "lora_te_t"}
    assert any("resnets" in key for key in keys) is (kind == "locon")

    towers, batch = recipe.foundation.towers, recipe.batch(0, 2)
    trained = next(recipe.turns(batch, torch.Generator().manual_seed(1), 0)).loss.item()
    assert not any("forward" in vars(m) for m in recipe.foundation.unet.modules()), "something stayed on the model"
    recipe.acting = lambda drawing: nullcontext(recipe.foundation.tokenizers)  # type: ignore[method-assign]
    untouched = next(recipe.turns(batch, torch.Generator().manual_seed(1), 0)).loss.item()
    change = [(read_lora(file, recipe.preset), Strength())]
    with patched(recipe.foundation.unet, changes(change, "unet")), patched(towers["text"], changes(change, "text")):
        used = next(recipe.turns(batch, torch.Generator().manual_seed(1), 0)).loss.item()
    assert used == pytest.approx(trained, rel=1e-4)
    assert abs(untouched - trained) > 100 * abs(used - trained), "what was trained changes nothing"


def test_which_layers_learn_is_what_was_asked(model: Path, folder: Path, tmp_path: Path) -> None:
    found = {
        layers: {name.replace("/", ".") for name in lora(model, folder, tmp_path / "x", layers=layers).trained["unet"]}  # type: ignore[index]
        for layers in ("attention", "transformer", "linear", "convolution")
    }
    assert found["attention"] < found["transformer"] < found["linear"] < found["convolution"]
    assert all(".attn" in name for name in found["attention"])
    assert "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj" in found["transformer"]
    assert "down_blocks.0.resnets.0.time_emb_proj" in found["linear"]
    assert "down_blocks.0.downsamplers.0.conv" in found["convolution"]
    text = lora(model, folder, tmp_path / "x", text_only=True)
    assert list(text.trained) == ["text"]  # type: ignore[call-overload]


def test_each_part_learns_at_its_own_rate(model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    told = LoraSettings(model=str(model), rank=2, train_text=True, unet_lr=0.004, text_lr=1e-9)
    config = loop(output, images=2, clip=0.0)
    recipe = LoraRecipe(told, data(folder), config)
    before = {name: p.detach().clone() for name, p in recipe.trained.named_parameters()}
    train(recipe, config)
    # One step of Adam moves every weight that has a gradient by the learning rate.
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in recipe.trained.named_parameters()}
    assert max(v for name, v in moved.items() if name.startswith("unet.")) == pytest.approx(0.004, rel=0.02)
    assert max(v for name, v in moved.items() if name.startswith("text.")) < 1e-7


def test_a_rank_larger_than_the_layer_is_refused(model: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"layer down_blocks\S+: rank 400 .* give a smaller --rank") as caught:
        lora(model, folder, tmp_path / "run", rank=400)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_interrupted_goes_on_bit_by_bit(kind: str, model: Path, folder: Path, tmp_path: Path) -> None:
    told = LoraSettings(model=str(model), rank=2, kind=kind, train_text=True, noise_offset=0.1)  # type: ignore[arg-type]
    stops = (3, 8) if kind == "lora" else (5,)
    made = data(folder, flip=True)
    final = require_exact_resume(lambda config: LoraRecipe(told, made, config), tmp_path, stops)
    assert any(key.startswith("run.safetensors:lora_unet") for key in final)


# DreamBooth


def test_dreambooth_makes_the_missing_pictures_of_the_class(model: Path, folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "cats"
    kept.mkdir()
    Image.new("RGB", (64, 64), "blue").save(kept / "mine.png")
    told = DreamBoothSettings(
        model=str(model), class_prompt="a cat", class_data=kept, class_images=6, prior_weight=0.25
    )
    recipe = DreamBooth(told, data(folder), loop(tmp_path / "run"))
    drawn = sorted(path.name for path in kept.glob("*.png"))
    assert drawn == [*(f"drawn-{k:05}.png" for k in range(5)), "mine.png"]
    wanted = safelight.load(model).txt2img("a cat", seed=0, batch=1, guidance=1)[0]
    first = np.asarray(Image.open(kept / "drawn-00000.png")).astype(int)
    assert np.abs(first - np.asarray(wanted)).max() <= 1, "it is not the model's own picture of seed 0, unguided"
    batches = [recipe.batch(index, 1) for index in range(48)]
    prior = [batch for batch in batches if batch.weights[0] == 0.25]
    assert {batch.captions for batch in prior} == {("a cat",)}
    assert len(prior) == pytest.approx(24, abs=8)
    (kept / "drawn-00002.png").unlink()
    before = (kept / "drawn-00001.png").stat().st_mtime_ns
    DreamBooth(told, data(folder), loop(tmp_path / "run"))
    assert (kept / "drawn-00002.png").exists() and (kept / "drawn-00001.png").stat().st_mtime_ns == before


def test_the_class_may_be_of_many_kinds(model: Path, folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "class.txt"
    prompts.write_text("# what it knew\na cat\n\na red apple on a table\n")
    told = LoraSettings(model=str(model), rank=1, class_prompts=prompts, class_images=3)
    recipe = LoraRecipe(told, data(folder), loop(tmp_path / "run"))
    kept = tmp_path / "run" / "class"
    said = [(kept / f"drawn-{k:05}.txt").read_text().strip() for k in range(3)]
    assert said == ["a cat", "a red apple on a table", "a cat"]
    entries = zip(recipe.pictures.entries, recipe.pictures.groups, strict=True)
    assert [entry.caption for entry, group in entries if group == 1] == said
    wanted = safelight.load(model).txt2img("a red apple on a table", seed=1, guidance=1)[0]
    second = np.asarray(Image.open(kept / "drawn-00001.png")).astype(int)
    assert np.abs(second - np.asarray(wanted)).max() <= 1, "it is not the model's own picture of its prompt and seed 1"
    again = LoraRecipe(LoraSettings(model=str(model), rank=1, class_data=kept), data(folder), loop(tmp_path / "again"))
    assert [entry.caption for entry in again.pictures.entries] == [entry.caption for entry in recipe.pictures.entries]
    with pytest.raises(TrainingError, match="two ways"):
        LoraSettings(class_prompt="a cat", class_prompts=prompts)


@pytest.mark.parametrize("text", [False, True])
def test_dreambooth_trains_the_whole_and_writes_a_model(text: bool, model: Path, folder: Path, tmp_path: Path) -> None:
    config = loop(tmp_path / "run", images=4)
    train(DreamBooth(DreamBoothSettings(model=str(model), train_text=text), data(folder), config), config)
    before, after = safelight.load(model).weights(), safelight.load(config.output).weights()
    same = {part: all(torch.equal(before[part][key], after[part][key]) for key in before[part]) for part in before}
    assert same == {"unet": False, "autoencoder": True, "text": not text}


def test_dreambooth_interrupted_goes_on_bit_by_bit(model: Path, folder: Path, tmp_path: Path) -> None:
    told = DreamBoothSettings(
        model=str(model), class_prompt="a cat", class_images=3, train_text=True, gradient_checkpointing=True
    )
    require_exact_resume(lambda config: DreamBooth(told, data(folder), config), tmp_path, (3, 10))


# What all have in common


@pytest.mark.parametrize("preset", ["sd1", "sd2-v", "sdxl", "tiny"])
def test_members_of_the_family_learn(preset: str, folder: Path, tmp_path: Path) -> None:
    model = toy_model(tmp_path / "model", preset)
    recipe = lora(model, folder, tmp_path / "run", train_text=True, caption_dropout=0.5)
    losses = descent(recipe, 8, 0.01)
    assert losses[-1] < losses[0], f"{preset}: the loss went {losses[0]:.4f} -> {losses[-1]:.4f}"
    assert set(recipe.trained) == {"unet", *recipe.foundation.towers}  # type: ignore[call-overload]


def test_sdxl_is_told_sizes_crops_and_silence_as_zeros(folder: Path, tmp_path: Path) -> None:
    model = toy_model(tmp_path / "model", "sdxl")
    recipe = lora(model, folder, tmp_path / "run")
    wide = next(i for i, entry in enumerate(recipe.pictures.entries) if entry.size == (96, 48))
    numbers = next(b.numbers[0] for k in range(9) if (b := recipe.batch(k, 1)).numbers[0, 1] == 96)
    place = recipe.pictures.places[wide]
    assert numbers.tolist() == [48, 96, *place.corner, *reversed(place.bucket)]
    said = recipe.says(["", "a cat"])
    assert said.context is not None and said.vector is not None
    assert not said.context[0].any() and not said.vector[0].any() and said.context[1].any()
    drawn = safelight.load(model)
    with torch.no_grad():
        told = recipe.foundation.with_sizes(said, torch.tensor([[1.0, 2, 3, 4, 5, 6]] * 2))
    assert told.vector is not None
    assert told.vector.shape[1] == drawn.preset.unet.vector_width


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("sd1-inpainting", "is told a hidden picture beside the words"),
        ("sdxl-refiner", "is told a aesthetic score"),
        ("ldm-cin256", "reads no words"),
    ],
)
def test_a_base_of_the_wrong_kind_is_refused(preset: str, said: str, folder: Path, tmp_path: Path) -> None:
    if preset not in PRESETS:
        preset = next(name for name, p in PRESETS.items() if not p.words and p.autoencoder is not None)
    model = toy_model(tmp_path / "model", preset)
    with pytest.raises(TrainingError, match=said) as caught:
        lora(model, folder, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_gradient_checkpointing_changes_no_number(model: Path, folder: Path, tmp_path: Path) -> None:
    def gradients(**settings: bool) -> list[Tensor]:
        recipe = lora(model, folder, tmp_path / "run", train_text=True, **settings)
        [turn] = [t for t in recipe.turns(recipe.batch(0, 2), torch.Generator().manual_seed(0), 0) if _back(t.loss)]
        assert turn.part == TUNED
        return [p.grad for p in recipe.trained.parameters() if p.grad is not None]

    def _back(loss: Tensor) -> bool:
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        return True

    for a, b in zip(gradients(), gradients(gradient_checkpointing=True), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("made", [LoraRecipe, DreamBooth])
def test_bf16_and_adafactor_learn_and_resume(
    made: Callable[..., Tuning], model: Path, folder: Path, tmp_path: Path
) -> None:
    told: TuningSettings = (LoraSettings if made is LoraRecipe else DreamBoothSettings)(model=str(model))
    ways = {"optimizer": "adafactor", "precision": "bf16", "lr": 0.03}

    def run(output: Path, images: int, resume: bool = False) -> dict[str, Tensor]:
        config = loop(output, images=images, resume=resume, **ways)
        train(made(told, data(folder), config), config)
        return newest(output)

    whole = run(tmp_path / "whole" / "run", 8)
    assert any(key.endswith("row_var") for key in whole)
    assert not any(key.endswith("exp_avg") for key in whole)
    run(tmp_path / "parts" / "run", 4)
    again = run(tmp_path / "parts" / "run", 8, resume=True)
    assert [key for key in whole if not torch.equal(whole[key], again[key])] == []
    assert all(torch.isfinite(t).all() for t in whole.values() if t.is_floating_point())


def test_8_bit_adamw_learns_and_resumes(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = DreamBoothSettings(model=str(model), train_text=True)

    def made(config: TuningLoop) -> Tuning:
        return DreamBooth(told, data(folder), config)

    with monkeypatch.context() as without:
        without.setitem(sys.modules, "bitsandbytes.optim", None)
        config = loop(tmp_path / "missing" / "run", optimizer="adamw8bit")
        with pytest.raises(TrainingError, match=r"needs bitsandbytes: pip install 'safelight\[8bit\]'"):
            train(made(config), config)
    pytest.importorskip("bitsandbytes")
    final = require_exact_resume(made, tmp_path, (5,), optimizer="adamw8bit")
    eight = [key for key, tensor in final.items() if key.endswith("/state1") and tensor.dtype == torch.uint8]
    assert eight, "nothing is large enough for 8 bits"
    exact = loop(tmp_path / "exact" / "run")
    train(made(exact), exact)
    other = newest(exact.output)
    start = loop(tmp_path / "start" / "run", images=2, lr=1e-12)
    train(made(start), start)
    first = newest(start.output)
    moved, apart = 0.0, 0.0
    for key in (key for key in other if key.startswith("weights/")):
        moved += float((other[key] - first[key]).square().sum())
        apart += float((other[key] - final[key]).square().sum())
    assert apart < 0.1 * moved, f"it goes another way than AdamW: {apart:.2g} apart of {moved:.2g} moved"


def test_previews_are_drawn_and_change_nothing(model: Path, folder: Path, tmp_path: Path) -> None:
    told = LoraSettings(model=str(model), rank=2, train_text=True)
    seen = replace(told, preview=("a cat", "jojo"), preview_every=4)
    runs = {}
    for name, settings in (("without", told), ("with", seen)):
        config = loop(tmp_path / name / "run")
        train(LoraRecipe(settings, data(folder), config), config)
        runs[name] = newest(config.output)
    assert all(torch.equal(runs["with"][key], tensor) for key, tensor in runs["without"].items())
    drawn = sorted(p.name for p in (tmp_path / "with" / "run" / "previews").iterdir())
    assert drawn == [f"{images:012}-{k}.png" for images in (4, 8, 12) for k in (1, 2)]
    first, later = (Image.open(tmp_path / "with" / "run" / "previews" / f"{n:012}-1.png").tobytes() for n in (4, 8))
    assert first != later, "what was learned is not in the preview"


@pytest.mark.parametrize("made", [LoraRecipe, DreamBooth])
def test_previews_show_the_average_that_is_written(
    made: Callable[..., Tuning], model: Path, folder: Path, tmp_path: Path
) -> None:
    told = {"model": str(model), "preview": ("a cat",), "preview_every": 12}
    settings: TuningSettings = LoraSettings(**told) if made is LoraRecipe else DreamBoothSettings(**told)  # type: ignore[arg-type]
    runs = {}
    for ema in (0.0, 0.9):
        config = loop(tmp_path / str(ema) / "run", ema=ema, lr=0.05)
        train(made(settings, data(folder), config), config)
        runs[ema] = newest(config.output)
        preview = Image.open(config.output / "previews" / f"{12:012}-1.png")
        wears = () if made is DreamBooth else (str(config.output / "run.safetensors"),)
        written = safelight.load(str(model if wears else config.output), "cpu")
        [drawn] = written.draw(TextToImage(prompt="a cat", seed=config.seed, lora=wears))
        far = max(abs(a - b) for a, b in zip(drawn.tobytes(), preview.tobytes(), strict=True))
        assert far <= (2 if wears else 0), f"ema {ema}: the preview is not of what was written"
    weights = [key for key in runs[0.0] if key.startswith("weights/")]
    assert all(torch.equal(runs[0.0][key], runs[0.9][key]) for key in weights), "a preview changed the weights"


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_checkpoint(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    config = loop(tmp_path / "run", images=40, accumulate=1)
    recipe = lora(model, folder, config.output)
    turns = recipe.turns

    def spoiled(batch, generator, images_seen):  # type: ignore[no-untyped-def]
        for turn in turns(batch, generator, images_seen):
            yield replace(turn, loss=turn.loss * (float("nan") if images_seen >= 10 else 1.0))

    recipe.turns = spoiled  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"not finite in 5 steps in a row.* last good checkpoint is .*0{10}12$"):
        train(recipe, config)
    kept = tmp_path / "run" / "checkpoints" / f"{12:012}"
    assert (kept / "weights.safetensors").is_file()


def test_sizes_of_buckets_follow_the_model() -> None:
    assert buckets_for(TuningData(Path()), 512, 8).sizes == buckets_for(TuningData(Path(), size=512), 64, 8).sizes
    tiny = buckets_for(TuningData(Path()), 64, 4)
    assert (tiny.step, tiny.smallest, tiny.largest) == (8, 32, 128)
    assert buckets_for(TuningData(Path(), square=True), 64, 4).sizes == ((64, 64),)
    with pytest.raises(DataError, match="--size 66 is not a multiple of 4, as this model needs: give 64"):
        buckets_for(TuningData(Path(), size=66, square=True), 64, 4)


def test_the_command_trains_records_and_refuses_in_one_line(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--model", str(model), "--size", "64", "--images", "2", "--device", "cpu", "--workers", "0"]
    run = tmp_path / "jojo"
    assert main(["train", "lora", "--output", str(run), "--data", str(folder), *few, "--rank", "2"]) == 0
    assert json.loads((run / "logs" / "settings.json").read_text())["settings"]["kind"] == "lora"
    assert (run / "jojo.safetensors").is_file()
    (tmp_path / "bad").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "bad" / "a.png")
    capsys.readouterr()
    assert main(["train", "lora", "--output", str(tmp_path / "x"), "--data", str(tmp_path / "bad"), *few]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "a.png has no caption" in error
    assert main(["train", "lora", "--output", str(tmp_path / "x"), "--data", str(folder), "--name", "../a", *few]) == 2
    assert "no name of a file" in capsys.readouterr().err


def test_pictures_of_a_class_are_read_with_their_captions_too(model: Path, folder: Path, tmp_path: Path) -> None:
    for k in range(3):
        path = tmp_path / "reg" / "1_cat" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), "blue").save(path)
    recipe = lora(model, folder, tmp_path / "run", class_data=tmp_path / "reg", prior_weight=0.5)
    batches = [recipe.batch(index, 1) for index in range(40)]
    assert {(batch.captions[0], float(batch.weights[0])) for batch in batches if batch.weights[0] != 1} == {
        ("cat", 0.5)
    }
    generator = torch.Generator().manual_seed(3)
    losses = [next(recipe.turns(b, generator.manual_seed(3), 0)).loss.item() for b in batches if b.weights[0] != 1]
    recipe.settings = replace(recipe.settings, prior_weight=1.0)
    whole = [recipe.batch(index, 1) for index in range(40) if recipe.pictures.groups[recipe._rows(index, 1)[0]]]
    full = [next(recipe.turns(b, generator.manual_seed(3), 0)).loss.item() for b in whole]
    assert [loss / 0.5 for loss in losses] == pytest.approx(full)


def test_the_class_may_teach_what_the_model_answers_without_what_is_trained(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "reg" / "1_cat" / "0.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64), "blue").save(path)
    recipe = lora(model, folder, tmp_path / "run", class_data=tmp_path / "reg", class_target="model", train_text=True)

    def loss(of_class: bool) -> float:
        batches = [recipe.batch(index, 1) for index in range(20)]
        chosen = next(batch for batch in batches if bool(batch.of_class) is of_class)
        return next(recipe.turns(chosen, torch.Generator().manual_seed(3), 0)).loss.item()

    new = loss(of_class=False)
    assert loss(of_class=True) == 0, "it changes nothing yet"
    with torch.no_grad():
        for name, weight in recipe.trained.named_parameters():
            if name.endswith("up.weight"):
                weight.add_(0.1)
    assert loss(of_class=True) > 1e-4
    assert loss(of_class=False) != new
    with torch.no_grad():
        for name, weight in recipe.trained.named_parameters():
            if name.endswith("up.weight"):
                weight.zero_()
    assert loss(of_class=False) == new, "what is new teaches its noise, as ever"
    with pytest.raises(TrainingError, match="--class-target model is about pictures of the class"):
        lora(model, folder, tmp_path / "none", class_target="model")


def test_captions_of_the_class_alone_may_be_left_out(model: Path, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "reg" / "1_cat" / "0.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64), "blue").save(path)
    recipe = lora(model, folder, tmp_path / "run", class_data=tmp_path / "reg", class_caption_dropout=1.0)
    said: list[str] = []
    recipe.says = lambda captions: (said.extend(captions), recipe.foundation.remembers(captions))[1]
    for index in range(8):
        next(recipe.turns(recipe.batch(index, 2), torch.Generator().manual_seed(index), 0))
    assert "" in said and "cat" not in said
    assert "a jojo cat" in said
    with pytest.raises(TrainingError, match="--class-caption-dropout is 2"):
        LoraSettings(class_caption_dropout=2)


def test_a_caption_that_is_cut_is_said(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora(model, pictures(tmp_path / "in", ("cat", "cat " * 80)), tmp_path / "run")
    said = capsys.readouterr().err
    assert "1 captions are longer than 75 tokens, and lose their ends: the first is of " in said
    assert "1.png" in said


def test_settings_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(TrainingError, match="add --train-text"):
        LoraSettings(text_lr=1e-5)
    with pytest.raises(TrainingError, match="add --train-text"):
        DreamBoothSettings(text_lr=1e-5)
    with pytest.raises(TrainingError, match="--factor is for --kind lokr"):
        LoraSettings(factor=4)
