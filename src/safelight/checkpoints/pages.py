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


_POPULATE_READ = 22
"""Of madvise(2), from Linux 5.14 on."""


def read_ahead(tensors: Iterable[Tensor]) -> None:
    """Have the system map the pages of tensors that are going to be read at once, all together and beside other work:
    page by page, when they are met, it takes a text tower longer than its arithmetic. Where this is not known, nothing
    is done.
    """
    if sys.platform == "linux":
        Thread(target=_populate, args=(list(tensors),), daemon=True).start()


def _populate(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
        first, last = start // mmap.PAGESIZE * mmap.PAGESIZE, -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _POPULATE_READ)


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

    def release(self, tensor: Tensor) -> None:
        """Let go of the memory under a tensor that is mapped from a file, once its numbers were copied elsewhere.

        It stays what it is: if it is used again, it is read again. Does nothing to any other tensor.

        Args:
            tensor: as it was read; what was written to it since would be lost.
        """
        numbers = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start, end = tensor.data_ptr(), tensor.data_ptr() + numbers * tensor.element_size()
        if any(first <= start and end <= last for first, last in self._spans):
            # Only pages that it has for itself. A refusal costs nothing but the memory.
            first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
            if sys.platform == "linux" and first < last:
                ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
