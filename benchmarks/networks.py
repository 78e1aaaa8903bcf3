"""The networks against their peers: the UNet, the autoencoder both ways, the text towers.

    pip install '.[test]' && python benchmarks/networks.py unet --batch 1 2        # 12 GB of memory, some minutes
    python benchmarks/networks.py guided                       # the same picture twice, told two things: a guided step
    python benchmarks/networks.py unet decode encode text --peers diffusers openvino --turns 5 --json networks.json
    python benchmarks/networks.py unet --dtype int8 --peers diffusers openvino-int8 --scratch FOLDER
    python benchmarks/networks.py unet --preset sdxl --size 1024 --dtype bfloat16
    python benchmarks/networks.py unet decode --preset tiny --turns 20
    python benchmarks/networks.py unet decode --device cuda --dtype float16 --peers safelight-compiled compiled

Random weights at true size, the same for all and read from the same files; each contestant has a process of its own
and waits while another works, in strict turns. Before the turns count, answers are compared. Ours are the networks of
`safelight.load`. Peers: safelight-compiled (ours with `--compile`), diffusers (eager), compiled (the same under
`torch.compile`; minutes to compile), openvino,
openvino-int8 (`pip install openvino nncf`; minutes to convert, once for a `--scratch` folder). `--dtype int8` is for
ours, the others compute in float32, but for openvino-int8.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from contestants import GUIDED, NEEDS, Child, Job
from measuring import SAFELIGHT, Report, add_clock, add_device, arguments, devices, installed, taken
from safelight.presets import PRESETS
from weights import folder

WORKS = ("unet", GUIDED, "decode", "encode", "text")
AIMS: Mapping[tuple[str, int], Mapping[str, float]] = {
    ("unet", 1): {"diffusers": 1.45, "openvino": 1.0},
    (GUIDED, 1): {"diffusers": 1.6, "openvino": 1.0},
    ("decode", 1): {"diffusers": 1.5, "openvino": 1.0},
}
"""Times as fast as a peer, at least: of SD 1.5 at 512x512, float32, on two cores."""
INT8_AIMS: Mapping[tuple[str, int], Mapping[str, float]] = {("unet", 1): {"diffusers": 2.5, "openvino-int8": 1.0}}
"""The same of ours in int8."""
ALIKE = 1e-3
"""Largest difference in units of the answer's deviation, float32."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("works", nargs="*", default=["unet"], help=f"of {', '.join(WORKS)}; default: unet")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="sd1")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="pictures; of guided each is there twice")
    parser.add_argument("--size", type=int, help="pixels of a side; default: the preset's own")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "int8"), default="float32")
    parser.add_argument("--peers", nargs="*", choices=sorted(set(NEEDS) - {SAFELIGHT}), default=["diffusers"])
    add_device(parser)
    add_clock(parser)
    parser.add_argument("--turns", type=int, default=5, help="how often each is run")
    parser.add_argument("--scratch", type=Path, help="where weights are kept for the next run; default: nowhere")
    options = parser.parse_args()
    if unknown := set(options.works) - set(WORKS):
        parser.error(f"there is no {', '.join(sorted(unknown))}: the works are {', '.join(WORKS)}")
    if "cuda" in options.device and any(peer.startswith("openvino") for peer in options.peers):
        parser.error("OpenVINO is measured on the CPU: leave it out of --peers")
    preset, int8 = PRESETS[options.preset], options.dtype == "int8"
    dtype = "float32" if int8 else options.dtype
    size = preset.width if options.size is None else options.size
    report = Report.of(options, "diffusers", "transformers", *[p for p in ("openvino",) if p in options.peers])
    names = installed([SAFELIGHT, *options.peers], NEEDS)
    counted = options.preset == "sd1" and size == 512 and dtype == "float32"
    rows = [(device, work) for device in devices(options) for work in options.works]
    if not rows:
        return
    with folder(options.preset, dtype, options.scratch) as weights:
        for device, work in rows:
            children = {name: Child.start(name, options.preset, weights, device) for name in names}
            for batch in options.batch if work != "text" else [1]:
                job = Job(work, batch, size, dtype, int8, clock=options.clock)
                how = f"{options.dtype}, {device}, {options.clock} clock"
                what = f"{preset.title}: {work}, {size}x{size}, batch {batch}, {how}"
                compare(children, job, report)
                times = taken({name: doing(child, job) for name, child in children.items()}, options.turns)
                aims = (INT8_AIMS if int8 else AIMS).get((work, batch)) if counted and device == "cpu" else None
                report.times(what, times, "s" if times[SAFELIGHT].median > 0.5 else "ms", aims)
                if device != "cpu":
                    add_memory(children, job, what, report)
            for child in children.values():
                child.stop()


def doing(child: Child, job: Job) -> Callable[[], float]:
    """Seconds of the job, measured in the process that does it."""
    return lambda: child.do(job)[0]


def add_memory(children: Mapping[str, Child], job: Job, what: str, report: Report) -> None:
    """The most of the GPU's memory that each has at once, weights and all."""
    for name, child in children.items():
        _, most = child.do(job)
        report.add(f"  {name:<26}{most / 1e9:9.2f} GB of the GPU", what=what, contestant=name, peak=most)


def compare(children: Mapping[str, Child], job: Job, report: Report) -> None:
    """Say how far each answer is from the first peer's: times of networks that compute something else mean nothing."""
    answers = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, child in children.items():
            path = f"{temporary}/{name}.pt"
            child.do(replace(job, answer=path))
            answers[name] = torch.load(path)
    ours = answers.pop(SAFELIGHT)
    for name, theirs in answers.items():
        off = float((ours - theirs).abs().max() / theirs.std())
        decibels = float(20 * torch.log10(theirs.std() / (ours - theirs).std().clamp(min=1e-12)))
        report.add(
            f"  {name}'s answer differs from ours by {off:.1e} of its deviation at most, {decibels:.0f} dB in all",
            what=f"{job.work}, batch {job.batch}",
            contestant=name,
            difference=off,
            decibels=decibels,
        )
        rounds = job.int8 or "int8" in name or job.dtype != "float32"
        assert off < ALIKE or rounds, "they compute something else"


if __name__ == "__main__":
    main()
