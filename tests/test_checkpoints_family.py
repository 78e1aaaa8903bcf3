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

from checkpoint_cases import meta, sparse_file
from safelight.checkpoints import read
from safelight.checkpoints.alone import read_vae
from safelight.checkpoints.detect import candidates, detect, same
from safelight.checkpoints.layouts import ldm, original
from safelight.checkpoints.writing import write_tensors
from safelight.errors import ModelFileError
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.networks import shapes_of
from safelight.presets import PRESETS
from safelight.presets import ldm as ldm_presets
from safelight.presets.conditions import NORMALIZER, TEXT
from safelight.presets.preset import AUTOENCODER, UNET
from safelight.tasks.files import FileCard, ModelCard, describe
from safelight.tasks.sources import PLAIN, Reading
from toy_family import filled, toy_preset

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
    "ldm_rdm768": ("ldm-retrieval",),
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


def shown(tmp_path: Path, name: str, reading: Reading = PLAIN) -> ModelCard:
    """What `safelight models show` finds in a real file, but for its numbers."""
    sparse_file(tmp_path / "x.safetensors", file(name), ones=("scale_factor",))
    card = describe(str(tmp_path / "x.safetensors"), reading)
    assert isinstance(card, ModelCard)
    return card


@pytest.mark.parametrize("name", MEMBERS)
def test_a_real_file_is_shown_or_its_candidates_are(tmp_path: Path, name: str) -> None:
    tensors, fitting = file(name), [PRESETS[found] for found in MEMBERS[name]]
    asks = not all(same(preset, fitting[0]) for preset in fitting)
    if asks:
        with pytest.raises(ModelFileError, match=rf"may be any of {', '.join(MEMBERS[name])}: .*--preset"):
            shown(tmp_path, name)
    for preset in fitting if asks else fitting[:1]:
        card = shown(tmp_path, name, Reading(preset=preset.name) if asks else PLAIN)
        assert (card.preset, card.title, card.prediction) == (preset.name, preset.title, preset.prediction)
        assert (card.width, card.height) == (preset.width, preset.height)
        assert card.absent == {"sd_v21_unclip_l": [NORMALIZER], "ldm_rdm768": [TEXT]}.get(name, [])
        counts = {part.name: part.parameters for part in card.parts}
        assert counts.keys() == preset.networks.keys() - set(card.absent)
        for part, prefix in ((UNET, ldm.UNET), (AUTOENCODER, ldm.AUTOENCODER)):
            own = [t.numel() for key, t in tensors.items() if key.startswith(prefix) and ".loss." not in key]
            assert counts[part] == sum(own), part
        used = {str(t.dtype).removeprefix("torch.") for key, t in tensors.items() if key.startswith(ldm.UNET)}
        assert {dtype for part in card.parts for dtype in part.dtypes} == used
        unused = {key for key, _ in card.dropped}
        assert unused <= tensors.keys()
        assert all(why for _, why in card.dropped)
        text = card.text()
        for said in (preset.name, f"predicts {preset.prediction}", f"{preset.width}x{preset.height}", *used):
            assert said in text
        assert len(text.splitlines()) < 20, "reasons stand once each"


AVERAGED = [name for name in MEMBERS if any(key.startswith(ldm.EMA) for key in file(name))]


def test_files_of_all_kinds_carry_averages() -> None:
    assert {MEMBERS[name][0] for name in AVERAGED} >= {"sd1", "ldm-celeba", "ldm-class", "ldm-layout", "ldm-inpainting"}


@pytest.mark.slow
@pytest.mark.parametrize("name", AVERAGED)
def test_the_running_average_of_a_real_file_is_chosen(tmp_path: Path, name: str) -> None:
    for ema, unused, why in ((False, ldm.EMA, "choose it with --ema"), (True, ldm.UNET, "in its place")):
        card = shown(tmp_path, name, Reading(ema=ema))
        twins = {key for key, said in card.dropped if why in said}
        assert {key for key in twins if key.startswith(unused)} == twins != set()
        assert len(twins) >= len(shapes_of(PRESETS[card.preset].unet)) // 2  # where queries, keys and values are one
        assert not any(
            key.startswith(unused) for key, said in card.dropped if why not in said and "counter" not in said
        )


@pytest.mark.parametrize("name", ["sd2-v", "sdxl", "ldm-churches", "ldm-class", "ldm-layout", "ldm-inpainting"])
def test_the_running_average_is_read_in_place_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    preset = toy_preset(PRESETS[name])
    monkeypatch.setattr("safelight.checkpoints.detect.PRESETS", {name: preset})
    last, averaged = filled(preset, seed=0).parts, filled(preset, seed=1).parts
    tensors = original.save(preset, last)
    twins = {key: t for key, t in original.save(preset, averaged).items() if key.startswith(ldm.UNET)}
    tensors |= {ldm.ema_name(key): t for key, t in twins.items()}
    write_tensors(tmp_path / "x.safetensors", tensors)
    for ema in (False, True):
        found = read(tmp_path / "x.safetensors", ema=ema).parts
        wanted = {**last, UNET: averaged[UNET]} if ema else last
        assert all(torch.equal(found[part][key], t) for part in wanted for key, t in wanted[part].items())


LONE: dict[
    str, tuple[AutoencoderConfig, str]
] = {  # autoencoders in files of their own, and a member that has such a one
    "vae_standalone_kl_f8": (ldm_presets.KL_F8, "sd1"),
    "vae_standalone_x4_upscaler": (PRESETS["x4-upscaler"].networks[AUTOENCODER], "x4-upscaler"),  # type: ignore[dict-item]
    "ldm_first_stage_kl_f4": (ldm_presets.KL_F4, ""),
    "ldm_first_stage_kl_f8": (ldm_presets.KL_F8, "ldm-text"),
    "ldm_first_stage_kl_f16": (ldm_presets.KL_F16, "ldm-retrieval"),
    "ldm_first_stage_kl_f32": (ldm_presets.KL_F32, ""),
    "ldm_first_stage_vq_f4": (ldm_presets.VQ_F4, "ldm-celeba"),
    "ldm_first_stage_vq_f4_noattn": (ldm_presets.VQ_F4_NOATTN, "ldm-inpainting"),
    "ldm_first_stage_vq_f8": (ldm_presets.VQ_F8, "ldm-class-f8"),
    "ldm_first_stage_vq_f8_n256": (ldm_presets.VQ_F8_N256, ""),
    "ldm_first_stage_vq_f16": (ldm_presets.VQ_F16, ""),
}


@pytest.mark.parametrize("name", LONE)
def test_a_real_autoencoder_alone_is_read_and_shown(tmp_path: Path, name: str) -> None:
    (config, member), tensors = LONE[name], meta(name)
    sparse_file(tmp_path / "x.safetensors", tensors)
    found = read_vae(tmp_path / "x.safetensors", config)
    assert {key: tuple(t.shape) for key, t in found.items()} == shapes_of(config)
    card = describe(str(tmp_path / "x.safetensors"))
    assert isinstance(card, FileCard)
    assert card.kind == "autoencoder"
    assert card.parameters == sum(t.numel() for t in tensors.values())
    assert (member in card.presets) if member else card.presets == []


def test_every_preset_has_a_real_file_or_none_is_known() -> None:
    known = {preset for presets in MEMBERS.values() for preset in presets}
    assert PRESETS.keys() - known == {"ddpm", "ddpm-cifar10", "ddpm-256", "tiny"}
