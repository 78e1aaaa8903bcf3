"""What the benchmarks say is what was measured: turns, ratios, files, and the arithmetic that is counted."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import shortcuts
from contestants import COMPILED, NEEDS, Child, Job
from growth import flop
from measuring import SAFELIGHT, Report, Times, add_device, devices, installed, middle_half, taken, times_faster
from safelight.presets import PRESETS
from safelight.tasks.requests import TextToImage
from shortcuts import Asked, noted, walk_of
from shortcuts import flop as flop_of_a_question
from toy import toy_model
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


@pytest.mark.parametrize(("asked", "there"), [(["cpu"], ["cpu"]), (["cpu", "cuda"], ["cpu"]), (["cuda"], [])])
def test_without_a_gpu_its_rows_are_left_out_and_one_line_says_so(
    asked: list[str], there: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch  # noqa: PLC0415

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = argparse.ArgumentParser()
    add_device(parser)
    assert devices(parser.parse_args(["--device", *asked])) == there
    said = capsys.readouterr().out
    assert said == ("no CUDA device here: the GPU's rows are left out\n" if "cuda" in asked else "")
    assert parser.parse_args([]).device == ["cpu"]


def test_ours_compiled_is_a_contestant_that_needs_nothing() -> None:
    assert installed([COMPILED], NEEDS) == [COMPILED] == ["safelight-compiled"]


def test_a_peer_that_is_not_there_is_named_with_the_mend(capsys: pytest.CaptureFixture[str]) -> None:
    assert installed(["here", "away"], {"here": ("json",), "away": ("no_such_package",)}) == ["here"]
    assert "away is left out" in (said := capsys.readouterr().out)
    assert "pip install no_such_package" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("work", "gigaflop"), [("unet", 803), ("decode", 2514), ("encode", 1117)])
def test_the_arithmetic_counted_is_that_of_stable_diffusion_1(work: str, gigaflop: int) -> None:
    """At 512x512; the numbers were counted of the published networks, elsewhere."""
    assert flop(PRESETS["sd1"], Job(work, 1, 512, "float32")) == pytest.approx(gigaflop * 1e9, rel=0.005)


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({}, {Asked(2): 8}),
        ({"guidance_interval": (0.0, 0.5)}, {Asked(2): 4, Asked(1): 4}),
        ({"deep_every": 3}, {Asked(2, finds=1): 3, Asked(2, shallow=1): 5}),
        ({"deep_every": 4, "deep_below": 2}, {Asked(2, finds=2): 2, Asked(2, shallow=2): 6}),
        ({"merge_tokens": 0.5, "steps": 5}, {Asked(2, merge=0.5): 5}),
    ],
)
def test_what_a_walk_asks_is_noted(fields: dict[str, object], asked: dict[Asked, int]) -> None:
    model = toy_model()
    request = model.resolve(TextToImage(prompt="", seed=0, steps=8, sampler="dpmpp_2m", width=64, height=64))
    assert noted(model, request.changed(**fields)) == asked
    assert not model.unet._forward_pre_hooks


def test_the_arithmetic_of_a_question_is_that_of_its_parts() -> None:
    whole = flop_of_a_question(Asked(2), 256)
    assert whole == 2 * flop_of_a_question(Asked(1), 256) == 2 * flop(PRESETS["sd1"], Job("unet", 1, 256, "float32"))
    assert flop_of_a_question(Asked(2, finds=1), 256) == whole, "keeping an answer is no arithmetic"
    below = [flop_of_a_question(Asked(2, shallow=joins), 256) for joins in (1, 2, 4)]
    assert below == sorted(below) and below[-1] < whole / 2
    assert flop_of_a_question(Asked(2, merge=0.5), 256) < flop_of_a_question(Asked(2, merge=0.25), 256) < whole
    found = {Asked(2).name: Times([2.0, 4.0]), Asked(1).name: Times([1.0, 1.5])}
    assert walk_of(Counter({Asked(2): 3, Asked(1): 2}), found, 2) == Times([8.0, 15.0])


@pytest.mark.slow
def test_times_of_shortcuts_are_of_walks_made_of_their_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same with tiny's shapes in place of SD 1.5's."""
    monkeypatch.setattr(shortcuts, "LARGE", PRESETS["tiny"])
    monkeypatch.setattr(shortcuts, "SHORTCUTS", ({"steps": 5}, {"deep_every": 5}, {"merge_tokens": 0.5}))
    told = ["time", "--turns", "1", "--pictures", "10", "--size", "64", "--json", str(tmp_path / "x.json")]
    monkeypatch.setattr(sys, "argv", ["shortcuts.py", *told])
    shortcuts.main()
    rows = {row["shortcut"]: row for row in json.loads((tmp_path / "x.json").read_text())["rows"] if "shortcut" in row}
    assert [*rows] == ["none", "steps 5", "deep-every 5", "merge-tokens 0.5"]
    assert rows["steps 5"]["times_faster"] == [pytest.approx(4.0)]
    calls = capsys.readouterr().out.partition("one call")[2]
    assert {"2 rows, whole", "2 rows, 1 joins", "2 rows, whole, merged 0.5"} == {
        line.split("  ")[1].strip() for line in calls.splitlines() if " s  (" in line
    }
    assert "| none | " in calls and "| deep-every 5 | " in calls


