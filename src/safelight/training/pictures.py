"""What a recipe asks of training data: pictures by number, with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Pictures(Protocol):
    """N captioned pictures of one size. A picture and its caption are a function of their number alone."""

    @property
    def identity(self) -> str:
        """Text that is equal for equal data: names the cache and the run."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """(3, S, S) uint8 and the caption."""
        ...

    def caption(self, index: int) -> str:
        """The caption alone, without reading the picture."""
        ...


def pixels(pictures: Sequence[Tensor]) -> Tensor:
    """B pictures (3, S, S) uint8 -> (B, 3, S, S) float32 in [-1, 1]."""
    return torch.stack(list(pictures)).float() / 127.5 - 1
