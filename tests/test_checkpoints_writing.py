"""Writing leaves the whole result or nothing, and loses nothing that was there."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from checkpoint_cases import same, toy_checkpoint
from safelight.checkpoints import read, write_folder, writing
from safelight.checkpoints.writing import atomic, staged_folder, write_json, write_tensors, write_text
from safelight.errors import OutputError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_tensors_are_written_as_the_library_reads_them(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": base, "view": base.t(), "again": base, "half": base.half(), "empty": torch.empty(0)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"made": "here"})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_files_have_the_mode_that_others_have(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)})
    write_json(tmp_path / "a.json", {"a": 1})
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_failure_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "first")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half of the sec")
        raise RuntimeError
    assert contents(tmp_path) == {"a.txt": b"first"}
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"a.txt": b"first"}


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere/a\.json could not be written \(No such file"):
        write_json(tmp_path / "nowhere/a.json", {})
    with pytest.raises(OutputError, match=r"nowhere/a\.safetensors could not be written"):
        write_tensors(tmp_path / "nowhere/a.safetensors", {"w": torch.ones(1)})


FULL = [
    ("Path.open", "open"),
    ("Path.write_text", "write_text"),
    ("Path.mkdir", "mkdir"),
    ("Path.replace", "replace"),
    ("Path.chmod", "chmod"),
    ("os.fsync", "fsync"),
]


def write_small(target: Path, number: int) -> None:
    """As `write_folder` does it, with less in it."""
    with staged_folder(target, "index.json") as staging:
        (staging / "part").mkdir()
        write_json(staging / "part/config.json", {"number": number})
        write_tensors(staging / "part/w.safetensors", {"w": torch.full((3,), float(number))})
        write_text(staging / f"only_{number}.txt", "x")
        write_json(staging / "index.json", {"number": number})


@pytest.mark.parametrize("existing", [False, True], ids=["new", "over an earlier model"])
@pytest.mark.parametrize(("name", "method"), FULL)
def test_a_disk_that_is_full_at_any_call_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str, existing: bool
) -> None:
    target = tmp_path / "model"
    if existing:
        write_small(target, 1)
        (target / "mine.txt").write_text("stays")
        write_text(target / "part/w.bin", "earlier weights, which go")
    before = contents(tmp_path)

    if existing:
        shutil.copytree(target, tmp_path / "rehearsal/model")
    write_small(tmp_path / "rehearsal/model", 2)
    after = contents(tmp_path / "rehearsal")
    shutil.rmtree(tmp_path / "rehearsal")

    place: Any = os if name.startswith("os.") else Path
    true = getattr(place, method)
    for fatal in range(1, 200):
        calls = 0

        def fail(*args: Any, fatal: int = fatal, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise OSError(errno.ENOSPC, "No space left on device")
            return true(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(place, method, fail)
            try:
                write_small(target, 2)
            except OutputError as error:
                assert str(error).startswith(f"{target} could not be written (No space left on device)")
                failed = True
            else:
                failed = False
        now = contents(tmp_path)
        assert now in (before, after), f"call {fatal} of {method} leaves {now.keys()}"
        if not failed:
            assert now == after
            assert calls < fatal, "an error was swallowed"
            assert fatal > 1, f"{method} is never called"
            return
        if now == after:  # the very last step, the folder's own name, after all is in place
            break
    assert method == "fsync"


def test_a_file_size_limit_leaves_nothing(tmp_path: Path) -> None:
    """The kernel itself refuses the bytes, in the middle of the weights."""
    code = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from checkpoint_cases import toy_checkpoint
        from safelight.checkpoints import write_folder
        from safelight.errors import OutputError
        checkpoint = toy_checkpoint()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_folder(Path(sys.argv[1]) / "model", checkpoint)
        except OutputError as error:
            print(error)
        """
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=900)
    assert done.stdout.startswith(f"{tmp_path / 'model'} could not be written (")
    assert "File too large" in done.stdout
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_something_else_is_never_overwritten(tmp_path: Path) -> None:
    checkpoint = toy_checkpoint()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("x")
    for target in (mine, file):
        with pytest.raises(OutputError, match="is no model folder"):
            write_folder(target, checkpoint)
    assert contents(tmp_path) == {"file": b"x", "mine/thesis.txt": b"years of work"}


def test_an_empty_folder_and_missing_parents_are_filled(tmp_path: Path) -> None:
    checkpoint = toy_checkpoint()
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a/b/c"):
        write_folder(target, checkpoint)
        assert same(read(target).parts, checkpoint.parts)


def test_the_marker_goes_first_and_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds the marker finds the whole of one model."""
    target = tmp_path / "model"
    write_small(target, 1)
    moved: list[tuple[str, str]] = []
    true = Path.replace

    def note(source: Path, goal: Path) -> Path:
        if not source.name.endswith(writing.SUFFIX):
            moved.append((str(source.relative_to(target)), str(Path(goal).relative_to(target))))
        return true(source, goal)

    monkeypatch.setattr(Path, "replace", note)
    write_small(target, 2)
    assert moved[0][0] == "index.json"
    assert moved[-1][1] == "index.json"
    assert [goal for _, goal in moved].count("index.json") == 1


def test_a_killed_writer_leaves_no_half_model(tmp_path: Path) -> None:
    """SIGKILL in the middle: the target is not there; what is left says by its name that it is unfinished."""
    code = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from checkpoint_cases import toy_checkpoint
        from safelight.checkpoints import folder, write_folder
        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)
        folder.write_tokenizer = die
        write_folder(Path(sys.argv[1]) / "model", toy_checkpoint())
        """
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, check=False, timeout=900)
    assert done.returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [writing.SUFFIX]
