"""How often, and how sure: shares with their intervals. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""Quantile of the standard normal that leaves 2.5 % on each side."""


@dataclass(frozen=True)
class Share:
    """`right` answers out of `asked`."""

    right: int
    asked: int

    @classmethod
    def of(cls, answers: Iterable[bool]) -> Share:
        """Count them."""
        counted = list(answers)
        return cls(sum(counted), len(counted))

    @property
    def value(self) -> float:
        """In 0..1; not a number when nothing was asked."""
        return self.right / self.asked if self.asked > 0 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Wilson (1927), in 0..1: right also near 0 and 1. All of it without a question."""
        if self.asked == 0:
            return 0.0, 1.0
        n, p, z2 = self.asked, self.value, Z_95 * Z_95
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        reach = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        # At the ends the formula gives 0 and 1 exactly, and rounding must not step outside.
        low = 0.0 if self.right == 0 else middle - reach
        high = 1.0 if self.right == self.asked else middle + reach
        return low, high

    def reaches(self, goal: float) -> bool:
        """Whether the share itself, not its interval, is at least the goal."""
        return self.value >= goal
