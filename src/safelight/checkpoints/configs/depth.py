"""`depth_estimator/config.json`: of transformers' DPTForDepthEstimation, in its hybrid form (a ResNet before it)."""

from __future__ import annotations

from pathlib import Path

from safelight.checkpoints.fields import PRETRAINED, Fields
from safelight.models.depth import PATCH, DepthConfig

DEPTH = "DPTForDepthEstimation"
BACKBONE = "backbone_config"
MOST_LAYERS = 256

_MUST: dict[str, object] = {
    "model_type": "dpt",
    "patch_size": PATCH,
    "num_channels": 3,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "readout_type": "project",
    "neck_ignore_stages": [0, 1],
    "head_in_index": -1,
}
_IGNORED = (
    *PRETRAINED,
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "semantic_classifier_dropout"),
    *("use_auxiliary_head", "auxiliary_loss_weight", "semantic_loss_ignore_index"),
    *("pooler_output_size", "pooler_act", BACKBONE),
)
_BACKBONE_MUST: dict[str, object] = {
    "model_type": "bit",
    "hidden_act": "relu",
    "num_channels": 3,
    "output_stride": 32,
    "width_factor": 1,
    "out_features": ["stage1", "stage2", "stage3"],
}
_SAID = {"layer_type": "bottleneck", "global_padding": "same", "embedding_dynamic_padding": True}
"""What the library has otherwise by default in a backbone, but so in one that is not described at all."""
_BACKBONE_IGNORED = (*PRETRAINED, "drop_path_rate", "out_indices", "stage_names")


def read_depth(path: Path) -> DepthConfig:
    """`depth_estimator/config.json` -> our config.

    Raises:
        ModelFileError: a field asks for a network that we do not have.
    """
    stem, widths, blocks, groups = _backbone(path)
    fields = Fields(path)
    width, heads = fields.whole("hidden_size", 768), fields.whole("num_attention_heads", 12)
    if width % heads:
        raise fields.bad("num_attention_heads", heads, f"a divisor of hidden_size {width}")
    size = fields.whole("image_size", 384, most=8192)
    layers = fields.whole("num_hidden_layers", 12, MOST_LAYERS)
    neck = fields.wholes("neck_hidden_sizes", [96, 192, 384, 768], 4)
    if neck[:2] != widths[:2]:
        raise fields.bad("neck_hidden_sizes", list(neck), f"first the widths of the first stages, {list(widths[:2])}")
    taps = fields.get("backbone_out_indices", [2, 5, 8, 11])  # the first two stand for stages and are not looked at
    if not isinstance(taps, list) or len(taps) != 4 or not all(type(i) is int and 0 <= i < layers for i in taps):
        raise fields.bad("backbone_out_indices", taps, f"four layers from 0 to {layers - 1}")
    factors = fields.get("reassemble_factors", [4, 2, 1, 0.5])  # the same holds for these
    if not isinstance(factors, list) or factors[2:] != [1, 0.5]:
        raise fields.bad("reassemble_factors", factors, "[1, 1, 1, 0.5]")
    if not fields.flag("is_hybrid", False):
        raise fields.bad("is_hybrid", False, "true: Safelight has the network with a ResNet only")
    if fields.get("use_bias_in_fusion_residual", None) is False:
        raise fields.bad("use_bias_in_fusion_residual", False, "true")
    grid = size // PATCH
    fields.must({**_MUST, "backbone_featmap_shape": [1, widths[2], grid, grid]})
    fields.ignore(_IGNORED)
    config = DepthConfig(
        stem_width=stem,
        stage_widths=widths,
        stage_blocks=blocks,
        norm_groups=groups,
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=fields.whole("intermediate_size", 3072),
        taps=(taps[2], taps[3]),
        neck_widths=(neck[2], neck[3]),
        fusion_width=fields.whole("fusion_hidden_size", 256),
        image_size=size,
        norm_eps=fields.number("layer_norm_eps", 1e-12),
    )
    fields.done()
    return config


def depth_json(config: DepthConfig) -> dict[str, object]:
    """Our config -> `depth_estimator/config.json`."""
    grid = config.image_size // PATCH
    return {
        "architectures": [DEPTH],
        **_MUST,
        "is_hybrid": True,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": config.norm_eps,
        "image_size": config.image_size,
        "backbone_featmap_shape": [1, config.stage_widths[2], grid, grid],
        "backbone_out_indices": [*_unused_taps(config), *config.taps],
        "reassemble_factors": [1, 1, 1, 0.5],
        "neck_hidden_sizes": [*config.stage_widths[:2], *config.neck_widths],
        "fusion_hidden_size": config.fusion_width,
        BACKBONE: {
            **_BACKBONE_MUST,
            **_SAID,
            "embedding_size": config.stem_width,
            "hidden_sizes": list(config.stage_widths),
            "depths": list(config.stage_blocks),
            "num_groups": config.norm_groups,
        },
    }


def _backbone(path: Path) -> tuple[int, tuple[int, int, int], tuple[int, int, int], int]:
    """Width of the stem, widths and numbers of blocks of the three stages, groups of the norms."""
    fields = Fields(path, BACKBONE, optional=True)
    blocks = fields.wholes("depths", [3, 4, 6, 3] if fields.content else [3, 4, 9], 3)
    widths = fields.wholes("hidden_sizes", [256, 512, 1024, 2048])[:3]  # a fourth stage's is there but not used
    if len(widths) != 3:
        raise fields.bad("hidden_sizes", list(widths), "the widths of three stages")
    stem, groups = fields.whole("embedding_size", 64), fields.whole("num_groups", 32)
    if stem % groups or any(width % (4 * groups) for width in widths):
        raise fields.bad("num_groups", groups, f"a divisor of {stem} and of a quarter of {list(widths)}")
    fields.must(_BACKBONE_MUST)
    for name, wanted in _SAID.items():
        found = fields.get(name, None if fields.content else wanted)
        if (found.lower() if isinstance(found, str) else found) != wanted:
            raise fields.bad(name, found, repr(wanted))
    fields.ignore(_BACKBONE_IGNORED)
    fields.done()
    return stem, (widths[0], widths[1], widths[2]), (blocks[0], blocks[1], blocks[2]), groups


def _unused_taps(config: DepthConfig) -> tuple[int, int]:
    """What stands for the ResNet's stages where the library counts layers: those of the published file, if they are."""
    return (2, 5) if config.taps[0] > 5 else (0, 0)
