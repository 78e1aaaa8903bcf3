"""What a CPU is used for: threads, memory that is kept, and weights that are laid out when a model is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import safelight
from safelight.models import packed, packing
from safelight.tasks.machine import choose_threads, processors

PROMPT = "a red apple on a blue background"


@pytest.mark.parametrize(
    ("said", "most"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 10_000), ("", 10_000)],
)
def test_a_containers_share_bounds_the_threads(said: str, most: int, tmp_path: Path) -> None:
    """As the kernel's documentation of cgroup v2 says of cpu.max: "$MAX $PERIOD", in microseconds."""
    quota = tmp_path / "cpu.max"
    quota.write_text(said)
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert processors(quota) == min(most, bound or 1)
    assert processors(tmp_path / "missing") == bound


def test_functions_of_the_library_are_asked_for_once_by_one_thread() -> None:
    """Of a few numbers, which PyTorch does not share out among threads; else the first answers may be coarse."""
    asked: list[tuple[str, torch.dtype]] = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if args and isinstance(args[0], torch.Tensor) and args[0].numel() == 1:
                asked.append((func.overloadpacket.__name__, args[0].dtype))
            return func(*args, **(kwargs or {}))

    threads = torch.get_num_threads()
    with Seen():
        choose_threads.__wrapped__()
    torch.set_num_threads(threads)
    assert {(name, dtype) for name in ("exp", "sqrt", "cos") for dtype in (torch.float32, torch.float64)} <= set(asked)


@pytest.mark.parametrize("said", [{}, {"OMP_NUM_THREADS": "1"}], ids=["nothing", "one"])
def test_threads_are_as_many_as_processors_or_what_the_user_said(said: dict[str, str]) -> None:
    code = (
        "import torch; from safelight.tasks.machine import choose_threads, processors; torch.set_num_threads(3); "
        "before = torch.get_num_threads(); choose_threads(); print(before, torch.get_num_threads(), processors())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment | said, capture_output=True, text=True, check=True
    )
    before, after, there = (int(word) for word in run.stdout.split())
    assert after == (before if said else min(before, there))


def test_what_is_loaded_for_the_cpu_is_laid_out_and_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = safelight.load("tiny")
    assert not any(isinstance(module, packed.DnnLinear) for module in plain.unet.modules()), "tiny is too small"
    monkeypatch.setattr(packed, "SMALLEST", 1)
    monkeypatch.setattr(packed, "WINOGRAD_CHANNELS", 1)
    model = safelight.load("tiny")
    assert isinstance(model.unet.time_embedding.linear_1, packed.DnnLinear)
    pictures = [drawn.txt2img(PROMPT, seed=3, steps=6)[0] for drawn in (plain, model, model)]
    one, other, again = (np.asarray(picture, dtype=np.int16) for picture in pictures)
    assert np.abs(one - other).max() <= 1
    assert np.array_equal(other, again)


def test_its_weights_are_saved_as_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also behind a drawing, which lets go of the memory of weights that are in a file."""
    wanted = safelight.load("tiny").weights()
    monkeypatch.setattr(packed, "SMALLEST", 1)
    model = safelight.load("tiny")
    model.txt2img(PROMPT, seed=3, steps=packing.CALLS)
    for part, tensors in model.weights().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, wanted[part][name]), f"{part} {name}"


def test_a_weight_that_was_written_to_is_not_read_from_its_file_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    safelight.load("tiny").save(tmp_path / "tiny")
    monkeypatch.setattr(packed, "SMALLEST", 1)
    model = safelight.load(tmp_path / "tiny")
    weight = model.unet.mid_block.resnets[0].conv1.weight
    wanted = 2 * weight
    weight.mul_(2)
    model.txt2img(PROMPT, seed=3, steps=packing.CALLS)
    assert torch.equal(weight, wanted)


@pytest.mark.parametrize("how", [{"low_memory": True}, {"dtype": "bfloat16"}])
def test_other_ways_of_loading_lay_nothing_out(how: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SMALLEST", 1)
    model = safelight.load("tiny", **how)  # type: ignore[arg-type]
    assert not any(isinstance(module, packed.DnnLinear) for module in model.unet.modules())
