"""What the benchmarks say is what was measured: turns, ratios, files, and the arithmetic that is counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from contestants import NEEDS, Child, Job
from growth import flop
from measuring import SAFELIGHT, Report, Times, installed, middle_half, taken, times_faster
from safelight.presets import PRESETS
from weights import FOLDER, folder


def test_turns_are_strict_and_reversed_and_the_first_do_not_count() -> None:
    order: list[str] = []

    def one(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    found = taken({"a": lambda: one("a", 1.0), "b": lambda: one("b", 3.0)}, turns=3, warmup=1)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert found == {"a": Times([1.0] * 3), "b": Times([3.0] * 3)}


def test_a_ratio_is_taken_turn_by_turn() -> None:
    """A machine that becomes slower meets both: the ratio does not notice."""
    assert times_faster(Times([1.0, 2.0, 4.0]), Times([1.5, 3.0, 6.0])) == [1.5, 1.5, 1.5]
    assert middle_half([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
    assert middle_half([7.0]) == (7.0, 7.0)


def test_what_is_printed_is_written_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path / "x.json")
    report.times("work", {SAFELIGHT: Times([1.0, 1.0]), "peer": Times([2.0, 2.0])}, aims={"peer": 1.5})
    assert "2.00x as fast" in (said := capsys.readouterr().out)
    assert "aim 1.50x" in said
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["torch"] and written["date"] and written["cores"]
    assert [row["contestant"] for row in written["rows"]] == [SAFELIGHT, "peer"]
    assert written["rows"][1]["times_faster"] == [2.0, 2.0]


def test_a_peer_that_is_not_there_is_named_with_the_mend(capsys: pytest.CaptureFixture[str]) -> None:
    assert installed(["here", "away"], {"here": ("json",), "away": ("no_such_package",)}) == ["here"]
    assert "away is left out" in (said := capsys.readouterr().out)
    assert "pip install no_such_package" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("work", "gigaflop"), [("unet", 803), ("decode", 2514), ("encode", 1117)])
def test_the_arithmetic_counted_is_that_of_stable_diffusion_1(work: str, gigaflop: int) -> None:
    """At 512x512; the numbers were counted of the published networks, elsewhere."""
    assert flop(PRESETS["sd1"], Job(work, 1, 512, "float32")) == pytest.approx(gigaflop * 1e9, rel=0.005)


def test_both_sides_of_a_race_compute_the_same(tmp_path: Path) -> None:
    """The tiny's UNet, as `networks.py` runs it: processes of their own, the same files."""
    import torch  # noqa: PLC0415

    answers = []
    with folder("tiny", "float32", tmp_path) as weights:
        assert (weights / FOLDER / "unet").is_dir()
        for name in (SAFELIGHT, "diffusers"):
            assert installed([name], NEEDS)
            child = Child.start(name, "tiny", weights)
            seconds, bytes_ = child.do(Job("unet", 2, 64, "float32", str(tmp_path / f"{name}.pt")))
            child.stop()
            assert seconds > 0 and bytes_ > 100e6
            answers.append(torch.load(tmp_path / f"{name}.pt"))
    ours, theirs = answers
    assert ours.shape == theirs.shape == (2, 4, 16, 16)
    assert float((ours - theirs).abs().max() / theirs.std()) < 1e-4
