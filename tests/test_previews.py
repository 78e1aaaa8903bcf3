"""Previews: TAESD's decoder against diffusers' and its published shape, planes of colour, and what a model shows by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import safelight
from golden_cases import agree
from safelight.checkpoints.previews import decodes, fingerprint, read_preview_decoder, write_preview_decoder
from safelight.cli import main
from safelight.errors import ModelFileError, RequestError, TrainingError
from safelight.models.preview_decoder import PreviewDecoder, PreviewDecoderConfig
from safelight.presets import PRESETS
from safelight.tasks.model import Model, Step
from safelight.tasks.previewing import fitted
from safelight.tasks.requests import TextToImage
from safelight.training.recipes.preview_decoder import PreviewDecoderRecipe
from safelight.training.recipes.settings import PreviewDecoderSettings
from safelight.training.scenes import Scenes
from toy import toy_folder
from toy_family import toy_model as toy_of

TAESD = PreviewDecoderConfig()


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


class Published(nn.Sequential):
    """TAESD's decoder as its authors publish it: names are places in one sequence, and it answers in [0, 1]."""

    def __init__(self, width: int, channels: int) -> None:
        layers: list[nn.Module] = [Squash(), conv(channels, width), nn.ReLU()]
        for blocks in (3, 3, 3):
            layers += [*(Residual(width) for _ in range(blocks)), nn.Upsample(scale_factor=2)]
            layers.append(conv(width, width, bias=False))
        super().__init__(*layers, Residual(width), conv(width, 3))


class Squash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def conv(channels_in: int, channels_out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "folder"])
def test_a_file_of_taesd_is_read_in_its_own_naming(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    theirs = Published(64, 4).eval()
    assert len(theirs.state_dict()) == len(PreviewDecoder(TAESD).state_dict()) == 67
    assert "1.weight" in theirs.state_dict()
    assert "3.conv.0.weight" in theirs.state_dict()
    path = tmp_path / ("taesd_decoder.pth" if kind == "pth" else "taesd_decoder.safetensors")
    if kind == "pth":
        torch.save(theirs.state_dict(), path)
    else:
        save_file(theirs.state_dict(), path)
    ours = read_preview_decoder(tmp_path if kind == "folder" else path, 4, 8)
    assert ours.config == TAESD
    latent = 4 * draw(2, 4, 6, 5)
    with torch.no_grad():
        agree("published", ours(latent), theirs(latent) * 2 - 1)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("blocks", [(3, 3, 3, 1), (1, 2, 0)])
def test_autoencoder_tiny_is_read_as_diffusers_writes_it(tmp_path: Path, blocks: tuple[int, ...], alone: bool) -> None:
    torch.manual_seed(1)
    widths = (16,) * len(blocks)
    theirs = AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=tuple(reversed(blocks)),
        num_decoder_blocks=blocks,
    ).eval()
    theirs.save_pretrained(tmp_path)
    source = tmp_path / "diffusion_pytorch_model.safetensors" if alone else tmp_path
    ours = read_preview_decoder(source, 4, 2 ** (len(blocks) - 1))
    assert ours.config == PreviewDecoderConfig(4, 16, blocks)
    latent = 4 * draw(2, 4, 6, 5)
    with torch.no_grad():
        agree("diffusers", ours(latent), theirs.decode(latent).sample)


@pytest.mark.parametrize("config", [PreviewDecoderConfig(4, 16, (2,), 4), PreviewDecoderConfig(3, 8, (1, 0), 2)])
def test_ours_is_written_and_read(tmp_path: Path, config: PreviewDecoderConfig) -> None:
    torch.manual_seed(2)
    decoder = PreviewDecoder(config).half().float()
    write_preview_decoder(tmp_path / "it", decoder, "someone's")
    read = read_preview_decoder(tmp_path / "it", config.latent_channels, config.factor)
    assert (read.config, decodes(tmp_path / "it")) == (config, "someone's")
    latent = draw(1, config.latent_channels, 5, 6)
    with torch.no_grad():
        assert torch.equal(read(latent), decoder(latent))
        assert read(latent).shape == (1, 3, 5 * config.factor, 6 * config.factor)


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


