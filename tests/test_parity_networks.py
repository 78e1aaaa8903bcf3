"""The networks against diffusers' and transformers', on the same random weights, at even and odd sizes.

Weights have the same names on both sides, so the state dict of theirs is loaded into ours, strictly.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig

from golden_cases import agree
from safelight.doors import Conditioning
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.clip import Clip, ClipText, ClipTextConfig, ClipVisionConfig
from safelight.models.layers import sinusoids
from safelight.models.unet import UNet, UNetConfig

ATTENDING, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
SPREAD = 0.08  # of the random biases and gains that the libraries would begin at 0 and 1


def lively(module: nn.Module, seed: int) -> None:
    """Random numbers for what libraries begin at 0 or 1 too: else a forgotten bias would not be seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim <= 1:
                parameter.add_(SPREAD * torch.randn(parameter.shape, generator=generator))
    module.eval().requires_grad_(False)


def copied(ours: nn.Module, theirs: nn.Module, prefix: str = "") -> None:
    tensors = {key.removeprefix(prefix): tensor for key, tensor in theirs.state_dict().items()}
    ours.load_state_dict(tensors, strict=True)
    ours.eval().requires_grad_(False)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The UNet: the family's shapes in small
CONTEXT, POOLED, SIZES = 20, 12, 6
SD1 = UNetConfig(channels=(16, 32, 48, 48), heads=(4, 4, 4, 4), context_width=CONTEXT, norm_groups=8)
SDXL = UNetConfig(
    channels=(16, 32, 64),
    blocks_per_level=1,
    transformer_depth=(0, 2, 3),
    middle_depth=3,
    heads=(2, 4, 8),
    context_width=CONTEXT,
    linear_projection=True,
    norm_groups=8,
)
UNCONDITIONAL = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=(16, 32, 48),
    transformer_depth=(0, 1, 1),
    heads=(2, 4, 6),
    context_width=None,
    norm_groups=8,
)
UNETS: dict[str, UNetConfig] = {
    "sd1": SD1,
    "sd2": replace(SD1, heads=(2, 4, 6, 6), linear_projection=True),
    "unclip": replace(SD1, heads=(2, 4, 6, 6), linear_projection=True, vector_width=24),
    "upscaler": UNetConfig(
        in_channels=7,
        channels=(16, 32, 32, 48),
        transformer_depth=(0, 1, 1, 1),
        heads=(4, 4, 4, 4),
        context_width=CONTEXT,
        linear_projection=True,
        context_only=(0, 1, 2),
        classes=10,
        norm_groups=8,
    ),
    "sdxl, told nothing by a vector": SDXL,
    "sdxl": replace(SDXL, vector_width=POOLED + SIZES * 8, size_width=8),
    "refiner": replace(
        SDXL,
        channels=(16, 32, 64, 64),
        transformer_depth=(0, 2, 2, 0),
        middle_depth=2,
        heads=(2, 4, 8, 8),
        vector_width=POOLED + SIZES * 8,
        size_width=8,
    ),
    "tiny": replace(SDXL, channels=(16, 24), transformer_depth=(0, 1), middle_depth=1, heads=(2, 3)),
    "unconditional": UNCONDITIONAL,
    "unconditional, attending in the middle only": replace(UNCONDITIONAL, transformer_depth=(0, 0, 0)),
    "classes": replace(UNCONDITIONAL, classes=10),
    "scale and shift, residual blocks between levels": replace(
        UNCONDITIONAL, transformer_depth=(1, 1, 0), scale_shift=True, resnet_resampling=True
    ),
}


