"""Memory of the process: kept while that helps, and given back."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

LARGEST_KEPT = 1 << 30
"""Bytes of the largest piece of memory that is kept for the next one of its size, instead of being given back."""
KEPT = (1 << 31) - 1
"""Bytes that are kept at most; all that the C library's setting can say."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


@cache
def keep_memory() -> None:
    """Have memory that is let go of kept for what is asked for next, until `give_back`; the first call does it.

    Every layer's answer is some megabytes. The GNU C library takes as much from the system each time and gives it back,
    and the system fills each of its pages with zeros: that takes as long as some layers' arithmetic.
    """
    if _has_glibc():
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        library.mallopt(_TRIM_THRESHOLD, KEPT)


def give_back() -> None:
    """Return to the system what was kept and is not in use."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


@cache
def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
