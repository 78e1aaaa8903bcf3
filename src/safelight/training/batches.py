"""Batches made ahead of time. A batch is a function of its number, so threads cannot change the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor

B = TypeVar("B")
T = TypeVar("T")


@contextmanager
def batches(make: Callable[[int], B], first: int, last: int, workers: int) -> Iterator[Iterator[B]]:
    """The batches first ... last - 1 in order, `workers` of them being made while one is used.

    An error of `make` is raised where its batch would have come. Leaving the context stops the threads.
    """
    if workers == 0:
        yield (make(index) for index in range(first, last))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    try:
        yield _ahead(pool, make, first, last, workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ahead(pool: ThreadPoolExecutor, make: Callable[[int], B], first: int, last: int, workers: int) -> Iterator[B]:
    waiting: deque[Future[B]] = deque()
    for index in range(first, min(first + workers, last)):
        waiting.append(pool.submit(make, index))
    for index in range(first + workers, last + workers):
        batch = waiting.popleft().result()
        if index < last:
            waiting.append(pool.submit(make, index))
        yield batch


def change_tensors(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """The value with every tensor in it changed: looks into dataclasses, lists, tuples and dictionaries."""
    return cast(T, _changed(value, change))


def _changed(value: object, change: Callable[[Tensor], Tensor]) -> object:
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _changed(getattr(value, f.name), change) for f in fields(value)})
    if isinstance(value, list):
        return [_changed(v, change) for v in value]
    if isinstance(value, tuple):
        items: list[object] = [_changed(v, change) for v in value]
        return value._make(items) if hasattr(value, "_make") else tuple(items)
    if isinstance(value, dict):
        return {key: _changed(v, change) for key, v in value.items()}
    return value


def on_device(batch: B, device: torch.device) -> B:
    """The batch with its tensors on the device. On the CPU it is the batch itself."""
    if device.type == "cpu":
        return batch
    return change_tensors(batch, lambda t: t.to(device, non_blocking=True))


def pinned(batch: B) -> B:
    """The batch in memory from which a GPU copies while it computes."""
    return change_tensors(batch, lambda t: t.pin_memory() if t.device.type == "cpu" else t)
