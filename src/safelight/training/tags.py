"""Captions that are lists of tags: their order is changed, and some are left out, so that none belongs to its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_OF_TAGS = 2
"""Sets these random numbers apart from those of other choices about the same picture."""


@dataclass(frozen=True)
class Tags:
    """What becomes of a caption each time that its picture is seen (kohya's conventions)."""

    shuffle: bool = False
    """Another order each time."""
    keep: int = 0
    """So many of the first tags stay where they are, and are never left out."""
    dropout: float = 0.0
    """Chance of each other tag to be left out."""
    silence: float = 0.0
    """Chance of the whole caption to be left out."""

    def said(self, caption: str, seed: int, position: int) -> str:
        """The caption as it is told.

        Args:
            seed: of the run.
            position: of the picture in the endless row of all pictures: with the seed, all that chance depends on.
        """
        if self == Tags(keep=self.keep):
            return caption
        tags = [tag for part in caption.split(",") if (tag := part.strip())]
        kept, others = tags[: self.keep], tags[self.keep :]
        sequence = np.random.SeedSequence([seed, position, _OF_TAGS])
        raw = np.random.Philox(sequence).random_raw(1 + 2 * len(others))
        chances = raw / 2.0**64
        if chances[0] < self.silence:
            return ""
        if not self.shuffle and self.dropout == 0:
            return caption
        order = np.argsort(raw[1 : 1 + len(others)], kind="stable").tolist() if self.shuffle else range(len(others))
        left = chances[1 + len(others) :] >= self.dropout
        return ", ".join([*kept, *(others[k] for k in order if left[k])])
