"""The loop: it does what a loop written out by hand does, and what it says about its batches and folders."""

from __future__ import annotations

import errno
import math
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from runs import MODEL, WIDTH, Numbers, OnePart, TwoParts, kept, run, settings, state
from safelight.errors import OutputError, SafelightError, TrainingError
from safelight.training.batches import batches, change_tensors
from safelight.training.loop import train


def by_hand(output: Path) -> tuple[nn.Module, list[Tensor]]:
    """The same run in the plainest PyTorch: the weights, and their average by definition."""
    config, recipe = settings(output), OnePart()
    net = recipe.net
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=0.0)
    decayed = torch.optim.AdamW([net.weight], lr=config.lr, weight_decay=config.weight_decay)
    optimizer.param_groups[0]["params"] = [net.bias]
    average = [p.detach().clone() for p in net.parameters()]
    for step in range(12):
        for k in range(2):
            x = recipe.batch(2 * step + k, 4).x
            ((net(x) - x / 2).pow(2).mean() / 2).backward()
        nn.utils.clip_grad_norm_(net.parameters(), config.clip)
        for each in (optimizer, decayed):
            each.param_groups[0]["lr"] = config.rate(8 * step)
            each.step()
        net.zero_grad()
        decay = min(config.ema, (2 + step) / (11 + step))
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, net.parameters(), strict=True)]
    return net, average


def test_it_is_the_loop_one_would_write_by_hand(tmp_path: Path) -> None:
    net, average = by_hand(tmp_path)
    found = run(OnePart(), settings(tmp_path / "run"))
    for name, wanted in net.named_parameters():
        torch.testing.assert_close(found[f"weights/net/{name}"], wanted.detach(), rtol=1e-5, atol=1e-6)
    for (name, _), wanted in zip(net.named_parameters(), average, strict=True):
        torch.testing.assert_close(found[f"ema/net/{name}"], wanted, rtol=1e-5, atol=1e-6)


def test_it_learns_and_exports_the_average(tmp_path: Path) -> None:
    found = run(OnePart(), settings(tmp_path), images=1600)
    exported = load_file(tmp_path / f"net.{MODEL}")
    assert torch.equal(exported["weight"], found["ema/net/weight"])
    torch.testing.assert_close(exported["weight"], torch.eye(WIDTH) / 2, atol=0.02, rtol=0)


