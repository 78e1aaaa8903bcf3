"""CLIP's text tower as transformers names it. Our names are these without the leading `text_model.`.

Files of transformers up to 4 carry that prefix; some tools write without it. Both are read, the former is
written.
"""

from __future__ import annotations

from collections.abc import Collection

from safelight.checkpoints.keys import Drop, Layout, Pair, shapes_of
from safelight.models.clip import ClipTextConfig

PREFIX = "text_model."

DROPS = (
    Drop("*embeddings.position_ids", "0, 1, 2, ...: a buffer of older transformers"),
    Drop("text_projection.weight", "the way into CLIP's common space, which the UNet does not attend to"),
    Drop("logit_scale", "CLIP's training temperature"),
)


def prefix_of(keys: Collection[str], before: str = "") -> str:
    """The prefix that these keys of a text tower have, behind `before`."""
    return PREFIX if any(key.startswith(before + PREFIX) for key in keys) else ""


def text(config: ClipTextConfig, prefix: str = PREFIX) -> tuple[Pair, ...]:
    """Pairs of the text tower; `prefix` stands before each of their names."""
    return tuple(Pair(prefix + name, name) for name in shapes_of(config))


def text_layout(config: ClipTextConfig, prefix: str = PREFIX) -> Layout:
    """The layout of a `text_encoder` file."""
    return Layout({"text": text(config, prefix)}, {"text": shapes_of(config)}, DROPS)
