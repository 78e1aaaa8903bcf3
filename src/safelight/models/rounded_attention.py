"""Attention on the CPU in bfloat16, its exponentials rounded: over many positions in half of the time.

Exponentials cost no more than writing numbers down: the bits of a floating-point number, read as a whole one, are
nearly its logarithm (Schraudolph 1999, "A Fast, Compact Approximation of the Exponential Function"). A score times
2**7 / ln(2), as a whole number of 16 bits, is a bfloat16 that is nearly its exponential: between two powers of two it
grows in a straight line, at most 6 % above the curve. What all weights of a query have of that in common goes when
they are divided by their sum.

The bits are a score plus what is the same for all of them. Scores are rounded before it is added, so they are near
zero: the mean of all keys is taken from each, which adds the same to all scores of a query, and its softmax does not
see it (Zhang et al. 2024, "SageAttention", sec. 4.2). One of n powers of two is rounded by n / 512 of one at most.

Shapes: B batch, L queries, M keys, C channels, d of a head; N heads of a picture at once.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import torch
from torch import Tensor

from safelight.models.layers import heads_apart, inferring
from safelight.models.tiled_attention import attend_tiled, with_ones

LEAST = 1 << 19
"""Scores of a picture from which on it is faster."""
TILE = 4096, 512
"""Queries and keys at once: processors share the queries alike in each step, and find their scores near."""
AT_ONCE = 1 << 22
"""Scores at once, of as many heads as that makes."""
IN_BFLOAT16 = 8
"""Tiles whose sums are added up in bfloat16, before they are in float32."""
MANTISSA, BIAS = 7, 127
"""Of a bfloat16: the bits behind its leading one, and what is added to its exponent."""
TOP = 96
"""Exponent that no weight is above: there is room for the sum of 2**14 of them, times values of 2**16."""
WIDEST = 110
"""Powers of two that no score may be above or below, so that no weight is below the least bfloat16. As the mean of the
keys is zero, a query's largest score is not negative, and its weight at least 2**(TOP - WIDEST)."""


def attend_rounded(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`attend` in bfloat16, where that is faster and what is given is neither too large nor asked for gradients:
    q (B, L, C), k and v (B, M, C) -> (B, L, C).
    """
    (B, L, C), M = q.shape, k.shape[1]
    if heads * L * M < LEAST or not (multiplies_bfloat16() and inferring(q, k) and inferring(v, v)):
        return attend_tiled(q, k, v, heads)
    octaves = 1 / (math.log(2) * math.sqrt(C // heads))  # powers of two in a product of q and k
    scaled, centred = (q * (octaves * (1 << MANTISSA))).bfloat16(), (k - k.mean(dim=1, keepdim=True)).bfloat16()
    largest = _longest(scaled, heads) * _longest(centred, heads) / (1 << MANTISSA)  # Cauchy-Schwarz; (B, heads)
    queries, keys, values = (heads_apart(x, heads) for x in (scaled, centred, v.bfloat16()))
    together = max(1, AT_ONCE // (min(L, TILE[0]) * min(M, TILE[1])))
    y = torch.empty_like(q)
    answers = heads_apart(y, heads)
    for b, h in itertools.product(range(B), range(0, heads, together)):
        some = b, slice(h, h + together)
        bounds: list[float] = largest[some].tolist()
        if all(bound <= WIDEST for bound in bounds):
            _attend(queries[some], keys[some], values[some], max(bounds), out=answers[some])
        else:  # or not finite
            of = slice(b, b + 1), slice(None), slice(h * C // heads, (h + len(bounds)) * C // heads)
            y[of] = attend_tiled(q[of], k[of], v[of], len(bounds))
    return y


def _attend(q: Tensor, k: Tensor, v: Tensor, largest: float, *, out: Tensor) -> None:
    """N heads of a picture, in bfloat16: q (N, L, d), k and v (N, M, d) -> out (N, L, d).

    Args:
        q, k: whose products are scores, in 128ths of a power of two, as a bfloat16's last bit is.
        largest: no score is above so many powers of two.
    """
    (N, L, d), M = q.shape, k.shape[1]
    queries, keys, values = q.contiguous(), k.transpose(1, 2).contiguous(), with_ones(v)
    shift = (BIAS + TOP - math.ceil(largest)) << MANTISSA
    room = torch.empty(N * min(L, TILE[0]) * min(M, TILE[1]), dtype=torch.bfloat16)
    for some, answer in zip(torch.split(queries, TILE[0], 1), torch.split(out, TILE[0], 1), strict=True):
        sums = torch.zeros(N, some.shape[1], values.shape[2])
        for start in range(0, M, IN_BFLOAT16 * TILE[1]):
            part = torch.zeros_like(sums, dtype=torch.bfloat16)
            for first in range(start, min(start + IN_BFLOAT16 * TILE[1], M), TILE[1]):
                of, what = keys[:, :, first : first + TILE[1]], values[:, first : first + TILE[1]]
                size = N, some.shape[1], of.shape[2]
                scores = torch.bmm(some, of, out=room[: math.prod(size)].view(size))
                scores.view(torch.int16).copy_(scores).add_(shift)  # a weight's bits take the place of its score
                part.baddbmm_(scores, what)
            sums += part
        torch.div(sums[:, :, :d], sums[:, :, d : d + 1], out=answer)


def _longest(x: Tensor, heads: int) -> Tensor:
    """The length of the longest vector of each head, (B, L, C) -> (B, heads), float32."""
    lengths: Tensor = torch.linalg.vector_norm(heads_apart(x, heads), dim=3)
    return lengths.amax(dim=2).float()


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor does; others would take longer than in float32."""
    return bool(torch.cpu._is_avx512_bf16_supported())
