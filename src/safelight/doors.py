"""The three doors through which conditions enter the network. Every room may import this; it knows only torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


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

    @classmethod
    def stack(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Join along the batch. All parts must have the same doors open."""

        def join(tensors: list[Tensor | None]) -> Tensor | None:
            present = [t for t in tensors if t is not None]
            if len(present) not in (0, len(tensors)):
                raise ValueError("cannot stack conditionings with different doors open")
            return torch.cat(present) if present else None

        return cls(**{f.name: join([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same doors with `change` applied to each open one (a cast, a move, an index)."""
        opened = {f.name: getattr(self, f.name) for f in fields(self)}
        return Conditioning(**{name: None if t is None else change(t) for name, t in opened.items()})
