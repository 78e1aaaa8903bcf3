"""What all benchmarks share: turns taken strictly, medians with their spread, the machine, and JSON.

How often ours goes into a peer's time is measured in one run, A and B one after the other, again and again, so that
whatever else the machine does meets both. It is the median over the turns, not the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import Self, TypeAlias

SAFELIGHT = "safelight"
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds that pass, or those that all threads of the process together had a processor. Where a machine has other work
these say more, most of all with one thread (OMP_NUM_THREADS=1): threads that wait for others keep their processors."""
Row: TypeAlias = Mapping[str, str | int | float | Sequence[float] | None]


@dataclass(frozen=True)
class Times:
    """Seconds of every turn of one contestant."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return median(self.seconds)

    def text(self, unit: float, name: str) -> str:
        """Median and the middle half, in a unit of so many seconds."""
        low, high = middle_half(self.seconds)
        return f"{self.median / unit:9.2f} {name}  ({low / unit:.2f} to {high / unit:.2f})"


def middle_half(numbers: Sequence[float]) -> tuple[float, float]:
    """Between which two numbers half of them lie."""
    if len(numbers) < 2:
        return numbers[0], numbers[0]
    low, _, high = quantiles(numbers, n=4, method="inclusive")
    return low, high


def taken(contestants: Mapping[str, Callable[[], float]], turns: int, warmup: int = 1) -> dict[str, Times]:
    """Let each measure itself once per turn, in an order that is reversed every other turn; the first do not count."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + turns):
        order = list(contestants) if turn % 2 == 0 else list(contestants)[::-1]
        for name in order:
            seconds = contestants[name]()
            if turn >= warmup:
                found[name].append(seconds)
    return {name: Times(seconds) for name, seconds in found.items()}


def alternate(contestants: Mapping[str, Callable[[], object]], turns: int, warmup: int = 2) -> dict[str, Times]:
    """As `taken`, of what does not measure itself."""

    def clocked(contestant: Callable[[], object]) -> Callable[[], float]:
        def measured() -> float:
            started = time.perf_counter()
            contestant()
            return time.perf_counter() - started

        return measured

    return taken({name: clocked(contestant) for name, contestant in contestants.items()}, turns, warmup)


def ratio(ours: Times, theirs: Times) -> str:
    """How long ours takes for one of theirs: the median over the turns, and the middle half."""
    ratios = [a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    low, high = middle_half(ratios)
    return f"{median(ratios):9.3f}     ({low:.3f} to {high:.3f})"


def times_faster(ours: Times, theirs: Times) -> list[float]:
    """How often ours fits into theirs, turn by turn: above 1 is to our advantage."""
    return [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]


@dataclass
class Report:
    """Rows as they are found: printed one by one, and written as JSON at the end."""

    json: Path | None
    packages: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, options: argparse.Namespace, *packages: str) -> Self:
        """A report for a command line with `--json`; it begins with the machine."""
        print_machine(*packages)
        return cls(options.json, packages)

    def add(self, line: str, **row: str | int | float | Sequence[float] | None) -> None:
        """A line for people, and the same for programs. What is written is whole after every row."""
        print(line, flush=True)
        self.rows.append(row)
        self.write()

    def times(
        self, what: str, times: Mapping[str, Times], unit: str = "s", aims: Mapping[str, float] | None = None
    ) -> None:
        """Each contestant's time; how often ours fits into each peer's, with the aim if there is one."""
        print(what)
        ours = times.get(SAFELIGHT)
        for name, found in times.items():
            line, faster, aim = f"  {name:<26}{found.text({'s': 1, 'ms': 1e-3}[unit], unit):<36}", None, None
            if ours is not None and name != SAFELIGHT:
                faster = times_faster(ours, found)
                low, high = middle_half(faster)
                aim = None if aims is None else aims.get(name)
                asked = "" if aim is None else f"   aim {aim:.2f}x"
                line += f"safelight is {median(faster):.2f}x as fast  ({low:.2f} to {high:.2f}){asked}"
            self.add(line, what=what, contestant=name, seconds=found.seconds, times_faster=faster, aim=aim)
        print()

    def write(self) -> None:
        """The file, if one was asked for."""
        if self.json is None:
            return
        about = {"command": sys.argv, **machine(*self.packages)}
        self.json.write_text(json.dumps({**about, "rows": self.rows}, indent=1) + "\n")


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser that says what the module says, with what all benchmarks take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there, too")
    return parser


def add_clock(parser: argparse.ArgumentParser) -> None:
    """Which seconds are counted."""
    told = "cpu counts processor seconds, for a machine with other work; best with OMP_NUM_THREADS=1"
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help=told)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where it is computed."""
    told = "cuda, too, or alone; what is not there is left out"
    parser.add_argument("--device", nargs="+", choices=("cpu", "cuda"), default=["cpu"], help=told)


def devices(options: argparse.Namespace) -> list[str]:
    """Those asked for that are here; one line says which is not."""
    if "cuda" not in options.device:
        return list(options.device)
    import torch  # noqa: PLC0415 - of which benchmarks of the start know nothing

    if torch.cuda.is_available():
        print(f"cuda is {torch.cuda.get_device_name()}")
        return list(options.device)
    print("no CUDA device here: the GPU's rows are left out")
    return [device for device in options.device if device != "cuda"]


def installed(peers: Iterable[str], needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Those peers whose packages are here; of each of the others one line says how to get it."""
    found = []
    for peer in peers:
        missing = [package for package in needs[peer] if find_spec(package) is None]
        if missing:
            print(f"{peer} is left out: it needs {' and '.join(missing)} (pip install {' '.join(missing)})")
        else:
            found.append(peer)
    return found


def run(code: str, *arguments: str) -> str:
    """The last line that a process of this Python prints, which has memory of its own."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"a process failed:\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def peak() -> int:
    """Bytes of the largest resident memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine(*packages: str) -> dict[str, str | int | float | None]:
    """The date, the kind of machine and the versions that numbers belong to."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    versions = {name: _version(name) for name in (SAFELIGHT, "torch", *packages)}
    said = {"date": str(date.today()), "cpu": cpu, "cores": os.cpu_count(), "load": load}
    return {**said, "python": platform.python_version(), **versions}


def print_machine(*packages: str) -> None:
    """One line of it."""
    found = machine(*packages)
    load = "" if found["load"] is None else f", load {found['load']:.1f}"
    print(f"{found['date']}, {found['cpu']}, {found['cores']} cores{load}, Python {found['python']}, ", end="")
    print(", ".join(f"{name} {found[name]}" for name in (SAFELIGHT, "torch", *packages)), end="\n\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed: run from the source)"