def test_what_is_no_decoder_for_these_latents_is_one_line(tmp_path: Path) -> None:
    four = dict(Published(8, 4).state_dict())
    sixteen = written(tmp_path / "sixteen.safetensors", Published(16, 16).state_dict())
    del four["3.conv.2.bias"]
    lacking = written(tmp_path / "lacking.safetensors", four)
    other = written(tmp_path / "other.safetensors", {"some.weight": torch.ones(2)})
    odd = tmp_path / "odd"
    AutoencoderTiny(scaling_factor=0.5).save_pretrained(odd)
    (tmp_path / "empty").mkdir()
    for source, words in (
        (sixteen, "latents of 16 channels to 8 times their size, and the model's have 4 and want 8 times"),
        (lacking, "holds no preview decoder (layers.2.conv.2.bias does not fit)"),
        (other, "holds no preview decoder: give a TAESD decoder"),
        (odd, "scaling_factor is 0.5, expected 1.0"),
        (tmp_path / "empty", "has no preview decoder, like preview_decoder.safetensors"),
        (tmp_path / "gone", "there is no preview decoder"),
    ):
        with pytest.raises(ModelFileError) as caught:
            read_preview_decoder(source, 4, 8)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return safelight.load("tiny")


def last(model: Model, prompt: str = "a red apple on a blue background", **fields: object) -> Step:
    request = TextToImage(prompt=prompt, seed=3, steps=6).changed(**fields)
    return list(model.steps(request))[-1]


def decibels(images: list[Image.Image], others: list[Image.Image]) -> float:
    one, other = (np.stack([np.asarray(image, np.float64) for image in some]) for some in (images, others))
    return float(10 * np.log10(255**2 / np.mean((one - other) ** 2)))


def test_tiny_is_shown_by_its_own_decoder(tiny: Model, tmp_path: Path) -> None:
    step = last(tiny, batch=4)
    exact = tiny.decode(step.denoised)
    assert tiny._previews.decoder is not None
    plain = Model(tiny.preset, tiny.networks, tiny.tokenizers)
    assert decibels(plain.preview(step), exact) > 17
    assert decibels(tiny.preview(step), exact) > decibels(plain.preview(step), exact)


def test_the_shipped_decoder_goes_by_the_latents_and_not_by_the_name(tiny: Model, tmp_path: Path) -> None:
    tiny.save(tmp_path / "mine")
    assert safelight.load(tmp_path / "mine")._previews.decoder is not None
    assert safelight.load(tmp_path / "mine", dtype="float16")._previews.decoder is not None
    weights = tmp_path / "mine" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["encoder.conv_out.weight"] = tensors["encoder.conv_out.weight"] + 0.1
    save_file(tensors, weights)
    assert safelight.load(tmp_path / "mine")._previews.decoder is None


def test_previews_change_nothing_of_the_picture(tiny: Model) -> None:
    request = TextToImage(prompt="a red apple", seed=3, steps=4, batch=2)
    seen: list[Any] = []
    for model in (tiny, Model(tiny.preset, tiny.networks, tiny.tokenizers)):
        watched = model.draw(request, lambda step, model=model: seen.append(model.preview(step)))
        assert [i.tobytes() for i in watched] == [i.tobytes() for i in tiny.draw(request)]
    assert {image.size for images in seen for image in images} == {(64, 64)}


