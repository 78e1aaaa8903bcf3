"""kohya's names, which LyCORIS and most trainers share: one prefix per part, and `_` for every dot of the layer.

The layers of SDXL are called as in its original file, those of other members as in diffusers. Both are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from safelight.checkpoints.layouts import ldm, transformers
from safelight.models.clip import ClipTextConfig
from safelight.models.networks import Config
from safelight.models.unet import UNetConfig
from safelight.presets.conditions import TEXT, TEXT_2
from safelight.presets.preset import UNET

ENDINGS: Mapping[str, str] = {
    f".{ending}": ending
    for ending in (
        *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale"),
        *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        *("oft_blocks", "rescale", "a1.weight", "a2.weight", "b1.weight", "b2.weight"),
        *("diff", "diff_b", "w_norm", "b_norm", "weight", "on_input"),
    )
}
"""What stands behind a layer -> the ending that our kinds know."""


def prefix(part: str, parts: Mapping[str, Config]) -> str:
    """What stands before the layers of a part: of two text towers, each has a number."""
    if part == UNET:
        return "lora_unet_"
    if part == TEXT_2:
        return "lora_te2_"
    return "lora_te1_" if TEXT_2 in parts else "lora_te_"


def names(part: str, layer: str, parts: Mapping[str, Config]) -> Iterator[str]:
    """How files may call one of our layers; the first is how it is written."""
    config, before = parts[part], prefix(part, parts)
    if not isinstance(config, UNetConfig):
        tower = isinstance(config, ClipTextConfig) and not f"{layer}.".startswith(transformers.PROJECTIONS)
        yield before + _flat((transformers.PREFIX if tower else "") + layer)
        return
    spellings = [before + _flat(layer)]
    if (original := original_name(layer, config)) is not None:
        spellings.append(before + _flat(original))
    yield from reversed(spellings) if config.size_width is not None else spellings


def original_name(layer: str, config: UNetConfig) -> str | None:
    """The layer of a UNet as the original code calls it; None where it has no such layer of its own."""
    if config.context_width is None:  # queries, keys and values are one layer there
        return None
    return ldm.unet_name(f"{layer}.weight", config).removesuffix(".weight")


def is_text(part: str) -> bool:
    """Whether a part is a text tower."""
    return part in (TEXT, TEXT_2)


def _flat(name: str) -> str:
    return name.replace(".", "_")
