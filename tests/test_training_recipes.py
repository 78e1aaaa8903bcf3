"""The recipes on real networks of tiny's shape: they learn, they go on where they were, their results fit together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import safelight
from safelight.checkpoints.components import read_autoencoder, read_clip
from safelight.cli import main
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.weighting import snr_weight
from safelight.errors import TrainingError
from safelight.models.autoencoder import Autoencoder
from safelight.presets import PRESETS, VISION
from safelight.training.loop import Recipe
from safelight.training.recipes.autoencoder import AutoencoderRecipe, random_squares
from safelight.training.recipes.clip import ClipRecipe
from safelight.training.recipes.diffusion import DiffusionRecipe
from safelight.training.recipes.judge import JudgeRecipe
from safelight.training.recipes.settings import AutoencoderSettings, ClipSettings, DiffusionSettings
from safelight.training.scenes import Scenes

TINY = PRESETS["tiny"]
FEW = ["--count", "24", "--batch", "8", "--workers", "0", "--device", "cpu", "--save-every", "8"]
UNET, VAE, TEXT = (
    f"{part}/{name}.safetensors"
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    )
)


def train(recipe: str, output: Path, images: int, *options: str) -> Path:
    assert main(["train", recipe, "--output", str(output), "--images", str(images), *FEW, *options]) == 0
    return output


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("clip", tmp_path_factory.mktemp("clip") / "run", 8)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    return train("autoencoder", tmp_path_factory.mktemp("autoencoder") / "run", 16, "--crop", "32", "--lr", "0.001")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, clip: Path, autoencoder: Path) -> Path:
    output = tmp_path_factory.mktemp("model") / "run"
    return train("diffusion", output, 16, "--text-encoder", str(clip), "--autoencoder", str(autoencoder))


def descent(recipe: Recipe[object], steps: int, lr: float) -> list[float]:
    """The loss of the first part on one batch, again and again, with the same random numbers."""
    batch = recipe.batch(0, 8)
    optimizers = {name: torch.optim.AdamW(part.parameters(), lr=lr) for name, part in recipe.parts.items()}
    losses: list[float] = []
    for _ in range(steps):
        for i, turn in enumerate(recipe.turns(batch, torch.Generator().manual_seed(1), 0)):
            optimizers[turn.part].zero_grad()
            turn.loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
            optimizers[turn.part].step()
            if i == 0:
                losses.append(turn.loss.item())
    return losses


def recipes(tmp: Path, clip: Path, autoencoder: Path) -> dict[str, Callable[[], object]]:
    scenes = Scenes(16)
    diffusion = DiffusionSettings(text_encoder=clip, autoencoder=autoencoder, caption_dropout=0.0)
    return {
        "clip": lambda: ClipRecipe(ClipSettings(), scenes, TINY.networks["text"], VISION["tiny"], cache=tmp, seed=0),
        "autoencoder": lambda: AutoencoderRecipe(
            AutoencoderSettings(perceptual=clip, adversarial_weight=0.0), scenes, TINY.autoencoder, seed=0
        ),
        "diffusion": lambda: DiffusionRecipe(diffusion, scenes, None, cache=tmp, seed=0),
        "judge": lambda: JudgeRecipe(scenes, seed=0),
    }


@pytest.mark.parametrize("name", ["clip", "autoencoder", "diffusion", "judge"])
def test_a_recipe_learns_one_batch(name: str, tmp_path: Path, clip: Path, autoencoder: Path) -> None:
    recipe = recipes(tmp_path, clip, autoencoder)[name]()
    losses = descent(recipe, steps=15, lr=1e-3)  # type: ignore[arg-type]  # of whatever batches
    assert losses[-1] < 0.8 * losses[0], f"{name}: the loss went {losses[0]:.3f} -> {losses[-1]:.3f}"


def test_the_parts_make_a_model_that_draws(model: Path, clip: Path, autoencoder: Path) -> None:
    drawing = safelight.load(model)
    (image,) = drawing.txt2img("a red apple", steps=2, seed=0)
    assert image.size == (64, 64)
    assert drawing.preset.latent_scale == read_autoencoder(autoencoder)[1]
    tower = read_clip(clip)[0].text_model.state_dict()
    assert all(torch.equal(value, tower[key]) for key, value in drawing.networks["text"].state_dict().items())


def test_a_model_is_gone_on_from_with_its_own_words_and_latents(model: Path, tmp_path: Path) -> None:
    further = train("diffusion", tmp_path / "further", 8, "--begin-from", str(model), "--ema", "0")
    for part, same in ((UNET, False), (VAE, True), (TEXT, True)):
        before, after = load_file(model / part), load_file(further / part)
        assert all(torch.equal(before[key], after[key]) for key in before) is same, part
    far = max(float((load_file(model / UNET)[k] - v).abs().max()) for k, v in load_file(further / UNET).items())
    assert far < 0.01, f"one step of 3e-4 moved a weight by {far}: it did not begin from the model"


def test_without_words_and_latents_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "diffusion", "--output", str(tmp_path / "run"), *FEW]) == 2
    assert "--begin-from" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


ADVERSARIAL = ["--adversarial-weight", "0.5", "--adversarial-start", "8", "--discriminator-layers", "1"]


@pytest.mark.parametrize("recipe", ["autoencoder", "diffusion"])
def test_a_real_run_interrupted_goes_on_bit_by_bit(recipe: str, tmp_path: Path, clip: Path, autoencoder: Path) -> None:
    options = {
        "autoencoder": ["--crop", "16", "--schedule", "constant", *ADVERSARIAL],
        "diffusion": ["--text-encoder", str(clip), "--autoencoder", str(autoencoder), "--schedule", "constant"],
    }[recipe]
    whole = train(recipe, tmp_path / "whole", 24, *options)
    parts = train(recipe, tmp_path / "parts", 8, *options)
    parts = train(recipe, tmp_path / "parts", 24, *options, "--resume")
    for name in ("weights", "ema", "optimizer"):
        a, b = (load_file(run / "checkpoints" / f"{24:012}" / f"{name}.safetensors") for run in (whole, parts))
        assert a.keys() == b.keys()
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, f"{name}: {different[:3]}"


def test_training_the_decoder_alone_keeps_every_latent(autoencoder: Path, tmp_path: Path) -> None:
    options = ["--begin-from", str(autoencoder), "--decoder-only", "--adversarial-weight", "0", "--ema", "0"]
    tuned = train("autoencoder", tmp_path / "tuned", 8, *options)
    (before, scale), (after, scale_after) = read_autoencoder(autoencoder), read_autoencoder(tuned)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(before.encode(x)[0], after.encode(x)[0])
    assert scale == scale_after
    assert not torch.equal(before.decoder.conv_out.weight, after.decoder.conv_out.weight)


def test_latents_are_cached_for_the_encoder_and_the_data(
    tmp_path: Path, clip: Path, autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DiffusionSettings(text_encoder=clip, autoencoder=autoencoder)
    first = DiffusionRecipe(settings, Scenes(6), None, cache=tmp_path, seed=0)
    mean, std = first.latents.float().chunk(2, dim=1)
    network, _ = read_autoencoder(autoencoder)
    with torch.no_grad():
        wanted, logvar = network.encode(torch.stack([Scenes(6)[i][0] for i in range(6)]).float() / 127.5 - 1)
    assert torch.allclose(mean, wanted, atol=2e-3 * float(wanted.abs().max()))
    assert torch.allclose(std, (logvar / 2).exp(), rtol=1e-2)

    def refuse(self: Autoencoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("these latents are in the cache")

    monkeypatch.setattr(Autoencoder, "encode", refuse)
    again = DiffusionRecipe(settings, Scenes(6), None, cache=tmp_path, seed=0)
    assert torch.equal(again.latents, first.latents)
    with pytest.raises(AssertionError, match="in the cache"):
        DiffusionRecipe(settings, Scenes(6, seed=1), None, cache=tmp_path, seed=0)


def test_parts_of_other_shapes_are_refused(tmp_path: Path, clip: Path, autoencoder: Path) -> None:
    settings = DiffusionSettings(text_encoder=clip, autoencoder=autoencoder)
    with pytest.raises(TrainingError, match="the text tower is 128 wide but sd1's UNet attends to 768"):
        DiffusionRecipe(settings, Scenes(1), PRESETS["sd1"], cache=tmp_path, seed=0)
    with pytest.raises(TrainingError, match=r"62 pixels .* multiple of 4"):
        DiffusionRecipe(settings, Scenes(1, size=62), None, cache=tmp_path, seed=0)


def test_random_squares_are_cut_from_the_pictures() -> None:
    x = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).float()
    cut = random_squares(x, 4, torch.Generator().manual_seed(3))
    assert cut.shape == (2, 3, 4, 4)
    for one, square in zip(x, cut, strict=True):
        places: Tensor = (one[0] == square[0, 0, 0]).nonzero()
        top, left = places[0].tolist()
        assert torch.equal(one[:, top : top + 4, left : left + 4], square)


def test_weights_of_noise_levels() -> None:
    sigma = Schedule(TINY.schedule).sigmas[[0, 250, 500, 750, 999]].float()
    snr = sigma**-2
    weights: Mapping[str, Tensor | None] = {
        kind: snr_weight(sigma, kind, 5.0, "eps")  # type: ignore[arg-type]  # three literal names
        for kind in ("none", "min_snr", "clamped_snr")
    }
    assert weights["none"] is None
    min_snr, clamped = weights["min_snr"], weights["clamped_snr"]
    assert min_snr is not None
    assert clamped is not None
    # Hang et al. 2023, eq. 5: the weight of eps is min(SNR, 5) / SNR; that of v has SNR + 1 below.
    assert torch.allclose(min_snr, torch.minimum(snr, torch.tensor(5.0)) / snr)
    v = snr_weight(sigma, "min_snr", 5.0, "v")
    assert v is not None
    assert torch.allclose(v, torch.minimum(snr, torch.tensor(5.0)) / (snr + 1))
    # The error of x0 counts as much at pure noise as where signal and noise are equal.
    assert torch.allclose((clamped * snr)[-2:], torch.ones(2))


def test_families_come_into_a_batch_together(tmp_path: Path) -> None:
    scenes = Scenes(40, family=4)
    recipe = ClipRecipe(ClipSettings(family=4), scenes, TINY.networks["text"], VISION["tiny"], cache=tmp_path, seed=0)
    captions = recipe.tokenizer([scenes.caption(i) for i in range(40)])
    rows = [captions.eq(row).all(1).nonzero().flatten().tolist() for row in recipe.batch(3, 12).ids]
    for first in range(0, 12, 4):
        families = [{i // 4 for i in found} for found in rows[first : first + 4]]
        assert set.intersection(*families), f"these are not of one family: {families}"
    with pytest.raises(TrainingError, match="--batch 10 is no multiple of --family 4"):
        recipe.batch(0, 10)
