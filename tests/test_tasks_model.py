"""A toy model answers requests: seeds, batches, sizes, metadata, files."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import safelight
from safelight.conditioning.prompts.chunks import Chunk
from safelight.conditioning.text import Reader
from safelight.diffusion.samplers import SAMPLERS
from safelight.doors import Conditioning
from safelight.errors import ModelFileError, RequestError
from safelight.presets.tiny import TINY
from safelight.tasks.loading import fill, open_checkpoint
from safelight.tasks.metadata import Record
from safelight.tasks.model import Model
from safelight.tasks.pictures import to_data_uri
from safelight.tasks.requests import ImageToImage, TextToImage
from safelight.tasks.resolve import resolve
from toy import toy_folder, toy_model

PROMPT = "a red apple on a blue background"
SMALL = TextToImage(prompt=PROMPT, seed=3, steps=2, sampler="euler", width=32, height=32)


@pytest.fixture(scope="module")
def model() -> Model:
    return toy_model()


def array(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return np.asarray(image, dtype=np.int16)


def test_the_same_request_gives_the_same_picture_and_another_seed_another(model: Model) -> None:
    (a,), (b,), (c,) = model.draw(SMALL), model.draw(SMALL), model.draw(SMALL.changed(seed=4))
    assert a.tobytes() == b.tobytes()
    assert a.info == b.info
    assert a.tobytes() != c.tobytes()
    assert a.size == (32, 32)


def test_the_long_form_is_the_request(model: Model) -> None:
    (a,) = model.draw(SMALL)
    (b,) = model.txt2img(PROMPT, seed=3, steps=2, sampler="euler", width=32, height=32)
    (c,) = model.txt2img(SMALL)
    assert a.tobytes() == b.tobytes() == c.tobytes()


def test_the_noise_is_the_seeds_and_the_walk_is_the_formula(model: Model) -> None:
    """One Euler step of the whole chain, written out: the promise of the README about seeds."""
    request = SMALL.changed(steps=1, guidance=1.0, spacing="linspace", seed=0)
    (step,) = model.steps(request)
    noise = torch.randn((4, 4, 4), generator=torch.Generator("cpu").manual_seed(0))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)[-1].item()
    ids = model.tokenizers["text"]([PROMPT])
    context = model.networks["text"](ids).last
    with torch.inference_mode():
        eps = model.unet(noise[None], torch.tensor([999.0]), Conditioning(context=context))
    expected = (noise - (1 - abar) ** 0.5 * eps) / abar**0.5
    torch.testing.assert_close(step.denoised, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(step.x, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("batch", [2, 4])
def test_picture_k_of_a_batch_is_the_picture_of_its_own_record(model: Model, sampler: str, batch: int) -> None:
    together = model.draw(SMALL.changed(batch=batch, sampler=sampler))
    for k, image in enumerate(together):
        alone_request = Record.model_validate_json(image.info["safelight"]).asked()
        assert (alone_request.seed, alone_request.batch) == (3 + k, 1)
        (alone,) = model.draw(alone_request)
        assert alone.info == image.info
        difference = int(np.abs(array(alone) - array(image)).max())
        print(f"{sampler} batch {batch} picture {k}: max difference {difference}/255")
        assert difference <= 1, "the pictures of a batch must not know each other"


@pytest.mark.parametrize("size", [(72, 40), (8, 8), (104, 8)])
def test_every_multiple_of_the_factor_works(model: Model, size: tuple[int, int]) -> None:
    (image,) = model.draw(SMALL.changed(width=size[0], height=size[1], steps=1))
    assert image.size == size


def test_the_record_is_resolved_and_draws_the_same(model: Model) -> None:
    (image,) = model.txt2img(PROMPT, width=32, height=32, steps=2)
    record = Record.model_validate_json(image.info["safelight"])
    request = record.asked()
    open_ = {name for name, value in request.model_dump().items() if value is None}
    assert open_.isdisjoint({"seed", "steps", "sampler", "spacing", "guidance", "width", "height"})
    assert (request.sampler, request.spacing, request.guidance) == (TINY.sampler, TINY.spacing, TINY.guidance)
    (again,) = model.draw(request)
    assert again.tobytes() == image.tobytes()
    assert image.info["parameters"].startswith(f"{PROMPT}\nSteps: 2, Sampler: DPM++ 2M, ")


def test_without_guidance_the_negative_prompt_is_not_encoded(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    chunks = Reader.chunks

    def listening(reader: Reader, text: str) -> tuple[Chunk, ...]:
        read.append(text)
        return chunks(reader, text)

    monkeypatch.setattr(Reader, "chunks", listening)
    model.draw(SMALL.changed(guidance=1.0, negative_prompt="ugly"))
    assert read == [PROMPT]
    (plain,) = model.draw(SMALL.changed(guidance=5.0))
    (other,) = model.draw(SMALL.changed(guidance=5.0, negative_prompt="a green car"))
    assert "a green car" in read
    assert plain.tobytes() != other.tobytes()


def test_seed_zero_and_guidance_zero_are_values(model: Model) -> None:
    resolved = model.resolve(SMALL.changed(seed=0, guidance=0.0))
    assert (resolved.seed, resolved.guidance) == (0, 0.0)
    seeds = {model.resolve(SMALL.changed(seed=None)).seed for _ in range(4)}
    assert len(seeds) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampler": "eulr"}, "no sampler 'eulr': the samplers are ddim, ddpm, deis, dpm_2"),
        ({"spacing": "even"}, "no schedule 'even': the schedules are align_your_steps, beta"),
        ({"width": 721}, "width 721 is not a multiple of 8.*: the nearest that work are 720 or 728"),
        ({"height": 5}, "the nearest that work are 8$"),
        ({"width": 8192, "height": 8192, "batch": 2}, "pixels: ask for a smaller"),
        ({"seed": 2**64 - 1, "batch": 2}, "too large for 2 pictures"),
    ],
)
def test_what_the_model_cannot_do_is_one_line(model: Model, change: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        model.draw(SMALL.changed(**change))
    assert "\n" not in str(caught.value)


def test_720x408_is_on_the_grid(model: Model) -> None:
    resolved = resolve(SMALL.changed(width=720, height=408), model.preset)
    assert (resolved.width, resolved.height) == (720, 408)


def test_steps_can_be_watched_left_and_looked_at(model: Model) -> None:
    request = SMALL.changed(steps=5, batch=2)
    indices: list[int] = []
    model.draw(request, lambda step: indices.append(step.index))
    assert indices == [0, 1, 2, 3, 4]
    first = next(islice(model.steps(request), 1))
    assert [image.size for image in model.preview(first)] == [(32, 32)] * 2
    assert first.x.shape == (2, 4, 4, 4)
    assert not torch.is_inference_mode_enabled(), "the reader of steps is left as he was"


@pytest.mark.parametrize("part", ["unet", "autoencoder"])
def test_damaged_weights_raise_and_never_draw_black(part: str) -> None:
    broken = toy_model()
    weight = broken.unet.conv_in.weight if part == "unet" else broken.autoencoder.decoder.conv_in.weight
    with torch.no_grad():
        weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(RequestError, match="not finite"):
        broken.draw(SMALL)


# -- img2img


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.effect_noise((40, 35), 60).convert("RGB").save(path)
    return path


def test_img2img_takes_the_pictures_size_and_remembers_it(model: Model, photo: Path) -> None:
    (image,) = model.img2img(PROMPT, photo, seed=1, steps=4, strength=0.5)
    assert image.size == (40, 32)
    request = Record.model_validate_json(image.info["safelight"]).asked()
    assert isinstance(request, ImageToImage)
    assert model.count_steps(request) == 2
    (again,) = model.draw(request)
    assert again.tobytes() == image.tobytes()
    Image.new("RGB", (40, 35)).save(photo)
    with pytest.raises(RequestError, match="no longer the picture"):
        model.draw(request)


def test_a_picture_in_memory_is_carried_whole(model: Model) -> None:
    memory = Image.effect_noise((32, 32), 60).convert("RGB")
    (image,) = model.img2img(PROMPT, memory, seed=1, steps=2, strength=1.0)
    request = Record.model_validate_json(image.info["safelight"]).asked()
    assert isinstance(request, ImageToImage)
    assert request.image == to_data_uri(memory)
    (again,) = model.draw(request)
    assert again.tobytes() == image.tobytes()


def test_less_strength_stays_nearer_to_the_picture(model: Model, photo: Path) -> None:
    start = model.encode(Image.open(photo).crop((0, 0, 32, 32)))
    request = ImageToImage(prompt=PROMPT, image=str(photo), seed=1, steps=20, width=32, height=32, strength=0.05)
    (near,) = model.steps(request)
    far = list(model.steps(request.changed(strength=1.0)))[-1]
    assert near.x.sub(start).abs().mean() < far.x.sub(start).abs().mean()


def test_img2img_mistakes(model: Model, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for image, words in (
        (tmp_path / "none.png", "cannot be read"),
        (tmp_path / "text.png", "not a whole picture"),
    ):
        with pytest.raises(RequestError, match=words):
            model.img2img(PROMPT, image)
    with pytest.raises(RequestError, match="less than one step"):
        model.img2img(PROMPT, photo, steps=2, strength=0.1)
    with pytest.raises(RequestError, match="image cannot be ''"):
        model.img2img(PROMPT)


# -- files


def test_a_saved_model_draws_the_same_and_knows_itself(model: Model, tmp_path: Path) -> None:
    folder = toy_folder(tmp_path / "toy")
    loaded = safelight.load(folder)
    (a,), (b,) = model.draw(SMALL), loaded.draw(SMALL)
    assert a.tobytes() == b.tobytes()
    assert (loaded.identity.name, loaded.identity.local) == ("toy", True)
    assert len(loaded.identity.sha256) == 64
    assert safelight.load(folder).identity == loaded.identity
    toy_model(seed=1).save(tmp_path / "other")
    assert safelight.load(tmp_path / "other").identity.sha256 != loaded.identity.sha256
    assert not any(p.requires_grad for p in loaded.unet.parameters())
    assert not any(
        p.is_meta for m in (loaded.unet, loaded.autoencoder, loaded.networks["text"]) for p in m.parameters()
    )


def test_a_model_runs_in_half_precision_with_float32_around_it(tmp_path: Path) -> None:
    loaded = safelight.load(toy_folder(tmp_path / "toy"), dtype="bfloat16")
    step = next(iter(loaded.steps(SMALL)))
    assert loaded.dtype == torch.bfloat16
    assert step.x.dtype == step.denoised.dtype == torch.float32
    assert loaded.draw(SMALL)[0].size == (32, 32)


def test_loading_holds_no_weight_twice(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(toy_folder(tmp_path / "toy"))
    tensors = checkpoint.parts["unet"]
    places = {key: tensor.data_ptr() for key, tensor in tensors.items()}
    unet = fill(checkpoint.preset.unet, tensors, torch.device("cpu"), torch.float32)
    assert {key: p.data_ptr() for key, p in unet.named_parameters()} == places, "the mapped file is the weights"
    assert tensors == {}, "what is cast or moved is let go one by one"


def test_memory_that_is_short_is_said(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(model.unet, "forward", exhausted)
    with pytest.raises(RequestError, match="not enough memory"):
        model.draw(SMALL)


def test_loading_mistakes(tmp_path: Path) -> None:
    folder = toy_folder(tmp_path / "toy")
    with pytest.raises(RequestError, match="there is no device 'abacus' here"):
        safelight.load(folder, device="abacus")
    with pytest.raises(RequestError, match="cannot run in 'int4': use float32"):
        safelight.load(folder, dtype="int4")
    with pytest.raises(ModelFileError, match="weights of 'sd1' are not shipped"):
        safelight.load("sd1")
    with pytest.raises(ModelFileError):
        safelight.load(tmp_path / "nothing.safetensors")


def test_the_shipped_model_is_its_preset() -> None:
    assert open_checkpoint("tiny").preset == TINY
