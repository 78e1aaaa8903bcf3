"""diffusers' and transformers' `config.json` <-> our configs, both ways.

The defaults are those that the two libraries document: a file that lacks a field means them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from safelight.checkpoints.fields import Fields
from safelight.errors import ModelFileError
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.clip import ACTIVATIONS, LAYER_EPS, Activation, ClipTextConfig, ClipVisionConfig
from safelight.models.unet import RESNET_EPS, UNetConfig
from safelight.presets import PRESETS, Preset

MOST_LAYERS = 256
WITH, WITHOUT = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")

_UNET_MUST: dict[str, object] = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_eps": RESNET_EPS,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
_UNET_IGNORED = ("dropout", "upcast_attention", "addition_embed_type_num_heads")

_AUTOENCODER_MUST: dict[str, object] = {
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_TEXT_IGNORED = (
    *(
        "architectures",
        "attention_dropout",
        "chunk_size_feed_forward",
        "dropout",
        "dtype",
        "gradient_checkpointing",
    ),
    *(
        "id2label",
        "initializer_factor",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
    ),
    *(
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "tie_word_embeddings",
        "torch_dtype",
        "torchscript",
    ),
    *("transformers_version", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def read_unet(path: Path) -> tuple[UNetConfig, int | None]:
    """`unet/config.json` -> our config, and the latent size that it was trained at.

    Raises:
        ModelFileError: a field asks for a network that we do not have.
    """
    fields = Fields(path)
    channels = fields.wholes("block_out_channels", [320, 640, 1280, 1280])
    levels = len(channels)
    down = fields.words("down_block_types", [WITH[0]] * 3 + [WITHOUT[0]], (WITH[0], WITHOUT[0]))
    up = fields.words("up_block_types", [WITHOUT[1]] + [WITH[1]] * 3, (WITH[1], WITHOUT[1]))
    attends = [kind == WITH[0] for kind in down]
    if len(down) != levels or [kind == WITH[1] for kind in reversed(up)] != attends:
        raise fields.bad("up_block_types", up, f"the mirror of down_block_types, {levels} levels")

    depth = fields.wholes("transformer_layers_per_block", 1, levels, MOST_LAYERS)
    # What diffusers calls attention_head_dim is the number of heads, unless num_attention_heads is there.
    heads = fields.wholes("attention_head_dim", 8, levels)
    if fields.get("num_attention_heads", None) is not None:
        heads = fields.wholes("num_attention_heads", 8, levels)
    blocks = _same(fields, "layers_per_block", fields.wholes("layers_per_block", 2, levels, MOST_LAYERS))
    context = _same(fields, "cross_attention_dim", fields.wholes("cross_attention_dim", 1280, levels))
    groups = fields.whole("norm_num_groups", 32)
    for name, parts in (("norm_num_groups", [groups] * levels), ("attention_head_dim", list(heads))):
        if any(width % part for width, part in zip(channels, parts, strict=True)):
            raise fields.bad(name, parts, f"divisors of the widths {channels}")
    if fields.get("only_cross_attention", False) not in (False, [False] * levels):
        raise fields.bad("only_cross_attention", fields.content["only_cross_attention"], "false")

    config = UNetConfig(
        in_channels=fields.whole("in_channels", 4),
        out_channels=fields.whole("out_channels", 4),
        channels=channels,
        blocks_per_level=blocks,
        transformer_depth=tuple(n if has else 0 for n, has in zip(depth, attends, strict=True)),
        middle_depth=depth[-1],
        heads=heads,
        context_width=context,
        linear_projection=fields.flag("use_linear_projection", False),
        norm_groups=groups,
    )
    size = fields.get("sample_size", None)
    size = size[0] if isinstance(size, list) and size else size
    fields.must(_UNET_MUST)
    fields.ignore(_UNET_IGNORED)
    fields.done()
    return config, size if isinstance(size, int) else None


def unet_json(config: UNetConfig, latent_size: int) -> dict[str, object]:
    """Our config -> `unet/config.json`.

    Raises:
        ModelFileError: diffusers has no such network.
    """
    depth = [max(n, 1) for n in config.transformer_depth]
    if config.transformer_depth[-1] == 0:
        depth[-1] = config.middle_depth
    if depth[-1] != config.middle_depth:
        raise ModelFileError(
            f"diffusers has no UNet with {config.transformer_depth[-1]} transformer blocks at the "
            f"coarsest level and "
            f"{config.middle_depth} in the middle; make them equal"
        )
    attends = [n > 0 for n in config.transformer_depth]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": latent_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "down_block_types": [WITH[0] if a else WITHOUT[0] for a in attends],
        "up_block_types": [WITH[1] if a else WITHOUT[1] for a in reversed(attends)],
        "block_out_channels": list(config.channels),
        "layers_per_block": config.blocks_per_level,
        "transformer_layers_per_block": depth[0] if len(set(depth)) == 1 else depth,
        "attention_head_dim": config.heads[0] if len(set(config.heads)) == 1 else list(config.heads),
        "cross_attention_dim": config.context_width,
        "use_linear_projection": config.linear_projection,
        "norm_num_groups": config.norm_groups,
        **{name: value for name, value in _UNET_MUST.items() if value is not None},
    }


def read_autoencoder(path: Path) -> tuple[AutoencoderConfig, float]:
    """`vae/config.json` -> our config, and the latent scale.

    Raises:
        ModelFileError: a field asks for a network that we do not have.
    """
    fields = Fields(path)
    channels = fields.wholes("block_out_channels", [64])
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if len(kinds := fields.words(name, [kind], (kind,))) != len(channels):
            raise fields.bad(name, kinds, f"{len(channels)} levels")
    groups = fields.whole("norm_num_groups", 32)
    if any(width % groups for width in channels):
        raise fields.bad("norm_num_groups", groups, f"a divisor of the widths {channels}")
    config = AutoencoderConfig(
        in_channels=fields.whole("in_channels", 3),
        latent_channels=fields.whole("latent_channels", 4),
        channels=channels,
        blocks_per_level=fields.whole("layers_per_block", 1, MOST_LAYERS),
        norm_groups=groups,
    )
    scale = fields.number("scaling_factor", PRESETS["sd1"].latent_scale)
    fields.must({"out_channels": config.in_channels, **_AUTOENCODER_MUST})
    fields.ignore(("sample_size", "force_upcast"))
    fields.done()
    return config, scale


def autoencoder_json(config: AutoencoderConfig, latent_scale: float, size: int) -> dict[str, object]:
    """Our config -> `vae/config.json`. `size`: pixels on a side."""
    levels = len(config.channels)
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": size,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.blocks_per_level,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": latent_scale,
        "act_fn": "silu",
    }


def read_text(path: Path, section: str | None = None) -> ClipTextConfig:
    """`text_encoder/config.json` -> our config. The marks' ids are settled by the tokenizer.

    section: where in the file, if it describes more (that of a whole CLIP: `text_config`).

    Raises:
        ModelFileError: a field asks for a network that we do not have.
    """
    fields = Fields(path, section)
    fields.must({"layer_norm_eps": LAYER_EPS})
    fields.word("model_type", "clip_text_model", ("clip_text_model", "clip"))
    activation = _activation(fields)
    width, heads = fields.whole("hidden_size", 512), fields.whole("num_attention_heads", 8)
    if width % heads:
        raise fields.bad("num_attention_heads", heads, f"a divisor of hidden_size {width}")
    vocab = fields.whole("vocab_size", 49408)
    fields.ignore(_TEXT_IGNORED)
    config = ClipTextConfig(
        vocab_size=vocab,
        width=width,
        layers=fields.whole("num_hidden_layers", 12, MOST_LAYERS),
        heads=heads,
        mlp_width=fields.whole("intermediate_size", 2048),
        context_length=fields.whole("max_position_embeddings", 77),
        activation=activation,
        projection_width=fields.whole("projection_dim", 512),
        # Old files say 0, 2 and 1 here, the defaults of another model; CLIP's marks are the last two of its
        # words.
        start_token=vocab - 2,
        end_token=vocab - 1,
        pad_token=vocab - 1,
    )
    fields.done()
    return config


def text_json(config: ClipTextConfig) -> dict[str, object]:
    """Our config -> `text_encoder/config.json`."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.context_length,
        "hidden_act": config.activation,
        "projection_dim": config.projection_width,
        "layer_norm_eps": LAYER_EPS,
        "bos_token_id": config.start_token,
        "eos_token_id": config.end_token,
        "pad_token_id": config.pad_token,
    }


