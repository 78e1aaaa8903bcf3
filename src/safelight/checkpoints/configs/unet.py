"""`unet/config.json`: of UNet2DConditionModel, which is told something by a context, and of UNet2DModel without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safelight.checkpoints.fields import Fields
from safelight.errors import ModelFileError
from safelight.models.unet import RESNET_EPS, UNetConfig

CONDITIONAL, UNCONDITIONAL = "UNet2DConditionModel", "UNet2DModel"
MOST_LAYERS = 256
WITH, WITHOUT = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
OVER_POSITIONS, RESAMPLING = ("AttnDownBlock2D", "AttnUpBlock2D"), ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
"""Kinds of levels: with a transformer, without any attention, with attention over positions, and without any
attention but left by a residual block."""

_MUST: dict[str, object] = {
    "center_input_sample": False,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
}
_CONDITIONAL_MUST: dict[str, object] = {
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "dual_cross_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
_UNCONDITIONAL_MUST: dict[str, object] = {
    "mid_block_type": "UNetMidBlock2D",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
_VECTOR = ("projection_class_embeddings_input_dim", "addition_time_embed_dim")
_IGNORED = ("dropout", "upcast_attention", "addition_embed_type_num_heads", "num_train_timesteps")


def read_unet(path: Path, kind: str | None = None) -> tuple[UNetConfig, int | None]:
    """`unet/config.json` -> our config, and the latent size that it was trained at.

    kind: the class of diffusers that it is said to be of; None: that which the file names.

    Raises:
        ModelFileError: a field asks for a network that we do not have.
    """
    fields = Fields(path)
    found = fields.kind(kind, (CONDITIONAL, UNCONDITIONAL))
    try:
        config = _detailed(fields, _conditional(fields) if found == CONDITIONAL else _unconditional(fields))
    except ValueError as error:  # the config's own check of what belongs together
        raise ModelFileError(f"{path}: {error}") from error
    size = fields.get("sample_size", None)
    size = size[0] if isinstance(size, list) and size else size
    fields.must(_MUST)
    fields.ignore(_IGNORED)
    fields.done()
    return config, size if isinstance(size, int) else None


def unet_json(config: UNetConfig, latent_size: int) -> dict[str, object]:
    """Our config -> `unet/config.json`.

    Raises:
        ModelFileError: diffusers has no such network.
    """
    return {
        "_class_name": unet_class(config),
        "sample_size": latent_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.blocks_per_level,
        "norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "freq_shift": config.time_shift,
        "flip_sin_to_cos": not config.time_sines_first,
        "downsample_padding": int(config.halves_symmetrically),
        **(_unconditional_json(config) if config.context_width is None else _conditional_json(config)),
        **{name: value for name, value in _MUST.items() if value is not None},
    }


def _detailed(fields: Fields, config: UNetConfig) -> UNetConfig:
    """The config with what of its layers no shape tells."""
    shift, padding = (fields.get(name, default) for name, default in (("freq_shift", 0), ("downsample_padding", 1)))
    for name, value in (("freq_shift", shift), ("downsample_padding", padding)):
        if isinstance(value, bool) or value not in (0, 1):
            raise fields.bad(name, value, "0 or 1")
    return replace(
        config,
        norm_eps=fields.number("norm_eps", RESNET_EPS),
        time_shift=int(shift == 1),
        time_sines_first=not fields.flag("flip_sin_to_cos", True),
        halves_symmetrically=padding == 1,
    )


def unet_class(config: UNetConfig) -> str:
    """diffusers' class of such a network."""
    return UNCONDITIONAL if config.context_width is None else CONDITIONAL


def _conditional(fields: Fields) -> UNetConfig:
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
    if any(width % part for width, part in zip(channels, heads, strict=True)):
        raise fields.bad("attention_head_dim", list(heads), f"divisors of the widths {channels}")
    vector, sizes, classes = _told_by_the_vector_door(fields)
    config = UNetConfig(
        in_channels=fields.whole("in_channels", 4),
        out_channels=fields.whole("out_channels", 4),
        channels=channels,
        blocks_per_level=_same(fields, "layers_per_block", 2, levels, MOST_LAYERS),
        transformer_depth=tuple(n if has else 0 for n, has in zip(depth, attends, strict=True)),
        middle_depth=depth[-1],
        heads=heads,
        context_width=_same(fields, "cross_attention_dim", 1280, levels),
        linear_projection=fields.flag("use_linear_projection", False),
        context_only=_context_only(fields, levels),
        vector_width=vector,
        size_width=sizes,
        classes=classes,
        scale_shift=_scale_shift(fields),
        norm_groups=_groups(fields, channels),
    )
    fields.must(_CONDITIONAL_MUST)
    return config