@pytest.mark.slow
def test_both_sides_of_a_race_compute_the_same(tmp_path: Path) -> None:
    """The tiny's UNet, as `networks.py` runs it: processes of their own, the same files."""
    import torch  # noqa: PLC0415

    answers = []
    with folder("tiny", "float32", tmp_path) as weights:
        assert (weights / FOLDER / "unet").is_dir()
        for name in (SAFELIGHT, "diffusers"):
            assert installed([name], NEEDS)
            child = Child.start(name, "tiny", weights)
            seconds, bytes_ = child.do(Job("unet", 2, 64, "float32", answer=str(tmp_path / f"{name}.pt")))
            child.stop()
            assert seconds > 0 and bytes_ > 100e6
            answers.append(torch.load(tmp_path / f"{name}.pt"))
    ours, theirs = answers
    assert ours.shape == theirs.shape == (2, 4, 16, 16)
    assert float((ours - theirs).abs().max() / theirs.std()) < 1e-4


def test_what_int8_costs_is_told_for_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image  # noqa: PLC0415

    import int8  # noqa: PLC0415

    assert int8.psnr(Image.new("L", (2, 2), 10), Image.new("L", (2, 2), 11)) == pytest.approx(48.13, abs=0.01)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["int8.py", "--steps", "3", "--prompts", "1"])
    int8.main()
    said = [line for line in capsys.readouterr().out.splitlines() if "dB" in line]
    assert [line.split()[0] for line in said] == ["step", "step", "step", "pictures"]
    assert all(25 < float(line.split()[-4]) < 80 for line in said)


BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = ("--preset", "tiny")
ONCE = ("--turns", "1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "networks": ("unet", "guided", "decode", "encode", "text", *TINY, *ONCE),
    "attention": ONCE,
    "shortcuts": ("previews", "--prompts", "10", "--size", "64", *ONCE),
    "startup": (*TINY, "--steps", "1", *ONCE),
    "loading": (*TINY, *ONCE),
    "training": (*TINY, "--steps", "1", *ONCE),
    "growth": (*TINY, "--sizes", "64", "--patience", "0.1"),
    "decode": (*TINY, "--sizes", "64"),
    "overhead": ONCE,
    "orders": (),
    "batches": ("--samplers", "euler", "--steps", "2"),
    "adapters": (*TINY, *ONCE),
}
"""Every command of docs/benchmarks.md (but int8's and other words of shortcuts', above), at its smallest."""


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_goes_to_its_end(name: str, tmp_path: Path) -> None:
    """And writes rows with numbers in them, where it writes any."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *COMMANDS[name], "--json", str(tmp_path / "x.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["date"] and written["rows"]


def test_every_benchmark_that_is_told_of_is_there() -> None:
    text = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text()
    told = {word.removeprefix("benchmarks/").removesuffix(".py") for word in re.findall(r"benchmarks/\w+\.py", text)}
    assert told == {*COMMANDS, "int8"}