def read_vision(path: Path, section: str) -> ClipVisionConfig:
    """The section of an image tower in the `config.json` of a whole CLIP -> our config.

    Raises:
        ModelFileError: a field asks for a network that we do not have.
    """
    fields = Fields(path, section)
    fields.must({"layer_norm_eps": LAYER_EPS, "num_channels": 3, "model_type": "clip_vision_model"})
    fields.ignore(_TEXT_IGNORED)
    config = ClipVisionConfig(
        width=fields.whole("hidden_size", 768),
        layers=fields.whole("num_hidden_layers", 12, MOST_LAYERS),
        heads=fields.whole("num_attention_heads", 12),
        mlp_width=fields.whole("intermediate_size", 3072),
        image_size=fields.whole("image_size", 224),
        patch=fields.whole("patch_size", 32),
        activation=_activation(fields),
        projection_width=fields.whole("projection_dim", 512),
    )
    fields.done()
    return config


def vision_json(config: ClipVisionConfig) -> dict[str, object]:
    """Our config -> the section of an image tower."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "image_size": config.image_size,
        "patch_size": config.patch,
        "hidden_act": config.activation,
        "projection_dim": config.projection_width,
        "layer_norm_eps": LAYER_EPS,
    }


def _activation(fields: Fields) -> Activation:
    word = fields.word("hidden_act", "quick_gelu", ACTIVATIONS)
    return "quick_gelu" if word == "quick_gelu" else "gelu"


def _same(fields: Fields, name: str, values: tuple[int, ...]) -> int:
    if len(set(values)) != 1:
        raise fields.bad(name, list(values), "the same for all levels")
    return values[0]


KINDS: dict[str, Literal["scaled_linear", "linear", "cosine"]] = {
    "scaled_linear": "scaled_linear",
    "linear": "linear",
    "squaredcos_cap_v2": "cosine",
}
PREDICTIONS: dict[str, Literal["eps", "v"]] = {"epsilon": "eps", "v_prediction": "v"}


@dataclass(frozen=True)
class _Scheduler:
    """A diffusers scheduler: its class, and what makes it compute as our sampler does."""

    class_name: str
    fields: Mapping[str, object]
    sigmas: bool = False
    """Whether it knows Karras' and exponential sigmas."""


