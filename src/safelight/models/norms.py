"""Group norms of pictures that are seen strip by strip: first they are measured, then each strip is scaled and shifted.

Shapes: B batch, C channels, n W rows and columns of a strip, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Norm:
    """A group norm (Wu & He 2018, eq. 1) that knows mean and variance already: one scale and shift per channel."""

    scale: Tensor
    """(B, C, 1, 1), float32."""
    shift: Tensor
    """(B, C, 1, 1), float32."""
    dtype: torch.dtype
    """Of what it gives."""

    @classmethod
    def of(cls, norm: nn.GroupNorm, strips: Iterable[Tensor]) -> Norm:
        """Measure a picture's strips, each (B, C, n, W), for a norm."""
        # Plain numbers: small tensors would stand about on the heap (see `strips.Rooms`).
        counts, means, variances = [], [], []
        for strip in strips:
            B, C, n, W = strip.shape
            order = torch.channels_last if strip.stride(1) == 1 else torch.contiguous_format
            x = strip.float().contiguous(memory_format=order)  # a part of a picture may be neither
            # PyTorch's own is quick on strips; on 256 channels of 512x512 at once it took twenty times as long.
            found = torch.native_group_norm(x, None, None, B, C, n * W, norm.num_groups, norm.eps)
            counts.append(n)
            means.append(found[1].tolist())  # of B times G
            variances.append((found[2] ** -2 - norm.eps).tolist())
        share, every, within = (torch.tensor(x, device=norm.weight.device) for x in (counts, means, variances))
        share = share.float()[:, None, None] / sum(counts)
        mean = (share * every).sum(dim=0)
        # The variance of all is that within the strips and that between them (Chan et al. 1983, eq. 2.1).
        variance = (share * (within + (every - mean).square())).sum(dim=0)
        repeats = norm.num_channels // norm.num_groups
        by_channel = [x.repeat_interleave(repeats, dim=1) for x in (torch.rsqrt(variance + norm.eps), mean)]
        scale = by_channel[0] * norm.weight.float()
        shift = norm.bias.float() - by_channel[1] * scale
        return cls(scale[..., None, None], shift[..., None, None], norm.weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, n, W) -> (B, C, n, W), a new tensor."""
        return torch.addcmul(self.shift, x, self.scale).to(self.dtype)
