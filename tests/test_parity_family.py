"""The family against diffusers' pipelines, whole requests at toy size: the same weights and noise, the same pictures.

Every member is written as a folder and read by diffusers, so its configs, schedule and words are compared, too. What
both do otherwise by intention is in `family_oracles`, and where it is met.

Not here, because diffusers has no pipeline that could draw them: latent diffusion by classes, boxes and semantic maps,
its inpainting, and its churches (whose heads differ in width from level to level).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor

from family_oracles import (
    BATCH,
    NEGATIVE,
    PROMPTS,
    SEED,
    SHORT,
    STEPS,
    Both,
    alike,
    begun,
    fresh,
    made,
    matters,
    picture,
    uri,
    values,
)
from golden_cases import agree
from safelight.diffusion.samplers import finish
from safelight.presets.preset import AUTOENCODER
from safelight.tasks.model import Model
from safelight.tasks.requests import (
    DepthToImage,
    ImageToImage,
    Inpaint,
    TextToImage,
    Unconditional,
    Upscale,
    Variations,
)
from safelight.tasks.resolve import noise_levels

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of what will be in later versions

WAYS = [("ddim", "leading"), ("ddim", "trailing"), ("euler", "leading")]
WIDTH, HEIGHT, GUIDANCE = 96, 64, 5.0
LETTERS = ("a b c", "f a c e d " * 20)
"""Prompts for BERT, whose toy vocabulary these are: a token each, 100 of them in the second."""
ways = pytest.mark.parametrize(("sampler", "spacing"), WAYS)
Members = Callable[[str], Both]


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """A member at toy size, made once."""
    found: dict[str, Both] = {}

    def get(name: str) -> Both:
        if name not in found:
            found[name] = made(name, tmp_path_factory.mktemp("members") / name)
        return found[name]

    return get


@pytest.fixture(autouse=True)
def means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs takes the encoder's mean, too."""

    def mean(posterior: DiagonalGaussianDistribution, generator: object = None) -> Tensor:
        return posterior.mode()

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", mean)


def asked(sampler: str, spacing: str, **more: object) -> dict[str, object]:
    """What all requests of words have in common, for ours."""
    common = {"prompt": SHORT, "negative_prompt": NEGATIVE, "seed": SEED, "batch": BATCH, "guidance": GUIDANCE}
    return common | {"steps": STEPS, "sampler": sampler, "spacing": spacing} | more


def told(**more: object) -> dict[str, object]:
    """The same for theirs."""
    common = {"prompt": list(PROMPTS), "negative_prompt": [NEGATIVE] * BATCH, "guidance_scale": GUIDANCE}
    return common | {"num_inference_steps": STEPS} | more


def test_only_bert_cuts_a_long_prompt(member: Members) -> None:
    model = member("ldm-text").model
    assert model.unread(TextToImage(prompt=LETTERS[1]))
    assert not model.unread(TextToImage(prompt=LETTERS[0], negative_prompt=NEGATIVE))
    assert not member("sdxl").model.unread(TextToImage(prompt=LETTERS[1] * 3))


# Words


@ways
@pytest.mark.parametrize("name", ["sd2-base", "sd2-v"])
def test_sd2(member: Members, name: str, sampler: str, spacing: str) -> None:
    both = member(name)
    request = TextToImage(**asked(sampler, spacing, width=WIDTH, height=HEIGHT))
    pipeline = both.theirs("StableDiffusionPipeline", sampler, spacing)
    theirs = pipeline(**told(width=WIDTH, height=HEIGHT, latents=both.noise(WIDTH, HEIGHT))).images
    alike(f"{name} {sampler} {spacing}", both.model.draw(request, prompts=PROMPTS), theirs)


SIZES = {
    "original_size": (100, 40),
    "crop": (3, 17),
    "target_size": (64, 128),
    "negative_original_size": (32, 48),
    "negative_crop": (9, 1),
    "negative_target_size": (80, 20),
}  # ours are width before height, theirs the other way round
THEIR_NAMES = {"crop": "crops_coords_top_left", "negative_crop": "negative_crops_coords_top_left"}
THEIR_SIZES = {THEIR_NAMES.get(name, name): size[::-1] for name, size in SIZES.items()}