_LIKE_OURS: dict[str, object] = {"clip_sample": False}
SCHEDULERS: dict[str, _Scheduler] = {
    "ddim": _Scheduler("DDIMScheduler", {**_LIKE_OURS, "set_alpha_to_one": False}),
    "ddpm": _Scheduler("DDPMScheduler", _LIKE_OURS),
    "lms": _Scheduler("LMSDiscreteScheduler", {}, sigmas=True),
    "euler": _Scheduler("EulerDiscreteScheduler", {}, sigmas=True),
    "euler_a": _Scheduler("EulerAncestralDiscreteScheduler", {}),
    "heun": _Scheduler("HeunDiscreteScheduler", _LIKE_OURS, sigmas=True),
    "dpmpp_2m": _Scheduler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, sigmas=True),
}
"""Our sampler -> theirs. Others are written as DDIM; `safelight.json` keeps the true one."""


def read_schedule(path: Path, base: Preset) -> Preset:
    """`scheduler/scheduler_config.json` -> the preset with its schedule and prediction kind.

    Which sampler it names is a habit, not a property of the weights: the preset's own stays.

    Raises:
        ModelFileError: a schedule that we do not have.
    """
    fields = Fields(path)
    heun = fields.content.get("_class_name") == "HeunDiscreteScheduler"
    fields.must({"trained_betas": None, "rescale_betas_zero_snr": False})
    kind = KINDS[fields.word("beta_schedule", "linear", KINDS)]
    sd1 = PRESETS["sd1"].schedule  # whose betas are this one scheduler's defaults
    start, end = (sd1.start, sd1.end) if heun else (0.0001, 0.02)
    start, end = fields.number("beta_start", start), fields.number("beta_end", end)
    steps = fields.whole("num_train_timesteps", 1000)
    try:
        schedule = replace(base.schedule, kind=kind, start=start, end=end, steps=steps)
    except ValueError as error:
        raise ModelFileError(f"{path}: beta_start, beta_end, num_train_timesteps: {error}") from error
    prediction = PREDICTIONS[fields.word("prediction_type", "epsilon", PREDICTIONS)]
    return replace(base, schedule=schedule, prediction=prediction)


def schedule_json(preset: Preset) -> dict[str, object]:
    """The preset's schedule, prediction kind and sampler -> `scheduler/scheduler_config.json`."""
    scheduler = SCHEDULERS.get(preset.sampler, SCHEDULERS["ddim"])
    spacing = preset.spacing if preset.spacing in ("leading", "linspace", "trailing") else "leading"
    sigmas: dict[str, object] = {}
    if scheduler.sigmas and preset.spacing in ("karras", "exponential"):
        # Theirs reach from the first to the last of the spaced timesteps, ours over the whole schedule.
        spacing, sigmas = "linspace", {f"use_{preset.spacing}_sigmas": True}
    if preset.sampler == "dpmpp_2m" and preset.spacing == "sgm_uniform":
        spacing = "linspace"  # what this one scheduler calls so
    return {
        "_class_name": scheduler.class_name,
        "num_train_timesteps": preset.schedule.steps,
        "beta_schedule": next(theirs for theirs, ours in KINDS.items() if ours == preset.schedule.kind),
        "beta_start": preset.schedule.start,
        "beta_end": preset.schedule.end,
        "trained_betas": None,
        "prediction_type": next(theirs for theirs, ours in PREDICTIONS.items() if ours == preset.prediction),
        "timestep_spacing": spacing,
        "steps_offset": 1,
        **scheduler.fields,
        **sigmas,
    }
