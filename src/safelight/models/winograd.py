"""3x3 convolutions with fewer multiplications (Winograd 1980; Lavin & Gray 2016, "Fast Algorithms for Convolutional
Neural Networks").

Outputs are made in tiles of m numbers a side. The m + 2 inputs that a tile's side sees become m + 2 sums, which are
the values of a polynomial at m + 2 points; there a convolution is a product. So 3 m multiplications become m + 2: in
both directions 2x2 outputs take 16 for 36, 2x4 take 24 for 72, 4x4 take 36 for 144. At every point the channels are
mixed by one matrix product, which is where the time goes.

The price is rounding, which grows with the tile. Measured against float64 on a UNet of SD 1.5's size (largest error
for a largest answer of 2.3): direct 2.5e-6, 2x2 2.9e-6, 2x4 4.2e-6, 4x4 9.9e-6.

Where each pixel was doubled beforehand, the four inputs of two outputs are two neighbours and twice the pixel between
them: one of the four points is zero, another the pixel itself. So 2x2 outputs take 9 multiplications for 36, and what
is added up is no larger than the picture was before.

Shapes: B batch, C channels in, N channels out, H W picture size; a tile is a x b outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Tile = tuple[int, int]
"""Outputs of a tile, high and wide: each 2 or 4; or `DOUBLED`."""
DOUBLED: Tile = (1, 1)
"""The tile of `convolve_doubled`: one pixel, of which 2x2 outputs come."""
AT_ONCE = 32 << 20
"""Bytes of what one strip of tiles is turned into: what is written should still be in the cache when it is read."""

# The points are 0, 1, -1, 2, -2 (the last two for 4 outputs only) and infinity (Lavin & Gray 2016, eqs. 3 to 15).
_KERNEL = {
    1: ((1, 0, 0), (1, 1, 1), (0, 0, 1)),  # 0, 1 (whose input is halved for it) and infinity
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}


def points(tile: Tile) -> int:
    """How many there are."""
    a, b = tile
    return (a + 2) * (b + 2)


def at_points(weight: Tensor, tile: Tile) -> Tensor:
    """A kernel's values at the points: (N, C, 3, 3) -> (points, N, C)."""
    high, wide = (torch.tensor(_KERNEL[side], dtype=torch.float64) for side in tile)
    change = torch.kron(high, wide).to(weight.dtype)
    N, C = weight.shape[:2]
    return torch.mm(change, weight.reshape(N * C, 9).t()).view(-1, N, C)


