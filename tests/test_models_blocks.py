"""Single blocks against the original code's numbers, at two sizes of input.

The inputs of size 0.001 are small enough for the epsilon of a norm to matter: 1e-5 for 1e-6 would be seen.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden_cases import agree, golden, meta, off, shapes, weight, weights
from safelight.checkpoints.keys import Op
from safelight.models import autoencoder, spatial_transformer, unet
from safelight.models.layers import Downsample, PositionAttention, ResnetBlock, Upsample, sinusoids

SCALES = ["1", "0.001"]
RESBLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
WIDTH, CONTEXT, HEADS, TIME = 32, 12, 4, 16


def fill(module: nn.Module, case: str, names: Mapping[str, str] | None = None) -> nn.Module:
    """The module with the case's weights. names: theirs -> ours, where they differ."""
    ours = module.state_dict()
    found = {}
    for key, tensor in weights(f"blocks/{case}").items():
        head, _, kind = key.rpartition(".")
        name = f"{head if names is None else names.get(head, head)}.{kind}"
        # The original's attention over positions is made of 1x1 convolutions.
        matrix = tensor.ndim == 4 and ours[name].ndim == 2
        found[name] = tensor.reshape(ours[name].shape) if matrix else tensor
    module.load_state_dict(found, strict=True)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("case", "module", "names"),
    [
        ("cross_attention", spatial_transformer.Attention(WIDTH, HEADS, CONTEXT), None),
        ("basic_transformer_block", spatial_transformer.TransformerBlock(WIDTH, HEADS, CONTEXT), None),
        ("feed_forward_geglu", spatial_transformer.FeedForward(WIDTH), None),
        ("spatial_transformer", spatial_transformer.SpatialTransformer(WIDTH, HEADS, 2, CONTEXT), None),
        ("vae_attn_block", PositionAttention(WIDTH, groups=32, eps=autoencoder.EPS), ATTENTION),
        ("vae_downsample", Downsample(WIDTH, symmetric=False), None),
        ("vae_upsample", Upsample(WIDTH), None),
        (
            "vae_resnet_block",
            ResnetBlock(WIDTH, 64, groups=32, eps=autoencoder.EPS),
            {"nin_shortcut": "conv_shortcut"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_block(case: str, module: nn.Module, names: Mapping[str, str] | None, scale: str) -> None:
    data = golden(f"blocks/{case}")
    inputs = [data[f"in{i}_scale{scale}"] for i in range(2) if f"in{i}_scale{scale}" in data]
    agree(f"{case} at {scale}", fill(module, case, names)(*inputs), data[f"out_scale{scale}"])


RESBLOCKS = {
    "resblock": ResnetBlock(WIDTH, 64, groups=32, eps=unet.RESNET_EPS, time_width=TIME),
    "resblock_up": ResnetBlock(WIDTH, WIDTH, groups=32, eps=unet.RESNET_EPS, time_width=TIME, resample="up"),
    "resblock_down": ResnetBlock(WIDTH, WIDTH, groups=32, eps=unet.RESNET_EPS, time_width=TIME, resample="down"),
    "resblock_scale_shift": ResnetBlock(
        WIDTH, WIDTH, groups=32, eps=unet.RESNET_EPS, time_width=TIME, scale_shift=True
    ),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", RESBLOCKS)
def test_the_residual_block_that_knows_the_time(case: str, scale: str) -> None:
    data = golden(f"blocks/{case}")
    block = fill(RESBLOCKS[case], case, RESBLOCK)
    time = F.silu(data[f"in1_scale{scale}"])  # ours is given what the original computes in each block
    out = data[f"out_scale{scale}"]
    agree(f"{case} at {scale}", block(data[f"in0_scale{scale}"], time), out)


@pytest.mark.parametrize("scale", SCALES)
def test_the_attention_of_a_unet_without_a_context(scale: str) -> None:
    """Queries, keys and values are one matrix in the original, the three of each head side by side."""
    case = "blocks/attention_block_legacy"
    data, theirs = golden(case), weights(case)
    found = {f"group_norm.{kind}": theirs[f"norm.{kind}"] for kind in ("weight", "bias")}
    found |= {"to_out.0.weight": theirs["proj_out.weight"].squeeze(-1), "to_out.0.bias": theirs["proj_out.bias"]}
    for part, name in enumerate(("to_q", "to_k", "to_v")):
        op = Op(rank=3, part=part, parts=3, heads=HEADS)
        found[f"{name}.weight"] = op.into(theirs["qkv.weight"], (WIDTH, WIDTH))
        found[f"{name}.bias"] = Op(part=part, parts=3, heads=HEADS).into(theirs["qkv.bias"], (WIDTH,))
    attention = PositionAttention(WIDTH, groups=32, eps=unet.RESNET_EPS, heads=HEADS)
    attention.load_state_dict(found, strict=True)
    agree(f"attention at {scale}", attention(data[f"in0_scale{scale}"]), data[f"out_scale{scale}"])


def test_a_residual_block_goes_up_to_a_given_size() -> None:
    """As `Upsample` does; and down from an odd size it rounds down."""
    up = ResnetBlock(4, 4, groups=2, eps=1e-5, resample="up")
    down = ResnetBlock(4, 4, groups=2, eps=1e-5, resample="down")
    x = torch.randn(1, 4, 5, 7)
    assert up(x, size=(9, 13)).shape == (1, 4, 9, 13)
    assert torch.equal(up(x, size=(10, 14)), up(x))
    assert torch.equal(down(x), down(x[:, :, :4, :6])) is False, "the norms see what is then left out"
    assert down(x).shape == (1, 4, 2, 3)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_a_wrong_epsilon_would_be_seen(eps: float) -> None:
    """So that the tests above mean what they say of the norms."""
    right = {1e-5: "resblock", 1e-6: "vae_resnet_block"}[eps]
    data = golden(f"blocks/{right}")
    time_width = TIME if right == "resblock" else None
    block = ResnetBlock(WIDTH, 64, groups=32, eps=1.1e-5 - eps, time_width=time_width)
    fill(block, right, RESBLOCK if right == "resblock" else {"nin_shortcut": "conv_shortcut"})
    time = F.silu(data["in1_scale0.001"]) if right == "resblock" else None
    assert off(block(data["in0_scale0.001"], time), data["out_scale0.001"]) > 1e-2


@pytest.mark.parametrize("width", [256, 320])
def test_sinusoids(width: int) -> None:
    """At t = 999 the last bit of a machine's exp is 3e-5 of an angle; nearer two machines do not come."""
    data = golden("timestep_embedding")
    assert (data["t"] % 1 != 0).any(), "fractional times are among them"
    agree(f"sinusoids of width {width}", sinusoids(data["t"], width), data[f"dim{width}"])


def test_the_rule_of_the_weights_is_the_recorded_one() -> None:
    check: dict[str, list[float]] = meta("blocks/resblock", "weights_check")
    assert check.keys() == shapes("blocks/resblock").keys()
    for key, shape in shapes("blocks/resblock").items():
        made, (total, first) = weight(key, shape), check[key]
        assert float(made.flatten()[0]) == first
        assert float(made.double().sum()) == pytest.approx(total, rel=1e-6)


def test_up_to_a_given_size() -> None:
    """Where a skip is of odd size: nearest neighbour as everywhere, to that size."""
    up = Upsample(2)
    x = torch.randn(1, 2, 3, 4)
    expected: Tensor = up.conv(F.interpolate(x, size=(5, 7), mode="nearest"))
    assert torch.equal(up(x, size=(5, 7)), expected)
    assert up(x).shape == (1, 2, 6, 8)
