"""The depth network: against MiDaS's own numbers, transformers' class, the published keys, and diffusers' pipeline."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionDepth2ImgPipeline
from torch import Tensor
from transformers import DPTConfig, DPTForDepthEstimation

from checkpoint_cases import meta as published
from golden_cases import agree, golden, meta, off, weight, weights
from safelight.checkpoints.layouts import midas
from safelight.conditioning.depth import (
    estimate,
    for_network,
    map_depth_door,
    network_size,
    on_latent,
    picture_depth_door,
)
from safelight.doors import Conditioning
from safelight.errors import RequestError
from safelight.models.depth import Depth, DepthConfig
from safelight.models.networks import shapes_of
from toy_family import TOY_DEPTH

REAL = DepthConfig()
PARAMETERS, CLASSIFIER = 122_377_985, 1000 * 768 + 1000
MIDDLE = replace(
    REAL,
    stem_width=32,
    stage_widths=(64, 128, 256),
    norm_groups=8,
    width=192,
    mlp_width=768,
    neck_widths=(160, 192),
    fusion_width=64,
    image_size=128,
)
SQUARE = {"toy": TOY_DEPTH, "middle": MIDDLE}
NEAR = 1000.0  # how much larger the weights behind the last activation are made: the real ones give thousands


def dpt_config(config: DepthConfig) -> DPTConfig:
    """The same network as transformers describes it."""
    return DPTConfig(
        is_hybrid=True,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        layer_norm_eps=config.norm_eps,
        image_size=config.image_size,
        backbone_featmap_shape=[1, config.stage_widths[-1], config.image_size // 16, config.image_size // 16],
        backbone_out_indices=[0, 1, *config.taps],
        neck_hidden_sizes=[*config.stage_widths[:2], *config.neck_widths],
        reassemble_factors=[1, 1, 1, 0.5],
        fusion_hidden_size=config.fusion_width,
        backbone_config={
            "model_type": "bit",
            "layer_type": "bottleneck",
            "global_padding": "same",
            "embedding_dynamic_padding": True,
            "embedding_size": config.stem_width,
            "hidden_sizes": list(config.stage_widths),
            "depths": list(config.stage_blocks),
            "num_groups": config.norm_groups,
            "out_features": ["stage1", "stage2", "stage3"],
        },
    )


def both(config: DepthConfig, *, filters: float = 1.0) -> tuple[Depth, DPTForDepthEstimation]:
    """Ours and transformers', with the same random weights of lively sizes, `filters` times that in the backbone."""
    theirs = DPTForDepthEstimation(dpt_config(config))
    tensors = {key: weight(key, tuple(tensor.shape)) for key, tensor in theirs.state_dict().items()}
    for name in ("dpt.embeddings.cls_token", "dpt.embeddings.position_embeddings"):
        tensors[name] *= tensors[name][0].numel() ** 0.5  # the rule scales them as matrices
    for tensor in (tensor for name, tensor in tensors.items() if ".bit." in name and tensor.ndim == 4):
        tensor.mul_(filters)
    tensors["head.head.4.weight"] *= NEAR
    tensors["head.head.4.bias"].fill_(NEAR)
    ours = Depth(config)
    for network in (ours, theirs):
        network.load_state_dict(tensors, strict=True)
        network.eval().requires_grad_(False)
    return ours, theirs


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).tanh()


def concat(door: Conditioning) -> Tensor:
    assert door.concat is not None
    assert door.context is None
    return door.concat


# The network


@pytest.mark.parametrize("name", SQUARE)
def test_depth_of_a_square_is_transformers(name: str) -> None:
    ours, theirs = both(SQUARE[name])
    side = ours.config.image_size
    pixels = noise(2, 3, side, side)
    depth = ours(pixels)
    assert float(depth.std()) > 0.05 * NEAR, "the network says nothing of the picture"
    agree(f"depth {name}", depth, theirs(pixels).predicted_depth[:, None])


def test_depth_of_a_dark_grey_by_small_filters_is_transformers() -> None:
    """At a scale where every norm's epsilon shows."""
    ours, theirs = both(replace(TOY_DEPTH, norm_eps=1e-3), filters=1e-3)
    pixels = 1e-3 * noise(2, 3, 64, 64)
    agree("depth of little", ours(pixels), theirs(pixels).predicted_depth[:, None])


