"""What the training loop can be told: the options of every recipe. No torch here: help must be instant."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from safelight.errors import TrainingError

MAY_CHANGE = frozenset({"output", "images", "save_every", "keep", "log_every", "workers", "device", "resume"})
"""Fields that a resumed run may set anew; every other one decides what is learned."""


def option(name: str) -> str:
    """A field's name as it is typed."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class LoopConfig:
    """One training run. Lengths are counted in images, so that another batch size means the same run.

    Raises:
        TrainingError: a value is out of its range.
    """

    output: Path
    """Folder of the run: its checkpoints, its curves, and in the end the model."""
    images: int = 100_000
    """Length of the run: images seen, all in all. A resumed run may have more."""
    batch: int = 32
    """Images per batch, over all processes."""
    accumulate: int = 1
    """Batches whose gradients are averaged before the weights move."""
    lr: float = 3e-4
    """Highest learning rate."""
    optimizer: Literal["adamw", "adamw8bit", "adafactor"] = "adamw"
    """adamw remembers two numbers for each weight; adamw8bit (Dettmers et al. 2022, by bitsandbytes, the extra `8bit`)
    the same in a quarter of the memory; adafactor (Shazeer & Stern 2018) two for each row and column. The latter's rate
    is in units of a matrix's own size, and wants to be some thirty times as high."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """What the learning rate does after the warm-up."""
    warmup: int = 1000
    """Images during which the learning rate rises from zero."""
    final_lr: float = 0.0
    """Share of the learning rate that the cosine ends at."""
    weight_decay: float = 0.01
    """Of the matrices and kernels; biases, gains and single numbers are never decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's two memories."""
    clip: float = 1.0
    """Longest gradient (gradient clipping): longer ones are scaled down to this norm; 0 leaves all as they are."""
    ema: float = 0.999
    """Decay per step of the averaged weights, which are what is saved as the model; 0 keeps no average."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the networks' arithmetic; weights, optimizer and averages are always fp32."""
    seed: int = 0
    """Of the order of pictures and all noise."""
    save_every: int = 50_000
    """Images between checkpoints."""
    keep: int = 2
    """Checkpoints to keep: the newest ones."""
    log_every: int = 20
    """Steps between points of TensorBoard's curves."""
    workers: int = 1
    """Threads that make batches ahead of time; 0 makes each when it is needed."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to train: the accelerator where there is one, or always the CPU."""
    resume: bool = False
    """Continue from the newest valid checkpoint in the output folder."""

    def __post_init__(self) -> None:
        for name in ("images", "batch", "accumulate", "save_every", "keep", "log_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup", "workers", "seed"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("weight_decay", "clip"):
            value = getattr(self, name)
            self._require(name, math.isfinite(value) and value >= 0, "a number that is 0 or more")
        self._require("lr", math.isfinite(self.lr) and self.lr > 0, "a number above 0")
        self._require("final_lr", 0 <= self.final_lr <= 1, "a share between 0 and 1")
        self._require("ema", 0 <= self.ema < 1, "a decay of at least 0 and below 1")
        self._require("betas", all(0 <= b < 1 for b in self.betas), "two numbers of at least 0 and below 1")
        self._require("seed", self.seed < 2**63, "a number below 2^63")
        self._require("schedule", self.schedule in ("constant", "cosine"), "constant or cosine")
        self._require("precision", self.precision in ("fp32", "bf16"), "fp32 or bf16")
        optimizers = ("adamw", "adamw8bit", "adafactor")
        self._require("optimizer", self.optimizer in optimizers, "adamw, adamw8bit or adafactor")
        self._require("device", self.device in ("auto", "cpu"), "auto or cpu")

    def _require(self, name: str, fulfilled: bool, wanted: str) -> None:
        if not fulfilled:
            raise TrainingError(f"{option(name)} is {getattr(self, name)}: give {wanted}")

    @property
    def step_images(self) -> int:
        """Images per step of the weights."""
        return self.batch * self.accumulate

    def rate(self, seen: int) -> float:
        """The learning rate of the step that begins when `seen` images have been seen.

        Linear to `lr` over the warm-up (its first step already moves), then constant, or a half cosine to
        `final_lr` (Loshchilov & Hutter 2017, eq. 5, without restarts).
        """
        if seen < self.warmup:
            return self.lr * min(1.0, (seen + self.step_images) / self.warmup)
        if self.schedule == "constant":
            return self.lr
        share = min(1.0, (seen - self.warmup) / max(1, self.images - self.warmup))
        return self.lr * (self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * share)) / 2)

    def fixed(self) -> dict[str, int | float | str | list[float]]:
        """The fields that a resumed run must not change, as JSON has them."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in MAY_CHANGE}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
