"""Networks that come and go, and a second model that goes on with what the first began."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import safelight
from safelight.cli import main
from safelight.errors import RequestError
from safelight.presets import PRESETS
from safelight.presets.preset import AUTOENCODER, UNET
from safelight.tasks.model import Model
from safelight.tasks.parts import Networks
from safelight.tasks.pictures import to_data_uri
from safelight.tasks.requests import ImageToImage, Refine, TextToImage
from toy import toy_folder
from toy_family import toy_model

REQUEST = TextToImage(prompt="a red apple", seed=5, batch=2)


def test_low_memory_draws_the_same_and_holds_only_what_it_needs(tmp_path: Path) -> None:
    folder = toy_folder(tmp_path / "toy")
    whole, frugal = safelight.load(folder), safelight.load(folder, low_memory=True)
    assert held(whole) == {"unet", "autoencoder", "text"}
    assert held(frugal) == set()
    seen: list[set[str]] = []
    ours = frugal.draw(REQUEST, lambda _: seen.append(held(frugal)))
    assert [image.tobytes() for image in ours] == [image.tobytes() for image in whole.draw(REQUEST)]
    assert seen == [{UNET}] * 4, "text tower and autoencoder are not there while the UNet works"
    assert held(frugal) == set()
    ours[0].save(tmp_path / "a.png")
    started = ImageToImage(prompt="a red apple", seed=5, image=str(tmp_path / "a.png"))
    assert frugal.draw(started)[0].tobytes() == whole.draw(started)[0].tobytes()
    assert held(frugal) == set()


def test_a_walk_that_is_left_early_lets_go_too(tmp_path: Path) -> None:
    frugal = safelight.load(toy_folder(tmp_path / "toy"), low_memory=True)
    steps = frugal.steps(REQUEST)
    next(steps)
    assert held(frugal) == {UNET}
    steps.close()
    assert held(frugal) == set()


def test_what_is_made_in_memory_is_never_let_go() -> None:
    model = toy_model(PRESETS["sd1"])
    model.networks.free()
    assert held(model) == set(model.networks)


def test_only_one_unet_of_two_is_held(tmp_path: Path) -> None:
    toy_model(PRESETS["sdxl"]).save(tmp_path / "base")
    toy_model(PRESETS["sdxl-refiner"]).save(tmp_path / "refiner")
    model = safelight.load(tmp_path / "base", refiner=tmp_path / "refiner", low_memory=True)
    refiner = model.refiner
    assert refiner is not None
    seen = []
    model.draw(
        TextToImage(prompt="a red apple", seed=1, steps=10, sampler="euler", spacing="leading"),
        lambda _: seen.append((held(model), held(refiner))),
    )
    assert seen == [({UNET}, set())] * 8 + [(set(), {UNET})] * 2
    assert AUTOENCODER not in held(refiner), "the base decodes"


def test_the_command_hands_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_model(PRESETS["sdxl"]).save(tmp_path / "base")
    toy_model(PRESETS["sdxl-refiner"]).save(tmp_path / "refiner")
    words = ["txt2img", "a red apple", "--seed", "1", "--model", str(tmp_path / "base")]
    second = ["--refiner", str(tmp_path / "refiner"), "--aesthetic", "7"]
    assert main([*words, *second, "--output", str(tmp_path / "both.png")]) == 0
    assert main([*words, *second, "--switch", "0.3", "--output", str(tmp_path / "early.png")]) == 0
    assert main([*words, "--output", str(tmp_path / "alone.png")]) == 0
    pictures = {(tmp_path / f"{name}.png").read_bytes() for name in ("both", "early", "alone")}
    assert len(pictures) == 3
    capsys.readouterr()
    assert main([*words, "--aesthetic", "7", "--output", str(tmp_path / "none.png")]) == 2
    assert "not told aesthetic" in capsys.readouterr().err


def test_who_cannot_go_on_is_told_so() -> None:
    base, other = toy_model(PRESETS["sdxl"]), toy_model(PRESETS["sd1"])
    with pytest.raises(RequestError, match=r"sd1 cannot go on with what sdxl began: .* a model of the same family"):
        Model(base.preset, base.networks, base.tokenizers, refiner=other)
    with pytest.raises(RequestError, match=r"has none to hand over to at --switch 0.7: give a --refiner"):
        base.draw(TextToImage(prompt="x", switch=0.7))


def test_refining_never_forgets_the_picture() -> None:
    """Even at full strength it starts from the picture, as img2img does; only what draws anew begins at noise alone."""
    model = toy_model(PRESETS["sdxl-refiner"])
    image = to_data_uri(Image.new("RGB", (model.preset.width, model.preset.width), "red"))
    said = {"prompt": "a red apple", "seed": 1, "image": image, "strength": 1.0}
    refined, redrawn = model.draw(Refine(**said)), model.draw(ImageToImage(**said))
    assert refined[0].tobytes() == redrawn[0].tobytes()


def held(model: Model) -> set[str]:
    """The networks that are in memory."""
    assert isinstance(model.networks, Networks)
    return set(model.networks._held)