def test_planes_show_the_colours_of_surfaces(tiny: Model) -> None:
    planes = fitted(tiny)
    for colour in ((-0.8, -0.8, 0.7), (0.9, -0.6, -0.7), (0.8, 0.8, 0.8), (-0.5, 0.6, -0.5)):
        pixels = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 64, 64)
        shown = planes(tiny.to_latent(pixels))
        assert shown.shape == (1, 3, 64, 64)
        off = (shown.mean(dim=(2, 3))[0] - torch.tensor(colour)).abs().max()
        assert float(off) < 0.35, (colour, shown.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", PRESETS)
def test_every_member_shows_its_steps(name: str) -> None:
    model = toy_of(PRESETS[name])
    channels, h, w = model.latent_shape(model.preset.width, model.preset.height)
    step = Step(0, 1.0, 0.5, draw(2, channels, h, w), draw(2, channels, h, w))
    images = model.preview(step)
    assert [image.size for image in images] == [(model.preset.width, model.preset.height)] * 2
    if model.preset.autoencoder is None:
        assert [i.tobytes() for i in images] == [i.tobytes() for i in model.decode(step.denoised)]


def test_low_memory_holds_no_autoencoder_for_them(tmp_path: Path) -> None:
    frugal = safelight.load(toy_folder(tmp_path / "toy"), low_memory=True)
    held: list[set[str]] = []

    def watch(step: Step) -> None:
        frugal.preview(step)
        held.append(set(frugal.networks._held))

    frugal.draw(TextToImage(prompt="a red apple", seed=3, steps=2), watch)
    assert held == [{"unet"}] * 2


def test_trained_given_and_drawn_with(tmp_path: Path) -> None:
    folder, run = str(toy_folder(tmp_path / "toy")), str(tmp_path / "run")
    told = ["--model", folder, "--output", run, "--images", "16", "--batch", "4", "--count", "6", "--width", "8"]
    assert main(["train", "preview-decoder", *told, "--workers", "0", "--device", "cpu"]) == 0
    vae = load_file(Path(folder) / "vae" / "diffusion_pytorch_model.safetensors")
    assert decodes(Path(run)) == fingerprint(vae)
    steps, picture = tmp_path / "steps", str(tmp_path / "a.png")
    drawing = ["txt2img", "a red apple", "--model", folder, "--output", picture, "--seed", "3", "--steps", "2"]
    assert main([*drawing, "--save-steps", str(steps), "--preview-decoder", run]) == 0
    by_decoder = Image.open(steps / "step-002.png").tobytes()
    assert main([*drawing, "--save-steps", str(steps)]) == 0
    assert Image.open(steps / "step-002.png").tobytes() != by_decoder


def test_the_recipe_learns(tmp_path: Path) -> None:
    recipe = PreviewDecoderRecipe(PreviewDecoderSettings(), Scenes(16), seed=0)
    optimizer = torch.optim.AdamW(recipe.decoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        [turn] = recipe.turns(recipe.batch(0, 8), torch.Generator(), 0)
        optimizer.zero_grad()
        turn.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(turn.loss.item())
    assert losses[-1] < 0.3 * losses[0]
    batch = recipe.batch(0, 8)
    assert batch.new == (), "what the teacher has said is remembered"
    again = PreviewDecoderRecipe(PreviewDecoderSettings(), Scenes(16), seed=0)
    for mine, other in zip(recipe._taught(batch), again._taught(again.batch(0, 8)), strict=True):
        agree("a lesson is a function of its number", mine, other)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    scenes = Scenes(4)
    with pytest.raises(TrainingError, match=r"--blocks has 4 resolutions, .* there are 3: give no more numbers"):
        PreviewDecoderRecipe(PreviewDecoderSettings(blocks=(1, 1, 1, 1)), scenes, seed=0)
    for wrong in ({"width": 0}, {"blocks": (-1,)}, {"blocks": ()}, {"absolute_weight": -1.0}):
        with pytest.raises(TrainingError):
            PreviewDecoderSettings(**wrong)  # type: ignore[arg-type]
    pixels = next(preset for preset in PRESETS.values() if preset.autoencoder is None)
    toy_of(pixels).save(tmp_path / "pixels")
    with pytest.raises(RequestError, match="leave out --preview-decoder"):
        safelight.load(tmp_path / "pixels", preview_decoder=tmp_path)
    with pytest.raises(TrainingError, match="their own preview"):
        PreviewDecoderRecipe(PreviewDecoderSettings(model=str(tmp_path / "pixels")), scenes, seed=0)
