"""Losses and gradients that are not finite: skipped, counted, and after five in a row the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runs import Numbers, OnePart, TwoParts, checkpoints, kept, require_equal, run, settings, state
from safelight.errors import TrainingError
from safelight.training.loop import Turn


class Sick(OnePart):
    """Its loss, or only its gradient, is not finite at some batches."""

    def __init__(self, at: set[int], kind: str) -> None:
        super().__init__()
        self.at, self.kind = at, kind

    def loss(self, batch: Numbers, generator: torch.Generator) -> Tensor:
        loss = super().loss(batch, generator)
        if batch.index not in self.at:
            return loss
        if self.kind == "gradient":
            zero = (self.net.weight * 0).sum()
            return loss + zero.sqrt()  # 0, whose slope is infinite, times 0
        return loss * float(self.kind)


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_a_bad_step_is_as_if_it_had_not_been(tmp_path: Path, kind: str) -> None:
    # The last step is bad: all but the counters is as after the one before.
    good = run(OnePart(), settings(tmp_path / "good"), images=88, schedule="constant")
    bad = run(Sick({22}, kind), settings(tmp_path / "bad"), schedule="constant")
    require_equal(bad, good)
    assert (state(tmp_path / "bad").skipped, state(tmp_path / "bad").bad_in_a_row) == (1, 1)
    assert state(tmp_path / "bad").ema_updates == {"net": 11}


@pytest.mark.parametrize("kind", ["nan", "gradient"])
def test_one_bad_batch_among_the_accumulated_is_enough(tmp_path: Path, kind: str) -> None:
    found = run(Sick({4, 9, 12, 13}, kind), settings(tmp_path))
    assert state(tmp_path).skipped == 3
    assert state(tmp_path).bad_in_a_row == 0
    assert all(bool(t.isfinite().all()) for t in found.values())


def test_four_in_a_row_go_on_and_five_end_the_run_naming_the_last_good(tmp_path: Path) -> None:
    run(Sick(set(range(8, 16)), "nan"), settings(tmp_path / "four"))
    assert state(tmp_path / "four").skipped == 4
    with pytest.raises(TrainingError, match="net was not finite in 5 steps in a row, at image 72") as caught:
        run(Sick(set(range(8, 24)), "nan"), settings(tmp_path / "five"))
    good = checkpoints(tmp_path / "five")[-1]
    assert str(caught.value).endswith(f"the last good checkpoint is {good}")
    assert all(bool(t.isfinite().all()) for t in kept(tmp_path / "five").values())
    assert not (tmp_path / "five" / "config.json").exists(), "nothing may be exported"


def test_before_any_checkpoint_it_says_that_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint had been saved yet"):
        run(Sick(set(range(24)), "nan"), settings(tmp_path), save_every=1000)


def test_weights_that_burst_are_never_saved(tmp_path: Path) -> None:
    class Bursting(OnePart):
        def turns(self, batch: Numbers, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
            yield from super().turns(batch, generator, images_seen)
            if batch.index == 14:
                with torch.no_grad():
                    self.net.bias[0] = torch.inf

    with pytest.raises(TrainingError, match=r"weights of net are not finite at image 64: .*0+32$"):
        run(Bursting(), settings(tmp_path))


def test_statistics_of_a_bad_batch_are_undone(tmp_path: Path) -> None:
    class Poisoned(TwoParts):
        def batch(self, index: int, size: int) -> Numbers:
            made = super().batch(index, size)
            return Numbers(made.x * torch.nan, index) if index == 9 else made

    found = run(Poisoned(), settings(tmp_path))
    assert state(tmp_path).skipped == 1
    mean = found["weights/critic/1.running_mean"]
    assert bool(mean.isfinite().all())
    assert bool(found["ema/critic/1.running_mean"].isfinite().all())
    # 12 steps of 2 batches with 3 passes each, without those of the bad step.
    assert int(found["weights/critic/1.num_batches_tracked"]) == 11 * 2 * 3
