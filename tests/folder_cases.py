"""Members of the registry made small, for tests of the folders that diffusers reads."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from checkpoint_cases import toy_tokenizer
from safelight.checkpoints import Checkpoint
from safelight.models.bert import BertConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.networks import shapes_of
from safelight.models.normalizer import NormalizerConfig
from safelight.models.tokenizer import FIRST, MASK, PAD, SEPARATOR, UNKNOWN, BertTokenizer, Tokenizing
from safelight.presets import PRESETS, Preset
from safelight.presets.conditions import TEXT, Condition, DepthMap, Numbers, SeenPicture, Words
from toy_family import TOY_DEPTH

SIZES = 8  # of the sinusoids of each size, in the small members

CLIP_WORDS = toy_tokenizer()
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
PIECES = [PAD, UNKNOWN, FIRST, SEPARATOR, MASK, *LETTERS, *(f"##{letter}" for letter in LETTERS), ",", "."]
BERT_WORDS = BertTokenizer({piece: i for i, piece in enumerate(PIECES)})


def small(preset: Preset) -> Preset:
    """A registered member, told by the same, with networks of an eighth of the width and less."""
    unet, conditions = preset.unet, tuple(small_condition(c) for c in preset.conditions)
    words = [c for c in conditions if isinstance(c, Words)]
    vector = sum(w.tower.projection_width for w in words if w.pooled)
    vector += sum(2 * c.tower.projection_width for c in conditions if isinstance(c, SeenPicture))
    vector += sum((5 if c.aesthetic else 6) * SIZES for c in conditions if isinstance(c, Numbers))
    context = sum(w.tower.width for w in words) if words else unet.context_width
    autoencoder = preset.autoencoder
    if autoencoder is not None:
        autoencoder = replace(
            autoencoder,
            channels=tuple(width // 16 for width in autoencoder.channels),
            blocks_per_level=1,
            codebook_size=None if autoencoder.codebook_size is None else 50,
            norm_groups=4,
        )
    size = 8 * (1 if autoencoder is None else autoencoder.factor)
    return replace(
        preset,
        name=f"small-{preset.name}",
        unet=replace(
            unet,
            channels=tuple(width // 8 for width in unet.channels),
            blocks_per_level=1,
            transformer_depth=tuple(min(n, 3) for n in unet.transformer_depth),
            middle_depth=min(unet.middle_depth, 3),
            context_width=context,
            vector_width=vector if vector else None,
            size_width=None if unet.size_width is None else SIZES,
            norm_groups=4,
        ),
        autoencoder=autoencoder,
        conditions=conditions,
        width=size,
        height=size,
    )


def small_condition(condition: Condition) -> Condition:
    match condition:
        case Words(tower=BertConfig() as tower):
            shape = replace(tower, vocab_size=len(PIECES), width=24, layers=2, heads=2, head_width=8, mlp_width=40)
            return replace(condition, tower=shape)
        case Words(tower=ClipTextConfig() as tower):
            shape = replace(
                tower,
                vocab_size=len(CLIP_WORDS.vocab),
                width=24 if condition.part == TEXT else 32,
                layers=2,
                heads=2,
                mlp_width=40,
                projection_width=20,
                start_token=CLIP_WORDS.start_token,
                end_token=CLIP_WORDS.end_token,
                pad_token=CLIP_WORDS.end_token if tower.pad_token == tower.end_token else CLIP_WORDS.vocab["!"],
            )
            return replace(condition, tower=shape)
        case SeenPicture():
            tower = replace(
                condition.tower, width=32, layers=2, heads=2, mlp_width=48, image_size=28, projection_width=12
            )
            return replace(condition, tower=tower, normalizer=NormalizerConfig(12))
        case DepthMap():
            return replace(condition, network=TOY_DEPTH)
        case _:
            return condition


def filled(preset: Preset) -> Checkpoint:
    """Random weights of lively sizes, and the words of each text tower."""
    generator = torch.Generator().manual_seed(0)

    def lively(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            return values / math.sqrt(math.prod(shape[1:]))
        return 1 + 0.1 * values if name.endswith("weight") else 0.1 * values

    parts = {
        part: {name: lively(name, shape) for name, shape in shapes_of(config).items()}
        for part, config in preset.networks.items()
    }
    tokenizers: dict[str, Tokenizing] = {}
    for words in preset.words:
        tower = words.tower
        tokenizers[words.part] = (
            BERT_WORDS if isinstance(tower, BertConfig) else CLIP_WORDS.padded_with(tower.pad_token)
        )
    return Checkpoint(preset, parts, tokenizers)


MEMBERS = [name for name in PRESETS if name != "tiny"]  # which is small already; test_checkpoints_reading has its like
REFUSED = {
    "ldm-churches": "heads differ in width",
    "ldm-class-f8": "by classes",
    "ldm-class": "by classes",
    "ldm-layout": "layouts by boxes",
    "ldm-semantic": "semantic maps",
    "ldm-semantic-512": "semantic maps",
    "ldm-inpainting": "holes as latent diffusion shows them",
}
"""What diffusers cannot express, and what is said of it."""
WRITTEN = {
    "sd1": "StableDiffusionPipeline",
    "sd1-inpainting": "StableDiffusionInpaintPipeline",
    "sd2-base": "StableDiffusionPipeline",
    "sd2-v": "StableDiffusionPipeline",
    "sd2-inpainting": "StableDiffusionInpaintPipeline",
    "sd2-depth": "StableDiffusionDepth2ImgPipeline",
    "unclip-l": "StableUnCLIPImg2ImgPipeline",
    "unclip-h": "StableUnCLIPImg2ImgPipeline",
    "x4-upscaler": "StableDiffusionUpscalePipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
    "sd-turbo": "StableDiffusionPipeline",
    "sdxl-turbo": "StableDiffusionXLPipeline",
    "ldm-celeba": "LDMPipeline",
    "ldm-ffhq": "LDMPipeline",
    "ldm-bedrooms": "LDMPipeline",
    "ldm-text": "LDMTextToImagePipeline",
    "ldm-text-f4": "LDMTextToImagePipeline",
    "ldm-upscaling": "LDMSuperResolutionPipeline",
    "ddpm": "DDIMPipeline",
}


def without_habits(preset: Preset) -> Preset:
    """What the files of diffusers say of a member: they hold no name, no steps, no guidance."""
    return replace(preset, name="", title="", steps=0, sampler="", spacing="", guidance=0.0)


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of transformers' networks by our names: the library puts the tower's name before some of them."""
    return {key.removeprefix("text_model.").removeprefix("vision_model."): tensor for key, tensor in tensors.items()}


def edit(path: Path, **changes: object) -> None:
    """Other values in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
