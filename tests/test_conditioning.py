"""Words, labels, boxes, maps and pictures to the three doors, against numbers of the original code."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from checkpoint_cases import toy_tokenizer
from golden_cases import agree, golden, weights, zipped
from safelight.checkpoints.keys import Layout
from safelight.checkpoints.layouts import bert
from safelight.conditioning.augmentation import noised, unclip_door, upscaler_door
from safelight.conditioning.joining import beside
from safelight.conditioning.labels import encode_boxes, encode_labels, encode_maps
from safelight.conditioning.pictures import (
    HIDINGS,
    clip_pixels,
    embed_pictures,
    hide,
    inpainting_door,
)
from safelight.conditioning.sizes import AESTHETIC, NEGATIVE_AESTHETIC, base_numbers, numbers_door, refiner_numbers
from safelight.conditioning.text import encode_prompts, repeat, unsaid
from safelight.diffusion.schedule import Schedule, ScheduleConfig
from safelight.doors import Conditioning
from safelight.errors import RequestError
from safelight.models.bert import Bert, BertConfig
from safelight.models.boxes import Box, BoxesConfig, BoxTokenizer, mirrored
from safelight.models.clip import PIXEL_MEAN, PIXEL_STD, ClipText, ClipTextConfig, ClipVision, ClipVisionConfig
from safelight.models.labels import Labels, LabelsConfig
from safelight.models.networks import shapes_of
from safelight.models.normalizer import Normalizer, NormalizerConfig
from safelight.models.rescaler import Rescaler, RescalerConfig


def needed(door: Tensor | None) -> Tensor:
    assert door is not None
    return door


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WIDTH = 256  # of the sinusoids of SDXL's numbers

# Words

TOKENIZER = toy_tokenizer()
TOWER = ClipTextConfig(
    vocab_size=len(TOKENIZER.vocab),
    width=12,
    layers=3,
    heads=2,
    mlp_width=16,
    projection_width=8,
    start_token=TOKENIZER.start_token,
    end_token=TOKENIZER.end_token,
    pad_token=TOKENIZER.pad_token,
)
PROMPTS = ["a red apple", ""]


def tower(config: ClipTextConfig, seed: int = 0) -> ClipText:
    torch.manual_seed(seed)
    return ClipText(config).eval().requires_grad_(False)


def test_one_tower_gives_its_last_states() -> None:
    text = tower(TOWER)
    cond = encode_prompts(TOKENIZER, text, PROMPTS)
    assert torch.equal(needed(cond.context), text(TOKENIZER(PROMPTS)).last)
    assert (cond.vector, cond.concat) == (None, None)
    skipped = encode_prompts(TOKENIZER, text, PROMPTS, skip=1)
    normed = encode_prompts(TOKENIZER, text, PROMPTS, states="penultimate_normed")
    assert torch.equal(needed(skipped.context), needed(normed.context))
    assert not torch.equal(needed(skipped.context), needed(cond.context))


def test_two_towers_stand_beside_each_other_with_the_sizes_behind_the_pooled_words() -> None:
    first, second = tower(TOWER), tower(replace(TOWER, width=16, projected=True), 1)
    padded = TOKENIZER.padded_with(0)
    words = [
        encode_prompts(TOKENIZER, first, PROMPTS, states="penultimate"),
        encode_prompts(padded, second, PROMPTS, states="penultimate", pooled=True),
    ]
    numbers = numbers_door([base_numbers((64, 48), (64, 64)), base_numbers((32, 32), (64, 64), (1, 2))], WIDTH)
    cond = beside([*words, numbers])
    context, vector = needed(cond.context), needed(cond.vector)
    assert context.shape == (2, 77, 12 + 16)
    assert vector.shape == (2, 8 + 6 * WIDTH)
    said = second(padded(PROMPTS))
    assert torch.equal(context[..., :12], first(TOKENIZER(PROMPTS)).hidden[-2])
    assert torch.equal(context[..., 12:], said.hidden[-2])
    assert torch.equal(vector[:, :8], needed(said.embedding))
    assert torch.equal(vector[:, 8:], needed(numbers.vector))
    assert cond.concat is None
    silent = beside([unsaid(beside(words)), numbers])
    assert not needed(silent.context).any()
    assert not needed(silent.vector)[:, :8].any()
    assert torch.equal(needed(silent.vector)[:, 8:], vector[:, 8:])


def test_a_pooled_state_needs_a_projection() -> None:
    with pytest.raises(ValueError, match="without its projection"):
        encode_prompts(TOKENIZER, tower(TOWER), PROMPTS, pooled=True)


def test_the_transformer_of_latent_diffusion_reads_words_too() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(TOKENIZER.vocab), width=12, layers=2, heads=2, head_width=4, mlp_width=16)
    network = Bert(config).eval().requires_grad_(False)
    cond = encode_prompts(TOKENIZER, network, PROMPTS)
    assert torch.equal(needed(cond.context), network(TOKENIZER(PROMPTS)))
    with pytest.raises(RequestError, match="clip skip"):
        encode_prompts(TOKENIZER, network, PROMPTS, skip=1)


def test_doors_beside_each_other() -> None:
    one, two = randn(2, 1, 3, 3), randn(2, 4, 3, 3, seed=1)
    joined = beside([Conditioning(concat=one), Conditioning(context=randn(2, 5, 6)), Conditioning(concat=two)])
    assert torch.equal(needed(joined.concat), torch.cat([one, two], 1))
    assert needed(joined.context).shape == (2, 5, 6)
    assert joined.vector is None
    assert beside([]) == Conditioning()
    levels = beside([Conditioning(context=randn(2, 5, 6)), Conditioning(vector=torch.tensor([[3], [4]]))])
    assert needed(levels.vector).dtype == torch.int64, "labels stay whole numbers"


# SDXL's numbers


def test_the_sinusoids_of_sizes() -> None:
    data = golden("sdxl_size_embeddings")
    for numbers, expected in (
        ("sizes_hw", "sizes_embedding"),
        ("crops_top_left", "crops_embedding"),
        ("aesthetic", "aesthetic_embedding"),
    ):
        agree(expected, needed(numbers_door(data[numbers], WIDTH).vector), data[expected])


def test_the_vectors_of_base_and_refiner() -> None:
    data = golden("sdxl_vector")
    rows = [[tuple(row) for row in data[name].tolist()] for name in ("orig", "target", "crop")]
    base = [base_numbers(original, target, crop) for original, target, crop in zip(*rows, strict=True)]
    agree("base", needed(numbers_door(base, WIDTH).vector), data["base_numbers"])
    scores = data["aesthetic"].flatten().tolist()
    assert scores == [AESTHETIC, NEGATIVE_AESTHETIC]
    refiner = [refiner_numbers(o, c, score) for o, c, score in zip(rows[0], rows[2], scores, strict=True)]
    agree("refiner", needed(numbers_door(refiner, WIDTH).vector), data["refiner_numbers"])
    pooled = Conditioning(vector=data["pooled"])
    assert torch.equal(needed(beside([pooled, numbers_door(base, WIDTH)]).vector)[:, :8], data["pooled"])


# Labels, boxes, maps


def test_labels() -> None:
    data = golden("cond_class_embedder")
    config = LabelsConfig(classes=11, width=12)
    labels = Labels(config)
    layout = Layout({"labels": bert.labels(config)}, {"labels": shapes_of(config)})
    labels.load_state_dict(layout.load(weights("cond_class_embedder", before=bert.PREFIX), "golden")[0]["labels"])
    agree("labels", needed(encode_labels(labels, data["label"].tolist()).context), data["out"])
    with pytest.raises(RequestError, match="no class 11: they are 0 to 10"):
        encode_labels(labels, [0, 11])


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("plain", RescalerConfig(in_channels=3, out_channels=None)),
        ("bicubic", RescalerConfig(stages=1, method="bicubic", in_channels=3, out_channels=None)),
        ("semantic", RescalerConfig(in_channels=10)),
    ],
)
def test_rescaler(case: str, config: RescalerConfig) -> None:
    data, rescaler = golden(f"cond_spatial_rescaler_{case}"), Rescaler(config)
    layout = Layout({"rescaler": bert.rescaler(config)}, {"rescaler": shapes_of(config)})
    file = weights(f"cond_spatial_rescaler_{case}", before=bert.PREFIX)
    rescaler.load_state_dict(layout.load(file, "golden")[0]["rescaler"])
    agree(f"rescaler {case}", rescaler(data["x"]), data["out"])


def test_maps_are_spread_over_their_classes() -> None:
    rescaler = Rescaler(RescalerConfig(in_channels=5))
    maps = torch.randint(0, 5, (2, 16, 24), generator=torch.Generator().manual_seed(0))
    spread = torch.stack([(maps == k).float() for k in range(5)], dim=1)
    found = needed(encode_maps(rescaler, maps).concat)
    assert found.shape == (2, 3, 4, 6)
    assert torch.equal(found, rescaler(spread))
    plain = needed(encode_maps(Rescaler(RescalerConfig(in_channels=5, out_channels=None)), maps).concat)
    agree("maps keep their shares", plain.sum(1), torch.ones(2, 4, 6))
    with pytest.raises(RequestError, match="classes 0 to 5: they are 0 to 4"):
        encode_maps(rescaler, maps.clamp(max=0).index_fill(1, torch.tensor([0]), 5))


LAYOUTS = {case["name"]: case for case in zipped("layout_tokens/cases.json")["cases"]}


def boxes_of(case: dict[str, Any]) -> list[Box]:
    def flipped(place: list[float]) -> tuple[float, float, float, float]:
        left, top, width, height = place
        found = (left, top, width, height)
        return mirrored(found) if case["flip"] else found

    return [
        Box(
            noted["category_no"],
            flipped(noted["bbox_xywh"]),
            group=noted["is_group_of"] is True,
            occluded=noted["is_occluded"] is True,
            depiction=noted["is_depiction"] is True,
            inside=noted["is_inside"] is True,
        )
        for noted in case["annotations"]
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_boxes_become_the_recorded_tokens(name: str) -> None:
    case = LAYOUTS[name]
    told = case["builder"]
    tokenizer = BoxTokenizer(
        BoxesConfig(
            classes=told["no_object_classes"],
            most_boxes=told["no_max_objects"],
            tokens=told["no_tokens"],
            crop=told["encode_crop"],
            groups=told["use_group_parameter"],
            marks=told["use_additional_parameters"],
        )
    )
    left, top, width, height = case["crop"]
    crop = mirrored((left, top, width, height)) if case["flip"] else (left, top, width, height)
    assert tokenizer([boxes_of(case)], crop).tolist() == [case["tokens"]]


def test_boxes_of_openimages_are_92_tokens_and_a_context() -> None:
    tokenizer = BoxTokenizer(BoxesConfig())
    ids = tokenizer([[], [Box(5, (0.25, 0.5, 0.5, 0.5), depiction=True)]])
    assert ids.shape == (2, 92)
    assert ids[0].tolist() == [8191] * 90 + [0, 8099]
    assert ids[1, :3].tolist() == [5 + 4 * 601, 44 * 90 + 22, 89 * 90 + 67]
    torch.manual_seed(0)
    network = Bert(BertConfig(8192, 12, 1, 2, 4, 16, 92)).requires_grad_(False)
    context = needed(encode_boxes(tokenizer, network, [[], []]).context)
    assert torch.equal(context, network(ids[:1]).expand(2, -1, -1))


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([Box(601, (0, 0, 1, 1))], "no class 601"),
        ([Box(0, (0.5, 0, 0.6, 1))], "reaches out"),
        ([Box(0, (0, 0, -0.1, 1))], "reaches out"),
        ([Box(600, (0, 0, 1, 1), group=True, occluded=True, depiction=True, inside=True)], "has no token"),
        ([Box(0, (0, 0, 1, 1))] * 31, "31 boxes in one picture: 30 is the most"),
    ],
)
def test_boxes_that_cannot_be_told(boxes: list[Box], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        BoxTokenizer(BoxesConfig())([boxes])


def test_a_box_to_the_edge_is_none_too_large_by_rounding() -> None:
    assert 0.7 + 0.1 + 0.2 > 0.9999999
    ids = BoxTokenizer(BoxesConfig())([[Box(0, (0.1 + 0.2, 0.0, 0.7000000001, 1.0))]])
    assert ids[0, 2] == 8099


# Pictures


def test_pixels_for_clip() -> None:
    data = golden("clip_image_preprocess_kornia")
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(b"input:img"))).standard_normal((1, 3, 300, 260))
    x = torch.from_numpy(noise.astype(np.float32) * np.float32(0.3)).clamp(-1, 1)
    assert torch.equal(x[0, :, :2, :2], data["x_corner"]), "the rule that the picture follows"
    places = data["places"]
    for antialias in (True, False):
        found = clip_pixels(x, 224, antialias=antialias)[:, :, places][:, :, :, places]
        agree(f"antialias {antialias}", found, data[f"antialias_{antialias}"])


def test_a_picture_of_the_right_size_is_only_normalised() -> None:
    pixels = randn(2, 3, 8, 8).clamp(-1, 1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD))
    agree("normalised", clip_pixels(pixels, 8), ((pixels + 1) / 2 - mean) / std)
    flat = clip_pixels(torch.full((1, 3, 40, 31), 0.5), 8)
    agree("an even picture stays even", flat, ((0.75 - mean) / std).expand(1, 3, 8, 8))


@pytest.mark.parametrize("sides", [(100, 64), (57, 9), (8, 40)])
def test_what_is_shrunk_for_clip_is_blurred_before(sides: tuple[int, int]) -> None:
    """The recorded case shrinks too little to miss a blur; scipy's Gaussian says what a strong one is."""
    x = randn(1, 3, *sides).clamp(-1, 1)
    blurred = x.numpy()
    for axis, side in zip((2, 3), sides, strict=True):
        sigma = max((side / 8 - 1) / 2, 0.001)
        reach = max(int(4 * sigma), 3) // 2
        blurred = gaussian_filter1d(blurred, sigma, axis=axis, mode="mirror", radius=reach)
    agree(f"shrunk from {sides}", clip_pixels(x, 8), clip_pixels(torch.from_numpy(blurred), 8, antialias=False))
    assert float((clip_pixels(x, 8) - clip_pixels(x, 8, antialias=False)).abs().max()) > 0.1


