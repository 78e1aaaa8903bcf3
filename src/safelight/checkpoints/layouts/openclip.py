"""CLIP's towers as OpenAI and, after it, OpenCLIP name them: in SD 2, SDXL and unCLIP's single files.

Both write queries, keys and values as one matrix, and multiply by their projections from the other side. The text
tower's names stand at the root, the image tower's behind `visual.`.
"""

from __future__ import annotations

import re

from safelight.checkpoints.keys import SAME, Drop, Layout, Op, Pair
from safelight.models.clip import ClipTextConfig, ClipVisionConfig
from safelight.models.networks import shapes_of

VISUAL = "visual."
QKV = {"q_proj": Op(part=0, parts=3), "k_proj": Op(part=1, parts=3), "v_proj": Op(part=2, parts=3)}
TRANSPOSED = Op(transposed=True)

_TEXT_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_VISION_ENDS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
    "visual_projection.weight": "proj",
}
_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}

_EVERYWHERE = (
    ("logit_scale", "CLIP's training temperature"),
    ("attn_mask", "the causal mask, a buffer of some versions of OpenCLIP"),
    ("input_resolution", "a number of OpenAI's own files, known from the config"),
    ("context_length", "a number of OpenAI's own files, known from the config"),
    ("vocab_size", "a number of OpenAI's own files, known from the config"),
)
_TEXT_TOWER = ("transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*", "text_projection")


def text(config: ClipTextConfig, prefix: str = "") -> tuple[Pair, ...]:
    """Pairs of the text tower; `prefix` stands before each of their names."""
    return tuple(_pair(ours, _TEXT_ENDS, prefix) for ours in shapes_of(config))


def text_drops(config: ClipTextConfig, prefix: str = "") -> tuple[Drop, ...]:
    """What the text tower's file may have beyond its pairs.

    The tower of SD 2 has one layer more than the states that are attended to need: like diffusers, we leave it out of
    the config, of 23 layers.
    """
    above = (f"transformer.resblocks.{config.layers}.*", "the layer above the states that are attended to")
    unused = ("text_projection", "the way into CLIP's common space, which the UNet does not attend to")
    image = (VISUAL + "*", "CLIP's image tower; only the text tower is wanted here")
    return tuple(Drop(prefix + pattern, why) for pattern, why in (*_EVERYWHERE, above, unused, image))


def text_layout(config: ClipTextConfig, prefix: str = "") -> Layout:
    """The layout of a text tower alone, or of a whole CLIP of which it is wanted."""
    return Layout({"text": text(config, prefix)}, {"text": shapes_of(config)}, text_drops(config, prefix))


def vision(config: ClipVisionConfig, prefix: str = "") -> tuple[Pair, ...]:
    """Pairs of the image tower; `prefix` stands before the `visual.` of each of their names."""
    return tuple(_pair(ours, _VISION_ENDS, prefix + VISUAL) for ours in shapes_of(config))


def vision_drops(prefix: str = "") -> tuple[Drop, ...]:
    """What the image tower's file may have beyond its pairs: mostly the text tower of the same CLIP."""
    text_tower = ((pattern, "CLIP's text tower; only the image tower is wanted here") for pattern in _TEXT_TOWER)
    unused = (VISUAL + "proj", "the way into CLIP's common space, which is not asked for here")
    return tuple(Drop(prefix + pattern, why) for pattern, why in (*_EVERYWHERE, *text_tower, unused))


def vision_layout(config: ClipVisionConfig, prefix: str = "") -> Layout:
    """The layout of a whole CLIP of which the image tower is wanted."""
    return Layout({"vision": vision(config, prefix)}, {"vision": shapes_of(config)}, vision_drops(prefix))


def _pair(ours: str, ends: dict[str, str], prefix: str) -> Pair:
    if ours in ends:
        return Pair(prefix + ends[ours], ours, TRANSPOSED if "_projection." in ours else SAME)
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", ours)
    assert found is not None, ours
    layer, module, kind = f"{prefix}transformer.resblocks.{found[1]}.", found[2], found[3]
    if not module.startswith("self_attn."):
        return Pair(f"{layer}{_LAYER[module]}.{kind}", ours)
    projection = module.removeprefix("self_attn.")
    if projection in QKV:
        return Pair(f"{layer}attn.in_proj_{kind}", ours, QKV[projection])
    return Pair(f"{layer}attn.{projection}.{kind}", ours)
