"""Attention over many positions on the CPU, rounded: in half to two thirds of the time.

Scores are products of whole numbers of 8 bits: of queries between the least and the largest of a head, and of keys with
a scale for each, less the mean of all. That adds the same to all scores of a query, which its softmax does not see, and
leaves keys smaller (Zhang et al. 2024, "SageAttention", secs. 4.2 and 4.3).

Exponentials cost no more than writing numbers down: the bits of a floating-point number, read as a whole one, are
nearly its logarithm (Schraudolph 1999, "A Fast, Compact Approximation of the Exponential Function"). A score times
2**7 / ln(2), as a whole number of 16 bits, is a bfloat16 that is nearly its exponential: between two powers of two it
grows in a straight line, at most 6 % above the curve. What all weights of a query have of that in common goes when
they are divided by their sum. Sums are float32, their answer bfloat16.

Shapes: B batch, L queries, M keys, C channels, d of a head.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.int8_products import Given, Quantised, for_products, product
from safelight.models.layers import attend
from safelight.models.packed import inferring

LEAST = 2048
"""Keys from which on it is faster, on one thread and on two."""
TILE = 512, 2048
"""Queries and keys at once, so that processors share the work alike in each of its steps, and their scores are near."""
MANTISSA, BIAS = 7, 127
"""Of a bfloat16: the bits behind its leading one, and what is added to its exponent."""
TOP = 96
"""Exponent that no weight is above: there is room for the sum of 2**14 of them, times values of 2**16."""
WIDEST = 192
"""Powers of two that no score may be above. As the mean of the keys is zero, a query's largest score is not negative:
its weight is at least 2**(TOP - WIDEST), and there is room below that for those that count beside it."""


def attend_rounded(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`attend` in whole numbers, where that is faster and what is given is neither too large nor asked for gradients:
    q (B, L, C), k and v (B, M, C) -> (B, L, C).
    """
    if k.shape[1] < LEAST or not (_multiplies_bfloat16() and inferring(q, k) and inferring(v, v)):
        return attend(q, k, v, heads)
    k = k - k.mean(dim=1, keepdim=True)
    d = q.shape[2] // heads
    octaves = 1 / (math.log(2) * math.sqrt(d))
    largest = octaves * _longest(q, heads) * _longest(k, heads)  # Cauchy-Schwarz; (B, heads)
    y = torch.empty_like(q)
    for b, h in itertools.product(range(len(q)), range(heads)):
        one = slice(b, b + 1), slice(None), slice(h * d, (h + 1) * d)
        if not _attend(q[one][0], k[one][0], v[one][0], octaves, float(largest[b, h]), y[one][0]):
            y[one] = attend(q[one], k[one], v[one], 1)
    return y


def _attend(q: Tensor, k: Tensor, v: Tensor, octaves: float, largest: float, out: Tensor) -> bool:
    """One head, q and out (L, d), k and v (M, d); whether it could be done.

    Args:
        octaves: powers of two in a product of q and k.
        largest: no score is above so many of them.
    """
    given = Given.of(_padded(q))
    if given is None or not largest <= WIDEST:
        return False
    one = 1 << MANTISSA
    (L, d), M = q.shape, len(k)
    parts = [
        (for_products(Quantised.of(_padded(keys))), _by_channel(values))
        for keys, values in zip(torch.split(k, TILE[1]), torch.split(v, TILE[1]), strict=True)
    ]
    shift = torch.full((M,), float(one * (BIAS + TOP - math.ceil(largest))))
    room = torch.empty(min(TILE[0], L) * min(TILE[1], M), dtype=torch.int16)
    for start in range(0, L, TILE[0]):
        codes = given.codes[start : start + TILE[0]]
        some = Given(codes, one * octaves * given.scale, given.zero)
        answer = torch.zeros(len(codes), d + 1)
        for keys, values in parts:
            size = len(codes), values.shape[1]
            scores = product(some, keys, shift[: size[1]], "relu")
            answer += _weighed(room[: math.prod(size)].view(size).copy_(scores).view(torch.bfloat16), values, d)
            del scores  # its memory is the next one's
        torch.div(answer[:, :d], answer[:, d:], out=out[start : start + TILE[0]])
    return True


def _weighed(weights: Tensor, values: Tensor, d: int) -> Tensor:
    """Sums of values by weights (n, m), and of the weights: (n, d + 1), bfloat16."""
    sums: Tensor = torch.ops.mkldnn._linear_pointwise(weights, values, None, "none", [], "")
    return sums[:, : d + 1] if len(values) > d else torch.cat([sums, weights.sum(dim=1, keepdim=True)], dim=1)


@cache
def _multiplies_bfloat16() -> bool:
    """Whether the processor does; others would take longer than in float32."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def _longest(x: Tensor, heads: int) -> Tensor:
    """The length of the longest vector of each head, (B, L, C) -> (B, heads)."""
    return x.reshape(*x.shape[:2], heads, -1).square().sum(dim=3).amax(dim=1).sqrt()


def _padded(x: Tensor) -> Tensor:
    """With zeros to a width that oneDNN is fast with."""
    return F.pad(x, (0, -x.shape[1] % 16))


def _by_channel(v: Tensor) -> Tensor:
    """(M, d) -> (n, M), bfloat16, with as many rows as oneDNN is fast with: behind the values ones, and zeros."""
    M, d = v.shape
    n = 16 * math.ceil(d / 16) if d < 64 else 32 * math.ceil(d / 32)
    rows = torch.zeros(n, M, dtype=torch.bfloat16)
    rows[:d] = v.t()
    rows[d : d + 1] = 1
    return rows
