"""Attention on the CPU in tiles: exact, in two thirds to nine tenths of the time where positions are many or keys few.

PyTorch's own subtracts from the scores of a query the largest one so far before it takes their exponentials, which no
number then is too large for; finding it, and making up for it, takes nearly as long as the products (Dao et al. 2022,
"FlashAttention", algorithm 1, for processors). Here nothing is subtracted but the mean of all keys from each, which
adds the same to all scores of a query, and its softmax does not see it (Zhang et al. 2024, "SageAttention", sec. 4.2).
Products, exponentials and sums follow one another, a tile at a time, so that it stays in the cache. The weights' sum is
that of one more value, which is one. Where it says, afterwards, that scores were too large, PyTorch's own is asked.

To a few keys, as words are, all scores of some queries fit into the cache, and PyTorch weighs them as they are.

Shapes: B batch, L queries, M keys, C channels, d of a head; N heads of a picture at once.
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from safelight.models.layers import attend, heads_apart, inferring
from safelight.models.threads import in_pieces
from safelight.models.winograd import linear

Tiles = list[tuple[Tensor, Tensor]]
"""Keys and values of a head, some at a time."""

WIDEST = 160
"""Channels of a head up to which it is: with more, products take nearly all of the time."""
TILE = 1024, 512
"""Queries and keys of a head at once, by one thread."""
MOST = 1e20
"""What weights of a query may add up to: times values of 1e18 there is room for it. They are 1 at least, as scores
of centred keys have a mean of zero."""
FEW, LEAST_TO_FEW = 160, 256
"""Keys up to which, and queries from which on, MKL finds scores at once."""


def attend_tiled(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`attend`, by tiles where that is faster: q (B, L, C), k and v (B, M, C) -> (B, L, C)."""
    (B, L, C), M = q.shape, k.shape[1]
    d, products = C // heads, fast_products()
    if products is None or not (inferring(q, k) and inferring(v, v)):
        return attend(q, k, v, heads)
    if products.weigh_few and L >= LEAST_TO_FEW and M <= FEW:
        return _attend_to_few(q, k / math.sqrt(d), v, heads)
    if min(L, M) < products.least or d > WIDEST:
        return attend(q, k, v, heads)
    y = torch.empty_like(q)
    for b in range(B):
        of_picture = slice(b, b + 1)
        queries, keys, values, answers = (heads_apart(x[of_picture], heads)[0] for x in (q, k, v, y))
        fine = _attend_picture(queries, keys, values, products, out=answers)
        for h in range(heads):
            if not fine[h]:
                of = of_picture, slice(None), slice(h * d, (h + 1) * d)
                y[of] = attend(q[of], k[of], v[of], 1)
    return y


def _attend_picture(q: Tensor, k: Tensor, v: Tensor, products: Products, *, out: Tensor) -> list[bool]:
    """q (N, L, d), k and v (N, M, d) -> out (N, L, d). False: scores of this head were too large, or not finite."""
    N, L, d = q.shape
    scale = products.scale / math.sqrt(d)
    # Those of a head together, as products are fast with: in the pass that is needed anyway.
    keys = torch.add(k.mean(dim=1, keepdim=True) * -scale, k, alpha=scale, out=k.new_empty(k.shape))
    tiles = [products.tiles(*of_head) for of_head in zip(keys, v, strict=True)]

    def attend_some(piece: tuple[int, int]) -> bool:
        head, first = piece
        some = slice(first, first + TILE[0])
        sums = products.weigh(q[head, some].contiguous(), tiles[head])
        weights = sums[:, d : d + 1]
        if not float(weights.amax()) <= MOST:
            return False
        torch.div(sums[:, :d], weights, out=out[head, some])
        return True

    pieces = [(head, first) for head in range(N) for first in range(0, L, TILE[0])]
    fine = [True] * N
    for (head, _), all_small in zip(pieces, in_pieces(attend_some, pieces), strict=True):
        fine[head] &= all_small
    return fine


