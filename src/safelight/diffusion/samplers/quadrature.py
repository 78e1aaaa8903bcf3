"""Integrals of smooth functions of one number, to the last digits of a double: for the weights of samplers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

# Gauss-Legendre with eight points on [-1, 1]: (point, weight), and the same mirrored. Exact up to degree 15.
_HALF = (
    (0.1834346424956498, 0.3626837833783620),
    (0.5255324099163290, 0.3137066458778873),
    (0.7966664774136267, 0.2223810344533745),
    (0.9602898564975363, 0.1012285362903763),
)


def integral(function: Callable[[float], float], low: float, high: float) -> float:
    """The integral from low to high."""
    middle, half = (low + high) / 2, (high - low) / 2
    return half * math.fsum(w * (function(middle - half * u) + function(middle + half * u)) for u, w in _HALF)


def lagrange(nodes: Sequence[float], k: int, at: float) -> float:
    """The polynomial that is 1 at nodes[k] and 0 at the others."""
    return math.prod((at - node) / (nodes[k] - node) for j, node in enumerate(nodes) if j != k)
