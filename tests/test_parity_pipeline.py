"""Whole models between here and diffusers, both ways: the same folder, the same noise, the same picture.

What `test_tasks_parity` proves of our saved folders at the native size is proved here of theirs, of other sizes,
and of the scheduler, the CLIP and the autoencoder that we write.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import safelight
from golden_cases import agree
from safelight.checkpoints.components import read_autoencoder, read_clip, write_autoencoder, write_clip
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.clip import Clip, ClipTextConfig, ClipVisionConfig
from safelight.models.tokenizer import ClipTokenizer
from safelight.tasks.model import Model

PROMPT, NEGATIVE = "a small red apple to the left of a dog", "blurry, ugly"
STEPS, GUIDANCE, SEED = 8, 7.5, 11
# The scheduler's settings in the folder of Stable Diffusion 1.5.
SD1 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
SCHEDULERS = {
    "ddim": DDIMScheduler(**SD1, set_alpha_to_one=False, clip_sample=False),
    "euler": EulerDiscreteScheduler(**SD1),
    "heun": HeunDiscreteScheduler(**SD1),
}
SIZES = [(64, 64), (72, 104)]  # width, height; the latent of the second is 9 by 13


@pytest.fixture(scope="module")
def words() -> ClipTokenizer:
    return ClipTokenizer.train([PROMPT, NEGATIVE] * 4, 600)


@pytest.fixture(scope="module")
def theirs(words: ClipTokenizer, tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    """A pipeline made by diffusers and transformers alone, but for the words."""
    folder = tmp_path_factory.mktemp("words")
    words.write(folder)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4),
        cross_attention_dim=24,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        sample_size=64,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words.vocab),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=24,
            bos_token_id=words.start_token,
            eos_token_id=words.end_token,
            pad_token_id=words.end_token,
        )
    )
    with torch.no_grad():  # loud enough for words and guidance to be seen in the picture
        text.get_input_embeddings().weight.mul_(50)
        unet.conv_out.weight.mul_(4)
        vae.decoder.conv_out.weight.mul_(4)
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    return StableDiffusionPipeline(
        vae, text, tokenizer, unet, SCHEDULERS["ddim"], None, None, requires_safety_checker=False
    )


@pytest.fixture(scope="module")
def ours(theirs: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return safelight.load(folder)


def noise(width: int, height: int) -> Tensor:
    """The noise of a picture, by the formula that the README gives."""
    generator = torch.Generator("cpu").manual_seed(SEED)
    return torch.randn((4, height // 8, width // 8), generator=generator)[None]


def drawn(pipeline: StableDiffusionPipeline, width: int, height: int, prompt: str = PROMPT) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline(
        prompt,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=noise(width, height),
        width=width,
        height=height,
    ).images
    return np.asarray(image, dtype=np.int16)


def mine(model: Model, width: int, height: int, sampler: str | None, spacing: str | None) -> np.ndarray:
    (image,) = model.txt2img(
        PROMPT,
        negative_prompt=NEGATIVE,
        seed=SEED,
        steps=STEPS,
        guidance=GUIDANCE,
        sampler=sampler,
        spacing=spacing,
        width=width,
        height=height,
    )
    return np.asarray(image, dtype=np.int16)


def alike(what: str, a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert b.std() > 10, "a flat picture would prove nothing"
    far = np.abs(a - b)
    share = float((far <= 1).mean())
    print(f"{what}: {share:.4%} within 1/255, {float((far == 0).mean()):.4%} equal, at most {far.max()}/255")
    assert share >= 0.999, f"{what}: only {share:.4%} of the values agree to 1/255"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_their_folder_draws_their_picture_here(
    theirs: StableDiffusionPipeline, ours: Model, sampler: str, size: tuple[int, int]
) -> None:
    theirs.scheduler = SCHEDULERS[sampler]
    alike(f"{sampler} {size}", mine(ours, *size, sampler, "leading"), drawn(theirs, *size))


def test_words_and_guidance_are_seen_in_these_pictures(theirs: StableDiffusionPipeline) -> None:
    theirs.scheduler = SCHEDULERS["euler"]
    a, b = drawn(theirs, 64, 64), drawn(theirs, 64, 64, prompt="a dog")
    assert float((np.abs(a - b) > 1).mean()) > 0.2


@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [
        ("ddim", "leading"),
        ("euler", "leading"),
        ("heun", "leading"),
        ("lms", "leading"),
        ("ddim", "trailing"),
        ("dpmpp_2m", "trailing"),
    ],
)
def test_our_folder_draws_our_picture_there(ours: Model, tmp_path: Path, sampler: str, spacing: str) -> None:
    """With the scheduler that stands in the folder we write: nobody sets one.

    Not every spacing can be the same there: diffusers begins Euler's other spacings at noise of another size, and
    means others than we do by DPM-Solver's "leading" and "linspace".
    """
    preset = replace(ours.preset, sampler=sampler, spacing=spacing)
    model = Model(preset, ours.networks, ours.tokenizers)
    model.save(tmp_path / "model")
    back = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    assert back.safety_checker is None
    alike(f"saved with {sampler} {spacing}", mine(model, 64, 64, None, None), drawn(back, 64, 64))


# Single parts


def test_a_clip_that_we_write_is_a_clip_of_transformers(words: ClipTokenizer, tmp_path: Path) -> None:
    size = len(words.vocab)
    text = ClipTextConfig(
        vocab_size=size,
        width=24,
        layers=2,
        heads=2,
        mlp_width=40,
        projection_width=20,
        start_token=words.start_token,
        end_token=words.end_token,
        pad_token=words.end_token,
    )
    vision = ClipVisionConfig(width=16, layers=2, heads=2, mlp_width=24, image_size=32, patch=8, projection_width=20)
    torch.manual_seed(0)
    clip = Clip(text, vision).eval().requires_grad_(False)
    write_clip(tmp_path / "clip", clip, words)
    theirs, said = CLIPModel.from_pretrained(tmp_path / "clip", output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs.eval()
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "clip")
    texts = [PROMPT, "", "Zoë's 3 cats!", "dog " * 90]
    ids = words(texts)
    padded = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    assert torch.equal(ids, padded.input_ids)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pixels)
    agree("written clip, texts", clip.embed_text(ids), expected.text_embeds)
    agree("written clip, pictures", clip.embed_image(pixels), expected.image_embeds)

    back, back_words = read_clip(tmp_path / "clip")
    back.eval()
    assert (back.text_model.config, back.vision_model.config) == (text, vision)
    assert torch.equal(back_words(texts), ids)
    assert torch.equal(back.embed_text(ids), clip.embed_text(ids))
    assert torch.equal(back.embed_image(pixels), clip.embed_image(pixels))


def test_an_autoencoder_that_we_write_is_one_of_diffusers(tmp_path: Path) -> None:
    config = AutoencoderConfig(latent_channels=3, channels=(8, 16), blocks_per_level=1, norm_groups=4)
    torch.manual_seed(0)
    autoencoder = Autoencoder(config).eval().requires_grad_(False)
    write_autoencoder(tmp_path / "vae", autoencoder, 0.7, 16)
    theirs, said = AutoencoderKL.from_pretrained(tmp_path / "vae", output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.scaling_factor == 0.7
    pixels = torch.randn(2, 3, 20, 12).tanh()
    mean, logvar = autoencoder.encode(pixels)
    with torch.no_grad():
        posterior = theirs.encode(pixels).latent_dist
        decoded = theirs.decode(mean).sample
    agree("written autoencoder, mean", mean, posterior.mean)
    agree("written autoencoder, logvar", logvar, posterior.logvar)
    agree("written autoencoder, decoded", autoencoder.decode(mean), decoded)

    back, scale = read_autoencoder(tmp_path / "vae")
    assert (back.config, scale) == (config, 0.7)
    assert torch.equal(back.decode(mean), autoencoder.decode(mean))
