"""Every registered member, at toy size, does what it is for: nothing here names a preset, so a new one is tested."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image

import safelight
from folder_cases import REFUSED
from safelight.checkpoints import read
from safelight.checkpoints.layouts import original
from safelight.checkpoints.vocabulary import write_tokenizer
from safelight.checkpoints.writing import write_tensors
from safelight.diffusion.denoiser import Denoiser
from safelight.doors import Conditioning
from safelight.errors import ModelFileError, RequestError
from safelight.presets import PRESETS
from safelight.presets.conditions import Words
from safelight.presets.preset import Preset
from safelight.tasks.files import convert_model
from safelight.tasks.metadata import RECORD_CHUNK, Record
from safelight.tasks.model import Model
from safelight.tasks.pictures import to_data_uri, to_pixels
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
from safelight.tasks.sources import Reading
from toy_family import CLASSES, CLIP_WORDS, toy_model, toy_preset

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
        Inpaint: Inpaint(
            prompt="a red apple" if preset.words else "", image=picture, mask=_grey_uri(_mask(side)), seed=3
        ),
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


def alike(one: Image.Image, other: Image.Image) -> bool:
    """The same picture: mapped weights lie elsewhere in each file, and kernels may round otherwise for it."""
    a, b = (torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in (one, other))
    apart = (a - b).abs()
    return int(apart.max()) <= 1 and float(apart.float().mean()) < 1e-3


@pytest.mark.parametrize("name", PRESETS)
def test_a_member_is_the_same_in_every_layout(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved and loaded it draws the same picture; converted to the other layout and back it has the same numbers."""
    model = toy_model(PRESETS[name])
    monkeypatch.setattr("safelight.checkpoints.detect.PRESETS", {name: model.preset})
    (task, *_) = tasks_of(model.preset)
    request = _ask(task, model.preset)
    (drawn,) = model.draw(request)
    folder, single, again = tmp_path / "folder", tmp_path / "single.safetensors", tmp_path / "again"

    def holds_the_same(parts: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        assert parts.keys() == model.networks.keys()
        for part, network in model.networks.items():
            weights = network.state_dict()
            assert parts[part].keys() == weights.keys()
            assert all(torch.equal(parts[part][key], weights[key]) for key in weights), part

    if name in REFUSED:
        with pytest.raises(ModelFileError, match=REFUSED[name]):
            model.save(folder)
        write_tensors(single, original.save(model.preset, model.weights()))
        words = tmp_path / "words" if model.preset.words else None
        if words is not None:
            words.mkdir()
            write_tokenizer(words, CLIP_WORDS)
    else:
        model.save(folder)
        holds_the_same(read(folder).parts)
        first, second = (safelight.load(folder, device="cpu").draw(request)[0] for _ in range(2))
        assert first.tobytes() == second.tobytes()
        assert alike(first, drawn)
        convert_model(str(folder), single, layout="original")
        words = next(iter(sorted(folder.glob("tokenizer*"))), None)
    found = read(single, tokenizer=words)
    holds_the_same(found.parts)
    assert found.preset == model.preset
    assert found.dropped == ()
    assert alike(safelight.load(single, device="cpu", tokenizer=words).draw(request)[0], drawn)
    if name not in REFUSED:
        convert_model(str(single), again, Reading(tokenizer=words))
        holds_the_same(read(again).parts)


@pytest.mark.parametrize("name", PRESETS)
def test_a_member_is_taught_a_step(name: str) -> None:
    """Every weight of the UNet is told in which direction to go, through all doors that the member has."""
    model = toy_model(PRESETS[name])
    (task, *_) = tasks_of(model.preset)
    told: list[Conditioning] = []

    def listen(module: torch.nn.Module, args: tuple[torch.Tensor, torch.Tensor, Conditioning]) -> None:
        told.append(args[2])

    with model.unet.register_forward_pre_hook(listen):
        model.draw(_ask(task, model.preset))
    cond = told[0].map(lambda door: door.clone())  # outside of inference, so that it may be learned from
    doors = [door for door in (cond.context, cond.vector, cond.concat) if door is not None]
    batch = len(doors[0]) if doors else 2
    generator = torch.Generator().manual_seed(7)
    shape = (batch, *model.latent_shape(model.preset.width, model.preset.height))
    x0, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    sigma = torch.linspace(0.5, 3.0, batch)

    unet = model.unet.train().requires_grad_(True)
    loss = Denoiser(unet, model.schedule, model.preset.prediction).loss(x0, noise, sigma, cond)
    assert loss.shape == (batch,)
    loss.mean().backward()  # type: ignore[no-untyped-call]  # torch's
    for key, weight in unet.named_parameters():
        assert weight.grad is not None, f"{key} is not learned"
        assert bool(weight.grad.isfinite().all()), key
    assert any(bool(weight.grad.abs().max() > 0) for weight in unet.parameters() if weight.grad is not None)


@pytest.mark.parametrize("name", PRESETS)
def test_a_member_encodes_and_decodes(name: str) -> None:
    model = toy_model(PRESETS[name])
    pixels = to_pixels(_gradient(model.preset.width))
    latent = model.to_latent(pixels)
    assert latent.shape == (1, *model.latent_shape(model.preset.width, model.preset.height))
    decoded = model.to_pixels(latent)
    assert decoded.shape == pixels.shape
    assert bool(decoded.isfinite().all())
    if model.preset.autoencoder is None:
        assert torch.equal(decoded, pixels)


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
