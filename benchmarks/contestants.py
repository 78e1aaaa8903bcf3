"""One side of a race over networks, in a process of its own that works when it is told to and waits otherwise.

`networks.py` starts one for each contestant. Both sides read the same files, so that what is mapped from them is in
memory once. Shapes: B batch, h w latent size, L tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from measuring import CLOCKS, SAFELIGHT, peak

COMPILED = f"{SAFELIGHT}-compiled"
"""Ours with `--compile`."""
GUIDED = "guided"
"""The UNet's work in a guided step: each picture is there twice, told two things."""
NEEDS: Mapping[str, tuple[str, ...]] = {
    SAFELIGHT: (),
    COMPILED: (),
    "diffusers": ("diffusers", "transformers"),
    "compiled": ("diffusers", "transformers"),
    "openvino": ("diffusers", "transformers", "openvino"),
    "openvino-int8": ("diffusers", "transformers", "openvino", "nncf"),
}
"""The packages of each contestant. "compiled" is diffusers under `torch.compile`."""
ENOUGH = 0.2
"""Seconds that a turn takes at least: what is quicker is done again and again."""


@dataclass(frozen=True)
class Job:
    """What to do once: a network's work on one input."""

    work: str
    """unet, guided, decode, encode, text; walk, which is all from a prompt to the last step's latent, by us only."""
    batch: int
    size: int
    """Pixels of a side."""
    dtype: str
    """Of what goes in and comes out, and of the weights."""
    int8: bool = False
    """Whether our UNet computes in whole numbers."""
    answer: str | None = None
    """Where to write what came out."""
    chunks: int = 1
    """The prompt's length, in what a text tower reads at once."""
    steps: int = 1
    """Of a walk."""
    clock: str = "wall"
    """As `measuring.CLOCKS`."""

    @property
    def network(self) -> str:
        """Whose work it is: unet, decode, encode, text."""
        return "unet" if self.work == GUIDED else self.work


@dataclass
class Child:
    """The process of a contestant."""

    name: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, name: str, preset: str, folder: Path, device: str = "cpu") -> Self:
        """A process that has loaded nothing yet."""
        command = [sys.executable, str(Path(__file__).resolve()), name, preset, str(folder), device]
        pipe = subprocess.PIPE
        return cls(name, subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))

    def do(self, job: Job) -> tuple[float, int]:
        """Seconds that the job took, and the peak of memory in bytes: the process's, or on a GPU the allocator's."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(job)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} could not do this; its words are above: {job}")
        found = json.loads(line)
        return found["seconds"], found["peak"]

    def stop(self) -> None:
        """Let go of its memory."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def seconds_of(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Of one call; short ones are repeated."""
    started, count = clock(), 0
    while True:
        call()
        count += 1
        passed = clock() - started
        if passed >= ENOUGH:
            return passed / count


def main() -> None:
    """Do the jobs that come, one a line."""
    name, preset, folder, device = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr

    import torch  # noqa: PLC0415 - not in those who only tell others what to do

    from sides import prepare  # noqa: PLC0415

    warnings.simplefilter("ignore")

    calls: dict[Job, Callable[[], object]] = {}
    for line in sys.stdin:
        job = Job(**json.loads(line))
        plain = replace(job, answer=None)
        with torch.inference_mode():
            if plain not in calls:
                calls[plain] = prepare(name, preset, folder, plain, device)
            call = calls[plain] if device == "cpu" else waited(calls[plain])
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            if job.answer is None:
                seconds = seconds_of(call, CLOCKS[job.clock])
            else:
                started = time.perf_counter()
                answer = call()
                seconds = time.perf_counter() - started
                torch.save(torch.as_tensor(answer).float().cpu().contiguous(), job.answer)
        most = peak() if device == "cpu" else torch.cuda.max_memory_allocated()
        print(json.dumps({"seconds": seconds, "peak": most}), file=answers, flush=True)


def waited(call: Callable[[], object]) -> Callable[[], object]:
    """The call, and the wait until the GPU is done."""
    import torch  # noqa: PLC0415

    def done() -> object:
        answer = call()
        torch.cuda.synchronize()
        return answer

    return done


if __name__ == "__main__":
    main()