@ways
@pytest.mark.parametrize("what", ["own sizes", "other sizes", "nothing negative"])
def test_sdxl(member: Members, what: str, sampler: str, spacing: str) -> None:
    """Where nothing negative is said, the base was taught zeros; theirs says so by None, ours by an empty prompt.

    Theirs is asked for one picture at a time: of several with negative sizes it repeats the two rows of numbers in
    turns (negative, positive, negative, ...), but the words stand there one side after the other.
    """
    both = member("sdxl")
    request = TextToImage(**asked(sampler, spacing, width=WIDTH, height=HEIGHT))
    more: dict[str, object] = {}
    if what == "other sizes":
        request, more = request.changed(**SIZES), dict(THEIR_SIZES)
    elif what == "nothing negative":
        request, more = request.changed(negative_prompt=""), {"negative_prompt": None}
    pipeline = both.theirs("StableDiffusionXLPipeline", sampler, spacing)
    size = {"width": WIDTH, "height": HEIGHT}
    theirs = []
    for prompt, noise in zip(PROMPTS, both.noise(WIDTH, HEIGHT), strict=True):
        alone = {"prompt": prompt, "negative_prompt": NEGATIVE, "latents": noise[None]}
        theirs += pipeline(**told(**(alone | size | more))).images
    alike(f"sdxl, {what}, {sampler} {spacing}", both.model.draw(request, prompts=PROMPTS), theirs)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    ("name", "pipeline"), [("sd-turbo", "StableDiffusionPipeline"), ("sdxl-turbo", "StableDiffusionXLPipeline")]
)
def test_turbo(member: Members, name: str, pipeline: str, steps: int) -> None:
    """Its own settings, and with several steps the noise that each adds."""
    both = member(name)
    size = {"width": WIDTH, "height": HEIGHT}
    request = TextToImage(prompt=SHORT, seed=SEED, batch=BATCH, steps=None if steps == 1 else steps, **size)
    resolved = both.model.resolve(request.changed(steps=None))
    assert (resolved.sampler, resolved.spacing, resolved.guidance) == ("euler_a", "trailing", 1.0)
    request = request.changed(steps=steps)
    there = both.theirs(pipeline, "euler_a", "trailing")
    theirs = there(
        **told(negative_prompt=None, guidance_scale=0.0, num_inference_steps=steps, **size),
        latents=begun(both.noise(WIDTH, HEIGHT), there, steps),
        generator=both.after(WIDTH, HEIGHT),
    ).images
    alike(f"{name}, {steps} steps", both.model.draw(request, prompts=PROMPTS), theirs)


@pytest.mark.parametrize(("sampler", "spacing"), WAYS[:2])
def test_ldm_text(member: Members, sampler: str, spacing: str) -> None:
    """Theirs steers away from the empty prompt alone. Not by Euler: the pipeline neither scales the noise that it
    begins with nor what the network sees.
    """
    both = member("ldm-text")
    request = TextToImage(**asked(sampler, spacing, negative_prompt="", width=WIDTH, height=HEIGHT))
    pipeline = both.theirs("LDMTextToImagePipeline", sampler, spacing)
    more = {"guidance_scale": GUIDANCE, "num_inference_steps": STEPS, "width": WIDTH, "height": HEIGHT}
    theirs = pipeline(list(LETTERS), latents=both.noise(WIDTH, HEIGHT), **more).images
    alike(f"ldm-text {sampler} {spacing}", both.model.draw(request, prompts=LETTERS), theirs)


# Pictures


@ways
@pytest.mark.parametrize("name", ["sd1", "sd2-base", "sd2-v", "sdxl"])
def test_img2img(member: Members, name: str, sampler: str, spacing: str) -> None:
    both, start = member(name), picture(WIDTH, HEIGHT)
    request = ImageToImage(**asked(sampler, spacing, image=uri(start), strength=0.8))
    kind = "StableDiffusionXLImg2ImgPipeline" if name == "sdxl" else "StableDiffusionImg2ImgPipeline"
    pipeline = both.theirs(kind, sampler, spacing)
    theirs = pipeline(**told(image=[start] * BATCH, strength=0.8, generator=fresh())).images
    alike(f"{name} from a picture, {sampler} {spacing}", both.model.draw(request, prompts=PROMPTS), theirs)


