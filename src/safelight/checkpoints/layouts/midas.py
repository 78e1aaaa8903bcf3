"""The depth network inside SD 2 depth: as the original file names it (MiDaS around timm's vision transformer), and as
a folder's `depth_estimator` does (transformers, whose names are ours).

MiDaS counts its four sets of features from 1, the finest first, so that `refinenet1` is the last to be computed; ours
are counted from 0, and the fusions in the order in which they are computed.
"""

from __future__ import annotations

import re

from safelight.checkpoints.keys import SAME, Drop, Layout, Op, Pair
from safelight.models.depth import DepthConfig
from safelight.models.networks import shapes_of

PART = "depth"
PREFIX = "depth_model.model."
"""Before each name in a whole SD 2 depth file. A file of MiDaS alone has none."""

FOLDER_DROPS = (Drop("dpt.pooler.*", "the vision transformer's summary of the picture, which depth does not use"),)

_TRUNK = "pretrained.model."
_OUR_BACKBONE = "dpt.embeddings.backbone.bit."
_BACKBONE = {
    "embedder.convolution": "stem.conv",
    "embedder.norm": "stem.norm",
    "encoder.stages.": "stages.",
    ".layers.": ".blocks.",
}
_PARTS = ("query", "key", "value")
_LAYER = {
    **{f"attention.attention.{part}": "attn.qkv" for part in _PARTS},
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
_REASSEMBLE = {"0": "0.project.0", "projection": "3", "resize": "4"}
_FUSION = {
    "projection": "out_conv",
    **{f"residual_layer{i}.convolution{j}": f"resConfUnit{i}.conv{j}" for i in (1, 2) for j in (1, 2)},
}
_SINGLE = {
    "dpt.embeddings.cls_token": _TRUNK + "cls_token",
    "dpt.embeddings.position_embeddings": _TRUNK + "pos_embed",
    "dpt.embeddings.projection": _TRUNK + "patch_embed.proj",
    "dpt.layernorm": _TRUNK + "norm",
}


def layout(config: DepthConfig, prefix: str = PREFIX) -> Layout:
    """The layout of the depth network's keys in an original file, or of a file of MiDaS alone (prefix "")."""
    return Layout({PART: pairs(config, prefix)}, {PART: shapes_of(config)}, drops(prefix))


def folder_layout(config: DepthConfig) -> Layout:
    """The layout of `depth_estimator/model.safetensors`."""
    shapes = shapes_of(config)
    return Layout({PART: tuple(Pair(name, name) for name in shapes)}, {PART: shapes}, FOLDER_DROPS)


def drops(prefix: str = PREFIX) -> tuple[Drop, ...]:
    """What an original file has beyond `pairs`."""
    return (Drop(prefix + _TRUNK + "head.*", "the vision transformer's classifier, which depth does not use"),)


def pairs(config: DepthConfig, prefix: str = PREFIX) -> tuple[Pair, ...]:
    """Pairs of an original file; `prefix` stands before each of their names."""
    return tuple(Pair(prefix + original_name(ours), ours, _op(ours)) for ours in shapes_of(config))


def original_name(ours: str) -> str:
    """Our name -> MiDaS's, behind `depth_model.model.`."""
    if ours in _SINGLE:
        return _SINGLE[ours]
    module, dot, kind = ours.rpartition(".")
    if ours.startswith(_OUR_BACKBONE):
        theirs = _in_backbone(module.removeprefix(_OUR_BACKBONE))
    elif ours.startswith("neck."):
        theirs = _in_neck(module)
    elif found := re.fullmatch(r"dpt\.encoder\.layer\.(\d+)\.(.+)", module):
        theirs = f"{_TRUNK}blocks.{found[1]}.{_LAYER[found[2]]}"
    elif found := re.fullmatch(r"head\.head\.(\d)", module):
        theirs = f"scratch.output_conv.{found[1]}"
    else:
        theirs = _SINGLE[module]
    return theirs + dot + kind


def _in_backbone(module: str) -> str:
    for ours, theirs in _BACKBONE.items():
        module = module.replace(ours, theirs)
    return f"{_TRUNK}patch_embed.backbone.{module}"


def _in_neck(module: str) -> str:
    if found := re.fullmatch(r"neck\.reassemble_stage\.\w+\.(\d)\.(.+)", module):
        return f"pretrained.act_postprocess{int(found[1]) + 1}.{_REASSEMBLE[found[2]]}"
    if found := re.fullmatch(r"neck\.fusion_stage\.layers\.(\d)\.(.+)", module):
        return f"scratch.refinenet{4 - int(found[1])}.{_FUSION[found[2]]}"
    return f"scratch.layer{int(module.removeprefix('neck.convs.')) + 1}_rn"


def _op(ours: str) -> Op:
    """Queries, keys and values are rows of one matrix there, in this order."""
    found = re.search(r"\.attention\.attention\.(\w+)\.", ours)
    return SAME if found is None else Op(part=_PARTS.index(found[1]), parts=len(_PARTS))
