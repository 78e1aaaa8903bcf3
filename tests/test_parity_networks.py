"""The networks against diffusers' and transformers', on the same random weights, at even and odd sizes.

Weights have the same names on both sides, so the state dict of theirs is loaded into ours, strictly.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
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


# The UNet: the family's shapes in small. Channels, depth, middle depth, heads, linear projection, blocks per level.
Shape = tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, ...], bool, int]
UNETS: dict[str, Shape] = {
    "sd1": ((16, 32, 48, 48), (1, 1, 1, 0), 1, (4, 4, 4, 4), False, 2),
    "sd2": ((16, 32, 48, 48), (1, 1, 1, 0), 1, (2, 4, 6, 6), True, 2),
    "sdxl": ((16, 32, 64), (0, 2, 3), 3, (2, 4, 8), True, 1),
    "tiny": ((16, 24), (0, 1), 1, (2, 3), False, 1),
}
CONTEXT = 20


def both_unets(shape: Shape) -> tuple[UNet, UNet2DConditionModel]:
    channels, depth, middle, heads, linear, blocks = shape
    config = UNetConfig(
        channels=channels,
        blocks_per_level=blocks,
        transformer_depth=depth,
        middle_depth=middle,
        heads=heads,
        context_width=CONTEXT,
        linear_projection=linear,
        norm_groups=8,
    )
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(
        block_out_channels=channels,
        layers_per_block=blocks,
        down_block_types=tuple(ATTENDING[0] if n > 0 else PLAIN[0] for n in depth),
        up_block_types=tuple(ATTENDING[1] if n > 0 else PLAIN[1] for n in reversed(depth)),
        transformer_layers_per_block=[max(n, 1) for n in depth],
        attention_head_dim=heads,
        cross_attention_dim=CONTEXT,
        use_linear_projection=linear,
        norm_num_groups=8,
    )
    lively(theirs, 1)
    ours = UNet(config)
    copied(ours, theirs)
    return ours, theirs


@pytest.mark.parametrize("size", [(16, 24), (13, 9)], ids=["even", "odd"])
@pytest.mark.parametrize("name", UNETS)
def test_unet(name: str, size: tuple[int, int]) -> None:
    ours, theirs = both_unets(UNETS[name])
    x, context = randn(2, 4, *size), randn(2, 7, CONTEXT, seed=1)
    t = torch.tensor([3.0, 981.25])
    expected = theirs(x, t, encoder_hidden_states=context).sample
    agree(f"unet {name} {size}", ours(x, t, Conditioning(context=context)), expected)


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


@pytest.mark.parametrize("size", [(32, 48), (40, 56), (36, 28)], ids=["even", "odd latent", "odd inside"])
@pytest.mark.parametrize("channels", [(8, 16, 16, 24), (8, 16)], ids=["f8", "f2"])
def test_autoencoder(channels: tuple[int, ...], size: tuple[int, int]) -> None:
    config = AutoencoderConfig(channels=channels, norm_groups=8, blocks_per_level=2 if len(channels) > 2 else 1)
    torch.manual_seed(0)
    theirs = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=config.blocks_per_level,
        norm_num_groups=8,
    )
    lively(theirs, 1)
    ours = Autoencoder(config)
    copied(ours, theirs)
    pixels = randn(2, 3, *size).tanh()
    posterior = theirs.encode(pixels).latent_dist
    mean, logvar = ours.encode(pixels)
    agree(f"autoencoder {config.factor} {size} mean", mean, posterior.mean)
    agree(f"autoencoder {config.factor} {size} logvar", logvar, posterior.logvar)
    agree(f"autoencoder {config.factor} {size} decoded", ours.decode(mean), theirs.decode(mean).sample)


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