@ways
@pytest.mark.parametrize("what", ["own scores", "other scores", "nothing negative"])
def test_sdxl_refiner(member: Members, what: str, sampler: str, spacing: str) -> None:
    """The refiner was not taught zeros: nothing is an empty prompt."""
    both, start = member("sdxl-refiner"), picture(WIDTH, HEIGHT)
    request = ImageToImage(**asked(sampler, spacing, image=uri(start), strength=0.8))
    more: dict[str, object] = {}
    if what == "other scores":
        names = ("original_size", "crop", "negative_original_size", "negative_crop")
        request = request.changed(**{name: SIZES[name] for name in names}, aesthetic=8.5, negative_aesthetic=1.0)
        more = {THEIR_NAMES.get(name, name): SIZES[name][::-1] for name in names}
        more |= {"aesthetic_score": 8.5, "negative_aesthetic_score": 1.0}
    elif what == "nothing negative":
        request, more = request.changed(negative_prompt=""), {"negative_prompt": None}
    pipeline = both.theirs("StableDiffusionXLImg2ImgPipeline", sampler, spacing)
    assert pipeline.config.requires_aesthetics_score
    theirs = pipeline(**told(image=[start] * BATCH, strength=0.8, generator=fresh(), **more)).images
    alike(f"sdxl-refiner, {what}, {sampler} {spacing}", both.model.draw(request, prompts=PROMPTS), theirs)


@ways
@pytest.mark.parametrize("switch", [None, 0.5])
def test_hand_over_from_base_to_refiner(
    member: Members, tmp_path: Path, switch: float | None, sampler: str, spacing: str
) -> None:
    """One picture by two models: theirs ends early, and begins with its latent."""
    base, refiner = member("sdxl").model, member("sdxl-refiner").model
    refiner = Model(refiner.preset, {**refiner.networks, AUTOENCODER: base.networks[AUTOENCODER]}, refiner.tokenizers)
    refiner.save(tmp_path)
    model = Model(base.preset, base.networks, base.tokenizers, refiner=refiner)
    size = {"width": WIDTH, "height": HEIGHT}
    request = TextToImage(**asked(sampler, spacing, steps=10, switch=switch, **size))
    there = 0.8 if switch is None else switch
    first = member("sdxl").theirs("StableDiffusionXLPipeline", sampler, spacing)
    latents = first(
        **told(num_inference_steps=10, latents=member("sdxl").noise(WIDTH, HEIGHT), **size),
        denoising_end=there,
        output_type="latent",
    ).images
    then = Both(refiner, tmp_path).theirs("StableDiffusionXLImg2ImgPipeline", sampler, spacing)
    theirs = then(**told(num_inference_steps=10, image=latents, generator=fresh()), denoising_start=there).images
    ours = model.draw(request, prompts=PROMPTS)
    alike(f"sdxl to refiner at {there}, {sampler} {spacing}", ours, theirs)
    alone = values(
        Model(base.preset, base.networks, base.tokenizers).draw(request.changed(switch=None), prompts=PROMPTS)
    )
    assert (np.abs(alone - values(ours)) > 1).mean() > 0.01, "the refiner changed nothing"


def hole() -> Image.Image:
    """White where to paint anew: along the latent's grid, as theirs takes every eighth pixel of a mask and ours (for
    members that are not told of it) all latents that it touches."""
    mask = Image.new("L", (WIDTH, HEIGHT), 0)
    mask.paste(255, (16, 8, 80, 48))
    return mask


def inpainted(both: Both, sampler: str, spacing: str, strength: float, what: str) -> None:
    """Theirs gives the whole decoded picture, ours keeps the old pixels outside of the mask: both are held to that."""
    start, mask = picture(WIDTH, HEIGHT), hole()
    inside = np.asarray(mask) > 0
    files = {"image": uri(start), "mask": uri(mask)}
    request = Inpaint(**asked(sampler, spacing, **files, strength=strength, blur=0))
    whole = both.theirs("StableDiffusionPipeline", sampler, spacing)
    pipeline = StableDiffusionInpaintPipeline(**whole.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        **told(image=[start] * BATCH, mask_image=[mask] * BATCH, width=WIDTH, height=HEIGHT, strength=strength),
        generator=fresh(),
    ).images
    ours = both.model.draw(request, prompts=PROMPTS)
    alike(what, ours, theirs, inside)
    assert (values(ours)[:, ~inside] == values([start])[:, ~inside]).all()
    other = np.asarray(start).copy()
    other[~inside] = 255 - other[~inside]
    matters(both.model, request, PROMPTS, {"image": uri(Image.fromarray(other))})


