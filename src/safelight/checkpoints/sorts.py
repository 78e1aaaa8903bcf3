"""What a file holds, told by its keys: a model, a part of one, or what goes on top of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from safelight.checkpoints.layouts import ldm, midas


@dataclass(frozen=True)
class Sort:
    """One kind of thing that files hold."""

    name: str
    """For programs."""
    what: str
    """For people."""
    use: str
    """What to do with it."""


_FOR = "give the model that it was made for"
_ON = f"{_FOR}, and this beside it by"
_BESIDE = "give a whole model, and this beside it by"

MODEL = Sort("model", "a model", "give it by --model")
LORA = Sort("lora", "a LoRA, not a model", f"{_ON} --lora")
EMBEDDING = Sort("embedding", "a textual inversion (words for a prompt), not a model", f"{_ON} --embedding")
HYPERNETWORK = Sort("hypernetwork", "a hypernetwork, not a model", f"{_ON} --hypernetwork")
CONTROLNET = Sort("controlnet", "a ControlNet, not a model, and Safelight draws without them", _FOR)
AUTOENCODER = Sort("autoencoder", "an autoencoder alone", f"{_BESIDE} --vae")
TEXT = Sort("text encoder", "a text encoder alone", f"{_BESIDE} --text-encoder")
CLIP = Sort("clip", "a whole CLIP, text and image encoder", f"{_BESIDE} --text-encoder")
IMAGE = Sort("image encoder", "an image encoder alone", "give a whole model")
NORMALIZER = Sort("normalizer", "the statistics of CLIP's embeddings", f"{_BESIDE} --normalizer")
UNET = Sort("unet", "a UNet alone", "give a whole model")
DEPTH = Sort("depth", "a depth network alone", "give a whole model")

_ADAPTED = (
    *("lora_unet_", "lora_te", ".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", "lora.down.", "lora.up."),
    *(".lora_linear_layer.", ".lora_magnitude_vector", ".hada_w1_", ".lokr_w1", ".oft_blocks", ".dora_scale"),
)
"""What stands somewhere in the keys of all kinds of LoRA, whatever tool wrote them."""

_BEGINNINGS: tuple[tuple[tuple[str, ...], Sort], ...] = (
    (("control_model.", "input_hint_block.", "controlnet_cond_embedding.", "controlnet_down_blocks."), CONTROLNET),
    ((ldm.UNET,), MODEL),
    (("down_blocks.0.resnets.0.time_emb_proj.", "input_blocks.0.0.", "diffusion_model.input_blocks.0.0."), UNET),
    (("encoder.down_blocks.", "encoder.down.", "decoder.up_blocks.", "decoder.up.", ldm.AUTOENCODER), AUTOENCODER),
    (("dpt.", midas.PREFIX, "pretrained.model."), DEPTH),
)
"""The first that fits: what controls a network has most of its keys."""

_WORDS = ("token_embedding.weight", "token_emb.weight", "embed_tokens.weight", "text_model.encoder.layers.0.")
_PICTURES = ("vision_model.", "visual.")
_INVERSIONS = ("string_to_param.", "emb_params")
_TOWERS = frozenset({"clip_l", "clip_g"})
_HYPERNETWORK = re.compile(r"\d+\.[01]\.linear\.\d+\.(weight|bias)")
_FEWEST_WIDE, _MOST_WORDS = 256, 64
"""Of an embedding without a name that tells: rows as wide as a text tower, and few of them."""


def sort_of(tensors: Mapping[str, Tensor]) -> Sort | None:
    """What a file with these tensors holds; None: nothing that we know."""
    if any(mark in key for key in tensors for mark in _ADAPTED):
        return LORA
    for marks, sort in _BEGINNINGS:
        if any(key.startswith(marks) for key in tensors):
            return sort
    words = any(mark in key for key in tensors for mark in _WORDS)
    pictures = any(key.startswith(_PICTURES) for key in tensors)
    if words or pictures:
        return CLIP if words and pictures else TEXT if words else IMAGE
    return _small(tensors)


def _small(tensors: Mapping[str, Tensor]) -> Sort | None:
    """Files of few tensors."""
    if any(_HYPERNETWORK.fullmatch(key) for key in tensors):
        return HYPERNETWORK
    if any(key.startswith(_INVERSIONS) for key in tensors) or tensors.keys() <= _TOWERS:
        return EMBEDDING
    if len(tensors) == 2 and len({tensor.numel() for tensor in tensors.values()}) == 1:
        return NORMALIZER if tensors.keys() in ({"mean", "std"}, {"0", "1"}) else None
    if len(tensors) == 1:  # diffusers' embeddings: the name of the tensor is the word
        [(name, tensor)] = tensors.items()
        rows, width = (1, *tensor.shape)[-2:] if tensor.ndim in (1, 2) else (0, 0)
        layer = name.endswith((".weight", ".bias"))
        return EMBEDDING if not layer and 0 < rows <= _MOST_WORDS and width >= _FEWEST_WIDE else None
    return None
