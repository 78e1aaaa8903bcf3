"""Every registered member, at toy size, does what it is for: nothing here names a preset, so a new one is tested."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import safelight
from safelight.checkpoints.layouts import original
from safelight.errors import RequestError
from safelight.presets import PRESETS
from safelight.presets.conditions import Words
from safelight.presets.preset import Preset
from safelight.tasks.metadata import RECORD_CHUNK, Record
from safelight.tasks.model import Model
from safelight.tasks.pictures import to_data_uri
from safelight.tasks.request import Request
from safelight.tasks.requests import (
    ClassToImage,
    DepthToImage,
    ImageToImage,
    Inpaint,
    LayoutToImage,
    Refine,
    SemanticToImage,
    TextToImage,
    Unconditional,
    Upscale,
    Variations,
)
from safelight.tasks.resolve import tasks_of
from toy_family import CLASSES, toy_model, toy_preset

SIDE = 32


def _gradient(side: int, mode: str = "RGB") -> Image.Image:
    ramp = torch.linspace(0, 255, side)
    grid = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.full((side, side), 90.0)], -1)
    return Image.fromarray(grid.round().to(torch.uint8).numpy()).convert(mode)


def _mask(side: int) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (side // 4, side // 4, side // 2, 3 * side // 4))
    return mask


def _grey_uri(image: Image.Image) -> str:
    import base64  # noqa: PLC0415

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _ask(task: type[Request], preset: Preset) -> Request:
    """A request of that task, small."""
    side = preset.width
    picture = to_data_uri(_gradient(side))
    classes = Image.fromarray((torch.arange(side * side).reshape(side, side) % CLASSES).to(torch.uint8).numpy())
    requests: dict[type[Request], Request] = {
        TextToImage: TextToImage(prompt="a red apple", seed=3),
        ImageToImage: ImageToImage(prompt="a red apple", image=picture, strength=0.6, seed=3),
        Inpaint: Inpaint(prompt="a red apple" if preset.words else "", image=picture, mask=_grey_uri(_mask(side)), seed=3),
        Refine: Refine(prompt="a red apple", image=picture, strength=0.9, seed=3),
        DepthToImage: DepthToImage(prompt="a red apple", image=picture, seed=3),
        Upscale: Upscale(image=to_data_uri(_gradient(8)), seed=3),
        Variations: Variations(image=picture, seed=3),
        ClassToImage: ClassToImage(label=4, seed=3),
        LayoutToImage: LayoutToImage(boxes="3:0.1,0.2,0.5,0.6 7:0.5,0.5,0.4,0.4", seed=3),
        SemanticToImage: SemanticToImage(map=_grey_uri(classes), seed=3),
        Unconditional: Unconditional(seed=3),
    }
    return requests[task]


CASES = [pytest.param(name, task, id=f"{name}-{task.task}") for name in PRESETS for task in tasks_of(PRESETS[name])]


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_member_does_its_task_and_its_picture_says_how(name: str, task: type[Request]) -> None:
    model = toy_model(PRESETS[name])
    request = _ask(task, model.preset)
    (image,) = model.draw(request)
    assert image.size == (model.resolve(request).width, model.resolve(request).height)
    assert len(set(image.tobytes())) > 16, "a picture of one colour"
    (again,) = model.draw(Record.model_validate_json(image.info[RECORD_CHUNK]).asked())
    assert again.tobytes() == image.tobytes()


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_member_is_not_for_it_refuses(name: str) -> None:
    model = toy_model(PRESETS[name])
    others = {TextToImage, Inpaint, ClassToImage, Unconditional} - set(tasks_of(model.preset))
    for task in others:
        with pytest.raises(RequestError, match=f"does not do {task.task}"):
            model.draw(_ask(task, model.preset))


@pytest.mark.parametrize("name", PRESETS)
def test_a_member_is_the_same_from_its_original_file(name: str, tmp_path: Path) -> None:
    model = toy_model(PRESETS[name])
    parts = {part: dict(network.state_dict()) for part, network in model.networks.items()}
    layout = original.layout(model.preset)
    written = layout.save(parts)
    save_file({key: tensor.contiguous() for key, tensor in written.items()}, tmp_path / "x.safetensors")
    back, dropped = original.layout(model.preset, written).load(written, "x")
    assert not dropped
    for part in original.layout(model.preset).pairs:
        assert parts[part].keys() == back[part].keys()
        assert all(torch.equal(parts[part][key], back[part][key]) for key in parts[part])
    assert parts.keys() - back.keys() <= original.ABSENT.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_comes_back_from_json(name: str) -> None:
    for preset in (PRESETS[name], toy_preset(PRESETS[name])):
        assert Preset.from_json(preset.to_json()) == preset


def test_a_negative_prompt_counts_and_the_default_is_none() -> None:
    for name in [name for name in PRESETS if any(isinstance(c, Words) for c in PRESETS[name].conditions)]:
        model: Model = toy_model(PRESETS[name])
        (task, *_) = tasks_of(model.preset)
        request = _ask(task, model.preset).changed(guidance=5.0)
        (plain,) = model.draw(request)
        (other,) = model.draw(request.changed(negative_prompt="blurry"))
        assert plain.tobytes() != other.tobytes(), name


def test_every_task_belongs_to_a_member() -> None:
    assert {task for preset in PRESETS.values() for task in tasks_of(preset)} == set(
        safelight.tasks.requests.TASKS.values()
    )
