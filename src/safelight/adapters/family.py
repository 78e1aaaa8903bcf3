"""For which model a file was made, told by the names and shapes of the layers in it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from safelight.adapters.kinds import unfit
from safelight.adapters.layouts.diffusers import ROWS
from safelight.adapters.names import Layer, Names, adapted, names_of
from safelight.presets import PRESETS, Preset

KNOWN = ("sd1", "sd2-base", "sdxl", "sdxl-refiner", "tiny")
"""Presets that files are compared with: of those with the same layers, the first."""
_TITLES = {"sd2-base": "Stable Diffusion 2.x"}

FOREIGN: Mapping[str, str] = {
    r"(^|[._])(double_blocks|single_transformer_blocks)[._]": "Flux, or another transformer like it",
    r"(^|[._])joint_(transformer_)?blocks[._]": "Stable Diffusion 3",
    r"^lora_prior_unet_": "Stable Cascade",
    r"(^|[._])motion_modules[._]": "AnimateDiff",
    r"^transformer\.": "a diffusion transformer, such as Stable Diffusion 3",
    r"(^|[._])blocks[._]\d+[._](cross|self)_attn[._]": "a diffusion transformer, such as Wan",
}
"""What is found in the keys of files for models of other kinds, and whose they are."""


def family_of(tensors: Mapping[str, Tensor], but: Preset) -> str | None:
    """What the model is called that all keys and shapes fit, another than `but`; None: none that we know."""
    for mark, whose in FOREIGN.items():
        if any(re.search(mark, key) is not None for key in tensors):
            return whose
    mine = adapted(but.networks)
    for name in KNOWN:
        preset = PRESETS[name]
        if adapted(preset.networks) != mine and _fits(tensors, names_of(preset.networks)):
            return _TITLES.get(name, preset.title)
    return None


def _fits(tensors: Mapping[str, Tensor], names: Names) -> bool:
    found: dict[Layer, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if key.startswith("bundle_emb.") or names.is_above(key):
            continue
        if (place := names.place(key)) is None:
            return False
        if place.ending != ROWS:
            found[place.layer][place.ending] = tensor
    # A file with one wrong tensor is still of the family that most of its layers fit.
    wrong = sum(unfit(endings, names.shapes[layer]) is not None for layer, endings in found.items())
    return bool(found) and wrong * 20 <= len(found)