def test_without_an_average_the_weights_are_exported(tmp_path: Path) -> None:
    found = run(OnePart(), settings(tmp_path), ema=0.0)
    assert torch.equal(load_file(tmp_path / f"net.{MODEL}")["weight"], found["weights/net/weight"])
    assert not any(key.startswith("ema/") for key in found)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    class Fours(OnePart):
        def batch(self, index: int, size: int) -> Numbers:
            rows = [super(Fours, self).batch(index * size // 4 + k, 4).x for k in range(size // 4)]
            return Numbers(torch.cat(rows), index)

    small = run(Fours(), settings(tmp_path / "small"), batch=4, accumulate=4)
    large = run(Fours(), settings(tmp_path / "large"), batch=16, accumulate=1)
    for key in small:
        torch.testing.assert_close(small[key], large[key], rtol=1e-4, atol=1e-6)


def test_a_turn_trains_its_own_part_only(tmp_path: Path) -> None:
    class Greedy(TwoParts):
        def turns(self, batch, generator, images_seen):  # type: ignore[no-untyped-def]  # only net's turn
            yield next(super().turns(batch, generator, images_seen))

    before = Greedy().critic[0].weight
    found = run(Greedy(), settings(tmp_path))
    assert torch.equal(found["weights/critic/0.weight"], before)
    assert not torch.equal(found["weights/net/weight"], Greedy().net.weight)


def test_clipping_limits_the_step_and_zero_does_not_clip(tmp_path: Path) -> None:
    # Adam forgets the scale of the gradient after it has settled; its first moment after one step does not.
    free = run(OnePart(), settings(tmp_path / "a"), images=8, clip=0.0)
    clipped = run(OnePart(), settings(tmp_path / "b"), images=8, clip=0.01)
    norms = [
        math.hypot(*(r[f"optimizer/net/{n}/exp_avg"].norm().item() for n in ("weight", "bias")))
        for r in (free, clipped)
    ]
    assert norms[1] == pytest.approx(0.1 * 0.01, rel=1e-4)
    assert norms[0] > 10 * norms[1]


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(tmp_path: Path) -> None:
    kinds: set[torch.dtype] = set()

    class Spy(OnePart):
        def loss(self, batch: Numbers, generator: torch.Generator) -> Tensor:
            kinds.add(self.net(batch.x).dtype)
            return super().loss(batch, generator)

    found = run(Spy(), settings(tmp_path), precision="bf16")
    assert kinds == {torch.bfloat16}
    assert {t.dtype for t in found.values()} == {torch.float32}


def test_random_numbers_follow_from_the_seed_and_the_batch(tmp_path: Path) -> None:
    drawn: dict[int, list[float]] = {}

    class Draws(OnePart):
        def loss(self, batch: Numbers, generator: torch.Generator) -> Tensor:
            both = [torch.rand((), generator=generator).item(), torch.rand(()).item()]
            drawn.setdefault(batch.index, []).extend(both)
            return super().loss(batch, generator)

    torch.manual_seed(1)
    run(Draws(), settings(tmp_path / "a"))
    torch.manual_seed(2)
    run(Draws(), settings(tmp_path / "b"), workers=2)
    assert all(v[:2] == v[2:] for v in drawn.values()), "the second run drew other numbers"
    assert len({v[0] for v in drawn.values()}) == 24, "two batches drew the same number"
    run(Draws(), settings(tmp_path / "c"), seed=1)
    assert all(v[0] != v[4] for v in drawn.values())


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_once_each_and_in_order(tmp_path: Path, workers: int) -> None:
    recipe = OnePart()
    run(recipe, settings(tmp_path), workers=workers)
    assert sorted(recipe.made) == list(range(24)), "made too many, or one twice"
    assert recipe.seen == [4 * i for i in range(24)]


def test_a_length_that_is_no_whole_number_of_steps_is_rounded_up(tmp_path: Path) -> None:
    recipe = OnePart()
    run(recipe, settings(tmp_path), images=97)
    assert state(tmp_path).micro == 26


def test_curves_are_over_images_and_averaged(tmp_path: Path) -> None:
    run(TwoParts(), settings(tmp_path))
    curves = EventAccumulator(str(tmp_path / "logs")).Reload()
    tags = set(curves.Tags()["scalars"])
    assert {"net/loss", "critic/loss", "net/gradient_norm", "loop/lr", "loop/images_per_second"} <= tags
    assert [e.step for e in curves.Scalars("net/loss")] == [16, 32, 48, 64, 80, 96]
    assert curves.Scalars("loop/lr")[0].value == pytest.approx(0.05)


def test_the_bar_says_images_rate_and_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(OnePart(), settings(tmp_path))
    shown = capsys.readouterr()
    assert shown.out == "", "results go to stdout, progress does not"
    assert "96/96 images" in shown.err
    assert "images/s, loss " in shown.err


@pytest.mark.parametrize("call", ["add_scalar", "close"])
def test_a_full_disk_under_the_curves_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: str
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{call}", full)
    if call == "close":
        run(OnePart(), settings(tmp_path))
        assert "points of the curves could not be written (No space left" in capsys.readouterr().err
        return
    with pytest.raises(OutputError, match=r"curves in .* could not be written \(No space left"):
        run(OnePart(), settings(tmp_path))


# Folders


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path) -> None:
    before = run(OnePart(), settings(tmp_path))
    with pytest.raises(TrainingError, match="already holds a run, at 96 images: continue it with --resume"):
        train(OnePart(), settings(tmp_path))
    assert kept(tmp_path).keys() == before.keys()


def test_a_folder_with_a_model_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(TrainingError, match="already holds a model: choose another folder"):
        train(OnePart(), settings(tmp_path))


def test_an_output_that_cannot_be_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SafelightError, match=r"file.* cannot be made \(.*\): choose another --output"):
        train(OnePart(), replace(settings(tmp_path / "file"), output=tmp_path / "file" / "run"))


def test_a_part_with_nothing_to_train_is_named(tmp_path: Path) -> None:
    recipe = TwoParts()
    recipe.critic.requires_grad_(False)
    with pytest.raises(TrainingError, match="part critic has nothing to train"):
        train(recipe, settings(tmp_path))


@pytest.mark.parametrize("package", ["accelerate", "torch.utils.tensorboard"])
def test_a_missing_extra_is_one_line_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(SafelightError, match=r"training needs \w+: pip install 'safelight\[train\]'"):
        train(OnePart(), settings(tmp_path))


# Batches ahead


def test_an_error_in_a_thread_comes_where_its_batch_would_have() -> None:
    def make(index: int) -> int:
        if index == 2:
            raise ValueError("two")
        return index

    with batches(make, 0, 5, workers=2) as source:
        assert [next(source), next(source)] == [0, 1]
        with pytest.raises(ValueError, match="two"):
            next(source)


def test_leaving_early_stops_the_threads() -> None:
    before = threading.active_count()
    with batches(lambda index: index, 0, 10**9, workers=3) as source:
        assert next(source) == 0
    assert threading.active_count() == before


def test_tensors_are_found_wherever_a_batch_keeps_them() -> None:
    one = torch.ones(())
    changed = change_tensors((Numbers(one, 3), [one, {"a": one, "b": "text"}]), lambda t: t + 1)
    assert changed[0] == Numbers(torch.tensor(2.0), 3)
    assert changed[1] == [torch.tensor(2.0), {"a": torch.tensor(2.0), "b": "text"}]