class Products(Protocol):
    """A library's products, in the order that it is fast with."""

    least: int
    """Queries, and keys, from which on it is: what is done beside the tiles takes its time, too."""
    weigh_few: bool
    """Whether it is where keys are few."""
    scale: float
    """Of scores, for the exponential that is quickest beside them."""

    def tiles(self, k: Tensor, v: Tensor) -> Tiles:
        """Keys and values of a head, (M, d) each, by tiles."""

    def weigh(self, q: Tensor, tiles: Tiles) -> Tensor:
        """Some queries of the head, (L, d), whose products with the keys are scores -> (L, d + 1 or more): sums of
        the values times their weights, and behind them of the weights.
        """


@dataclass
class Mkl:
    """PyTorch's own, on processors of their maker."""

    least: int = 2048
    weigh_few: bool = True
    scale: float = 1.0

    def tiles(self, k: Tensor, v: Tensor) -> Tiles:
        """(d, m) and (m, more than d)."""
        return list(zip(torch.split(k.t(), TILE[1], 1), torch.split(with_ones(v), TILE[1]), strict=True))

    def weigh(self, q: Tensor, tiles: Tiles) -> Tensor:
        """(L, d) -> (L, more than d)."""
        L = len(q)
        sums = q.new_zeros(L, tiles[0][1].shape[1])
        room = q.new_empty(L * tiles[0][0].shape[1])
        for keys, values in tiles:
            scores = torch.mm(q, keys, out=room[: L * keys.shape[1]].view(L, -1))
            sums.addmm_(scores.exp_(), values)
        return sums


@dataclass
class OneDnn:
    """oneDNN's, across: values lie along the keys, sums along the queries, and none is added to fill a width."""

    least: int = 4096
    weigh_few: bool = False
    scale: float = 1 / math.log(2)

    def tiles(self, k: Tensor, v: Tensor) -> Tiles:
        """(m, d) and (d + 1, m)."""
        values = torch.cat([v.t(), v.new_ones(1, len(v))])
        parts = zip(torch.split(k, TILE[1]), torch.split(values, TILE[1], 1), strict=True)
        return [(some, of_some.contiguous()) for some, of_some in parts]

    def weigh(self, q: Tensor, tiles: Tiles) -> Tensor:
        """(L, d) -> (L, d + 1)."""
        sums = q.new_zeros(len(tiles[0][1]), len(q))
        for keys, values in tiles:
            sums += linear(values, linear(keys, q, None).exp2_().t(), None)
        return sums.t()


def _attend_to_few(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The same of queries whose products with the keys are scores: q (B, L, C), k and v (B, M, C) -> (B, L, C)."""
    y = torch.empty_like(q)
    for b in range(len(q)):
        queries, keys, values, answers = (heads_apart(x[b : b + 1], heads)[0] for x in (q, k, v, y))
        keys, values = keys.transpose(1, 2).contiguous(), values.contiguous()
        for some, answer in zip(torch.split(queries, TILE[0], 1), torch.split(answers, TILE[0], 1), strict=True):
            scores = torch.bmm(some, keys)
            answer.copy_(torch.bmm(torch.softmax(scores, dim=2, out=scores), values))
    return y


def with_ones(v: Tensor) -> Tensor:
    """Values with a column of ones behind them, for the sum of their weights, and more, up to a width that products are
    fast with: (..., M, d) -> (..., M, more than d).
    """
    *more, d = v.shape
    y = v.new_empty(*more, 16 * (d // 16 + 1))
    y[..., :d], y[..., d:] = v, 1
    return y


@cache
def fast_products() -> Products | None:
    """Those of small matrices that are fast on this processor. PyTorch's are its maker's library's, MKL, which does not
    use the whole width of other makers' processors.
    """
    known = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows
    maker = known.read_text(errors="replace")[:1000] if known.is_file() else platform.processor()
    if "GenuineIntel" in maker and torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return Mkl()
    if torch.cpu._is_avx512_supported() and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return OneDnn()
    return None
