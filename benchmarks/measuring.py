"""What all benchmarks share: turns taken strictly, medians with their spread, and a line about the machine.

A ratio is measured in one run, A and B one after the other, again and again, so that whatever else the machine
does meets both. It is the median of the ratios of the turns, not the ratio of the medians.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles


@dataclass(frozen=True)
class Times:
    """Seconds of every turn of one contestant."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return median(self.seconds)

    def text(self, unit: float, name: str) -> str:
        """Median and the middle half, in a unit of so many seconds."""
        low, _, high = quantiles(self.seconds, n=4)
        return f"{self.median / unit:9.2f} {name}  ({low / unit:.2f} to {high / unit:.2f})"


def alternate(contestants: Mapping[str, Callable[[], object]], turns: int, warmup: int = 2) -> dict[str, Times]:
    """Run each once per turn, in an order that is reversed every other turn; the first turns do not count."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + turns):
        order = list(contestants) if turn % 2 == 0 else list(reversed(contestants))
        for name in order:
            started = time.perf_counter()
            contestants[name]()
            seconds = time.perf_counter() - started
            if turn >= warmup:
                taken[name].append(seconds)
    return {name: Times(seconds) for name, seconds in taken.items()}


def ratio(ours: Times, theirs: Times) -> str:
    """How long ours takes for one of theirs: the median over the turns, and the middle half."""
    ratios = [a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return f"{middle:9.3f}     ({low:.3f} to {high:.3f})"


def run(code: str, *arguments: str) -> str:
    """The last line that a process of this Python prints, which has memory of its own."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"a process failed:\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def print_machine(*packages: str) -> None:
    """The date, the kind of machine and the versions that the numbers below belong to."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{date.today()}, {cpu}, {os.cpu_count()} cores{load}, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {_version(name)}" for name in ("safelight", "torch", *packages)), end="\n\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed: run from the source)"