def _told_by_the_vector_door(fields: Fields) -> tuple[int | None, int | None, int | None]:
    """Width of the vector, width of each size in it, number of classes."""
    sizes_too = fields.word_or_none("addition_embed_type", ("text_time",)) is not None
    vector_too = fields.word_or_none("class_embed_type", ("projection",)) is not None
    classes = fields.whole_or_none("num_class_embeds")
    if sizes_too and vector_too:
        raise fields.bad("class_embed_type", "projection", "null beside an addition_embed_type")
    if sizes_too or vector_too:
        why = "a whole number, as addition_embed_type is" if sizes_too else "a whole number, as class_embed_type is"
        vector, sizes = (fields.whole_or_none(name) for name in _VECTOR)
        for name, value in zip(_VECTOR, (vector, sizes if sizes_too else 0), strict=True):
            if value is None:
                raise fields.bad(name, None, why + " not null")
        return vector, sizes if sizes_too else None, classes
    fields.must(dict.fromkeys(_VECTOR))
    return None, None, classes


def _context_only(fields: Fields, levels: int) -> tuple[int, ...]:
    """The levels that never attend to the picture. A single "true" would mean the middle, too, which we have not."""
    value = fields.get("only_cross_attention", False)
    if value is False:
        return ()
    if not isinstance(value, list) or len(value) != levels or not all(isinstance(flag, bool) for flag in value):
        raise fields.bad("only_cross_attention", value, "false, or true or false for each level")
    return tuple(level for level, flag in enumerate(value) if flag)


def _conditional_json(config: UNetConfig) -> dict[str, object]:
    depth, middle = config.transformer_depth, config.middle_depth
    if depth[-1] not in (0, middle):
        raise ModelFileError(
            f"diffusers has no UNet with {depth[-1]} transformer blocks at the coarsest level and {middle} in the "
            "middle; make them equal"
        )
    if config.resnet_resampling:
        raise ModelFileError("diffusers has no UNet with a context and residual blocks between its levels")
    if set(depth) <= {0, middle}:
        layers: int | list[int] = middle
    else:
        layers = [*(max(n, 1) for n in depth[:-1]), middle]
    attends = [n > 0 for n in depth]
    content: dict[str, object] = {
        "down_block_types": [WITH[0] if a else WITHOUT[0] for a in attends],
        "up_block_types": [WITH[1] if a else WITHOUT[1] for a in reversed(attends)],
        "transformer_layers_per_block": layers,
        "attention_head_dim": config.heads[0] if len(set(config.heads)) == 1 else list(config.heads),
        "cross_attention_dim": config.context_width,
        "use_linear_projection": config.linear_projection,
        "only_cross_attention": False,
        **{name: value for name, value in _CONDITIONAL_MUST.items() if value is not None},
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
    }
    if config.context_only:
        content["only_cross_attention"] = [level in config.context_only for level in range(len(depth))]
    if config.classes is not None:
        content["num_class_embeds"] = config.classes
    if config.vector_width is not None:
        content["projection_class_embeddings_input_dim"] = config.vector_width
        if config.size_width is None:
            content["class_embed_type"] = "projection"
        else:
            content["addition_embed_type"] = "text_time"
            content["addition_time_embed_dim"] = config.size_width
    return content


