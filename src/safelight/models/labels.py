"""A class of pictures as a single token of context (Rombach et al. 2022, sec. 4.3.2: ImageNet).

The parameter's name is the original one; diffusers has no such part.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class LabelsConfig:
    """How many classes there are. The defaults are the guided ImageNet model's."""

    classes: int = 1001
    """The last one may stand for no class at all, as guidance needs it: 1000 of 1001."""
    width: int = 512
    """D, the width of the context door."""


class Labels(nn.Module):
    """One learned vector per class."""

    def __init__(self, config: LabelsConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.classes, config.width)

    def forward(self, labels: Tensor) -> Tensor:
        """labels (B,) int64, below `classes` -> (B, 1, D)."""
        y: Tensor = self.embedding(labels[:, None])
        return y
