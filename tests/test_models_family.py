"""UNets and autoencoders of every member: the published keys, shapes and counts; and what the goldens cannot see."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from checkpoint_cases import manifest, meta
from golden_cases import agree, shapes, weights
from safelight.checkpoints.keys import Layout, Pair
from safelight.checkpoints.layouts import diffusers, ldm
from safelight.doors import Conditioning
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.codebook import POSITIONS_AT_ONCE, Codebook
from safelight.models.layers import PositionAttention
from safelight.models.networks import NETWORKS, Config, shapes_of
from safelight.models.unet import UNet, UNetConfig, initialise
from safelight.presets import ldm as ldm_presets
from safelight.presets.ldm import KL_F4, KL_F8, KL_F16, KL_F32, VQ_F4, VQ_F4_NOATTN, VQ_F8, VQ_F8_N256, VQ_F16
from safelight.presets.sd1 import SD1_INPAINTING_UNET
from safelight.presets.sd2 import (
    SD2_DEPTH_UNET,
    SD2_INPAINTING_UNET,
    SD2_UNET,
    UNCLIP_H_UNET,
    UNCLIP_L_UNET,
    X4_AUTOENCODER,
    X4_UNET,
)
from safelight.presets.sdxl import SDXL_REFINER_UNET, SDXL_UNET

MEMBERS: list[tuple[str, UNetConfig, AutoencoderConfig]] = [
    ("ldm_bsr_sr", ldm_presets.UPSCALING_UNET, VQ_F4),
    ("ldm_celeba256", ldm_presets.UNCONDITIONAL_UNET, VQ_F4),
    ("ldm_cin256", ldm_presets.CLASS_F8_UNET, VQ_F8),
    ("ldm_cin256_v2", ldm_presets.CLASS_F4_UNET, VQ_F4),
    ("ldm_ffhq256", ldm_presets.UNCONDITIONAL_UNET, VQ_F4),
    ("ldm_inpainting_big", ldm_presets.INPAINTING_UNET, VQ_F4_NOATTN),
    ("ldm_layout2img_openimages256", ldm_presets.LAYOUT_UNET, VQ_F4),
    ("ldm_lsun_beds256", ldm_presets.UNCONDITIONAL_UNET, VQ_F4),
    ("ldm_lsun_churches256", ldm_presets.CHURCHES_UNET, KL_F8),
    ("ldm_rdm768", ldm_presets.RETRIEVAL_UNET, KL_F16),
    ("ldm_semantic_synthesis256", ldm_presets.SEMANTIC_UNET, VQ_F4),
    ("ldm_semantic_synthesis512", ldm_presets.SEMANTIC_UNET, VQ_F4),
    ("ldm_text2img256", ldm_presets.TEXT_F4_UNET, VQ_F4),
    ("ldm_txt2img_1p4B", ldm_presets.TEXT_UNET, KL_F8),
    ("sd_v1", UNetConfig(), KL_F8),
    ("sd_v1_full_ema", UNetConfig(), KL_F8),
    ("sd_v1_inpainting", SD1_INPAINTING_UNET, KL_F8),
    ("sd_v2_base", SD2_UNET, KL_F8),
    ("sd_v2_v", SD2_UNET, KL_F8),
    ("sd_v2_inpainting", SD2_INPAINTING_UNET, KL_F8),
    ("sd_v2_depth", SD2_DEPTH_UNET, KL_F8),
    ("sd_v21_unclip_l", UNCLIP_L_UNET, KL_F8),
    ("sd_v21_unclip_h", UNCLIP_H_UNET, KL_F8),
    ("sd_x4_upscaler", X4_UNET, X4_AUTOENCODER),
    ("sgm_sd_2_1", SD2_UNET, KL_F8),
    ("sdxl_base", SDXL_UNET, KL_F8),
    ("sdxl_turbo", SDXL_UNET, KL_F8),
    ("sdxl_refiner", SDXL_REFINER_UNET, KL_F8),
]
ALONE: list[tuple[str, AutoencoderConfig]] = [
    ("ldm_first_stage_kl_f4", KL_F4),
    ("ldm_first_stage_kl_f8", KL_F8),
    ("ldm_first_stage_kl_f16", KL_F16),
    ("ldm_first_stage_kl_f32", KL_F32),
    ("ldm_first_stage_vq_f4", VQ_F4),
    ("ldm_first_stage_vq_f4_noattn", VQ_F4_NOATTN),
    ("ldm_first_stage_vq_f8", VQ_F8),
    ("ldm_first_stage_vq_f8_n256", VQ_F8_N256),
    ("ldm_first_stage_vq_f16", VQ_F16),
    ("vae_standalone_kl_f8", KL_F8),
    ("vae_standalone_x4_upscaler", X4_AUTOENCODER),
]
Shapes = dict[str, tuple[int, ...]]


def published(name: str, prefix: str, without: tuple[str, ...] = ()) -> Shapes:
    """Keys and shapes of a real file that begin so."""
    return {
        key: tuple(shape[:-1])
        for key, shape in manifest(name).items()
        if key.startswith(prefix) and not key.startswith(without)
    }


def theirs(pairs: Iterable[Pair], config: Config) -> Shapes:
    """Keys and shapes of the file that the pairs describe; a key of several parts must have them all."""
    found: Shapes = {}
    parts: dict[str, list[int]] = {}
    ours = shapes_of(config)
    for pair in pairs:
        found[pair.theirs] = pair.op.shape(ours[pair.ours])
        parts.setdefault(pair.theirs, []).append(pair.op.part)
        assert sorted(parts[pair.theirs]) == list(range(len(parts[pair.theirs]))), pair
        assert len(parts[pair.theirs]) <= pair.op.parts, pair
    assert sorted(pair.ours for pair in pairs) == sorted(ours)
    return found


def parameters(config: Config) -> int:
    with torch.device("meta"):
        module = NETWORKS[type(config)](config)
    assert list(module.buffers()) == [], "what is not a parameter would not be trained, averaged, or saved"
    return sum(parameter.numel() for parameter in module.parameters())


# The published files


def test_no_published_file_is_forgotten() -> None:
    assert {name for name, *_ in MEMBERS + ALONE} == set(manifest("index"))


@pytest.mark.parametrize(("name", "unet", "autoencoder"), MEMBERS, ids=[member[0] for member in MEMBERS])
def test_a_members_names_shapes_and_counts(name: str, unet: UNetConfig, autoencoder: AutoencoderConfig) -> None:
    assert theirs(ldm.unet(unet), unet) == published(name, ldm.UNET)
    pairs = ldm.autoencoder(autoencoder, ldm.AUTOENCODER)
    assert theirs(pairs, autoencoder) == published(name, ldm.AUTOENCODER)
    if average := published(name, ldm.EMA, (ldm.EMA + "decay", ldm.EMA + "num_updates")):
        assert theirs(ldm.unet(unet, ema=True), unet) == average
    counts = {prefix: counted["elements"] for prefix, counted in manifest("index")[name]["prefixes"].items()}
    assert parameters(unet) == counts["model.diffusion_model"]
    assert parameters(autoencoder) == counts["first_stage_model"]


def test_heads_are_as_wide_as_the_published_configurations_say() -> None:
    """Shapes do not tell. Those that are not here are configured by the number of heads."""
    ldms = (
        ldm_presets.UNCONDITIONAL_UNET,
        ldm_presets.UPSCALING_UNET,
        ldm_presets.CLASS_F8_UNET,
        ldm_presets.TEXT_F4_UNET,
        ldm_presets.LAYOUT_UNET,
        ldm_presets.RETRIEVAL_UNET,
    )
    for width, configs in ((32, ldms), (64, (SD2_UNET, SDXL_UNET, SDXL_REFINER_UNET))):
        for config in configs:
            assert [heads * width for heads in config.heads] == list(config.channels), config


@pytest.mark.parametrize(("name", "config"), ALONE, ids=[name for name, _ in ALONE])
def test_the_names_shapes_and_counts_of_an_autoencoder_alone(name: str, config: AutoencoderConfig) -> None:
    assert theirs(ldm.autoencoder(config), config) == published(name, "", ("loss.",))
    index = manifest("index")[name]["prefixes"]
    assert parameters(config) == sum(counted["elements"] for part, counted in index.items() if part != "loss")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ldm_celeba256_unet", ldm_presets.UNCONDITIONAL_UNET),
        ("ldm_bsr_sr_unet", ldm_presets.UPSCALING_UNET),
        ("sdxl_base_unet", SDXL_UNET),
        ("sdxl_refiner_unet", SDXL_REFINER_UNET),
        ("sd_v21_unclip_h_unet", UNCLIP_H_UNET),
        ("sd_x4_upscaler_unet", X4_UNET),
        ("sd_x4_upscaler_vae", X4_AUTOENCODER),
    ],
)
def test_names_agree_with_the_published_key_maps(name: str, config: Config) -> None:
    known = manifest(f"keymap_{name}")
    pairs = ldm.unet(config) if isinstance(config, UNetConfig) else ldm.autoencoder(config, ldm.AUTOENCODER)
    found: dict[str, list[str]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.op.part):
        found.setdefault(pair.theirs, []).append(pair.ours)
    assert found == {key: names if isinstance(names, list) else [names] for key, names in known.items()}


UNET_FILES = [
    ("ldm_celebahq_256_unet", ldm_presets.UNCONDITIONAL_UNET),
    ("ldm_super_resolution_4x_openimages_unet", ldm_presets.UPSCALING_UNET),
    ("sdxl_base_unet", SDXL_UNET),
    ("sdxl_refiner_unet", SDXL_REFINER_UNET),
    ("sd21_unclip_h_unet", UNCLIP_H_UNET),
    ("sd_x4_upscaler_unet", X4_UNET),
]
AUTOENCODER_FILES = [("ldm_celebahq_256_vqvae", VQ_F4), ("sd_x4_upscaler_vae", X4_AUTOENCODER)]


def same_file(layout: Layout, file: dict[str, Tensor], name: str) -> None:
    """The file loads, and comes back as it was."""
    parts, dropped = layout.load(file, name)
    assert dropped == []
    back = layout.save(parts)
    assert {key: tensor.shape for key, tensor in back.items()} == {key: tensor.shape for key, tensor in file.items()}


@pytest.mark.parametrize(("name", "config"), UNET_FILES)
def test_unets_of_diffusers_folders_load_exactly_and_come_back(name: str, config: UNetConfig) -> None:
    same_file(diffusers.unet_layout(config), meta(name), name)


@pytest.mark.parametrize(("name", "config"), AUTOENCODER_FILES)
def test_autoencoders_of_diffusers_folders_load_exactly_and_come_back(name: str, config: AutoencoderConfig) -> None:
    same_file(diffusers.autoencoder_layout(config), meta(name), name)


def test_the_names_that_diffusers_gave_attention_before() -> None:
    before = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile(r"(?<=\d\.)(to_q|to_k|to_v|to_out\.0)(?=\.)")
    for name, config in (UNET_FILES[0], AUTOENCODER_FILES[0]):
        old = {pattern.sub(lambda found: before[found[0]], key): tensor for key, tensor in meta(name).items()}
        assert diffusers.has_old_names(old)
        assert not diffusers.has_old_names(meta(name))
        if isinstance(config, UNetConfig):
            same_file(diffusers.unet_layout(config, old_names=True), old, name)
        else:
            same_file(diffusers.autoencoder_layout(config, old_names=True), old, name)


# There and back

TOY = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=(32, 64, 96, 128),
    transformer_depth=(0, 1, 1, 1),
    heads=(2, 4, 6, 8),
    context_width=None,
)


@pytest.mark.parametrize("heads_first", [True, False])
def test_fused_attention_comes_back_as_it_was(heads_first: bool) -> None:
    layout = Layout({"unet": ldm.unet(TOY, heads_first=heads_first)}, {"unet": shapes_of(TOY)})
    file = weights("unet_ldm_uncond_celeba_style", before=ldm.UNET)
    assert {key.removeprefix(ldm.UNET) for key in file} == set(shapes("unet_ldm_uncond_celeba_style"))
    back = layout.save(layout.load(file, "toy")[0])
    assert back.keys() == file.keys()
    assert all(torch.equal(back[key], file[key]) for key in file)


def test_the_order_of_fused_attention_matters() -> None:
    """A wrong one would be seen, or the goldens of both orders would say nothing."""
    file = weights("unet_ldm_uncond_celeba_style", before=ldm.UNET)
    read = [
        Layout({"unet": ldm.unet(TOY, heads_first=heads_first)}, {"unet": shapes_of(TOY)}).load(file, "toy")[0]["unet"]
        for heads_first in (True, False)
    ]
    differing = {name for name in read[0] if not torch.equal(read[0][name], read[1][name])}
    assert differing == {name for name in read[0] if any(f".to_{x}." in name for x in "qkv")}


# The doors of a UNet

DOORS = replace(TOY, channels=(16, 32), transformer_depth=(0, 1), heads=(2, 2), blocks_per_level=1, norm_groups=8)
CONTEXT, VECTOR, LABEL = torch.randn(2, 3, 24), torch.randn(2, 12), torch.tensor([[1], [4]])


def asked(config: UNetConfig, cond: Conditioning) -> Tensor:
    torch.manual_seed(0)
    answer: Tensor = UNet(config)(torch.ones(2, 3, 8, 8), torch.tensor([5.0, 600.0]), cond)
    return answer


@pytest.mark.parametrize(
    ("config", "cond", "said"),
    [
        (replace(DOORS, context_width=24), Conditioning(), "give Conditioning.context"),
        (DOORS, Conditioning(context=CONTEXT), "leave Conditioning.context out"),
        (replace(DOORS, vector_width=12), Conditioning(), "give Conditioning.vector"),
        (replace(DOORS, classes=5), Conditioning(), "give Conditioning.vector"),
        (DOORS, Conditioning(vector=VECTOR), "leave Conditioning.vector out"),
        (replace(DOORS, classes=5), Conditioning(vector=LABEL.bfloat16()), "integer type"),
    ],
)
def test_a_door_that_should_be_open_or_closed(config: UNetConfig, cond: Conditioning, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        asked(config, cond)


def test_every_door_is_heard() -> None:
    for config, one, other in (
        (replace(DOORS, context_width=24), Conditioning(context=CONTEXT), Conditioning(context=-CONTEXT)),
        (replace(DOORS, vector_width=12), Conditioning(vector=VECTOR), Conditioning(vector=-VECTOR)),
        (replace(DOORS, vector_width=12, size_width=4), Conditioning(vector=VECTOR), Conditioning(vector=-VECTOR)),
        (replace(DOORS, classes=5), Conditioning(vector=LABEL), Conditioning(vector=LABEL - 1)),
    ):
        assert (asked(config, one) - asked(config, other)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": (2,)}, "one entry for each of the 2 levels"),
        ({"transformer_depth": (0, 2)}, "transformer_depth is 0 or 1"),
        ({"middle_depth": 2}, "middle_depth 1"),
        ({"linear_projection": True}, "need a context_width"),
        ({"context_width": 24, "context_only": (2,)}, "among the 2"),
        ({"vector_width": 12, "classes": 5}, "either"),
        ({"size_width": 4}, "needs a vector_width"),
    ],
)
def test_a_unet_that_cannot_be(change: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(DOORS, **change)


def test_training_begins_with_blocks_that_are_their_skips() -> None:
    unet = UNet(replace(DOORS, resnet_resampling=True, scale_shift=True))
    initialise(unet)
    x = torch.randn(2, 32, 4, 4)
    found = [module for module in unet.modules() if isinstance(module, PositionAttention)]
    assert len(found) == 1 + 2 + 1
    assert all(torch.equal(attention(x), x) for attention in found)
    assert not unet(torch.randn(1, 3, 8, 8), torch.tensor([5.0]), Conditioning()).any()


# The codebook


def test_the_nearest_entry_is_the_nearest() -> None:
    torch.manual_seed(0)
    codebook, z = Codebook(40, 3), torch.randn(3, 3, 31, 23)
    nn.init.normal_(codebook.embedding.weight)
    assert z[:, 0].numel() > POSITIONS_AT_ONCE, "or they would be compared at once"
    found = codebook.nearest(z)
    distances = (z[:, None] - codebook.embedding.weight[None, :, :, None, None]).square().sum(dim=2)  # (B, N, h, w)
    assert torch.equal(found, distances.argmin(dim=1))
    assert torch.equal(codebook.nearest(codebook.entries(found)), found)
    half = codebook.half()
    assert torch.equal(half.nearest(half.entries(found)), found)


def test_the_gradients_of_rounding_are_those_of_the_paper() -> None:
    """Straight through for what is decoded; each of the two losses moves its own side only (eq. 3)."""
    torch.manual_seed(0)
    codebook = Codebook(10, 3)
    nn.init.normal_(codebook.embedding.weight)
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    entries, pull = codebook.embedding.weight, torch.randn(2, 3, 4, 5)
    found = codebook(z)
    through, none = torch.autograd.grad((found.latent * pull).sum(), (z, entries), allow_unused=True)
    assert torch.equal(through, pull)
    assert none is None

    found = codebook(z)
    committed, none = torch.autograd.grad(found.commitment_loss, (z, entries), allow_unused=True)
    agree("commitment", committed, 2 * (z - found.entries) / z.numel(), 1e-6)
    assert none is None

    found = codebook(z)
    none, moved = torch.autograd.grad(found.codebook_loss, (z, entries), allow_unused=True)
    assert none is None
    wanted = torch.zeros_like(entries)
    apart = 2 * (found.entries - z) / z.numel()
    wanted.index_add_(0, found.indices.flatten(), apart.movedim(1, -1).reshape(-1, 3).detach())
    agree("codebook", moved, wanted, 1e-6)


def test_an_autoencoder_of_the_other_kind() -> None:
    small = AutoencoderConfig(channels=(8, 16), blocks_per_level=1, norm_groups=4)
    with pytest.raises(ValueError, match="no codebook"):
        Autoencoder(small).quantise(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="there are 2 levels"):
        replace(small, attention_levels=(2,))
    wider = shapes_of(replace(small, inner_channels=6))  # the original's z_channels 6, embed_dim 4
    assert wider["quant_conv.weight"] == (8, 12, 1, 1)
    assert wider["post_quant_conv.weight"] == (6, 4, 1, 1)
    assert wider["encoder.conv_out.weight"][0] == 12
    assert wider["decoder.conv_in.weight"][1] == 6
