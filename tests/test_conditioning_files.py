"""The names of what conditions are made by, against the keys and shapes of the real files, on meta tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from checkpoint_cases import manifest
from safelight.checkpoints.keys import Drop, Layout, Pair
from safelight.checkpoints.layouts import bert, openclip, transformers
from safelight.models.bert import BertConfig
from safelight.models.clip import ClipTextConfig, ClipVisionConfig
from safelight.models.labels import LabelsConfig
from safelight.models.networks import NETWORKS, Config, shapes_of
from safelight.models.normalizer import Normalizer, NormalizerConfig
from safelight.models.rescaler import RescalerConfig

CLIP_L = ClipTextConfig()
OPEN_H = ClipTextConfig(
    width=1024, layers=23, heads=16, mlp_width=4096, activation="gelu", projection_width=1024, pad_token=0
)
OPEN_BIGG = ClipTextConfig(
    width=1280,
    layers=32,
    heads=20,
    mlp_width=5120,
    activation="gelu",
    projection_width=1280,
    pad_token=0,
    projected=True,
)
VISION_L = ClipVisionConfig(projected=True)
VISION_H = ClipVisionConfig(
    width=1280, layers=32, mlp_width=5120, activation="gelu", projection_width=1024, projected=True
)
WORDS = BertConfig()
NARROW_WORDS = BertConfig(width=640, mlp_width=2560)
BOXES = BertConfig(vocab_size=8192, width=512, layers=16, mlp_width=2048, context_length=92)


CONDITIONERS = manifest("conditioners")
HEAD = "cond_stage_model.model."


def of(name: str, prefix: str) -> dict[str, Tensor]:
    """The tensors of a real file behind a prefix, without their numbers."""
    return {
        key: torch.empty(shape[:-1], dtype=getattr(torch, shape[-1]), device="meta")
        for key, shape in CONDITIONERS[name].items()
        if key.startswith(prefix)
    }


def alone(part: str, config: Config, pairs: tuple[Pair, ...], drops: Sequence[Drop] = ()) -> Layout:
    return Layout({part: pairs}, {part: shapes_of(config)}, tuple(drops))


FILES: dict[str, tuple[str, str, Layout, set[str]]] = {
    "sd2": ("sd_v2_base", HEAD, openclip.text_layout(OPEN_H, HEAD), {"logit_scale", "text_projection", "above"}),
    "sdxl L": (
        "sdxl_base",
        "conditioner.embedders.0.",
        alone(
            "text",
            CLIP_L,
            transformers.text(CLIP_L, "conditioner.embedders.0.transformer.text_model."),
            [replace(drop, pattern="*" + drop.pattern) for drop in transformers.DROPS],
        ),
        {"position_ids"},
    ),
    "sdxl bigG": (
        "sdxl_base",
        "conditioner.embedders.1.model.",
        openclip.text_layout(OPEN_BIGG, "conditioner.embedders.1.model."),
        {"logit_scale"},
    ),
    "refiner": (
        "sdxl_refiner",
        "conditioner.embedders.0.model.",
        openclip.text_layout(OPEN_BIGG, "conditioner.embedders.0.model."),
        {"logit_scale"},
    ),
    "unclip H": (
        "sd_v21_unclip_h",
        "embedder.model.",
        openclip.vision_layout(VISION_H, "embedder.model."),
        {"logit_scale", "text"},
    ),
    "unclip L": (
        "sd_v21_unclip_l",
        "embedder.model.",
        openclip.vision_layout(VISION_L, "embedder.model."),
        {"logit_scale", "text"},
    ),
    "diffusers sd2": ("sd2_text_encoder", "", transformers.text_layout(OPEN_H), {"position_ids"}),
    "diffusers sdxl L": ("sdxl_text_encoder", "", transformers.text_layout(CLIP_L), {"position_ids"}),
    "diffusers sdxl bigG": ("sdxl_text_encoder_2", "", transformers.text_layout(OPEN_BIGG), {"position_ids"}),
    "diffusers unclip H": (
        "sd21_unclip_h_image_encoder",
        "",
        transformers.vision_layout(VISION_H),
        {"position_ids"},
    ),
    "diffusers unclip L": (
        "sd21_unclip_l_image_encoder",
        "",
        transformers.vision_layout(VISION_L),
        {"position_ids"},
    ),
    "ldm words": (
        "ldm_txt2img_1p4B",
        bert.PREFIX,
        alone("text", WORDS, bert.transformer(WORDS), bert.DROPS),
        {"to_logits"},
    ),
    "ldm words, narrow": (
        "ldm_text2img256",
        bert.PREFIX,
        alone("text", NARROW_WORDS, bert.transformer(NARROW_WORDS), bert.DROPS),
        {"to_logits"},
    ),
    "ldm boxes": (
        "ldm_layout2img_openimages256",
        bert.PREFIX,
        alone("text", BOXES, bert.transformer(BOXES), bert.DROPS),
        {"to_logits"},
    ),
    "diffusers words": ("ldm_text2im_large_256_bert", "", bert.diffusers_layout(WORDS), {"to_logits"}),
    "ldm classes": (
        "ldm_cin256_v2",
        bert.PREFIX,
        alone("labels", LabelsConfig(), bert.labels(LabelsConfig())),
        set(),
    ),
    "ldm 1000 classes": (
        "ldm_cin256",
        bert.PREFIX,
        alone("labels", LabelsConfig(classes=1000), bert.labels(LabelsConfig(classes=1000))),
        set(),
    ),
    "ldm maps": (
        "ldm_semantic_synthesis256",
        bert.PREFIX,
        alone("rescaler", RescalerConfig(), bert.rescaler(RescalerConfig())),
        set(),
    ),
}


def kind_of(key: str) -> str:
    """What a dropped key is, in a word."""
    for word in ("position_ids", "logit_scale", "to_logits"):
        if word in key:
            return word
    if key.startswith("embedder."):
        return "text"
    return "above" if ".resblocks.23." in key else key.rpartition(".")[2]


@pytest.mark.parametrize("name", FILES)
def test_real_files_load_exactly_and_come_back(name: str) -> None:
    source, prefix, layout, unused = FILES[name]
    file = of(source, prefix)
    parts, dropped = layout.load(file, source)
    assert {kind_of(key) for key, _ in dropped} == unused
    assert not any("visual." in key for key, _ in dropped)
    kept = {key: tensor for key, tensor in file.items() if key not in dict(dropped)}
    back = layout.save(parts)
    assert {k: (t.shape, t.dtype) for k, t in back.items()} == {k: (t.shape, t.dtype) for k, t in kept.items()}
    assert all(why for _, why in dropped)


def test_the_normalizers_names_are_diffusers() -> None:
    found = shapes_of(NormalizerConfig(1024))
    wanted = CONDITIONERS["sd21_unclip_h_image_normalizer"]
    assert found == {key: tuple(shape[:-1]) for key, shape in wanted.items()}
    embedding = torch.randn(3, 8)
    fresh = Normalizer(NormalizerConfig(8))
    assert torch.equal(fresh.unscale(fresh.scale(embedding)), embedding)


@pytest.mark.parametrize(
    ("name", "config", "prefix"),
    [
        ("sd_v2_base_text_openclip_to_hf", OPEN_H, HEAD),
        ("sdxl_base_text_openclip_to_hf", OPEN_BIGG, "conditioner.embedders.1.model."),
        ("sdxl_refiner_text_openclip_to_hf", OPEN_BIGG, "conditioner.embedders.0.model."),
    ],
)
def test_openclips_names_agree_with_the_published_key_map(name: str, config: ClipTextConfig, prefix: str) -> None:
    theirs = {p.ours: p.theirs for p in transformers.text(config)}
    ours: dict[str, list[dict[str, object]]] = {}
    for pair in openclip.text(config, prefix):
        row: dict[str, object] = {"dst": theirs[pair.ours]}
        if pair.op.parts == 3:
            row["rows"] = [pair.op.part * config.width, (pair.op.part + 1) * config.width]
        if pair.op.transposed:
            row["transpose"] = True
        ours.setdefault(pair.theirs, []).append(row)
    assert ours == manifest("keymap_conditioners")[name]


def test_the_transformers_names_agree_with_the_published_key_map() -> None:
    ours = {pair.theirs: pair.ours for pair in bert.transformer(WORDS)}
    published = manifest("keymap_conditioners")["ldm_txt2img_1p4B_bert"]
    assert ours == {k: v for k, v in published.items() if "to_logits" not in k}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (CLIP_L, 123_060_480),
        (OPEN_H, 340_387_840),
        (OPEN_BIGG, 694_659_840),
        (VISION_L, 303_966_208),
        (VISION_H, 632_076_800),
        # What the files hold of the transformer, less what predicts words.
        (NARROW_WORDS, 186_154_682 - 30_522 * 641),
        (BOXES, 58_858_496 - 8192 * 513),
    ],
    ids=["L", "H", "bigG", "vision L", "vision H", "narrow words", "boxes"],
)
def test_parameters(config: Config, parameters: int) -> None:
    with torch.device("meta"):
        network = NETWORKS[type(config)](config)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert list(network.buffers()) == [], "what is not a parameter would not be saved"
