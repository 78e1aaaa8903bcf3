"""Vector quantisation (van den Oord et al. 2017; in latent diffusion Rombach et al. 2022, sec. 3.1 and appendix G).

Shapes: B batch, C latent channels, h w latent size, N entries of the codebook.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITIONS_AT_ONCE = 2048
"""So many positions are compared with all entries at a time: with 16384 entries, 128 MiB of distances."""


@dataclass(frozen=True)
class Quantised:
    """A latent and what it is in the codebook."""

    continuous: Tensor
    """(B, C, h, w), as it was."""
    entries: Tensor
    """(B, C, h, w), the nearest entry at each position."""
    indices: Tensor
    """(B, h, w), whole numbers from 0 to N - 1: which entries these are."""

    @property
    def latent(self) -> Tensor:
        """(B, C, h, w), the entries; their gradient goes straight through to the latent as it was (ibid., sec. 3.2)."""
        return self.continuous + (self.entries - self.continuous).detach()

    @property
    def codebook_loss(self) -> Tensor:
        """Mean squared distance (), of which the codebook is to blame (ibid., eq. 3, second term)."""
        return F.mse_loss(self.entries, self.continuous.detach())

    @property
    def commitment_loss(self) -> Tensor:
        """The same distance (), of which the encoder is to blame (ibid., third term).

        The released models were trained with this + 0.25 * codebook_loss; the paper weighs the other way round.
        """
        return F.mse_loss(self.continuous, self.entries.detach())


class Codebook(nn.Module):
    """N entries of C numbers each."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def nearest(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> indices (B, h, w) of the nearest entries, compared in float32."""
        entries = self.embedding.weight.float()  # (N, C)
        positions = z.float().movedim(1, -1).flatten(0, -2)  # (B*h*w, C)
        norms = entries.square().sum(dim=1)
        # |z - e|^2 without |z|^2, which is the same for all entries
        parts = torch.split(positions, POSITIONS_AT_ONCE)
        found = [torch.addmm(norms, some, entries.T, alpha=-2).argmin(dim=1) for some in parts]
        return torch.cat(found).reshape(len(z), *z.shape[2:])

    def entries(self, indices: Tensor) -> Tensor:
        """(B, h, w) -> (B, C, h, w)."""
        y: Tensor = self.embedding(indices)
        return y.movedim(-1, 1)

    def forward(self, z: Tensor) -> Quantised:
        """(B, C, h, w), any numbers -> what they are in the codebook."""
        indices = self.nearest(z)
        return Quantised(z, self.entries(indices), indices)