def conditional_of(config: UNetConfig) -> UNet2DConditionModel:
    """diffusers' network of the same shape, its weights random."""
    depth = config.transformer_depth
    projects, sizes = config.vector_width is not None, config.size_width is not None
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.channels,
        layers_per_block=config.blocks_per_level,
        down_block_types=tuple(ATTENDING[0] if n > 0 else PLAIN[0] for n in depth),
        up_block_types=tuple(ATTENDING[1] if n > 0 else PLAIN[1] for n in reversed(depth)),
        transformer_layers_per_block=[*(max(n, 1) for n in depth[:-1]), config.middle_depth],
        attention_head_dim=config.heads,
        cross_attention_dim=config.context_width,
        use_linear_projection=config.linear_projection,
        only_cross_attention=[level in config.context_only for level in range(len(depth))],
        num_class_embeds=config.classes,
        class_embed_type="projection" if projects and not sizes else None,
        addition_embed_type="text_time" if sizes else None,
        addition_time_embed_dim=config.size_width,
        projection_class_embeddings_input_dim=config.vector_width,
        norm_num_groups=config.norm_groups,
    )


def unconditional_of(config: UNetConfig) -> UNet2DModel:
    """The same of a UNet without a context."""
    resnet, depth = config.resnet_resampling, config.transformer_depth
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resnet else PLAIN
    return UNet2DModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.channels,
        layers_per_block=config.blocks_per_level,
        down_block_types=tuple("AttnDownBlock2D" if n > 0 else plain[0] for n in depth),
        up_block_types=tuple("AttnUpBlock2D" if n > 0 else plain[1] for n in reversed(depth)),
        attention_head_dim=config.channels[-1] // config.heads[-1],
        num_class_embeds=config.classes,
        resnet_time_scale_shift="scale_shift" if config.scale_shift else "default",
        downsample_type="resnet" if resnet else "conv",
        upsample_type="resnet" if resnet else "conv",
        norm_num_groups=config.norm_groups,
        attn_norm_num_groups=config.norm_groups,
    )


def both_unets(config: UNetConfig) -> tuple[UNet, UNet2DConditionModel | UNet2DModel]:
    torch.manual_seed(0)
    theirs = unconditional_of(config) if config.context_width is None else conditional_of(config)
    lively(theirs, 1)
    ours = UNet(config)
    copied(ours, theirs)
    return ours, theirs