def test_embedded_pictures() -> None:
    torch.manual_seed(0)
    config = ClipVisionConfig(16, 2, 2, 32, 28, 14, projection_width=6, projected=True)
    vision = ClipVision(config).eval().requires_grad_(False)
    pixels = randn(2, 3, 40, 56).clamp(-1, 1)
    found = embed_pictures(vision, pixels)
    assert torch.equal(found, vision(clip_pixels(pixels, 28)))
    assert found.shape == (2, 6)
    half = embed_pictures(vision.to(torch.bfloat16), pixels)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("style", "masked", "told"),
    [("stable", "masked_image", "mask_latent"), ("latent", "ldm_masked_image01", "ldm_mask_latent")],
)
def test_inpainting(style: Literal["stable", "latent"], masked: str, told: str) -> None:
    data, hiding = golden("conditioning_concat"), HIDINGS[style]
    agree(masked, hide(data["image"], data["mask"], hiding), data[masked])
    hidden = randn(1, 4, 8, 8)
    concat = needed(inpainting_door(data["mask"], hidden, hiding).concat)
    small, rest = (concat[:, :1], concat[:, 1:]) if style == "stable" else (concat[:, 4:], concat[:, :4])
    assert torch.equal(small, data[told])
    assert torch.equal(rest, hidden)


