"""Pages of a mapped file that are not needed any more: the system would take them back only when memory is short."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path
from threading import Thread

from torch import Tensor

MAPS = Path("/proc/self/maps")
"""Where Linux says what of this process's memory is mapped from files."""


PAGE = mmap.PAGESIZE
_POPULATE_READ = 22
"""Of madvise(2), from Linux 5.14 on."""


def read_ahead(tensors: Iterable[Tensor]) -> None:
    """Have tensors that are going to be read at once brought beside other work, as `MappedPages.bring` does it."""
    held, pages = list(tensors), MappedPages()

    def bring() -> None:
        for tensor in held:
            pages.bring(tensor)

    Thread(target=bring, daemon=True).start()


class MappedPages:
    """The memory that is mapped from files at the time when this is made. Elsewhere than on Linux: none."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []
        if sys.platform == "linux" and MAPS.is_file():
            for line in MAPS.read_text().splitlines():
                span, access, _, _, inode, *_ = line.split(maxsplit=5)
                if inode != "0" and "x" not in access:
                    first, _, last = span.partition("-")
                    self._spans.append((int(first, 16), int(last, 16)))

    def bring(self, tensor: Tensor) -> None:
        """Map all pages under a tensor that is mapped from a file, as it is about to be read.

        One by one, when they are met, takes a text tower longer than its arithmetic. Does nothing to any other tensor.
        """
        start, end = _span(tensor)
        if self._are_mapped(start, end):
            self._advise(start // PAGE * PAGE, -(-end // PAGE) * PAGE, _POPULATE_READ)

    def release(self, tensor: Tensor) -> None:
        """Let go of the memory under a tensor that is mapped from a file, once its numbers were copied elsewhere.

        It stays what it is: if it is used again, it is read again. Does nothing to any other tensor.

        Args:
            tensor: as it was read; what was written to it since would be lost.
        """
        start, end = _span(tensor)
        if self._are_mapped(start, end):  # only pages that it has for itself
            self._advise(-(-start // PAGE) * PAGE, end // PAGE * PAGE, mmap.MADV_DONTNEED)

    def _are_mapped(self, start: int, end: int) -> bool:
        return any(first <= start and end <= last for first, last in self._spans)

    @staticmethod
    def _advise(first: int, last: int, advice: int) -> None:
        """A refusal costs nothing but time or memory."""
        if sys.platform == "linux" and first < last:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses that a tensor's numbers are between."""
    numbers = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + numbers * tensor.element_size()
