"""What a UNet with a context attends by: transformers over a picture's positions (Rombach et al. 2022, E.2.1).

Shapes: B batch, C channels, h w latent size, L context tokens, D context width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.layers import Attending, attend, repeated

TRANSFORMER_EPS = 1e-6


class Attention(nn.Module):
    """Attention of x to itself, or to a context of another width."""

    attending: Attending
    """How queries, keys and values become an answer; what perturbs or watches the network puts another here."""

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.attending = attend
        source = width if context_width is None else context_width
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source, width, bias=False)
        self.to_v = nn.Linear(source, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, h*w, C), context (B, L, D) or None for self-attention -> (B, h*w, C); of n contexts for each x n times
        as much.
        """
        source = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(source), self.to_v(source)
        y: Tensor = self.to_out[0](self.attending(repeated(q, k), k, v, self.heads))
        return y


class GEGLU(nn.Module):
    """Linear unit gated by a GELU (Shazeer 2020)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, inner)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        y: Tensor = value * F.gelu(gate)
        return y


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The original has a dropout between the two, hence the names net.0 and net.2 in every file.
        self.net = nn.ModuleDict({"0": GEGLU(width, 4 * width), "2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        y: Tensor = self.net["2"](self.net["0"](x))
        return y


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward, each around a skip.

    Args:
        context_only: the first attention, too, is to the context.
    """

    def __init__(self, width: int, heads: int, context_width: int, *, context_only: bool = False) -> None:
        super().__init__()
        self.context_only = context_only
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, context_width if context_only else None)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, h*w, C), context (B, L, D) -> (B, h*w, C); of n contexts for each x n times as much."""
        y = self.attn1(self.norm1(x), context if self.context_only else None)
        x = repeated(x, y) + y
        y = self.attn2(self.norm2(x), context)
        x = repeated(x, y) + y
        x = x + self.ff(self.norm3(x))
        return x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the picture's positions as tokens, around a skip.

    Args:
        depth: number of blocks.
        linear: the ways in and out are linear layers (SD 2, SDXL), not 1x1 convolutions.
        context_only: see `TransformerBlock`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        context_width: int,
        *,
        linear: bool = False,
        context_only: bool = False,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, width, TRANSFORMER_EPS)
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, heads, context_width, context_only=context_only) for _ in range(depth)
        )
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, C, h, w), context (B, L, D) -> (B, C, h, w); of n contexts for each x n times as much."""
        size = x.shape[-2:]
        y = self.norm(x)
        y = self.proj_in(_tokens(y)) if self.linear else _tokens(self.proj_in(y))
        for block in self.transformer_blocks:
            y = block(y, context)
        y = _picture(self.proj_out(y), size) if self.linear else self.proj_out(_picture(y, size))
        return repeated(x, y) + y


def _tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h*w, C)."""
    return x.flatten(2).transpose(1, 2)


def _picture(x: Tensor, size: torch.Size) -> Tensor:
    """(B, h*w, C) -> (B, C, h, w)."""
    return x.transpose(1, 2).reshape(len(x), -1, *size)
