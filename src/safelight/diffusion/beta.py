"""The quantiles of the beta distribution, for the spacing of that name. Plain numbers: no more than a run's steps."""

from __future__ import annotations

import math

TINY = 1e-300
"""Stands for a zero denominator in a continued fraction."""


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x in [0, 1] below which lies the part p of Beta(a, b): the inverse of `beta_below` in x.

    By Newton's method, kept between bounds that close in: where a step would leave them, they are halved.
    Raises ValueError: p outside [0, 1], or a or b not above 0.
    """
    if not (0 <= p <= 1 and a > 0 and b > 0):
        raise ValueError(f"a quantile needs 0 <= p <= 1 and a, b > 0, not {p}, {a} and {b}")
    if p in (0, 1):
        return float(p)
    low, high, x = 0.0, 1.0, 0.5
    for _ in range(200):
        error = beta_below(x, a, b) - p
        low, high = (low, x) if error > 0 else (x, high)
        density = math.exp((a - 1) * math.log(x) + (b - 1) * math.log1p(-x) - _log_beta(a, b))
        guess = x - error / density
        if not low < guess < high:
            guess = (low + high) / 2
        if abs(guess - x) <= 1e-15 * x or guess in (0.0, 1.0):
            return guess
        x = guess
    return x


def beta_below(x: float, a: float, b: float) -> float:
    """The part of Beta(a, b) below x in [0, 1]: the regularised incomplete beta function (DLMF 8.17.2)."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, its mirror image (8.17.4) does not
        return 1 - beta_below(1 - x, b, a)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b)) / a
    return front / _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction 1 + d1/(1 + d2/(1 + ...)) of DLMF 8.17.22, from the front (Lentz' method)."""
    value = c = 1.0
    d = 0.0
    for n in range(1, 500):
        m = n // 2
        if n % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / (_off_zero(1 + term * d))
        c = _off_zero(1 + term / c)
        value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return value


def _off_zero(value: float) -> float:
    return value if abs(value) > TINY else TINY


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
