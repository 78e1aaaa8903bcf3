"""What diffusers makes of each member, and what the tests of its folders share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from safelight.presets import Preset

REFUSED = {
    "ldm-churches": "heads differ in width",
    "ldm-class-f8": "by classes",
    "ldm-class": "by classes",
    "ldm-layout": "layouts by boxes",
    "ldm-semantic": "semantic maps",
    "ldm-semantic-512": "semantic maps",
    "ldm-inpainting": "holes as latent diffusion shows them",
    "ldm-retrieval": "no such networks that are told words",
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
    "ddpm-cifar10": "DDIMPipeline",
    "ddpm-256": "DDIMPipeline",
    "tiny": "StableDiffusionPipeline",
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
