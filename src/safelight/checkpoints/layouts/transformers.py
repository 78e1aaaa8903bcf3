"""CLIP's towers as transformers names them. Our names are these without the leading `text_model.` or `vision_model.`.

Files of transformers up to 4 carry that prefix; some tools write without it. Both are read, the former is
written. A projection stands outside of the prefix.
"""

from __future__ import annotations

from collections.abc import Collection

from safelight.checkpoints.keys import Drop, Layout, Pair
from safelight.models.clip import ClipTextConfig, ClipVisionConfig
from safelight.models.networks import shapes_of

PREFIX, VISION_PREFIX = "text_model.", "vision_model."
PROJECTIONS = ("text_projection.", "visual_projection.")

_TRAINING = Drop("logit_scale", "CLIP's training temperature")
_POSITIONS = Drop("*embeddings.position_ids", "0, 1, 2, ...: a buffer of older transformers")
DROPS = (
    _POSITIONS,
    Drop("text_projection.weight", "the way into CLIP's common space, which the UNet does not attend to"),
    _TRAINING,
)
VISION_DROPS = (
    _POSITIONS,
    _TRAINING,
    Drop("text_projection.weight", "of CLIP's text tower"),
    Drop(PREFIX + "*", "CLIP's text tower; only the image tower is wanted here"),
)


def prefix_of(keys: Collection[str], before: str = "", prefix: str = PREFIX) -> str:
    """The prefix that these keys of a tower have, behind `before`: `prefix`, or none."""
    return prefix if any(key.startswith(before + prefix) for key in keys) else ""


def text(config: ClipTextConfig, prefix: str = PREFIX) -> tuple[Pair, ...]:
    """Pairs of the text tower; `prefix` stands before each of their names, what is before `text_model.` before the
    projection's, too."""
    return _pairs(config, prefix, PREFIX)


def text_layout(config: ClipTextConfig, prefix: str = PREFIX) -> Layout:
    """The layout of a `text_encoder` file."""
    return Layout({"text": text(config, prefix)}, {"text": shapes_of(config)}, DROPS)


def vision(config: ClipVisionConfig, prefix: str = VISION_PREFIX) -> tuple[Pair, ...]:
    """Pairs of the image tower; `prefix` as in `text`."""
    return _pairs(config, prefix, VISION_PREFIX)


def vision_layout(config: ClipVisionConfig, prefix: str = VISION_PREFIX) -> Layout:
    """The layout of an `image_encoder` file, or of a whole CLIP's."""
    return Layout({"vision": vision(config, prefix)}, {"vision": shapes_of(config)}, VISION_DROPS)


def _pairs(config: ClipTextConfig | ClipVisionConfig, prefix: str, tower: str) -> tuple[Pair, ...]:
    outside = prefix.removesuffix(tower)
    return tuple(Pair((outside if name.startswith(PROJECTIONS) else prefix) + name, name) for name in shapes_of(config))