# Conditions under noise


def schedule(kind: Any, start: float = 0.0001, end: float = 0.02) -> Tensor:
    return Schedule(ScheduleConfig(kind=kind, start=start, end=end, steps=1000)).alphas_cumprod


def test_unclips_embedding_under_noise() -> None:
    data = golden("training/unclip_noise_augmentation")
    normalizer = Normalizer(NormalizerConfig(32))
    normalizer.load_state_dict({"mean": data["data_mean"], "std": data["data_std"]})
    normalizer.requires_grad_(False)
    cond = unclip_door(data["x"], data["noise"], data["noise_level"], schedule("cosine"), normalizer)
    vector = needed(cond.vector)
    agree("unclip picture", vector[:, :32], data["z"])
    agree("unclip level", vector[:, 32:], data["noise_level_emb"])


def test_the_upscalers_picture_under_noise() -> None:
    data = golden("training/upscaler_noise_augmentation")
    cond = upscaler_door(data["x"], data["noise"], data["noise_level"], schedule("scaled_linear"))
    agree("upscaler", needed(cond.concat), data["z"])
    assert needed(cond.vector).tolist() == data["noise_level"][:, None].tolist()
    assert not needed(cond.vector).is_floating_point()


def test_a_noise_level_that_is_not_there() -> None:
    x = randn(1, 4)
    with pytest.raises(RequestError, match=r"no noise level \[1000\]: they are 0 to 999"):
        noised(x, x, torch.tensor([1000]), schedule("cosine"))


def test_repeated_conditions() -> None:
    cond = repeat(Conditioning(context=randn(1, 2, 3), vector=randn(1, 4)), 3)
    assert needed(cond.context).shape == (3, 2, 3)
    assert needed(cond.vector).shape == (3, 4)
