"""The three doors through which conditions enter the network. Every room may import this; it knows only torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_DOORS = ("context", "vector", "concat")


@dataclass(frozen=True)
class Conditioning:
    """What a network is told beside the noisy latent.

    B batch, L tokens, D context width, V vector width, h w latent size.

    A door that a member does not have is None (DESIGN table: which member has which).
    """

    context: Tensor | None = None
    """(B, L, D), attended to by cross-attention."""
    vector: Tensor | None = None
    """(B, V), added to the time embedding."""
    concat: Tensor | None = None
    """(B, C', h, w), stacked under the latent."""
    alike: int = 1
    """The batch is the same pictures so many times, one behind the other, told the same by all doors but the context:
    what the network does before it first attends to the context needs to be done once."""

    @classmethod
    def stack(cls, parts: Sequence[Conditioning], *, same_pictures: bool = False) -> Conditioning:
        """Join along the batch. All parts must have the same doors open.

        Args:
            same_pictures: all parts are told to the same pictures, at the same time.
        """

        def join(tensors: list[Tensor | None]) -> Tensor | None:
            present = [t for t in tensors if t is not None]
            if len(present) not in (0, len(tensors)):
                raise ValueError("cannot stack conditionings with different doors open")
            return torch.cat(present) if present else None

        first, doors = parts[0], {name: join([getattr(p, name) for p in parts]) for name in _DOORS}
        alike = same_pictures and first.context is not None
        alike = alike and all(p.vector is first.vector and p.concat is first.concat for p in parts)
        return cls(**doors, alike=len(parts) if alike else 1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same doors with `change` applied to each open one (a cast, a move)."""
        opened = {name: getattr(self, name) for name in _DOORS}
        doors = {name: None if t is None else change(t) for name, t in opened.items()}
        return Conditioning(**doors, alike=self.alike)