def convolve(x: Tensor, kernel: Sequence[Tensor], bias: Tensor | None, tile: Tile, border: int = 1) -> Tensor:
    """A 3x3 convolution of stride 1 with a border of one zero, (B, C, H, W) -> (B, N, H, W), both channels-last.

    Args:
        kernel: what `at_points` gives, each (N, C), laid out by oneDNN for a linear layer or not.
        bias: (N,).
        border: 0 if what is around the picture is given, too: x is (B, C, H + 2, W + 2).
    """
    (B, C), (a, b), N = x.shape[:2], tile, kernel[0].shape[0]
    H, W = (side - 2 * (1 - border) for side in x.shape[2:])
    rows, columns = -(-H // a), -(-W // b)
    pixels = x.permute(0, 2, 3, 1)
    y = x.new_empty(B, rows, a, columns, b, N)
    strip = max(AT_ONCE // (4 * B * columns * points(tile) * max(C, N)), 1)
    for first in range(0, rows, strip):
        n = min(strip, rows - first)
        seen = _seen(pixels, (first * a - border, -border), (n * a + 2, columns * b + 2))
        half = x.new_empty(b + 2, B, n * a + 2, columns, C)
        _to_points([seen[:, :, q : q + (columns - 1) * b + 1 : b] for q in range(b + 2)], half)
        whole = x.new_empty(a + 2, b + 2, B, n, columns, C)
        _to_points([half[:, :, p : p + (n - 1) * a + 1 : a] for p in range(a + 2)], whole)
        half = x.new_empty(b + 2, a, B, n, columns, N)
        for q in range(b + 2):
            values = [
                # The bias at the point (1, 1) is the bias everywhere: the powers of 1 are 1.
                linear(whole[p, q].view(-1, C), kernel[p * (b + 2) + q], bias if p == q == 1 else None)
                for p in range(a + 2)
            ]
            _from_points([value.view(B, n, columns, N) for value in values], half[q])
        for p in range(a):
            tiles = y[:, first : first + n, p]  # (B, n, columns, b, N)
            _from_points(half[:, p].unbind(), [tiles[:, :, :, q] for q in range(b)])
    y = y.view(B, rows * a, columns * b, N)[:, :H, :W]
    return y.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def convolve_doubled(x: Tensor, kernel: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """The same of a picture with each pixel doubled, across and down: (B, C, H, W) -> (B, N, 2H, 2W).

    Args:
        kernel: at the points of `DOUBLED`.
    """
    (B, C, H, W), N = x.shape, kernel[0].shape[0]
    pixels = x.permute(0, 2, 3, 1)
    y = x.new_empty(B, H, 2, W, 2, N)
    strip = max(AT_ONCE // (4 * B * W * points(DOUBLED) * max(C, N)), 1)
    for first in range(0, H, strip):
        n = min(strip, H - first)
        seen = _seen(pixels, (first - 1, -1), (n + 2, W + 2))
        changes, itself = seen[:, :-1] - seen[:, 1:], seen[:, 1:-1]  # down, from each row to the next
        # A pixel's first point is the change before it, and its last the one behind it, which is the next one's first.
        given = [[down[:, :, :-1] - down[:, :, 1:], down[:, :, 1:-1].contiguous()] for down in (changes, itself)]
        columns = []
        for q in range(3):
            before, here, behind = (
                linear(values.view(-1, C), kernel[3 * p + q], bias if p == q == 1 else None).view(*values.shape[:3], N)
                for p, values in enumerate(given[p % 2][q % 2] for p in range(3))
            )
            columns.append((here + before[:, :-1], here - behind[:, 1:]))
        for p, (before, here, behind) in enumerate(zip(*columns, strict=True)):
            out = y[:, first : first + n, p]  # (B, n, W, 2, N)
            torch.add(here, before[:, :, :-1], out=out[:, :, :, 0])
            torch.sub(here, behind[:, :, 1:], out=out[:, :, :, 1])
    return y.view(B, 2 * H, 2 * W, N).permute(0, 3, 1, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's product, of a weight laid out or not: (..., C) -> (..., N)."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _seen(pixels: Tensor, first: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Rows and columns of (B, H, W, C), zeros where there are none, so many: (B, height, width, C)."""
    (top, left), (height, width) = first, size
    beyond = max(top + height - pixels.shape[1], 0), max(left + width - pixels.shape[2], 0)
    inside = pixels[:, max(top, 0) : top + height, max(left, 0) : left + width]
    missing = 0, 0, max(-left, 0), beyond[1], max(-top, 0), beyond[0]
    return F.pad(inside, missing) if any(missing) else inside


def _to_points(d: Sequence[Tensor], out: Tensor) -> None:
    """Inputs that a tile's side sees, from the first to the last -> `out`, at the points (ibid., B^T d)."""
    if len(d) == 4:
        torch.sub(d[0], d[2], out=out[0])
        torch.add(d[1], d[2], out=out[1])
        torch.sub(d[2], d[1], out=out[2])
        torch.sub(d[3], d[1], out=out[3])
        return
    even, odd = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(d[4], d[2], out=even)
    torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.sub(d[4], d[2], alpha=5, out=out[0]).add_(d[0], alpha=4)
    torch.sub(d[5], d[3], alpha=5, out=out[5]).add_(d[1], alpha=4)


def _from_points(t: Sequence[Tensor], out: Tensor | Sequence[Tensor]) -> None:
    """Values at the points -> `out`, the outputs of a tile's side (ibid., A^T t)."""
    even, odd = t[1] + t[2], t[1] - t[2]
    if len(t) == 4:
        torch.add(t[0], even, out=out[0])
        torch.add(odd, t[3], out=out[1])
        return
    even_2, odd_2 = t[3] + t[4], t[3] - t[4]
    torch.add(even, even_2, out=out[0]).add_(t[0])
    torch.add(odd, odd_2, alpha=2, out=out[1])
    torch.add(even, even_2, alpha=4, out=out[2])
    torch.add(odd, odd_2, alpha=8, out=out[3]).add_(t[5])
