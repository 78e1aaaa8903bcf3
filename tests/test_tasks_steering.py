"""What a request may ask of guidance and of prompts, from the field to the picture, and back from its record."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import toy_family
from safelight.diffusion.samplers import SAMPLERS
from safelight.errors import RequestError
from safelight.presets import PRESETS
from safelight.tasks.fields import GuidanceFields
from safelight.tasks.metadata import RECORD_CHUNK, Record
from safelight.tasks.model import Model
from safelight.tasks.requests import Inpaint, TextToImage
from toy import toy_model

ASKED: dict[str, dict[str, object]] = {
    "guidance_rescale": {"guidance_rescale": 0.7},
    "guidance_interval": {"guidance_interval": (0.2, 0.6)},
    "threshold": {"threshold": 0.9},
    "perp_neg": {"perp_neg": 1.0},
    "apg": {"apg": (0.0, 2.5, -0.5)},
    "cfg_pp": {"cfg_pp": True, "guidance": 0.6},
    "pag": {"pag": 3.0},
    "pag_layers": {"pag": 3.0, "pag_layers": ("down_blocks.0", "mid_block")},
    "autoguidance": {"autoguidance": 1.5},
    "sag": {"sag": 0.75},
    "freeu": {"freeu": (1.5, 1.6, 0.9, 0.2)},
    "window": {"window": 32, "width": 96},
    "one_by_one": {"one_by_one": True},
}
SAME = {"one_by_one"}
"""What changes how, and not what, is computed."""
PLAIN = TextToImage(prompt="a red apple", negative_prompt="a dog", seed=4, guidance=12.0, steps=4, width=64, height=32)


@pytest.fixture(scope="module")
def model() -> Model:
    return toy_model()


def test_every_field_has_a_case() -> None:
    assert set(ASKED) == set(GuidanceFields.model_fields)


@pytest.mark.parametrize("field", ASKED)
def test_a_field_of_guidance_changes_the_picture_and_is_recorded(model: Model, field: str) -> None:
    if field == "autoguidance":
        model = Model(model.preset, model.networks, model.tokenizers, guide=toy_model(seed=1))
    request = PLAIN.changed(**ASKED[field])
    (image,) = model.draw(request)
    off = {name: f.default for name, f in GuidanceFields.model_fields.items()}
    if field == "autoguidance":
        off["autoguidance"] = 0.0
    (plain,) = model.draw(request.changed(**off, guidance=12.0))
    far = np.abs(np.asarray(image, np.int16) - np.asarray(plain, np.int16))
    assert far.max() <= 1 if field in SAME else far.any()
    record = Record.read(image.info[RECORD_CHUNK], "the picture")
    assert model.draw(record.asked())[0].tobytes() == image.tobytes()
    assert (record.guide is not None) == (field == "autoguidance")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_of_it_at_once_goes_with_every_sampler(model: Model, sampler: str) -> None:
    request = PLAIN.changed(
        prompt="a red apple AND (a green:1.2) pear :0.5 AND [a:b:0.5]",
        guidance_rescale=0.5,
        guidance_interval=(0.0, 0.9),
        apg=(0.5, 10.0, -0.3),
        pag=1.0,
        sag=0.3,
        freeu=(1.1, 1.2, 0.9, 0.8),
        sampler=sampler,
        steps=6,
    )
    (image,) = model.draw(request)
    assert np.asarray(image).std() > 1
    weights = {k: v.clone() for k, v in model.unet.state_dict().items()}
    assert model.draw(request)[0].tobytes() == image.tobytes()
    assert all(torch.equal(weights[k], v) for k, v in model.unet.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"autoguidance": 1.0}, "no weaker model for --autoguidance: give one by --guide"),
        ({"cfg_pp": True}, "guidance 12 is too much for CFG++, where it goes from 0 to 1"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance must start and stop"),
        ({"pag": 1.0, "pag_layers": ("nowhere",)}, "nowhere"),
        ({"window": 20}, "window 20 is not a multiple of 8"),
        ({"regions": ("0,0,1,1", "-")}, "2 regions for 1 parts of the prompt"),
        ({"regions": ("0,0,2,1",)}, "region '0,0,2,1' is not within the picture"),
        ({"regions": ("gone.png",)}, "gone.png"),
        ({"prompt_2": "x"}, "one text tower: leave out prompt_2"),
        ({"clip_skip": 9}, "clip_skip cannot be 9: the text tower has 2 layers"),
        ({"style": ("nice",)}, "needs a table of styles"),
        ({"wildcards": "gone"}, "no folder of wildcards 'gone'"),
        ({"eta": 0.5, "sampler": "euler"}, "eta: the sampler euler has no use for it"),
    ],
)
def test_what_does_not_go_together_is_one_line(model: Model, change: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        model.draw(PLAIN.changed(**change))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_regions_act_where_they_are(model: Model) -> None:
    """Left as one prompt alone, right as the other: the toy UNet sees little beyond a few positions."""
    request = PLAIN.changed(prompt="a red apple AND a green pear", regions=("0,0,0.5,1", "0.5,0,0.5,1"), guidance=1.0)
    half = Image.new("L", (64, 32), 0)
    half.paste(255, (0, 0, 32, 32))
    buffer = io.BytesIO()
    half.save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    (boxes,) = model.draw(request)
    (masks,) = model.draw(request.changed(regions=(uri, "0.5,0,0.5,1")))
    assert masks.tobytes() == boxes.tobytes(), "a picture of the same region"
    (left,), (right,) = (model.draw(PLAIN.changed(prompt=p, guidance=1.0)) for p in ("a red apple", "a green pear"))
    far = [np.abs(np.asarray(boxes, np.int16) - np.asarray(one, np.int16)).mean(axis=(0, 2)) for one in (left, right)]
    assert far[0][:16].mean() < far[0][-16:].mean()
    assert far[1][-16:].mean() < far[1][:16].mean()


def test_a_prompt_that_changes_is_each_prompt_in_its_steps(model: Model) -> None:
    request = PLAIN.changed(sampler="euler", steps=4)
    first, then = (list(model.steps(request.changed(prompt=p))) for p in ("a red apple", "a green pear"))
    both = list(model.steps(request.changed(prompt="[a red apple:a green pear:0.5]")))
    assert torch.equal(both[1].x, first[1].x)
    assert not torch.equal(both[2].x, first[2].x)
    assert not torch.equal(both[2].x, then[2].x)
    late = list(model.steps(request.changed(prompt="[a red apple:a green pear:1.0]")))
    assert torch.equal(late[-1].x, first[-1].x)


def test_each_picture_of_a_batch_has_its_own_words_and_can_be_made_again_alone(model: Model, tmp_path: Path) -> None:
    (tmp_path / "fruit.txt").write_text("apple\npear\nplum\ncherry\nfig\n")
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nbig,a huge {prompt},small\n")
    request = PLAIN.changed(
        prompt="a __fruit__",
        wildcards=str(tmp_path),
        style=("big",),
        styles=str(tmp_path / "styles.csv"),
        batch=4,
    )
    images = model.draw(request)
    asked = [Record.read(image.info[RECORD_CHUNK], "a picture").asked() for image in images]
    assert len({one.prompt for one in asked if isinstance(one, TextToImage)}) > 1
    (tmp_path / "fruit.txt").unlink()
    (tmp_path / "styles.csv").unlink()
    for image, one in zip(images, asked, strict=True):
        assert isinstance(one, TextToImage)
        assert one.prompt.startswith("a huge a ")
        assert one.negative_prompt == "a dog, small"
        (again,) = model.draw(one)
        far = np.abs(np.asarray(again, np.int16) - np.asarray(image, np.int16))
        assert far.max() <= 1, "the platform's sums of a batch may round otherwise"


def test_a_second_prompt_is_for_the_second_tower() -> None:
    model = toy_family.toy_model(PRESETS["sdxl"])
    plain = TextToImage(prompt="a red apple", seed=1)
    (one,), (same,), (other,), (negative,) = (
        model.draw(plain.changed(**change))
        for change in ({}, {"prompt_2": "a red apple"}, {"prompt_2": "a dog"}, {"negative_prompt_2": "a dog"})
    )
    assert one.tobytes() == same.tobytes()
    assert len({one.tobytes(), other.tobytes(), negative.tobytes()}) == 3


@pytest.mark.parametrize("name", ["sd1-inpainting", "x4-upscaler", "sd2-depth", "unclip-l"])
def test_windows_cut_what_is_told(name: str) -> None:
    """A picture wider than the window, for members that are told more than words."""
    model = toy_family.toy_model(PRESETS[name])
    factor, side = model.preset.factor, model.preset.width
    from test_tasks_family import _ask  # noqa: PLC0415  (the registry's own requests)

    task = {"sd1-inpainting": Inpaint}.get(name)
    from safelight.tasks.resolve import tasks_of  # noqa: PLC0415

    request = _ask(task if task is not None else tasks_of(model.preset)[0], model.preset)
    window = max(side // 2 // factor, 1) * factor
    (whole,), (parts,) = model.draw(request), model.draw(request.changed(window=window))
    assert whole.size == parts.size
    assert whole.tobytes() != parts.tobytes()
    (one,) = model.draw(request.changed(window=8192 // factor * factor))
    assert np.abs(np.asarray(one, np.int16) - np.asarray(whole, np.int16)).max() <= 1, "one window is no window"
