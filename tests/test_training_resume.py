"""A run that was interrupted ends with the very bits of one that was not."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from runs import OnePart, TwoParts, checkpoints, require_equal, run, settings, state
from safelight.errors import TrainingError
from safelight.training.loop import train

RECIPES = {"one": OnePart, "two": TwoParts}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_interrupted_anywhere_it_continues_bit_by_bit(tmp_path: Path, name: str, workers: int) -> None:
    recipe = RECIPES[name]
    config = replace(settings(tmp_path / "whole"), workers=workers)
    whole = run(recipe(), config)
    assert any(key.startswith("optimizer/net/weight/exp_avg_sq") for key in whole)
    for stop_at in (0, 1, 7, 12, 23):  # at, and in the middle of, accumulations; before and after a checkpoint
        output = tmp_path / f"stopped{stop_at}"
        with pytest.raises(SystemExit) as left:
            run(recipe(stop_at=stop_at), replace(config, output=output))
        assert left.value.code == 143
        stopped = state(output)
        assert stopped.micro == stop_at // 2 * 2 + 2, "the step was not finished, or another one was begun"
        require_equal(run(recipe(), replace(config, output=output), resume=True), whole)
        assert replace(state(output), recipe={}) == replace(state(tmp_path / "whole"), recipe={})


def test_interrupted_twice_by_the_keyboard(tmp_path: Path) -> None:
    whole = run(TwoParts(), settings(tmp_path / "whole"))
    config = settings(tmp_path / "stopped")
    for stop_at, resume in ((5, False), (14, True)):
        with pytest.raises(SystemExit) as left:
            run(TwoParts(stop_at=stop_at, by=signal.SIGINT), config, resume=resume)
        assert left.value.code == 130
    require_equal(run(TwoParts(), config, resume=True), whole)


def test_after_a_run_the_signals_are_as_they_were(tmp_path: Path) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit):
        run(OnePart(stop_at=3), settings(tmp_path))
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_longer_run_continues_a_finished_one(tmp_path: Path) -> None:
    whole = run(TwoParts(), settings(tmp_path / "whole"), images=160, schedule="constant")
    run(TwoParts(), settings(tmp_path / "grown"), images=96, schedule="constant")
    grown = run(TwoParts(), settings(tmp_path / "grown"), images=160, schedule="constant", resume=True)
    require_equal(grown, whole)


def test_a_finished_run_exports_again_and_trains_nothing(tmp_path: Path) -> None:
    before = run(OnePart(), settings(tmp_path))
    (tmp_path / "config.json").unlink()
    recipe = OnePart()
    require_equal(run(recipe, settings(tmp_path), resume=True), before)
    assert recipe.seen == []
    assert (tmp_path / "config.json").is_file()


def test_nothing_to_resume_is_said_and_the_run_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(OnePart(), settings(tmp_path), resume=True)
    assert "nothing to resume in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("batch", 8, "--batch 4"),
        ("accumulate", 1, "--accumulate 2"),
        ("lr", 0.1, "--lr 0.05"),
        ("seed", 1, "--seed 0"),
        ("ema", 0.0, "--ema 0.9"),
        ("precision", "bf16", "--precision fp32"),
        ("weight_decay", 0.5, "--weight-decay 0.01"),
        ("betas", (0.5, 0.9), "--betas 0.9 0.999"),
    ],
)
def test_another_setting_is_refused_by_name(tmp_path: Path, name: str, value: object, mend: str) -> None:
    run(OnePart(), settings(tmp_path))
    with pytest.raises(TrainingError, match=f"was trained with {name} .*: resume with {mend}") as caught:
        run(OnePart(), settings(tmp_path), resume=True, **{name: value})
    assert "\n" not in str(caught.value)


def test_a_shorter_run_is_refused(tmp_path: Path) -> None:
    run(OnePart(), settings(tmp_path))
    with pytest.raises(TrainingError, match="run of 96 images, more than 32: resume with --images 96 or more"):
        run(OnePart(), settings(tmp_path), images=32, resume=True)


def test_another_recipe_is_refused_by_key_or_shape(tmp_path: Path) -> None:
    run(OnePart(), settings(tmp_path / "one"))
    with pytest.raises(TrainingError, match=r"weights file lacks critic/0\.bias: resume with the settings"):
        train(TwoParts(), replace(settings(tmp_path / "one"), resume=True))
    run(TwoParts(), settings(tmp_path / "two"))
    with pytest.raises(TrainingError, match="also trains critic"):
        train(OnePart(), replace(settings(tmp_path / "two"), resume=True))
    wide = OnePart()
    wide.net = type(wide.net)(4, 7)
    with pytest.raises(TrainingError, match=r"net/weight of shape \(4, 4\), this run \(7, 4\)"):
        train(wide, replace(settings(tmp_path / "one"), resume=True))


def test_damaged_checkpoints_are_named_set_aside_and_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(settings(tmp_path / "run"), keep=3)
    whole = run(TwoParts(), config)
    older, middle, newest = checkpoints(config.output)
    (newest / "manifest.json").unlink()
    weights = bytearray((middle / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (middle / "weights.safetensors").write_bytes(weights)
    require_equal(run(TwoParts(), replace(config, keep=1), resume=True), whole)
    said = capsys.readouterr().err
    assert f"rejected checkpoint {newest} (manifest.json is missing)" in said
    assert f"rejected checkpoint {middle} (weights.safetensors is not the file that was written" in said
    assert f"resuming from {older}, after 32 images" in said
    names = {p.name for p in older.parent.iterdir()}
    assert names == {newest.name, f"rejected-{newest.name}", f"rejected-{middle.name}"}


def test_without_any_whole_checkpoint_it_does_not_begin_anew(tmp_path: Path) -> None:
    run(OnePart(), settings(tmp_path))
    for path in checkpoints(tmp_path):
        (path / "state.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"no checkpoint .* is whole \(0+96: state.json has 2 bytes"):
        run(OnePart(), settings(tmp_path), resume=True)
