"""What a run shows: a bar on stderr, and TensorBoard's curves over the images seen."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from safelight.errors import OutputError, SafelightError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter

BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
FILE_INTERVAL = 30.0
"""Seconds between lines when stderr is no terminal: a log file wants few."""


def make_accelerator(device: str) -> Accelerator:
    """Accelerate's view of this process: its device and its fellows.

    Raises:
        SafelightError: the extra `train` is not installed.
    """
    try:
        from accelerate import Accelerator  # noqa: PLC0415  (an extra: only training needs it)
    except ModuleNotFoundError as error:
        raise _missing("accelerate") from error
    return Accelerator(cpu=device == "cpu", mixed_precision="no")


def make_writer(folder: Path, first: int) -> SummaryWriter:
    """TensorBoard's writer; points from `first` images on, left by a run that stopped, are hidden.

    Raises:
        SafelightError: the extra `train` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _missing("tensorboard") from error
    return SummaryWriter(folder, purge_step=first, flush_secs=10)


def _missing(package: str) -> SafelightError:
    return SafelightError(f"training needs {package}: pip install 'safelight[train]'")


class Progress:
    """Bar and curves of one process; silent where `shown` is false."""

    def __init__(self, folder: Path, *, first: int, total: int, every: int, shown: bool) -> None:
        self.every = every
        self._writer = make_writer(folder, first) if shown else None
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=first,
            disable=not shown,
            file=sys.stderr,
            unit=" images",
            bar_format=BAR,
            mininterval=0.2 if terminal else FILE_INTERVAL,
            dynamic_ncols=terminal,
        )
        self._window: dict[str, list[Tensor | float]] = {}
        self._steps, self._since, self._at = 0, time.perf_counter(), first

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as fault:  # must not hide the error that ended the run, nor undo a finished one
                line = f"the last points of the curves could not be written ({fault.strerror})"
                print(line, file=sys.stderr, flush=True)

    def note(self, part: str, values: Mapping[str, Tensor | float]) -> None:
        """Values of one turn, kept on the device until a point of the curves is due."""
        if self._writer is None:
            return
        for name, value in values.items():
            kept = value.detach() if isinstance(value, Tensor) else value
            self._window.setdefault(f"{part}/{name}", []).append(kept)

    def step(self, seen: int, loss: float, lr: float, skipped: int) -> None:
        """One step is done, which makes `seen` images in all.

        Raises:
            OutputError: the disk of the curves is full.
        """
        note = f", skipped {skipped}" if skipped > 0 else ""
        self._bar.set_postfix_str(f"loss {loss:.4f}{note}", refresh=False)
        self._bar.update(seen - self._bar.n)
        self._steps += 1
        if self._writer is not None and self._steps % self.every == 0:
            try:
                self._write(self._writer, seen, lr, skipped)
            except OSError as error:
                raise OutputError(
                    f"the curves in {self._writer.log_dir} could not be written ({error.strerror}): "
                    "make room, and continue with --resume"
                ) from error

    def _write(self, writer: SummaryWriter, seen: int, lr: float, skipped: int) -> None:
        for tag, values in self._window.items():
            mean = torch.stack([torch.as_tensor(v, dtype=torch.float32, device="cpu") for v in values]).mean()
            writer.add_scalar(tag, mean.item(), seen)
        now = time.perf_counter()
        writer.add_scalar("loop/lr", lr, seen)
        writer.add_scalar("loop/skipped", skipped, seen)
        writer.add_scalar("loop/images_per_second", (seen - self._at) / (now - self._since), seen)
        self._window.clear()
        self._since, self._at = now, seen

    def say(self, line: str) -> None:
        """A line on stderr that leaves the bar whole."""
        if not self._bar.disable:
            tqdm.write(line, file=sys.stderr)
