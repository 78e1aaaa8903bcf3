"""How exact every sampler is: errors on data whose denoiser is known in closed form, and the order they fall with.

    pip install '.[test]' && python benchmarks/orders.py

Three tables: deterministic samplers against the diffusion ODE; samplers of a Brownian path against their own
picture of many steps; and how far the pictures of all stochastic samplers are from the data, for equal calls.
All is in float64 with fixed seeds: the numbers are the same wherever it is run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from diffusion_oracles import SD, walk
from measuring import Report, arguments
from mixture import (
    DETERMINISTIC,
    DEVIATIONS,
    HIGH,
    LOW,
    MEANS,
    VARIANTS,
    WEIGHTS,
    measured_order,
    mixture_mean,
    ode_errors,
    path_errors,
)
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import SAMPLERS
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import karras, sigmas

COUNTS = (5, 10, 20, 40, 80)
LIMIT = 1280
PATHS = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "er_sde")
BESIDE = ("heun", "dpmpp_2m", "unipc")
"""Deterministic ones to compare the stochastic with."""
CONSISTENCY = ("lcm", "tcd")
"""They are for networks that answer with the end of the path: with a denoiser they do not reach the data."""


@dataclass
class Table:
    """One of the three, row by row: a sampler, a number for each of `COUNTS`, and what else is said of it."""

    report: Report
    title: str
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = "".join(f"{count:>10}" for count in COUNTS)
        print(f"\n{self.title}\n{'':<24}{counts}" + "".join(f"{text:>9}" for text in self.more))

    def add(self, sampler: str, numbers: list[float], *said: float) -> None:
        line = f"{sampler:<24}" + "".join(f"{number:10.2e}" for number in numbers)
        line += "".join(f"{x:>9g}" if isinstance(x, int) else f"{x:>9.2f}" for x in said)
        self.report.add(
            line, what=self.title, sampler=sampler, numbers=numbers, **dict(zip(self.more, said, strict=True))
        )


def order(found: list[float]) -> float:
    """Measured from 20 to 80 steps: a third of both leaves the same, which decides how `dpm_fast` ends."""
    return measured_order((COUNTS[2], COUNTS[4]), (found[2], found[4]))


def quantiles(count: int) -> Tensor:
    """(count,) the mixture's quantiles, by bisection of its distribution function."""
    ranks = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    low, high = torch.full_like(ranks, -9.0), torch.full_like(ranks, 9.0)
    for _ in range(60):
        middle = (low + high) / 2
        parts = [w * torch.special.ndtr((middle - m) / d) for w, m, d in zip(WEIGHTS, MEANS, DEVIATIONS, strict=True)]
        below = torch.stack(parts).sum(dim=0) < ranks
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


def distances(name: str, exact: Tensor) -> list[float]:
    """Wasserstein-1 distance of a sampler's pictures from the data, for COUNTS calls of the network.

    All numbers of all pictures are draws from the same mixture: sorted, they should be its quantiles.
    """
    entry, found = SAMPLERS[name], []
    mixed = torch.randperm(exact.numel(), generator=torch.Generator().manual_seed(0))
    clean = exact[mixed].view(16, 1, 128, 128)
    for calls in COUNTS:
        levels = sigmas(Schedule(SD), max(round(calls / entry.calls), 1), partial(karras, rho=7.0))
        noise = Noise(range(16), (1, 128, 128))
        x = clean + noise().double() * levels[0]
        x = walk(entry.function(mixture_mean, x, levels, noise))[-1].x
        found.append(float((x.flatten().sort().values - exact).abs().mean()))
    return found


def main() -> None:
    report = Report.of(arguments(__doc__).parse_args())
    title = f"rms error against the ODE, sigma {HIGH:g} to {LOW:g}, evenly in log(sigma), by steps"
    table = Table(report, title, ("order", "stated"))
    for name, (sampler, stated) in {**DETERMINISTIC, **VARIANTS}.items():
        found = ode_errors(sampler, COUNTS)
        table.add(name, found, order(found), stated)
    title = f"rms distance from the picture of {LIMIT} steps with the same seed, by steps"
    table = Table(report, title, ("order",))
    for name in (*PATHS, "euler_a"):
        found = path_errors(SAMPLERS[name].function, COUNTS, LIMIT)
        table.add(name, found, order(found))
    table = Table(report, "Wasserstein-1 distance of 262,144 numbers from the data, by calls of the network")
    exact = quantiles(16 * 128 * 128)
    for name, entry in SAMPLERS.items():
        if name in BESIDE or (entry.order is None and name not in (*CONSISTENCY, "dpm_adaptive")):
            table.add(name, distances(name, exact))


if __name__ == "__main__":
    main()
