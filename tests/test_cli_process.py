"""The command as a process: how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ENDING = """
import atexit, sys, threading, time
import safelight.cli as cli

class Held:
    def __del__(self):
        print("taken apart")

sys.modules["held"] = Held()
atexit.register(print, "said at the end")
def main():
    print("said")
    {more}
    return 3
cli.main = main
cli.run()
"""
TORCH = 'sys.modules["torch"] = sys'
THREAD = 'threading.Thread(target=lambda: (time.sleep(0.3), print("said by another"))).start()'


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("pass", "said\nsaid at the end\ntaken apart\n"),
        (TORCH, "said\nsaid at the end\n"),
        (f"{TORCH}; {THREAD}", "said\nsaid by another\nsaid at the end\ntaken apart\n"),
    ],
    ids=["nothing is loaded", "networks are", "others are at work"],
)
def test_all_is_said_before_the_end_and_networks_are_not_taken_apart(more: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING.format(more=more)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, said, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_what_could_not_be_written_is_no_success() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", ENDING.format(more=TORCH).replace("return 3", "return 0")],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode != 0 and "No space left" in done.stderr
