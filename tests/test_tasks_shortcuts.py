"""Less work on request: what is asked, what is refused, what is recorded, and that a picture stays its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import safelight
from safelight.cli import main
from safelight.diffusion.samplers import SAMPLERS
from safelight.errors import RequestError
from safelight.models.merging import mergeable_level
from safelight.presets import PRESETS
from safelight.tasks.fields import ShortcutFields
from safelight.tasks.metadata import RECORD_CHUNK, Record
from safelight.tasks.model import Model
from safelight.tasks.requests import TextToImage
from safelight.tasks.resolve import tasks_of
from test_tasks_family import _ask
from toy import toy_folder, toy_model
from toy_family import toy_model as toy_of

ASKED: dict[str, dict[str, object]] = {
    "deep_every": {"deep_every": 2},
    "deep_below": {"deep_every": 2, "deep_below": 2},
    "merge_tokens": {"merge_tokens": 0.5},
}
OFF: dict[str, dict[str, object]] = {
    "deep_every": {"deep_every": 1},
    "deep_below": {"deep_every": 1, "deep_below": 3},
    "merge_tokens": {"merge_tokens": 0.0},
}
PLAIN = TextToImage(prompt="a red apple", negative_prompt="a dog", seed=4, guidance=9.0, steps=4, width=64, height=32)
BOTH = PLAIN.changed(deep_every=2, merge_tokens=0.5)


@pytest.fixture(scope="module")
def model() -> Model:
    return toy_model()


def far(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of a channel, of 255."""
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def test_every_field_has_a_case() -> None:
    assert set(ASKED) == set(OFF) == set(ShortcutFields.model_fields)


@pytest.mark.parametrize("field", ASKED)
def test_a_shortcut_is_seen_recorded_and_replayed(model: Model, field: str, tmp_path: Path) -> None:
    request = PLAIN.changed(**ASKED[field])
    (image,), (plain,) = model.draw(request), model.draw(PLAIN)
    assert far(image, plain) > 0
    assert model.draw(PLAIN.changed(**OFF[field]))[0].tobytes() == plain.tobytes()
    asked = Record.read(image.info[RECORD_CHUNK], "the picture").asked()
    assert asked.model_dump(include=set(ASKED)) == request.model_dump(include=set(ASKED))
    assert model.draw(asked)[0].tobytes() == image.tobytes()


def test_the_command_line_and_a_picture_of_it(tmp_path: Path) -> None:
    folder = str(toy_folder(tmp_path / "toy"))
    first, again, plain = (str(tmp_path / f"{name}.png") for name in ("first", "again", "plain"))
    given = ["--deep-every", "2", "--deep-below", "2", "--merge-tokens", "0.25", "--seed", "3"]
    assert main(["txt2img", "a red apple", "--model", folder, "--output", first, *given]) == 0
    assert main(["txt2img", "--from", first, "--model", folder, "--output", again]) == 0
    assert Path(first).read_bytes() == Path(again).read_bytes()
    off = ["--deep-every", "1", "--deep-below", "1", "--merge-tokens", "0"]
    assert main(["txt2img", "--from", first, "--model", folder, "--output", plain, *off]) == 0
    assert far(Image.open(first), Image.open(plain)) > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_all_shortcuts(model: Model, sampler: str) -> None:
    request = BOTH.changed(
        prompt="a red apple AND (a green:1.2) pear :0.5 AND [a:b:0.5]",
        sampler=sampler,
        steps=6,
        pag=1.0,
        freeu=(1.1, 1.2, 0.9, 0.8),
        guidance_interval=(0.0, 0.8),
    )
    (image,) = model.draw(request)
    weights = {k: v.clone() for k, v in model.unet.state_dict().items()}
    assert model.draw(request)[0].tobytes() == image.tobytes(), "nothing is left of the walk before"
    assert all(torch.equal(weights[k], v) for k, v in model.unet.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.unet.modules())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_changed_by_each_shortcut_alone(model: Model, sampler: str) -> None:
    request = PLAIN.changed(sampler=sampler)
    (plain,) = model.draw(request)
    for fields in (*ASKED.values(), {"guidance_interval": (0.0, 0.5)}):
        (image,) = model.draw(request.changed(**fields))
        assert far(image, plain) > 0, fields


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_adaptive", "dpmpp_sde", "restart"])
@pytest.mark.parametrize("change", [{}, {"window": 32}, {"one_by_one": True}, {"pag": 2.0}])
def test_a_picture_does_not_depend_on_its_batch(model: Model, sampler: str, change: dict[str, object]) -> None:
    request = BOTH.changed(sampler=sampler, **change)
    images = model.draw(request.changed(batch=3))
    for k, image in enumerate(images):
        (alone,) = model.draw(request.changed(seed=4 + k))
        assert far(image, alone) <= 1, "the platform's sums of a batch may round otherwise"