@pytest.mark.parametrize("size", [(64, 160), (96, 32), (128, 128)])
def test_depth_of_other_sizes_is_transformers(size: tuple[int, int]) -> None:
    """Their class refuses these sizes, but its parts do not."""
    ours, theirs = both(TOY_DEPTH)
    pixels = noise(2, 3, *size)
    embedded = theirs.dpt.embeddings(pixels, interpolate_pos_encoding=True)
    x, features = embedded.last_hidden_states, list(embedded.intermediate_activations)
    for i, layer in enumerate(theirs.dpt.encoder.layer):
        x = layer(x)
        features += [x] if i in TOY_DEPTH.taps else []
    expected = theirs.head(theirs.neck(features, size[0] // 16, size[1] // 16))
    agree(f"depth {size}", ours(pixels), expected[:, None])


@pytest.mark.parametrize("name", ["wide", "tall"])
def test_depth_is_that_of_the_original_code(name: str) -> None:
    """Also the proof of the layout: what it reads into the wrong place of the same shape shows here."""
    described = {key: tuple(v) if isinstance(v, list) else v for key, v in meta("depth_midas")["config"].items()}
    assert replace(TOY_DEPTH, **described) == TOY_DEPTH
    config = replace(TOY_DEPTH, norm_eps=1e-6)  # timm's
    parts, dropped = midas.layout(config, prefix="").load(weights("depth_midas"), "recorded")
    assert {key for key, _ in dropped} == {f"pretrained.model.head.{kind}" for kind in ("weight", "bias")}
    network = Depth(config)
    network.load_state_dict(parts[midas.PART], strict=True)
    arrays = golden("depth_midas")
    with torch.no_grad():
        agree(f"midas {name}", network(arrays[f"pixels_{name}"])[:, 0], arrays[f"depth_{name}"])


def test_a_picture_does_not_depend_on_its_batch() -> None:
    ours, _ = both(TOY_DEPTH)
    pixels = noise(3, 3, 64, 96)
    assert off(ours(pixels[1:2]), ours(pixels)[1:2]) < 1e-5


@pytest.mark.parametrize("size", [(64, 80), (48, 64)])
def test_a_side_off_the_grid_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="multiples of 32"):
        Depth(TOY_DEPTH)(noise(1, 3, *size))


def test_half_precision_runs_inside_and_float32_comes_out() -> None:
    ours, _ = both(TOY_DEPTH)
    pixels = noise(1, 3, 64, 64)
    expected = estimate(ours, pixels)
    depth = estimate(ours.to(torch.bfloat16), pixels)
    assert depth.dtype == torch.float32
    assert off(depth, expected) < 0.1


# The files


def test_the_defaults_are_those_of_the_published_config() -> None:
    published, ours = DPTConfig(is_hybrid=True), dpt_config(REAL)
    assert (ours.image_size, ours.patch_size) == (published.image_size, published.patch_size)
    assert ours.layer_norm_eps == published.layer_norm_eps
    assert ours.backbone_featmap_shape == list(published.backbone_featmap_shape)
    assert (ours.num_attention_heads, ours.backbone_out_indices[2:]) == (12, list(published.backbone_out_indices)[2:])


def test_parameters_are_the_published_ones() -> None:
    assert sum(torch.Size(shape).numel() for shape in shapes_of(REAL).values()) == PARAMETERS


@pytest.mark.parametrize("config", [REAL, TOY_DEPTH, MIDDLE], ids=["real", "toy", "middle"])
def test_names_and_shapes_are_transformers(config: DepthConfig) -> None:
    with torch.device("meta"):
        theirs = DPTForDepthEstimation(dpt_config(config))
    expected = {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    assert shapes_of(config) == expected
    layout = midas.folder_layout(config)
    file = {key: torch.empty(shape, device="meta") for key, shape in expected.items()}
    parts, dropped = layout.load(file, "folder")
    assert dropped == []
    assert {key: tuple(tensor.shape) for key, tensor in layout.save(parts).items()} == expected


def test_the_original_file_loads_exactly_and_comes_back() -> None:
    file = published("sd_v2_depth_midas")
    assert len(file) == 368
    assert sum(tensor.numel() for tensor in file.values()) == PARAMETERS + CLASSIFIER
    layout = midas.layout(REAL)
    parts, dropped = layout.load(file, "sd_v2_depth")
    assert [key for key, _ in dropped] == [f"depth_model.model.pretrained.model.head.{k}" for k in ("weight", "bias")]
    assert all(why for _, why in dropped)
    assert {key: tuple(t.shape) for key, t in parts[midas.PART].items()} == shapes_of(REAL)
    back = {key: tuple(tensor.shape) for key, tensor in layout.save(parts).items()}
    assert back == {key: tuple(tensor.shape) for key, tensor in file.items() if key not in dict(dropped)}


def test_original_to_ours_and_back_changes_no_number() -> None:
    layout = midas.layout(TOY_DEPTH)
    generator = torch.Generator().manual_seed(0)
    ours = {name: torch.randn(shape, generator=generator) for name, shape in shapes_of(TOY_DEPTH).items()}
    parts, dropped = layout.load(layout.save({midas.PART: ours}), "toy")
    assert dropped == []
    assert all(torch.equal(parts[midas.PART][name], tensor) for name, tensor in ours.items())


# The door


def test_depth_on_the_latent_is_the_original_codes() -> None:
    arrays = golden("conditioning_depth")
    expected = arrays["depth_cond"]
    agree("door", on_latent(arrays["depth"], (expected.shape[2], expected.shape[3]), slack=0.001), expected)


@pytest.mark.parametrize("name", ["grows", "shrinks"])
def test_the_network_is_shown_what_the_original_code_shows_it(name: str) -> None:
    arrays = golden("conditioning_depth")
    agree(f"shown {name}", for_network(arrays[f"pixels_{name}"], 64), arrays[f"shown_{name}"])


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((384, 384), (384, 384)),
        ((512, 512), (384, 384)),
        ((768, 512), (576, 384)),
        ((512, 768), (384, 576)),
        ((640, 960), (384, 576)),
        ((200, 300), (256, 384)),
        ((750, 512), (576, 384)),
        ((1000, 333), (1152, 384)),
        ((64, 2048), (32, 384)),  # the original leaves no rows of it, and fails
    ],
)
def test_the_size_shown_is_the_original_codes(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert network_size(*size, 384) == shown


def test_a_picture_becomes_the_door_of_diffusers() -> None:
    ours, theirs = both(TOY_DEPTH)
    pixels = noise(2, 3, 64, 64)  # of the network's own size, in which their preparation changes nothing
    pipeline = SimpleNamespace(
        feature_extractor=lambda images, return_tensors: SimpleNamespace(pixel_values=torch.stack(images)),
        depth_estimator=theirs,
        vae_scale_factor=8,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autocast.*")  # they ask the CPU for it in float32
        expected = StableDiffusionDepth2ImgPipeline.prepare_depth_map(
            pipeline, pixels, None, 2, False, torch.float32, torch.device("cpu")
        )
    agree("picture's door", concat(picture_depth_door(ours, pixels, (8, 8))), expected)


def test_a_map_becomes_the_door_of_diffusers() -> None:
    pipeline = SimpleNamespace(vae_scale_factor=8)
    pixels, depth = noise(2, 3, 96, 64), noise(2, 1, 50, 70, seed=1) * torch.tensor([0.3, 7.0])[:, None, None, None]
    expected = StableDiffusionDepth2ImgPipeline.prepare_depth_map(
        pipeline, pixels, depth[:, 0], 2, False, torch.float32, torch.device("cpu")
    )
    door = concat(map_depth_door(depth, (12, 8)))
    agree("map's door", door, expected)
    assert door.amin((1, 2, 3)).tolist() == [-1, -1]
    assert door.amax((1, 2, 3)).tolist() == [1, 1]


def test_a_maps_unit_and_zero_do_not_count() -> None:
    steps = torch.randint(0, 256, (1, 1, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    door = concat(map_depth_door(steps, (10, 10)))
    for other in (steps / 255, steps * 257.0 - 9000, steps.double() * 1e-6):
        agree("map of another range", concat(map_depth_door(other, (10, 10))), door)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0, 1e4])
@pytest.mark.parametrize("slack", [0.0, 0.001])
def test_a_flat_depth_is_far_everywhere_and_no_noise(value: float, slack: float) -> None:
    flat, steep = torch.full((1, 1, 37, 53), value), noise(1, 1, 37, 53)
    door = on_latent(torch.cat([flat, steep]), (8, 12), slack=slack)
    assert torch.equal(door[0], torch.full((1, 8, 12), -1.0))
    assert float(door[1].max()) > 0.99
