"""Attention as `--precision int8` rounds it, against PyTorch's in float32: time, and how far the answers are apart.

    python benchmarks/attention.py                       # a minute
    OMP_NUM_THREADS=1 python benchmarks/attention.py

Random queries, keys and values, of the sizes of a picture's finest attentions: Stable Diffusion 1's at 512x512, with
the next coarser one, which is left in float32, and Stable Diffusion 2's. Decibels are those of the answer's deviation
over that of the difference, for scores of a deviation of 1.
"""

from __future__ import annotations

from functools import partial

import torch

from measuring import SAFELIGHT, Report, alternate, arguments
from safelight.models import rounded_attention
from safelight.models.rounded_attention import attend_rounded
from safelight.models.layers import attend
from safelight.tasks.machine import choose_threads, keep_memory

SIZES = ((4096, 8, 40), (1024, 8, 80), (4096, 5, 64))
"""Positions, heads and their width."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    report = Report.of(options)
    choose_threads()
    keep_memory()
    rounded_attention.LEAST = 1  # also where it is not used, to see why
    with torch.inference_mode():
        for L, heads, d in SIZES:
            q, k, v = (torch.randn(1, L, heads * d) for _ in range(3))
            exact, rounded = attend(q, k, v, heads), attend_rounded(q, k, v, heads)
            near = float(20 * torch.log10(exact.std() / (exact - rounded).std()))
            ways = {SAFELIGHT: attend_rounded, "scaled_dot_product_attention": attend}
            times = alternate({name: partial(way, q, k, v, heads) for name, way in ways.items()}, options.turns)
            report.times(f"{L} positions, {heads} heads of {d}: {near:.0f} dB", times, "ms")


if __name__ == "__main__":
    main()
