"""A large file is read once for its hash, and again when it is another."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from safelight.tasks import identity


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(identity, "LARGE", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"0123456789")
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_second_time_it_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert identity.hash_files(file) == _sha256(file)
    wanted = _sha256(file)

    def fail(*_: object) -> None:
        raise AssertionError("it was read again")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    assert identity.hash_files(file) == wanted


def test_what_was_written_since_is_seen(file: Path) -> None:
    before = identity.hash_files(file)
    file.write_bytes(b"9876543210")
    assert identity.hash_files(file) == _sha256(file) != before


def test_small_files_are_not_remembered(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"0123")
    assert identity.hash_files(file) == _sha256(file)
    assert not (tmp_path / "cache").exists()


def test_what_is_no_hash_is_not_believed(file: Path, tmp_path: Path) -> None:
    identity.hash_files(file)
    (kept,) = (tmp_path / "cache" / "safelight" / "hashes").iterdir()
    kept.write_text("half a ha")
    assert identity.hash_files(file) == _sha256(file) == kept.read_text()


def test_without_a_cache_it_is_read(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert identity.hash_files(file) == _sha256(file)
