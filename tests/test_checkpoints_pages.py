"""What was copied out of a mapped file does not stay in memory."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safelight.checkpoints.files import read_tensors
from safelight.checkpoints.pages import MappedPages, read_ahead
from safelight.models.labels import LabelsConfig
from safelight.tasks.loading import fill

MEGABYTE = 1 << 20


def _mapped() -> int:
    """Bytes of files that are in this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and takes such advice")
def test_pages_are_let_go_and_the_numbers_stay(tmp_path: Path) -> None:
    numbers = {"a": torch.randn(4 * MEGABYTE), "b": torch.randn(4 * MEGABYTE)}
    save_file(numbers, tmp_path / "x.safetensors")
    tensors = read_tensors(tmp_path / "x.safetensors")
    pages = MappedPages()
    before = _mapped()
    assert tensors["a"].sum() + tensors["b"].sum() != 0
    read = _mapped() - before
    assert read > 30 * MEGABYTE, "this test needs tensors that are mapped"
    pages.release(tensors["a"])
    assert 14 * MEGABYTE < read - (_mapped() - before) < 18 * MEGABYTE, "half of it, and not its neighbour"
    assert torch.equal(tensors["a"], numbers["a"])
    assert torch.equal(tensors["b"], numbers["b"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes such advice")
def test_pages_are_there_before_they_are_read(tmp_path: Path) -> None:
    """And tensors in memory, or of no size, do no harm."""
    save_file({"a": torch.randn(4 * MEGABYTE), "b": torch.randn(4 * MEGABYTE)}, tmp_path / "x.safetensors")
    tensors = read_tensors(tmp_path / "x.safetensors")
    before, others = _mapped(), set(threading.enumerate())
    read_ahead([tensors["a"], torch.ones(3), torch.empty(0)])
    for thread in set(threading.enumerate()) - others:
        thread.join()
    assert 14 * MEGABYTE < _mapped() - before < 18 * MEGABYTE, "one of the two"


def test_tensors_that_are_not_mapped_are_left_alone() -> None:
    x = torch.randn(MEGABYTE)
    expected = x.clone()
    MappedPages().release(x)
    assert torch.equal(x, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and takes such advice")
def test_casting_does_not_hold_the_file_in_memory(tmp_path: Path) -> None:
    config = LabelsConfig(classes=4096, width=2048)
    weight = torch.randn(config.classes, config.width).half()
    key = "embedding.weight"
    save_file({key: weight}, tmp_path / "x.safetensors")
    before = _mapped()
    network = fill(config, read_tensors(tmp_path / "x.safetensors"), torch.device("cpu"), torch.float32)
    assert _mapped() - before < MEGABYTE, "16 MB were read"
    assert torch.equal(network.state_dict()[key], weight.float())
