"""Every real original file, by the keys and shapes of its tensors: found out, loaded, and written again."""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safelight.checkpoints.detect import candidates, detect
from safelight.checkpoints.layouts import original
from safelight.errors import ModelFileError
from safelight.presets import PRESETS

FILE = Path(__file__).parent / "manifests" / "original.json.xz"

MEMBERS: dict[str, tuple[str, ...]] = {  # the file, and all presets that its keys and shapes fit
    "sd_v1": ("sd1",),
    "sd_v1_full_ema": ("sd1",),
    "sd_v1_inpainting": ("sd1-inpainting",),
    "sd_v2_base": ("sd2-base", "sd2-v", "sd-turbo"),
    "sd_v2_v": ("sd2-base", "sd2-v", "sd-turbo"),
    "sgm_sd_2_1": ("sd2-base", "sd2-v", "sd-turbo"),
    "sd_v2_inpainting": ("sd2-inpainting",),
    "sd_v2_depth": ("sd2-depth",),
    "sd_x4_upscaler": ("x4-upscaler",),
    "sd_v21_unclip_l": ("unclip-l",),
    "sd_v21_unclip_h": ("unclip-h",),
    "sdxl_base": ("sdxl", "sdxl-turbo"),
    "sdxl_turbo": ("sdxl", "sdxl-turbo"),
    "sdxl_refiner": ("sdxl-refiner",),
    "ldm_celeba256": ("ldm-celeba", "ldm-ffhq", "ldm-bedrooms"),
    "ldm_ffhq256": ("ldm-celeba", "ldm-ffhq", "ldm-bedrooms"),
    "ldm_lsun_beds256": ("ldm-celeba", "ldm-ffhq", "ldm-bedrooms"),
    "ldm_lsun_churches256": ("ldm-churches",),
    "ldm_cin256": ("ldm-class-f8",),
    "ldm_cin256_v2": ("ldm-class",),
    "ldm_txt2img_1p4B": ("ldm-text",),
    "ldm_text2img256": ("ldm-text-f4",),
    "ldm_layout2img_openimages256": ("ldm-layout",),
    "ldm_semantic_synthesis256": ("ldm-semantic", "ldm-semantic-512"),
    "ldm_semantic_synthesis512": ("ldm-semantic", "ldm-semantic-512"),
    "ldm_bsr_sr": ("ldm-upscaling",),
    "ldm_inpainting_big": ("ldm-inpainting",),
}
NOT_ALIKE = ("sd2-base", "sd2-v")
"""The same keys and shapes, but one predicts the noise and the other the velocity."""


@cache
def _manifests() -> Mapping[str, Mapping[str, list[int | str]]]:
    return json.loads(lzma.decompress(FILE.read_bytes()))  # type: ignore[no-any-return]  # json


def file(name: str) -> dict[str, Tensor]:
    """The tensors of a real file, without their numbers."""
    return {
        key: torch.empty(kind[:-1], dtype=getattr(torch, str(kind[-1])), device="meta")
        for key, kind in _manifests()[name].items()
    }


@pytest.mark.parametrize("name", MEMBERS)
def test_a_real_file_is_found_out(name: str) -> None:
    fitting, _ = candidates(file(name), name)
    assert tuple(preset.name for preset in fitting) == MEMBERS[name]


def test_what_a_file_cannot_tell_is_asked() -> None:
    with pytest.raises(ModelFileError, match=r"may be any of sd2-base, sd2-v, sd-turbo.*--preset"):
        detect(file("sd_v2_v"), "x.ckpt")


def test_members_that_compute_the_same_are_the_first_of_them() -> None:
    assert detect(file("sdxl_turbo"), "x.safetensors").name == "sdxl"


@pytest.mark.parametrize("name", MEMBERS)
def test_a_real_file_loads_whole_and_is_written_the_same(name: str) -> None:
    tensors = file(name)
    layout = original.layout(PRESETS[MEMBERS[name][0]], tensors)
    parts, dropped = layout.load(tensors, name)
    assert {key for key, _ in dropped}.isdisjoint(pair.theirs for pairs in layout.pairs.values() for pair in pairs)
    written = layout.save(parts)
    assert written.keys() | {key for key, _ in dropped} == tensors.keys()
    wrong = {key for key in written if written[key].numel() != tensors[key].numel()}
    assert not wrong


def test_every_preset_has_a_real_file_or_none_is_known() -> None:
    known = {preset for presets in MEMBERS.values() for preset in presets}
    assert PRESETS.keys() - known == {"ddpm", "tiny"}
