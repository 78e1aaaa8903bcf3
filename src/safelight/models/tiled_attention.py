"""Attention on the CPU in tiles: exact, in two thirds to nine tenths of the time where positions are many or keys few.

PyTorch's own subtracts from the scores of a query the largest one so far before it takes their exponentials, which no
number then is too large for; finding it, and making up for it, takes nearly as long as the products (Dao et al. 2022,
"FlashAttention", algorithm 1, for processors). Here nothing is subtracted but the mean of all keys from each, which
adds the same to all scores of a query, and its softmax does not see it (Zhang et al. 2024, "SageAttention", sec. 4.2).
Products, exponentials and sums follow one another, a tile at a time, so that it stays in the cache. The weights' sum is
one more column of the values. Where it says, afterwards, that scores were too large, PyTorch's own is asked.

To a few keys, as words are, all scores of some queries fit into the cache, and PyTorch weighs them as they are.

Shapes: B batch, L queries, M keys, C channels, d of a head; N heads of a picture at once.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from safelight.models.layers import attend, heads_apart, inferring
from safelight.models.threads import in_pieces

LEAST = 2048
"""Queries, and keys, from which on it is faster: what is done beside the tiles takes its time, too."""
WIDEST = 160
"""Channels of a head up to which it is: with more, products take nearly all of the time."""
TILE = 1024, 512
"""Queries and keys of a head at once, by one thread."""
MOST = 1e20
"""What weights of a query may add up to: times values of 1e18 there is room for it. They are 1 at least, as scores
of centred keys have a mean of zero."""
FEW, LEAST_TO_FEW = 160, 256
"""Keys up to which, and queries from which on, scores are found at once."""


def attend_tiled(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`attend`, by tiles where that is faster: q (B, L, C), k and v (B, M, C) -> (B, L, C)."""
    (B, L, C), M = q.shape, k.shape[1]
    d = C // heads
    tiled, few = min(L, M) >= LEAST and d <= WIDEST, L >= LEAST_TO_FEW and M <= FEW
    if not ((tiled or few) and multiplies_fast() and inferring(q, k) and inferring(v, v)):
        return attend(q, k, v, heads)
    if few:
        return _attend_to_few(q, k / math.sqrt(d), v, heads)
    y = torch.empty_like(q)
    for b in range(B):
        of_picture = slice(b, b + 1)
        queries, keys, values, answers = (heads_apart(x[of_picture], heads)[0] for x in (q, k, v, y))
        fine = _attend_picture(queries, keys, values, out=answers)
        for h in range(heads):
            if not fine[h]:
                of = of_picture, slice(None), slice(h * d, (h + 1) * d)
                y[of] = attend(q[of], k[of], v[of], 1)
    return y


def _attend_picture(q: Tensor, k: Tensor, v: Tensor, *, out: Tensor) -> list[bool]:
    """q (N, L, d), k and v (N, M, d) -> out (N, L, d). False: scores of this head were too large, or not finite."""
    N, L, d = q.shape
    # Those of a head together, as products are fast with: in the pass that is needed anyway.
    scaled = torch.div(q, math.sqrt(d), out=q.new_empty(N, L, d))
    centred = torch.sub(k, k.mean(dim=1, keepdim=True), out=k.new_empty(k.shape))
    tiles = [
        list(zip(torch.split(keys.t(), TILE[1], 1), torch.split(values, TILE[1]), strict=True))
        for keys, values in zip(centred, with_ones(v), strict=True)
    ]

    def attend_some(piece: tuple[int, int]) -> bool:
        head, first = piece
        some = slice(first, first + TILE[0])
        return _attend(scaled[head, some], tiles[head], out=out[head, some])

    pieces = [(head, first) for head in range(N) for first in range(0, L, TILE[0])]
    fine = [True] * N
    for (head, _), all_small in zip(pieces, in_pieces(attend_some, pieces), strict=True):
        fine[head] &= all_small
    return fine


def _attend(q: Tensor, tiles: Sequence[tuple[Tensor, Tensor]], *, out: Tensor) -> bool:
    """Some queries of a head: q (L, d), whose products with keys (d, M) are scores, and values `with_ones` of each tile
    -> out (L, d). False: some scores were too large, or not finite.
    """
    L, d = q.shape
    sums = q.new_zeros(L, tiles[0][1].shape[1])
    room = q.new_empty(L * tiles[0][0].shape[1])
    for keys, values in tiles:
        scores = torch.mm(q, keys, out=room[: L * keys.shape[1]].view(L, -1))
        sums.addmm_(scores.exp_(), values)
    weights = sums[:, d : d + 1]
    if not float(weights.amax()) <= MOST:
        return False
    torch.div(sums[:, :d], weights, out=out)
    return True


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
    fast with: (N, M, d) -> (N, M, more than d).
    """
    N, M, d = v.shape
    y = v.new_empty(N, M, 16 * (d // 16 + 1))
    y[:, :, :d], y[:, :, d:] = v, 1
    return y


@cache
def multiplies_fast() -> bool:
    """Whether PyTorch's products of small matrices are fast enough. They are its maker's library's, MKL, which does
    not use the whole width of other makers' processors.
    """
    known = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows
    maker = known.read_text(errors="replace")[:1000] if known.is_file() else platform.processor()
    return "GenuineIntel" in maker and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