def answers(config: UNetConfig, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What ours and theirs say to the same random input, through all the doors that there are."""
    ours, theirs = both_unets(config)
    x, t = randn(2, config.in_channels, *size), torch.tensor([3.0, 981.25])
    context = None if config.context_width is None else randn(2, 7, CONTEXT, seed=1)
    vector, more = None, {} if context is None else {"encoder_hidden_states": context}
    if config.classes is not None:
        vector = torch.tensor([[3], [9]])
        more["class_labels"] = vector[:, 0]
    elif config.size_width is not None:
        pooled, sizes = randn(2, POOLED, seed=2), torch.tensor([[512, 768, 0, 8, 1024, 1023], [64, 1, 2, 3, 4, 5]])
        told = sinusoids(sizes.flatten(), config.size_width).reshape(2, -1)
        vector = torch.cat([pooled, told], dim=1)
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    elif config.vector_width is not None:
        vector = more["class_labels"] = randn(2, config.vector_width, seed=2)
    return ours(x, t, Conditioning(context, vector)), theirs(x, t, **more).sample


@pytest.mark.parametrize("size", [(16, 24), (13, 9)], ids=["even", "odd"])
@pytest.mark.parametrize("name", UNETS)
def test_unet(name: str, size: tuple[int, int]) -> None:
    if UNETS[name].context_width is None and size[0] % 2:
        size = (20, 12)  # with these, theirs has no odd sizes
    agree(f"unet {name} {size}", *answers(UNETS[name], size))


@pytest.mark.parametrize("name", [name for name, config in UNETS.items() if config.context_width is None])
def test_odd_sizes_that_theirs_has_not(name: str) -> None:
    ours, _ = both_unets(UNETS[name])
    told = Conditioning(vector=None if UNETS[name].classes is None else torch.tensor([[3]]))
    assert ours(randn(1, 3, 13, 9), torch.tensor([500.0]), told).shape == (1, 3, 13, 9)


def test_unet_at_the_latent_of_360_by_408_pixels() -> None:
    ours, theirs = both_unets(UNETS["sd1"])
    x, context, t = randn(1, 4, 45, 51), randn(1, 77, CONTEXT, seed=1), torch.tensor([500.0])
    expected = theirs(x, t, encoder_hidden_states=context).sample
    agree("unet sd1 (45, 51)", ours(x, t, Conditioning(context=context)), expected)


def test_both_doors_matter() -> None:
    """A network that ignored the time or the words would otherwise pass with weights that do little."""
    ours, _ = both_unets(UNETS["sd1"])
    x, context, t = randn(1, 4, 8, 8), randn(1, 7, CONTEXT, seed=1), torch.tensor([500.0])
    out = ours(x, t, Conditioning(context=context))
    for other in (ours(x, t + 1, Conditioning(context=context)), ours(x, t, Conditioning(context=-context))):
        assert float((out - other).abs().max() / out.abs().max()) > 1e-3


def test_sinusoids() -> None:
    t = torch.tensor([0.0, 1.0, 17.5, 999.0])
    expected = get_timestep_embedding(t, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    agree("sinusoids", sinusoids(t, 320), expected, 1e-6)


# The autoencoder


AUTOENCODERS: dict[str, AutoencoderConfig] = {
    "f8": AutoencoderConfig(channels=(8, 16, 16, 24), norm_groups=8),
    "f2": AutoencoderConfig(channels=(8, 16), norm_groups=8, blocks_per_level=1),
    "f4 that attends": AutoencoderConfig(channels=(8, 16, 24), norm_groups=8, attention_levels=(0, 2)),
    "f4 that attends nowhere": AutoencoderConfig(channels=(8, 16, 24), norm_groups=8, middle_attention=False),
}


def kinds(config: AutoencoderConfig, plain: str, attending: str) -> tuple[str, ...]:
    return tuple(attending if i in config.attention_levels else plain for i in range(len(config.channels)))


def autoencoder_of(config: AutoencoderConfig) -> AutoencoderKL | VQModel:
    """diffusers' network of the same shape, its weights random."""
    down = kinds(config, "DownEncoderBlock2D", "AttnDownEncoderBlock2D")
    up = kinds(config, "UpDecoderBlock2D", "AttnUpDecoderBlock2D")[::-1]
    network, more = AutoencoderKL, {}
    if config.codebook_size is not None:
        network, more = VQModel, {"num_vq_embeddings": config.codebook_size, "vq_embed_dim": config.latent_channels}
    return network(
        block_out_channels=config.channels,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=config.blocks_per_level,
        latent_channels=config.z_channels,
        norm_num_groups=config.norm_groups,
        mid_block_add_attention=config.middle_attention,
        **more,
    )


def both_autoencoders(config: AutoencoderConfig) -> tuple[Autoencoder, AutoencoderKL | VQModel]:
    torch.manual_seed(0)
    theirs = autoencoder_of(config)
    lively(theirs, 1)
    ours = Autoencoder(config)
    copied(ours, theirs)
    return ours, theirs


@pytest.mark.parametrize("size", [(32, 48), (40, 56), (36, 28)], ids=["even", "odd latent", "odd inside"])
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder(name: str, size: tuple[int, int]) -> None:
    ours, theirs = both_autoencoders(AUTOENCODERS[name])
    pixels = randn(2, 3, *size).tanh()
    posterior = theirs.encode(pixels).latent_dist
    mean, logvar = ours.encode(pixels)
    agree(f"autoencoder {name} {size} mean", mean, posterior.mean)
    agree(f"autoencoder {name} {size} logvar", logvar, posterior.logvar)
    agree(f"autoencoder {name} {size} decoded", ours.decode(mean), theirs.decode(mean).sample)


@pytest.mark.parametrize("inner", [None, 5], ids=["as wide inside", "wider inside"])
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_vq_autoencoder(name: str, inner: int | None) -> None:
    config = replace(AUTOENCODERS[name], latent_channels=3, inner_channels=inner, codebook_size=50)
    ours, theirs = both_autoencoders(config)
    pixels = randn(2, 3, 36, 28).tanh()
    latent, _ = ours.encode(pixels)
    entries = latent.movedim(1, -1).reshape(-1, 3)[:50]  # so that many are near
    for network in (ours, theirs):
        network.quantize.embedding.weight.data[: len(entries)] = entries
    agree(f"vq {name} latent", latent, theirs.encode(pixels).latents)
    agree(f"vq {name} decoded", ours.decode(latent), theirs.decode(latent).sample)
    assert len(ours.quantise(latent).indices.unique()) > 3, "else this says little"


# CLIP

VOCAB, END = 100, 99
TEXT = ClipTextConfig(
    vocab_size=VOCAB,
    width=24,
    layers=3,
    heads=3,
    mlp_width=40,
    projection_width=20,
    start_token=END - 1,
    end_token=END,
    pad_token=END,
)
VISION = ClipVisionConfig(width=32, layers=2, heads=4, mlp_width=48, image_size=30, patch=10, projection_width=20)


def tokens(*words: int) -> Tensor:
    """Two prompts of so many random words, marked and padded."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, END - 1, (n,), generator=generator) for n in words]
    return torch.stack([torch.cat([torch.tensor([END - 1]), row, torch.full((76 - len(row),), END)]) for row in rows])


def text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCAB,
        hidden_size=TEXT.width,
        intermediate_size=TEXT.mlp_width,
        num_hidden_layers=TEXT.layers,
        num_attention_heads=TEXT.heads,
        projection_dim=TEXT.projection_width,
        hidden_act=TEXT.activation,
        bos_token_id=TEXT.start_token,
        eos_token_id=TEXT.end_token,
        pad_token_id=TEXT.pad_token,
    )


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=VISION.width,
        intermediate_size=VISION.mlp_width,
        num_hidden_layers=VISION.layers,
        num_attention_heads=VISION.heads,
        projection_dim=VISION.projection_width,
        hidden_act=VISION.activation,
        image_size=VISION.image_size,
        patch_size=VISION.patch,
    )


def test_text_tower() -> None:
    torch.manual_seed(0)
    theirs = CLIPTextModel(text_config())
    lively(theirs, 1)
    ours = ClipText(TEXT)
    copied(ours, theirs, "text_model.")
    ids = tokens(5, 75)
    expected, said = theirs(ids, output_hidden_states=True), ours(ids)
    agree("text last", said.last, expected.last_hidden_state)
    agree("text pooled", said.pooled, expected.pooler_output)
    assert len(said.hidden) == len(expected.hidden_states)
    for i, (a, b) in enumerate(zip(said.hidden, expected.hidden_states, strict=True)):
        agree(f"text hidden {i}", a, b)


def test_both_towers() -> None:
    torch.manual_seed(0)
    theirs = CLIPModel(
        CLIPConfig(text_config=text_config().to_dict(), vision_config=vision_config().to_dict(), projection_dim=20)
    )
    lively(theirs, 1)
    ours = Clip(TEXT, VISION)
    copied(ours, theirs)
    ids, pixels = tokens(5, 75), randn(3, 3, 30, 30)
    expected = theirs(input_ids=ids, pixel_values=pixels)
    agree("embedded texts", ours.embed_text(ids), expected.text_embeds)
    agree("embedded pictures", ours.embed_image(pixels), expected.image_embeds)
    logits = ours.logit_scale.exp() * ours.embed_image(pixels) @ ours.embed_text(ids).T
    agree("logits", logits, expected.logits_per_image)
