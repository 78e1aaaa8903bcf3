"""Which member a single file holds, by exact keys and shapes. Where that does not decide, it asks."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from safelight.checkpoints.keys import Layout
from safelight.checkpoints.layouts import ldm
from safelight.errors import ModelFileError
from safelight.presets import PRESETS, Preset

_LORA = (
    "lora_unet_",
    "lora_te",
    ".lora_down.",
    ".lora_up.",
    ".lora_A.",
    ".lora_B.",
    "lora.down.",
    "lora.up.",
)
_ALONE = (
    (
        "down_blocks.0.resnets.0.time_emb_proj.",
        "a UNet alone, in diffusers' layout; give the whole model's folder",
    ),
    ("encoder.down_blocks.", "an autoencoder alone, in diffusers' layout; give the whole model's folder"),
    ("encoder.down.", "an autoencoder alone; give a whole model"),
    ("text_model.encoder.", "a text encoder alone; give a whole model"),
)


def original_layout(preset: Preset, keys: Collection[str], *, ema: bool = False) -> Layout:
    """The original single-file layout of a preset, for a file with these keys."""
    [words] = preset.words
    return ldm.layout(preset.unet, preset.autoencoder, words.tower, keys=keys, ema=ema)


def detect(tensors: Mapping[str, Tensor], file: str, *, ema: bool = False) -> Preset:
    """The one preset whose original layout has exactly these keys and shapes.

    Raises:
        ModelFileError: none or several fit. The line names what differs from the nearest, or the candidates.
    """
    _refuse_other_kinds(tensors, file)
    # A few shapes tell nearly all presets apart at no cost; only what they leave is compared in full.
    likeness = {name: _likeness(preset, tensors) for name, preset in PRESETS.items()}
    best = max(likeness.values())
    nearest = [PRESETS[name] for name, score in likeness.items() if score == best]
    misfits = {p.name: original_layout(p, tensors, ema=ema).misfit(tensors) for p in nearest}
    fitting = [preset for preset in nearest if not misfits[preset.name]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(preset.name for preset in fitting)
        raise ModelFileError(f"{file} may be any of {names}: their keys and shapes are the same; say which by --preset")
    name, misfit = min(misfits.items(), key=lambda item: len(item[1]))
    raise ModelFileError(f"{file} fits no known preset; compared with {name}, the nearest: {misfit}")


def _refuse_other_kinds(tensors: Mapping[str, Tensor], file: str) -> None:
    if any(key.startswith(ldm.UNET) for key in tensors):
        return
    if any(mark in key for key in tensors for mark in _LORA):
        raise ModelFileError(f"{file} is a LoRA, not a model; give it as an adapter of the model that it was made for")
    for mark, what in _ALONE:
        if any(key.startswith(mark) for key in tensors):
            raise ModelFileError(f"{file} holds {what}")
    raise ModelFileError(
        f"{file} holds no model that Safelight knows: none of its {len(tensors)} keys begins with "
        f"{ldm.UNET}; "
        "give an original Stable Diffusion checkpoint or a folder in diffusers' layout"
    )


def _likeness(preset: Preset, tensors: Mapping[str, Tensor]) -> int:
    """How many of a few telling shapes are the preset's."""
    first = ldm.UNET + "input_blocks.0.0.weight"
    context = next((key for key in tensors if key.startswith(ldm.UNET) and key.endswith("attn2.to_k.weight")), "")
    latent = ldm.AUTOENCODER + "decoder.conv_in.weight"
    words = next((key for key in tensors if key.startswith(ldm.TEXT) and key.endswith("token_embedding.weight")), "")
    shapes = [tuple(tensors[key].shape) if key in tensors else () for key in (first, context, latent, words)]
    unet = preset.unet
    return sum(
        (
            shapes[0][:1] == unet.channels[:1],
            shapes[0][1:2] == (unet.in_channels,),
            shapes[1][1:] == (unet.context_width,),
            shapes[2][:2] == (preset.autoencoder.channels[-1], preset.autoencoder.latent_channels),
            shapes[3] in [(words.tower.vocab_size, words.tower.width) for words in preset.words],
        )
    )
