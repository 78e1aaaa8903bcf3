"""Training as a process of its own: a second signal, and several processes at one run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runs import Numbers, OnePart, kept, run, settings, state

TESTS = str(Path(__file__).parent)


def test_the_first_signal_waits_for_the_step_and_the_second_does_not(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {TESTS!r})
from runs import OnePart, settings, run
class Slow(OnePart):
    def loss(self, batch, generator):
        if batch.index == 5:
            print("in the step", flush=True)
            begun = time.monotonic()
            while time.monotonic() - begun < 1:
                pass
            print("still here", flush=True)
            time.sleep(1000)
        return super().loss(batch, generator)
run(Slow(), settings(Path(sys.argv[1])))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the step\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "still here\n", "the first signal must not end the step"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == -signal.SIGTERM  # which a shell calls 143


@pytest.mark.slow
def test_two_processes_train_as_one_would(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {TESTS!r})
from test_training_processes import Shared
from runs import settings
from safelight.training.loop import train
stop_at, resume = int(sys.argv[2]), sys.argv[3] == "resume"
train(Shared(stop_at=stop_at), replace(settings(Path(sys.argv[1])), resume=resume))
""",
        "utf-8",
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def together(output: Path, stop_at: int, resume: str) -> None:
        subprocess.run(
            [*launch, str(script), str(output), str(stop_at), resume], check=stop_at < 0, capture_output=True
        )

    together(tmp_path / "both", -1, "begin")
    both = kept(tmp_path / "both")
    alone = run(Shared(), settings(tmp_path / "alone"))
    for key, tensor in alone.items():
        torch.testing.assert_close(both[key], tensor, rtol=1e-4, atol=1e-6)
    together(tmp_path / "stopped", 9, "begin")  # batch 9 is one process' only: both must leave
    assert state(tmp_path / "stopped").micro == 6
    together(tmp_path / "stopped", -1, "resume")
    assert all(torch.equal(tensor, both[key]) for key, tensor in kept(tmp_path / "stopped").items())


class Shared(OnePart):
    """Its rows follow from their place in the endless row of pictures, as those of `batch_indices` do."""

    def batch(self, index: int, size: int) -> Numbers:
        rows = [super(Shared, self).batch(index * size + k, 1).x for k in range(size)]
        return Numbers(torch.cat(rows), index)