def _unconditional(fields: Fields) -> UNetConfig:
    channels = fields.wholes("block_out_channels", [224, 448, 672, 896])
    kinds = [(OVER_POSITIONS[way], WITHOUT[way], RESAMPLING[way]) for way in (0, 1)]
    down = fields.words("down_block_types", [WITHOUT[0]] + [OVER_POSITIONS[0]] * 3, kinds[0])
    up = fields.words("up_block_types", [OVER_POSITIONS[1]] * 3 + [WITHOUT[1]], kinds[1])
    attends = [kind == OVER_POSITIONS[0] for kind in down]
    if len(down) != len(channels) or [kind == OVER_POSITIONS[1] for kind in reversed(up)] != attends:
        raise fields.bad("up_block_types", up, f"the mirror of down_block_types, {len(channels)} levels")

    width = fields.whole_or_none("attention_head_dim", 8)
    attending = [*(c for c, has in zip(channels, attends, strict=True) if has), channels[-1]]
    if width is not None and any(c % width for c in attending):
        raise fields.bad("attention_head_dim", width, f"a divisor of the widths {attending}")
    groups, scale_shift = _groups(fields, channels), _scale_shift(fields)
    # Of the attention in the middle: with scale and shift, its norm is there only if it is asked for.
    norm = fields.whole_or_none("attn_norm_num_groups")
    if norm != groups and (scale_shift or norm is not None):
        raise fields.bad("attn_norm_num_groups", norm, f"{groups}, as norm_num_groups")
    fields.must(_UNCONDITIONAL_MUST)
    return UNetConfig(
        in_channels=fields.whole("in_channels", 3),
        out_channels=fields.whole("out_channels", 3),
        channels=channels,
        blocks_per_level=fields.whole("layers_per_block", 2, MOST_LAYERS),
        transformer_depth=tuple(int(has) for has in attends),
        heads=tuple(1 if width is None else max(c // width, 1) for c in channels),
        context_width=None,
        scale_shift=scale_shift,
        resnet_resampling=_resampling(fields, down, up),
        norm_groups=groups,
    )


def _resampling(fields: Fields, down: list[str], up: list[str]) -> bool:
    """Whether residual blocks stand between the levels. The coarsest leads nowhere down, the finest nowhere up."""
    ways = set()
    for name, kinds, way in (("downsample_type", down[:-1], 0), ("upsample_type", up[:-1], 1)):
        typed = fields.word(name, "conv", ("conv", "resnet"))
        named = {WITHOUT[way]: "conv", RESAMPLING[way]: "resnet"}
        ways |= {named.get(kind, typed) for kind in kinds}
    if len(ways) > 1:
        raise fields.bad("downsample_type", sorted(ways), "one kind of way between all levels, down and up")
    return ways == {"resnet"}


def _unconditional_json(config: UNetConfig) -> dict[str, object]:
    attends = [n > 0 for n in config.transformer_depth]
    heads = [h for h, has in zip(config.heads, attends, strict=True) if has] + [config.heads[-1]]
    attending = [c for c, has in zip(config.channels, attends, strict=True) if has] + [config.channels[-1]]
    widths = {c // h for c, h in zip(attending, heads, strict=True)}
    if len(widths) > 1 and set(heads) != {1}:
        raise ModelFileError(
            f"diffusers has no UNet without a context whose heads differ in width: they are {sorted(widths)} wide"
        )
    if config.vector_width is not None or config.classes is not None:
        raise ModelFileError("diffusers has no pipeline for a UNet that is told a vector and no context")
    plain = RESAMPLING if config.resnet_resampling else WITHOUT
    way = "resnet" if config.resnet_resampling else "conv"
    return {
        "down_block_types": [OVER_POSITIONS[0] if a else plain[0] for a in attends],
        "up_block_types": [OVER_POSITIONS[1] if a else plain[1] for a in reversed(attends)],
        "downsample_type": way,
        "upsample_type": way,
        "attention_head_dim": None if set(heads) == {1} else widths.pop(),
        "attn_norm_num_groups": config.norm_groups if config.scale_shift else None,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        **{name: value for name, value in _UNCONDITIONAL_MUST.items() if value is not None},
    }


def _scale_shift(fields: Fields) -> bool:
    return fields.word("resnet_time_scale_shift", "default", ("default", "scale_shift")) == "scale_shift"


def _groups(fields: Fields, channels: tuple[int, ...]) -> int:
    groups = fields.whole("norm_num_groups", 32)
    if any(width % groups for width in channels):
        raise fields.bad("norm_num_groups", groups, f"a divisor of the widths {channels}")
    return groups


def _same(fields: Fields, name: str, default: int, levels: int, most: int | None = None) -> int:
    """A number that may stand once per level, but is the same for all."""
    values = fields.wholes(name, default, levels) if most is None else fields.wholes(name, default, levels, most)
    if len(set(values)) != 1:
        raise fields.bad(name, list(values), "the same for all levels")
    return values[0]
