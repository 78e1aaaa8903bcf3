"""diffusers' names of all ages, and PEFT's: dotted, with the part before the layer.

Now: `unet.LAYER.lora_A.weight`. Before: `unet.LAYER.lora.down.weight`. Before that, attention alone, by its processor:
`LAYER.attn1.processor.to_q_lora.down.weight`; and `text_encoder.LAYER.lora_linear_layer.down.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from safelight.adapters.layouts.kohya import original_name
from safelight.checkpoints.layouts import transformers
from safelight.models.clip import ClipTextConfig
from safelight.models.networks import Config
from safelight.models.unet import UNetConfig
from safelight.presets.conditions import TEXT, TEXT_2
from safelight.presets.preset import UNET

ROWS = "rows of dora_scale"
"""Our ending for PEFT's lengths of rows, which it writes (O,) or (1, O, 1, 1) where LyCORIS has (O, 1, ...)."""

ENDINGS: Mapping[str, str] = {
    **{f".lora_A{name}.weight": "lora_down.weight" for name in ("", ".default", ".default_0")},
    **{f".lora_B{name}.weight": "lora_up.weight" for name in ("", ".default", ".default_0")},
    **{f".lora_magnitude_vector{end}": ROWS for end in ("", ".weight", ".default.weight", ".default_0.weight")},
    **{f"{before}.down.weight": "lora_down.weight" for before in (".lora", "_lora", ".lora_linear_layer")},
    **{f"{before}.up.weight": "lora_up.weight" for before in (".lora", "_lora", ".lora_linear_layer")},
}

PARTS = {UNET: "unet", TEXT: "text_encoder", TEXT_2: "text_encoder_2"}
RAW = "base_model.model."
"""Before the layers of a file that PEFT itself wrote: of one network, which the file does not name."""

_PROCESSED = re.compile(r"(.*\battn[12])\.(to_[qkv]|to_out)(?:\.0)?")
_TOWER = re.compile(r"(.*\bself_attn)\.(q|k|v|out)_proj")


def names(part: str, layer: str, parts: Mapping[str, Config]) -> Iterator[str]:
    """How files may call one of our layers; the first is how it would be written."""
    config, before = parts[part], f"{PARTS[part]}."
    if isinstance(config, UNetConfig):
        yield from (before + layer, layer, RAW + layer)
        if found := _PROCESSED.fullmatch(layer):
            yield from (f"{start}{found[1]}.processor.{found[2]}" for start in (before, ""))
        if (original := original_name(layer, config)) is not None:
            yield f"diffusion_model.{original}"
        return
    outside = f"{layer}.".startswith(transformers.PROJECTIONS) or not isinstance(config, ClipTextConfig)
    for tower in dict.fromkeys(("" if outside else transformers.PREFIX, "")):
        yield before + tower + layer
        if found := _TOWER.fullmatch(layer):
            yield f"{before}{tower}{found[1]}.to_{found[2]}"
