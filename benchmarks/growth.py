"""How time and memory grow with the size of the picture, the batch, the steps and the prompt, beside the arithmetic.

    pip install '.[test]' && python benchmarks/growth.py                     # the shipped tiny's shapes, all of it
    python benchmarks/growth.py size batch prompt --preset sd1 --sizes 256 512 768 1024      # 8 GB; half an hour
    python benchmarks/growth.py size --works decode encode --preset sd1 --sizes 256 512 1024 2048

Random weights; every point is a process of its own, told first to do the smallest job, so that all weights are in
memory, then the job itself until `--patience` seconds are over. The arithmetic is that of the networks, counted by
`torch.utils.flop_counter` (a multiplication and an addition are two). "Beyond" is how much more the time grew from the
first point on than the arithmetic did: 1 is as it must be, and below 1 small work is slower than large. Memory is the
peak of the process above that of the smallest job; in units of the picture's (or the batch's) own growth beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from contestants import Child, Job
from measuring import SAFELIGHT, Report, add_clock, arguments
from safelight.doors import Conditioning
from safelight.models.autoencoder import Autoencoder
from safelight.models.networks import unfilled
from safelight.presets import PRESETS, Preset
from sides import inputs
from weights import folder

AXES = ("size", "batch", "steps", "prompt")
SIZES = {"tiny": (64, 128, 256, 512), "sd1": (256, 512, 768, 1024)}
COUNTS = (1, 2, 4, 8)
STEPS = (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class Point:
    """What was found for one job."""

    job: Job
    flop: int
    seconds: float
    above: int
    """Bytes above the smallest job's."""


def flop(preset: Preset, job: Job) -> int:
    """Multiplications and additions of the networks, counted without doing them."""
    if job.work == "walk":
        said = 2 * flop(preset, replace(job, work="text", batch=1))
        return said + job.steps * flop(preset, replace(job, work="unet", batch=2 * job.batch))
    given = {name: x.to("meta") for name, x in inputs(preset, job).items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if job.work == "text":
            for words in preset.words:
                unfilled(words.tower)(given["ids"])
        elif job.work == "unet":
            width = preset.unet.vector_width
            vector = None if width is None else torch.empty(job.batch, width, device="meta")
            unfilled(preset.unet)(given["x"], given["t"], Conditioning(given["context"], vector))
        else:
            assert preset.autoencoder is not None
            autoencoder = cast(Autoencoder, unfilled(preset.autoencoder))
            whole = autoencoder.decode if job.work == "decode" else autoencoder.encode
            whole(*given.values())
    return int(counter.get_total_flops())


def measure(preset: str, weights: Path, job: Job, patience: float) -> tuple[float, int]:
    """Seconds of the job, and the bytes that it takes above the smallest one."""
    child = Child.start(SAFELIGHT, preset, weights)
    small = replace(job, batch=1, steps=1, chunks=1, size=8 * PRESETS[preset].factor)
    child.do(small)
    _, before = child.do(small)
    first, after = child.do(job)
    passed, seconds = first, []  # the first call lays out what later ones find
    while passed < patience:
        again, after = child.do(job)
        seconds.append(again)
        passed += max(again, 0.2)
    child.stop()
    return median(seconds) if seconds else first, after - before


def jobs(axis: str, works: list[str], sizes: list[int], size: int, clock: str) -> Iterator[tuple[str, list[Job]]]:
    """The lines of an axis' tables: what changes, and the jobs."""
    for work in works:
        job = Job(work, 1, size, "float32", clock=clock)
        if axis == "size" and work != "text":
            yield work, [replace(job, size=side) for side in sizes]
        if axis == "batch":
            yield work, [replace(job, batch=count) for count in COUNTS]
        if axis == "prompt" and work in ("unet", "text"):
            yield work, [replace(job, chunks=count) for count in COUNTS]
    if axis == "steps":
        yield "walk", [Job("walk", 1, size, "float32", steps=steps, clock=clock) for steps in STEPS]


def describe(axis: str, job: Job) -> tuple[str, float]:
    """A point's name, and how large it is."""
    match axis:
        case "size":
            return f"{job.size}x{job.size}", float(job.size**2)
        case "batch":
            return f"batch {job.batch}", float(job.batch)
        case "steps":
            return f"{job.steps} steps", float(job.steps)
        case _:
            return f"{job.chunks} chunks", float(job.chunks)


def main() -> None:
    parser = arguments(__doc__)
    add_clock(parser)
    parser.add_argument("axes", nargs="*", default=AXES, help=f"of {', '.join(AXES)}; default: all")
    parser.add_argument(
        "--preset", choices=[n for n, p in PRESETS.items() if p.words and p.autoencoder], default="tiny"
    )
    parser.add_argument("--works", nargs="+", choices=("unet", "decode", "encode", "text"), default=["unet", "decode"])
    parser.add_argument("--sizes", type=int, nargs="+", help="sides in pixels; the other axes are at the preset's own")
    parser.add_argument("--size", type=int, help="of the other axes; default: the preset's own")
    parser.add_argument("--turns", type=int, default=1, help="rounds over the points; the median counts")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds for a point")
    parser.add_argument("--scratch", type=Path, help="where weights are kept for the next run; default: nowhere")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    report = Report.of(options)
    size = preset.width if options.size is None else options.size
    sizes = options.sizes if options.sizes is not None else SIZES.get(options.preset, (size,))
    with folder(options.preset, "float32", options.scratch) as weights:
        for axis in options.axes:
            for work, listed in jobs(axis, options.works, list(sizes), size, options.clock):
                print(f"{preset.title}: {work}, by {axis}")
                print(f"  {'':<12}{'seconds':>10}{'GFLOP':>12}{'GFLOP/s':>9}{'beyond':>8}{'MB':>9}{'of growth':>11}")
                taken: dict[Job, list[tuple[float, int]]] = {job: [] for job in listed}
                for turn in range(options.turns):
                    for job in listed if turn % 2 == 0 else reversed(listed):
                        taken[job].append(measure(options.preset, weights, job, options.patience))
                points = [
                    Point(job, flop(preset, job), median(s for s, _ in found), max(b for _, b in found))
                    for job, found in taken.items()
                ]
                show(report, axis, work, points)


def show(report: Report, axis: str, work: str, points: list[Point]) -> None:
    """A table of one axis."""
    first = points[0]
    for point in points:
        name, units = describe(axis, point.job)
        beyond = (point.seconds / first.seconds) / (point.flop / first.flop)
        memory = (point.above / max(first.above, 1)) / (units / describe(axis, first.job)[1])
        rate = point.flop / point.seconds / 1e9
        report.add(
            f"  {name:<12}{point.seconds:>10.3f}{point.flop / 1e9:>12.2f}{rate:>9.0f}{beyond:>8.2f}"
            f"{point.above / 1e6:>9.0f}{memory:>11.2f}",
            axis=axis,
            work=work,
            at=name,
            seconds=point.seconds,
            flop=point.flop,
            beyond=beyond,
            bytes=point.above,
        )
    print()


if __name__ == "__main__":
    main()
