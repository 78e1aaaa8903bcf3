"""Conditions from several sources, to one network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safelight.doors import Conditioning


def beside(parts: Sequence[Conditioning]) -> Conditioning:
    """What several sources say of the same B pictures, in their order.

    Contexts (B, L, D) grow in width, vectors (B, V) too, what is stacked under the latent (B, C', h, w) in channels.
    A door opened by one part only is as it was. (Along the batch, it is `Conditioning.stack`.)
    """

    def join(tensors: list[Tensor | None], axis: int) -> Tensor | None:
        present = [t for t in tensors if t is not None]
        if len(present) < 2:
            return present[0] if present else None
        return torch.cat(present, dim=axis)

    return Conditioning(
        context=join([part.context for part in parts], 2),
        vector=join([part.vector for part in parts], 1),
        concat=join([part.concat for part in parts], 1),
    )