def test_the_seed_chooses_what_is_merged(model: Model) -> None:
    """The same latent under another seed: only the choice by chance differs."""
    request = PLAIN.changed(merge_tokens=0.5, sampler="euler", steps=1)
    steps = [next(model.steps(request.changed(seed=seed))) for seed in (4, 5)]
    plain = [next(model.steps(request.changed(seed=seed, merge_tokens=None))) for seed in (4, 5)]
    moved = [step.denoised - one.denoised for step, one in zip(steps, plain, strict=True)]
    assert not torch.allclose(moved[0], moved[1])


@pytest.mark.parametrize("name", PRESETS)
def test_every_member_takes_them_or_says_why_not(name: str) -> None:
    model = toy_of(PRESETS[name])
    request = _ask(tasks_of(model.preset)[0], model.preset)
    (plain,), (reused,) = model.draw(request), model.draw(request.changed(deep_every=3, steps=4))
    assert plain.size == reused.size
    merged = request.changed(merge_tokens=0.5)
    if mergeable_level(model.preset.unet) is None:
        with pytest.raises(RequestError, match="no transformers that could merge tokens: leave out merge_tokens"):
            model.draw(merged)
    else:
        assert model.draw(merged)[0].size == plain.size


def test_a_refiner_and_a_guide_have_memories_of_their_own(tmp_path: Path) -> None:
    toy_of(PRESETS["sdxl"]).save(tmp_path / "base")
    toy_of(PRESETS["sdxl-refiner"]).save(tmp_path / "refiner")
    request = TextToImage(prompt="a red apple", seed=2, steps=6, deep_every=2, merge_tokens=0.5)
    for low_memory in (False, True):
        model = safelight.load(tmp_path / "base", refiner=tmp_path / "refiner", low_memory=low_memory)
        (image,) = model.draw(request)
        assert model.draw(request)[0].tobytes() == image.tobytes()
    plain = toy_model()
    guided = Model(plain.preset, plain.networks, plain.tokenizers, guide=toy_model(seed=1))
    asked = BOTH.changed(autoguidance=1.5)
    assert guided.draw(asked)[0].tobytes() == guided.draw(asked)[0].tobytes()


def test_half_precision_that_runs_over_is_asked_again_with_them() -> None:
    model = toy_model()
    model.unet.to(torch.float16)
    with torch.no_grad():
        model.unet.conv_in.weight *= 3e5  # beyond 65504
    half = Model(model.preset, dict(model.networks), model.tokenizers)
    with pytest.warns(UserWarning, match="float32"):
        steps = list(half.steps(BOTH))
    assert all(bool(step.x.isfinite().all()) for step in steps)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"deep_below": 2}, "give --deep-every, too"),
        ({"deep_every": 2, "deep_below": 5}, "deep_below cannot be 5: the network of tiny has 4 joins"),
        ({"deep_every": 2, "sag": 0.5}, "leave out --deep-every"),
        ({"deep_every": 0}, "deep_every cannot be 0: give a whole number from 1 to 1000"),
        ({"merge_tokens": 0.8}, "merge_tokens cannot be 0.8: give a number from 0 to 0.75"),
    ],
)
def test_what_cannot_be_is_one_line(model: Model, change: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        model.draw(PLAIN.changed(**change))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
