"""Checkpoints on bad disks: never half-written, never trusted when damaged."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from safelight.checkpoints import writing
from safelight.errors import OutputError, TrainingError
from safelight.training import store as module
from safelight.training.store import State, Store, damage, read_state, read_tensors

TENSORS = {
    "weights": {"net/weight": torch.arange(6.0).reshape(2, 3), "net/n": torch.tensor(3)},
    "ema": {"net/weight": torch.ones(2, 3).T},  # not contiguous
}


def state(images: int) -> State:
    return State(
        micro=images // 4,
        skipped=1,
        bad_in_a_row=0,
        images=100,
        processes=1,
        ema_updates={"net": 7},
        recipe={"scale": 0.1 + 0.2},
        settings={"lr": 1e-4, "betas": [0.9, 0.999]},
    )


def saved(store: Store, images: int) -> Path:
    store.save(images, TENSORS, state(images))
    return store.path(images)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def require_whole(path: Path) -> None:
    assert damage(path) is None
    read: dict[str, dict[str, Tensor]] = read_tensors(path)
    for file, content in TENSORS.items():
        assert all(torch.equal(read[file][key], tensor) for key, tensor in content.items())


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = saved(Store(tmp_path, keep=2), 12)
    require_whole(path)
    assert read_state(path) == state(12)
    assert names(path) == ["ema.safetensors", "manifest.json", "state.json", "weights.safetensors"]


def test_the_oldest_go_and_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=2)
    for images in (9, 10, 999_999_999_999, 1_000_000_000_000):
        store.save(images, TENSORS, state(images))
    assert names(tmp_path) == ["1000000000000", "999999999999"]
    assert store.find().path == tmp_path / "1000000000000"


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=5)
    good, bad = saved(store, 4), saved(store, 8)
    dice = random.Random(0)
    for file in sorted(bad.iterdir()):
        data = file.read_bytes()
        for _ in range(25):
            position, bit = dice.randrange(len(data)), dice.randrange(8)
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            file.write_bytes(flipped)
            if file.name == "manifest.json" and damage(bad) is None:
                require_whole(bad)  # a blank between entries became another blank
                continue
            found = store.find()
            assert found.path == good, f"bit {bit} of byte {position} of {file.name} went unnoticed"
            assert [p for p, _ in found.rejected] == [bad]
        file.write_bytes(data)
    assert store.find().path == bad


@pytest.mark.parametrize("file", ["weights.safetensors", "state.json", "manifest.json"])
def test_missing_and_truncated_files_are_named(tmp_path: Path, file: str) -> None:
    path = saved(Store(tmp_path, keep=1), 4)
    data = (path / file).read_bytes()
    (path / file).write_bytes(data[:-3])
    fault = damage(path)
    assert fault is not None
    assert file in fault
    (path / file).unlink()
    assert damage(path) == f"{file} is missing"


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = saved(Store(tmp_path, keep=1), 4)
    content = (path / "state.json").read_text().replace('"format": 1', '"format": 2')
    (path / "state.json").write_text(content)
    with pytest.raises(TrainingError, match="has format 2, this version reads 1"):
        read_state(path)


@contextmanager
def failing(at: int) -> Iterator[list[str]]:
    """The call number `at` to the file system that can fail on a full disk fails. Gives the list of calls made."""
    made: list[str] = []

    def failer(name: str, real: object) -> object:
        def call(*args: object, **options: object) -> object:
            made.append(name)
            if len(made) - 1 == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **options)  # type: ignore[operator]

        return call

    with (
        patch("os.fsync", failer("fsync", os.fsync)),
        patch("os.mkdir", failer("mkdir", os.mkdir)),
        patch.object(Path, "replace", failer("replace", Path.replace)),
        patch.object(Path, "write_text", failer("write_text", Path.write_text)),
        patch("safelight.checkpoints.writing.save_file", failer("tensors", writing.save_file)),
    ):
        yield made


def test_a_disk_full_at_any_call_leaves_the_earlier_checkpoint_and_nothing_half_written(tmp_path: Path) -> None:
    failed = 0
    for at in range(1000):
        folder = tmp_path / str(at)
        store = Store(folder, keep=1)
        before = saved(store, 4)
        with failing(at) as made:
            try:
                store.save(8, TENSORS, state(8))
            except OutputError as error:
                assert "No space left" in str(error)
                assert "\n" not in str(error)
            else:
                break
        failed += 1
        left = names(folder)
        assert set(left) <= {before.name, "000000000008"}, f"{made[at]} left {left}"
        found = store.find()
        assert found.path is not None
        assert found.rejected == []
        require_whole(found.path)
        shutil.rmtree(folder)
    assert failed > 10, "the faults did not reach the writing"


def test_a_file_size_limit_is_a_full_disk_in_one_line(tmp_path: Path) -> None:
    code = f"""
import resource, signal, sys, torch
from pathlib import Path
from safelight.errors import OutputError
from safelight.training.store import Store
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_training_store import state
store = Store(Path({str(tmp_path)!r}), keep=1)
small, large = ({{"weights": {{"x": torch.zeros(n)}}}} for n in (10, 100_000))
store.save(4, small, state(4))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    store.save(8, large, state(8))
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout
    assert "File too large" in done.stdout
    assert done.stdout.count("\n") == 1
    assert names(tmp_path) == ["000000000004"]


def test_older_ones_are_deleted_only_once_the_new_one_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, keep=1)
    store.save(4, TENSORS, state(4))
    monkeypatch.setattr(module, "damage", lambda path: "the disk lies")
    with pytest.raises(OutputError, match="not read back as it was written"):
        store.save(8, TENSORS, state(8))
    assert "000000000004" in names(tmp_path)


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    """SIGKILL at random moments, thirty times, while a process saves as fast as it can."""
    code = f"""
import os, random, signal, sys, time
from pathlib import Path
from safelight.training.store import Store
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_training_store import TENSORS, state
dice = random.Random(1)
for attempt in range(30):
    store, (reader, writer) = Store(Path(sys.argv[1]) / str(attempt), keep=2), os.pipe()
    child = os.fork()
    if child == 0:
        for images in range(4, 10**9, 4):
            store.save(images, TENSORS, state(images))
            os.write(writer, b"%d " % images)
    os.read(reader, 1)  # it has begun
    time.sleep(dice.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writer)
    reported = "4 " + os.fdopen(reader).read()
    print(attempt, reported.split()[-1])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cut_short = 0
    for attempt, reported in (line.split() for line in done.stdout.splitlines()):
        store = Store(tmp_path / attempt, keep=2)
        found = store.find()
        assert found.path is not None
        assert int(found.path.name) >= int(reported), "a checkpoint that was reported is gone"
        assert found.rejected == []
        require_whole(found.path)
        cut_short += any(not name.isdigit() for name in names(store.folder))
        store.clean()
        assert all(name.isdigit() for name in names(store.folder))
    assert cut_short > 0, "no kill hit a save: the test proves nothing"
