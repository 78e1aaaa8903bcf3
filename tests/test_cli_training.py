"""The record of what a run was told, and what `safelight train` makes of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import safelight
from safelight.cli import main
from safelight.errors import TrainingError
from safelight.training.config import LoopConfig
from safelight.training.loop import require_free
from safelight.training.recipes.commands import TOLD, record
from safelight.training.recipes.settings import DataConfig

SHORT = ["--images", "4", "--batch", "2", "--count", "6", "--vocabulary", "600", "--workers", "0", "--device", "cpu"]


def told(output: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((output / TOLD).read_text("utf-8"))
    return content


def test_a_run_records_what_it_was_told_and_a_resumed_one_both(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "clip", "--output", str(run), *SHORT, "--lr", "0.001", "--betas", "0.9", "0.99"]) == 0
    first = told(run)
    assert (first["version"], first["recipe"], first["before"]) == (safelight.__version__, "clip", [])
    assert first["data"] == {"data": "scenes", "size": 64, "count": 6, "data_seed": 0}
    assert first["settings"] == {"preset": "tiny", "family": 1, "vocabulary": 600}
    loop = first["loop"]
    assert isinstance(loop, dict)
    assert set(loop) == set(LoopConfig.__dataclass_fields__)
    assert (loop["output"], loop["lr"], loop["betas"], loop["resume"]) == (str(run), 0.001, [0.9, 0.99], False)

    more = ["--lr", "0.001", "--betas", "0.9", "0.99", "--resume", "--images", "6"]
    assert main(["train", "clip", "--output", str(run), *SHORT[2:], *more]) == 0
    second = told(run)
    assert isinstance(second["loop"], dict)
    assert (second["loop"]["images"], second["loop"]["resume"]) == (6, True)
    assert second["before"] == [{key: value for key, value in first.items() if key != "before"}]


def test_a_record_makes_no_folder_taken_and_only_one_process_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = LoopConfig(tmp_path / "run")
    monkeypatch.setenv("RANK", "1")
    record("clip", loop, "some pictures", {"data": DataConfig()})
    assert not loop.output.exists()
    monkeypatch.setenv("RANK", "0")
    record("clip", loop, "some pictures", {"data": DataConfig()})
    assert told(loop.output)["pictures"] == "some pictures"
    require_free(loop.output)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / TOLD).parent.mkdir()
    for content in ("{", "[]", "{}", '{"before": 1}'):
        (tmp_path / TOLD).write_text(content)
        with pytest.raises(TrainingError, match=r"settings\.json is damaged: delete it"):
            record("clip", LoopConfig(tmp_path, resume=True), "", {"data": DataConfig()})
