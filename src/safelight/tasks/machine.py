"""What is used of the machine: as many threads as there are processors for, and a folder for what can be made again."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_SAYS_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_OF_THE_LIBRARY = (
    torch.exp,
    torch.expm1,
    torch.log,
    torch.log1p,
    torch.sqrt,
    torch.sin,
    torch.cos,
    torch.tanh,
    torch.erf,
)


@cache
def choose_threads() -> None:
    """Compute on the CPU with as many threads as may run at once; the first call does it.

    PyTorch takes as many as the machine has cores, also where a container may use two of sixty-four, and then they
    wait for each other. What the user said is left alone: by OMP_NUM_THREADS, or in the program if it is less.

    Before there are several, each function that PyTorch has Intel's library compute is asked for once. When its first
    callers are several at once, one of them may get a version of a hundredth of the precision, without a word
    (PyTorch's issue 188792), and a picture differs from the same one of another time.
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for function in _OF_THE_LIBRARY:
            function(one)
    if not any(name in os.environ for name in _SAYS_THREADS):
        torch.set_num_threads(min(torch.get_num_threads(), processors()))


def cache_folder(of: str) -> Path:
    """Where what can be made again is kept from run to run."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "safelight" / of


def processors(quota: Path = _QUOTA) -> int:
    """How many processors this process may keep busy: those that it is bound to, within its container's share.

    Args:
        quota: where Linux says microseconds of processor time and of what period, or "max".
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    allowed = 1 if bound is None else bound
    words = quota.read_text().split() if quota.is_file() else []
    if len(words) == 2 and words[0] != "max":
        allowed = min(allowed, math.ceil(int(words[0]) / int(words[1])))
    return max(allowed, 1)