@ways
@pytest.mark.parametrize("name", ["sd1-inpainting", "sd2-inpainting"])
def test_inpainting(member: Members, name: str, sampler: str, spacing: str) -> None:
    inpainted(member(name), sampler, spacing, 1.0, f"{name} {sampler} {spacing}")


@pytest.mark.parametrize("name", ["sd1", "sd2-v"])
def test_inpainting_by_a_member_not_made_for_it(member: Members, name: str) -> None:
    """Both keep the known latents under their first noise. Not at strength 1, where theirs puts the picture under noise
    after the first step and ours from what it began with; and with Euler, which like theirs ends without noise.
    """
    inpainted(member(name), "euler", "leading", 0.8, f"{name} paints anew")


@ways
def test_depth_that_is_given(member: Members, sampler: str, spacing: str) -> None:
    """A map, by which both do the same at any size. Not at strength 1, where ours forgets the picture's colours."""
    both, start, depth = member("sd2-depth"), picture(WIDTH, HEIGHT), picture(60, 40, seed=1).convert("L")
    files = {"image": uri(start), "depth": uri(depth)}
    request = DepthToImage(**asked(sampler, spacing, **files, strength=0.8))
    pipeline = both.theirs("StableDiffusionDepth2ImgPipeline", sampler, spacing)
    there = torch.from_numpy(np.asarray(depth, dtype=np.float32).copy())[None]
    more = {"image": [start] * BATCH, "depth_map": there, "strength": 0.8, "generator": fresh()}
    theirs = pipeline(**told(**more)).images
    alike(f"sd2-depth, given, {sampler} {spacing}", both.model.draw(request, prompts=PROMPTS), theirs)
    matters(both.model, request, PROMPTS, {"depth": uri(picture(60, 40, seed=2).convert("L"))})


def test_depth_that_is_seen(member: Members) -> None:
    """A square of the depth network's own size: others theirs squeezes into one, which ours and the original do not."""
    both, start = member("sd2-depth"), picture(64, 64)
    request = DepthToImage(**asked("ddim", "leading", image=uri(start), strength=0.8))
    pipeline = both.theirs("StableDiffusionDepth2ImgPipeline", "ddim", "leading")
    theirs = pipeline(**told(image=[start] * BATCH, strength=0.8, generator=fresh())).images
    alike("sd2-depth, seen", both.model.draw(request, prompts=PROMPTS), theirs)
    matters(both.model, request, PROMPTS, {"depth": uri(picture(60, 40, seed=2).convert("L"))})


@ways
@pytest.mark.parametrize("level", [None, 0, 300])
def test_x4_upscaler(member: Members, level: int | None, sampler: str, spacing: str) -> None:
    both, small = member("x4-upscaler"), picture(24, 16)
    request = Upscale(**asked(sampler, spacing, image=uri(small), noise_level=level))
    pipeline = both.theirs("StableDiffusionUpscalePipeline", sampler, spacing)
    more = {"image": [small] * BATCH, "latents": both.noise(96, 64), "generator": both.after(96, 64)}
    more |= {} if level is None else {"noise_level": level}
    theirs = pipeline(**told(**more)).images
    alike(f"x4-upscaler, level {level}, {sampler} {spacing}", both.model.draw(request, prompts=PROMPTS), theirs)
    if (sampler, spacing) == WAYS[0]:
        matters(both.model, request, PROMPTS, {"noise_level": 20 if level == 300 else 300})


