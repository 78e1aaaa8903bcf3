"""What latent diffusion reads words, boxes, labels and maps with, as the original code names it, and as diffusers does.

Our names of the transformer are diffusers', where it is a part of its own (`bert`); the others' are the original ones.
"""

from __future__ import annotations

import re

from safelight.checkpoints.keys import Drop, Layout, Pair
from safelight.models.bert import BertConfig
from safelight.models.labels import LabelsConfig
from safelight.models.networks import shapes_of
from safelight.models.rescaler import RescalerConfig

PREFIX = "cond_stage_model."
TRANSFORMER = PREFIX + "transformer."
_WHY = "predicts words, which no picture needs"
DROPS = (Drop(TRANSFORMER + "to_logits.*", _WHY),)
DIFFUSERS_DROPS = (Drop("to_logits.*", _WHY),)

_ENDS = {
    "model.embed_tokens.weight": "token_emb.weight",
    "model.embed_positions.weight": "pos_emb.emb.weight",
    "model.layer_norm.weight": "norm.weight",
    "model.layer_norm.bias": "norm.bias",
}
# The original counts attention and MLP as layers of their own: which of the two, and the name within it.
_LAYER = {
    "self_attn_layer_norm": (0, "0"),
    "self_attn.q_proj": (0, "1.to_q"),
    "self_attn.k_proj": (0, "1.to_k"),
    "self_attn.v_proj": (0, "1.to_v"),
    "self_attn.out_proj": (0, "1.to_out"),
    "final_layer_norm": (1, "0"),
    "fc1": (1, "1.net.0.0"),
    "fc2": (1, "1.net.2"),
}


def transformer(config: BertConfig, prefix: str = TRANSFORMER) -> tuple[Pair, ...]:
    """Pairs of the transformer over words or boxes, in an original file."""
    return tuple(Pair(prefix + original_name(ours), ours) for ours in shapes_of(config))


def original_name(ours: str) -> str:
    """Our name in the transformer -> the original one, behind `cond_stage_model.transformer.`."""
    if ours in _ENDS:
        return _ENDS[ours]
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", ours)
    assert found is not None, ours
    half, name = _LAYER[found[2]]
    return f"attn_layers.layers.{2 * int(found[1]) + half}.{name}.{found[3]}"


def diffusers_layout(config: BertConfig) -> Layout:
    """The layout of diffusers' `bert` file."""
    names = shapes_of(config)
    return Layout({"text": tuple(Pair(name, name) for name in names)}, {"text": names}, DIFFUSERS_DROPS)


def labels(config: LabelsConfig, prefix: str = PREFIX) -> tuple[Pair, ...]:
    """Pairs of the class embedder, in an original file."""
    return tuple(Pair(prefix + name, name) for name in shapes_of(config))


def rescaler(config: RescalerConfig, prefix: str = PREFIX) -> tuple[Pair, ...]:
    """Pairs of what shrinks a map, in an original file."""
    return tuple(Pair(prefix + name, name) for name in shapes_of(config))
