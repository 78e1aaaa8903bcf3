"""Attention in tiles, and as `--precision int8` rounds it, against PyTorch's in float32: time, and how near it is.

    python benchmarks/attention.py                       # two minutes
    OMP_NUM_THREADS=1 python benchmarks/attention.py
    python benchmarks/attention.py --products onednn     # or mkl: in tiles by them, whichever this processor gets

Random queries, keys and values, of the sizes of a picture's attentions: to itself, Stable Diffusion 1's at 512x512 at
three levels and Stable Diffusion 2's finest at 512x512 and 768x768, and to the words. Decibels are those of the
answer's deviation over that of the difference, for scores of a deviation of 1; "inf" where PyTorch's own answers, as
nothing is faster here.
"""

from __future__ import annotations

from functools import cache, partial

import torch

from measuring import SAFELIGHT, Report, alternate, arguments
from safelight.memory import keep_memory
from safelight.models import tiled_attention
from safelight.models.layers import attend
from safelight.models.rounded_attention import attend_rounded
from safelight.models.tiled_attention import Mkl, OneDnn, Products, attend_tiled
from safelight.tasks.machine import choose_threads

SELVES = ((4096, 8, 40), (1024, 8, 80), (256, 8, 160), (4096, 5, 64), (9216, 5, 64))
SIZES = (*((L, L, heads, d) for L, heads, d in SELVES), (4096, 77, 8, 40))
"""Queries, keys, heads and their width."""
PRODUCTS: dict[str, Products] = {"mkl": Mkl(), "onednn": OneDnn()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--products", choices=PRODUCTS)
    options = parser.parse_args()
    report = Report.of(options)
    choose_threads()
    keep_memory()
    if options.products is not None:
        chosen: Products | None = PRODUCTS[options.products]
        tiled_attention.fast_products = cache(lambda: chosen)
    with torch.inference_mode():
        for L, M, heads, d in SIZES:
            q, k, v = (torch.randn(1, n, heads * d) for n in (L, M, M))
            theirs = attend(q, k, v, heads)
            for name, ours in (("in tiles", attend_tiled), ("rounded", attend_rounded)):
                near = float(20 * torch.log10(theirs.std() / (theirs - ours(q, k, v, heads)).std()))
                ways = {SAFELIGHT: ours, "scaled_dot_product_attention": attend}
                times = alternate({who: partial(way, q, k, v, heads) for who, way in ways.items()}, options.turns)
                report.times(f"{L} queries, {M} keys, {heads} heads of {d}, {name}: {near:.0f} dB", times, "ms")


if __name__ == "__main__":
    main()
