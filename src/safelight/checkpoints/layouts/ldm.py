"""UNet and autoencoder as the original single files name them (CompVis latent-diffusion, Stable Diffusion, sgm).

Names are made from the config by what the original constructors do: the UNet counts its blocks through all
levels (`input_blocks.0` is the first convolution), the decoder counts its levels from the finest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from safelight.checkpoints.keys import CONV_1X1, SAME, Drop, Op, Pair
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.networks import shapes_of
from safelight.models.unet import UNetConfig

UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
EMA = "model_ema."

SCHEDULE_BUFFERS = (
    *(
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
    ),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    "lvlb_weights",
)

DROPS = (
    *(Drop(name, "a table computed from the noise schedule") for name in SCHEDULE_BUFFERS),
    Drop("loss.*", "a training loss"),
    Drop(AUTOENCODER + "loss.*", "the autoencoder's training loss"),
)
DROP_EMA = Drop(EMA + "*", "the running average of the weights; choose it with --ema")
DROP_TWIN = Drop(UNET + "*", "--ema chose the running average in its place")
DROP_COUNTERS = (Drop(EMA + "decay", "a counter"), Drop(EMA + "num_updates", "a counter"))

_IN_BLOCK = re.compile(
    r"(?P<side>down|up|mid)_blocks?\.(?:(?P<place>\d+)\.)?(?P<kind>\w+)\.(?P<index>\d+)\.(?P<rest>.+)"
)
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    **{f"{name}_embedding.linear_1": "label_emb.0.0" for name in ("class", "add")},
    **{f"{name}_embedding.linear_2": "label_emb.0.2" for name in ("class", "add")},
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_QKV = ("to_q", "to_k", "to_v")
_FUSED_ATTENTION = {**_ATTENTION, **dict.fromkeys(_QKV, "qkv")}
"""Of a UNet without a context: queries, keys and values are one matrix, written as a convolution in one dimension."""


def unet(config: UNetConfig, *, ema: bool = False, heads_first: bool = True) -> tuple[Pair, ...]:
    """Pairs of the UNet, or of its running average.

    heads_first: how the rows of a UNet's fused queries, keys and values are ordered: all three of one head after all
        three of another, as in every released file, or all queries, then all keys, then all values (the original's
        `use_new_attention_order`). A file does not tell.
    """
    pairs = []
    for ours, shape in shapes_of(config).items():
        theirs = UNET + unet_name(ours, config)
        op = _unet_op(ours, shape, config, heads_first=heads_first)
        pairs.append(Pair(ema_name(theirs) if ema else theirs, ours, op))
    return tuple(pairs)


def _unet_op(ours: str, shape: tuple[int, ...], config: UNetConfig, *, heads_first: bool) -> Op:
    """How a weight of the UNet is turned."""
    found = _IN_BLOCK.fullmatch(ours)
    if config.context_width is None and found is not None and found["kind"] == "attentions":
        layer = found["rest"].rpartition(".")[0]
        rank = 3 if len(shape) == 2 else None
        if layer in _QKV:
            heads = config.heads[_level(found, config)] if heads_first else 1
            return Op(rank=rank, part=_QKV.index(layer), parts=len(_QKV), heads=heads)
        return Op(rank=rank)
    return Op(rank=len(shape)) if ours.endswith((".proj_in.weight", ".proj_out.weight")) else SAME


def ema_name(name: str) -> str:
    """The twin of `model.diffusion_model.a.b` is `model_ema.diffusion_modelab`: buffers have no dots."""
    return EMA + name.removeprefix("model.").replace(".", "")


def _level(found: re.Match[str], config: UNetConfig) -> int:
    """Which level of the config a block belongs to, the finest being 0."""
    if found["side"] == "down":
        return int(found["place"])
    return len(config.channels) - 1 - int(found["place"] or 0)  # the middle is as coarse as the first way up


def unet_name(ours: str, config: UNetConfig) -> str:
    """Our name in the UNet -> the original one, behind `model.diffusion_model.`."""
    found = _IN_BLOCK.fullmatch(ours)
    if found is None:
        return _renamed(ours, _UNET_ENDS)
    rest = found["rest"]
    if found["kind"] == "resnets" or (found["kind"] != "attentions" and config.resnet_resampling):
        rest = _renamed(rest, _RESNET)
    elif found["kind"] == "attentions" and config.context_width is None:
        rest = _renamed(rest, _FUSED_ATTENTION)
    elif found["kind"] == "downsamplers":
        rest = rest.replace("conv", "op")
    return f"{_unet_place(found, config)}.{rest}"


def _unet_place(found: re.Match[str], config: UNetConfig) -> str:
    """Where the original has one of our blocks."""
    stride = config.blocks_per_level + 1  # blocks that the original counts per level, on either side
    kind, place, index = found["kind"], int(found["place"] or 0), int(found["index"])
    behind = 0 if kind == "resnets" else 1  # what attends stands behind its residual block
    if found["side"] == "mid":
        return f"middle_block.{1 if behind else 2 * index}"
    if kind == "downsamplers":
        return f"input_blocks.{(place + 1) * stride}.0"
    if kind == "upsamplers":
        attends = config.transformer_depth[_level(found, config)] > 0
        return f"output_blocks.{place * stride + stride - 1}.{2 if attends else 1}"
    if found["side"] == "down":
        return f"input_blocks.{1 + place * stride + index}.{behind}"
    return f"output_blocks.{place * stride + index}.{behind}"


def autoencoder(config: AutoencoderConfig, prefix: str = "") -> tuple[Pair, ...]:
    """Pairs of the autoencoder; with no prefix, of a file that holds it alone."""
    return tuple(
        Pair(prefix + autoencoder_name(ours, config), ours, CONV_1X1 if _is_attention_matrix(ours) else SAME)
        for ours in shapes_of(config)
    )


def _is_attention_matrix(ours: str) -> bool:
    return ".attentions." in ours and ".to_" in ours and ours.endswith(".weight")


def autoencoder_name(ours: str, config: AutoencoderConfig) -> str:
    """Our name in the autoencoder -> the original one, behind `first_stage_model.`."""
    side, _, rest = ours.partition(".")
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", rest):
        way, level, kind, index = found[1], int(found[2]), found[3], found[4]
        number = level if way == "down" else len(config.channels) - 1 - level
        if kind == "resnets":
            return f"{side}.{way}.{number}.block.{index}.{_renamed(found[5], {'conv_shortcut': 'nin_shortcut'})}"
        if kind == "attentions":
            return f"{side}.{way}.{number}.attn.{index}.{_renamed(found[5], _ATTENTION)}"
        return f"{side}.{way}.{number}.{way}sample.{found[5]}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", rest):
        kind = "block" if found[1] == "resnets" else "attn"
        return f"{side}.mid.{kind}_{int(found[2]) + 1}.{_renamed(found[3], _ATTENTION)}"
    return f"{side}.{_renamed(rest, {'conv_norm_out': 'norm_out'})}"


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """The name with its beginning, up to `.weight` or `.bias`, replaced if the table knows it."""
    head, dot, kind = name.rpartition(".")
    return names.get(head, head) + dot + kind
