"""How a model is to be read, where its file alone does not say. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reading:
    """What may be said beside the path of a model."""

    preset: str | None = None
    """What the file is, like sd1. Default: told by its keys and shapes."""
    ema: bool = False
    """Take the running average that original training checkpoints carry beside the weights."""
    tokenizer: Path | None = None
    """A folder with vocab.json and merges.txt, for files that have none."""
    vae: str | None = None
    """An autoencoder to use in place of the model's: a file of it alone or of a whole model, a folder, or a hub id."""
    text_encoder: tuple[str, ...] = ()
    """A text encoder to use in place of the model's, given like --vae. Once for each of a model's two, in any order."""
    normalizer: str | None = None
    """Mean and deviation of picture embeddings, which original Stable unCLIP files keep beside (ViT-L-14_stats.th)."""
    revision: str = "main"
    """Of a hub id: a branch, tag or commit."""


PLAIN = Reading()