@ways
@pytest.mark.parametrize("level", [0, 400])
@pytest.mark.parametrize("name", ["unclip-l", "unclip-h"])
def test_unclip(member: Members, name: str, level: int, sampler: str, spacing: str) -> None:
    """A picture of the image tower's own size: others theirs crops and resizes as CLIP was trained, and ours as unCLIP
    was. Noise that is given theirs takes as it is, so it is given what the sampler begins with.
    """
    both, seen = member(name), picture(28, 28)
    request = Variations(
        **asked(sampler, spacing, image=uri(seen), noise_level=level, width=WIDTH, height=HEIGHT),
    )
    pipeline = both.theirs("StableUnCLIPImg2ImgPipeline", sampler, spacing)
    more = {"image": [seen] * BATCH, "noise_level": level, "width": WIDTH, "height": HEIGHT}
    pipeline.scheduler.set_timesteps(STEPS)
    noise = both.noise(WIDTH, HEIGHT) * pipeline.scheduler.init_noise_sigma
    more |= {"latents": noise, "generator": both.after(WIDTH, HEIGHT)}
    theirs = pipeline(**told(**more)).images
    alike(f"{name}, level {level}, {sampler} {spacing}", both.model.draw(request, prompts=PROMPTS), theirs)
    if (sampler, spacing) == WAYS[0]:
        changes = {"image": uri(picture(28, 28, seed=3))}, {"noise_level": 200}
        matters(both.model, request, PROMPTS, *changes)


# Without words: their pipelines were made for DDIM


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ldm_upscaling(member: Members, spacing: str) -> None:
    """Theirs cuts pictures to multiples of 32 pixels; this one is."""
    both, small = member("ldm-upscaling"), picture(64, 32)
    request = Upscale(image=uri(small), seed=SEED, steps=STEPS, sampler="ddim", spacing=spacing)
    pipeline = both.theirs("LDMSuperResolutionPipeline", "ddim", spacing)
    theirs = pipeline(small, num_inference_steps=STEPS, generator=fresh(1)).images
    alike(f"ldm-upscaling {spacing}", both.model.draw(request), theirs)
    matters(both.model, request, None, {"image": uri(picture(64, 32, seed=4))})


@ways
def test_ldm_of_faces(member: Members, sampler: str, spacing: str) -> None:
    """Theirs scales the first noise before it sets the steps, by which it is scaled; so they are set here already."""
    both = member("ldm-celeba")
    request = Unconditional(seed=SEED, batch=BATCH, steps=STEPS, sampler=sampler, spacing=spacing)
    pipeline = both.theirs("LDMPipeline", sampler, spacing)
    pipeline.scheduler.set_timesteps(STEPS)
    theirs = pipeline(batch_size=BATCH, num_inference_steps=STEPS, generator=fresh()).images
    alike(f"ldm-celeba {sampler} {spacing}", both.model.draw(request), theirs)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddpm(member: Members, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels themselves. A network of random weights makes them black or white, so they are compared before that."""
    both = member("ddpm")
    request = both.model.resolve(Unconditional(seed=SEED, batch=BATCH, steps=STEPS, sampler="ddim", spacing=spacing))
    pipeline = both.theirs("DDIMPipeline", "ddim", spacing)
    step, seen = pipeline.scheduler.step, []

    def recorded(*args: object, **more: object) -> object:
        seen.append(step(*args, **more))
        return seen[-1]

    monkeypatch.setattr(pipeline.scheduler, "step", recorded)
    pipeline(batch_size=BATCH, num_inference_steps=STEPS, generator=fresh())
    *_, last = both.model.steps(request)
    agree(f"ddpm {spacing}", finish(last.x, noise_levels(request, both.model.schedule)), seen[-1].prev_sample)


# That agreement says something


def test_what_is_said_is_seen(member: Members) -> None:
    """Words on both sides of guidance, and every one of SDXL's numbers."""
    size = {"width": WIDTH, "height": HEIGHT}
    words: tuple[dict[str, object], ...] = ({"negative_prompt": "other"}, {"guidance": 3.0})
    for name in ("sd2-base", "sd2-v", "sdxl"):
        model = member(name).model
        matters(model, TextToImage(**asked("ddim", "leading", **size)), PROMPTS, *words)
    changes: list[dict[str, object]] = [{field: value} for field, value in SIZES.items()]
    matters(member("sdxl").model, TextToImage(**asked("ddim", "leading", **size)), PROMPTS, *changes)
    request = ImageToImage(**asked("ddim", "leading", image=uri(picture(WIDTH, HEIGHT)), strength=0.8))
    scores: tuple[dict[str, object], ...] = ({"aesthetic": 8.5}, {"negative_aesthetic": 1.0})
    matters(member("sdxl-refiner").model, request, PROMPTS, *words, *scores)
