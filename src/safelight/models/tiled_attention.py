"""Attention on the CPU in tiles: exact, in two thirds to nine tenths of the time where heads are narrow or keys few.

PyTorch's own subtracts from the scores of a query the largest one so far before it takes their exponentials, which no
number then is too large for; finding it, and making up for it, takes nearly as long as the products (Dao et al. 2022,
"FlashAttention", algorithm 1, for processors). Where no score of a head can be beyond what an exponential has room
for, nothing is to be subtracted: products, exponentials and sums follow one another, a tile at a time, so that it
stays in the cache. The weights' sum is one more column of the values.

That no score can be is seen from the lengths of queries and keys. The mean of all keys is taken from each first, which
adds the same to all scores of a query, and its softmax does not see it (Zhang et al. 2024, "SageAttention", sec. 4.2).

To a few keys, as words are, all scores of some queries fit into the cache, and PyTorch weighs them as they are.

Shapes: B batch, L queries, M keys, C channels, d of a head; N heads of a picture at once.
"""

from __future__ import annotations

import itertools
import math
import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from safelight.models.layers import attend, heads_apart, inferring

LEAST = 2048
"""Queries, and keys, from which on it is faster: what is done beside the tiles takes its time, too."""
WIDEST = 64
"""Channels of a head up to which it is: with more, products take most of the time."""
TILE = 1024, 512
"""Queries and keys at once, of a head for each thread."""
LARGEST = 60.0
"""No score is above or below: far from the largest and the least float32 are its exponential, and sums of those."""
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
    scaled, centred = q / math.sqrt(d), k - k.mean(dim=1, keepdim=True)
    within = longest(scaled, heads) * longest(centred, heads) <= LARGEST  # Cauchy-Schwarz; (B, heads)
    queries, keys, values = (heads_apart(x, heads) for x in (scaled, centred, v))
    together = torch.get_num_threads()
    y = torch.empty_like(q)
    answers = heads_apart(y, heads)
    for b, h in itertools.product(range(B), range(0, heads, together)):
        some = b, slice(h, h + together)
        if bool(within[some].all()):
            _attend(queries[some], keys[some], values[some], out=answers[some])
        else:  # or not finite
            of = slice(b, b + 1), slice(None), slice(h * d, (h + together) * d)
            y[of] = attend(q[of], k[of], v[of], len(within[some]))
    return y


def _attend(q: Tensor, k: Tensor, v: Tensor, *, out: Tensor) -> None:
    """N heads of a picture, of queries whose products with keys are scores: q (N, L, d), k and v (N, M, d) -> out."""
    (N, L, d), M = q.shape, k.shape[1]
    queries, keys, values = q.contiguous(), k.transpose(1, 2).contiguous(), with_ones(v)
    tiles = list(zip(torch.split(keys, TILE[1], 2), torch.split(values, TILE[1], 1), strict=True))
    room = torch.empty(N * min(L, TILE[0]) * min(M, TILE[1]))
    for some, answer in zip(torch.split(queries, TILE[0], 1), torch.split(out, TILE[0], 1), strict=True):
        sums = torch.zeros(N, some.shape[1], values.shape[2])
        for of, what in tiles:
            size = N, some.shape[1], of.shape[2]
            scores = torch.bmm(some, of, out=room[: math.prod(size)].view(size))
            sums.baddbmm_(scores.exp_(), what)
        torch.div(sums[:, :, :d], sums[:, :, d : d + 1], out=answer)


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
    """Values with a column of ones, for the sum of their weights: (N, M, d) -> (N, M, a width that products are fast
    with), zeros behind it.
    """
    N, M, d = v.shape
    y = v.new_zeros(N, M, 16 * (d // 16 + 1))
    y[:, :, :d], y[:, :, d] = v, 1
    return y


def longest(x: Tensor, heads: int) -> Tensor:
    """The length of the longest vector of each head, (B, L, C) -> (B, heads), float32."""
    lengths: Tensor = torch.linalg.vector_norm(heads_apart(x, heads), dim=3)
    return lengths.amax(dim=2).float()


@cache
def multiplies_fast() -> bool:
    """Whether PyTorch's products of small matrices are fast enough. They are its maker's library's, MKL, which does
    not use the whole width of other makers' processors.
    """
    known = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows
    maker = known.read_text(errors="replace")[:1000] if known.is_file() else platform.processor()
    return "GenuineIntel" in maker and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
