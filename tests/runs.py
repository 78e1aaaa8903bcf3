"""Tiny recipes for the tests of training: real modules, every batch a function of its number."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from safelight.checkpoints.writing import write_tensors
from safelight.training.config import LoopConfig
from safelight.training.loop import Turn, train
from safelight.training.store import State, read_state, read_tensors

WIDTH = 4
MODEL = "model.safetensors"


@dataclass(frozen=True)
class Numbers:
    """B rows of the batch with this number."""

    x: Tensor
    """(B, WIDTH)."""
    index: int


class OnePart:
    """Learns to halve its input; can be told to misbehave at a given batch."""

    def __init__(self, *, stop_at: int = -1, by: signal.Signals = signal.SIGTERM) -> None:
        torch.manual_seed(7)
        self.net = nn.Linear(WIDTH, WIDTH)
        self.stop_at, self.by = stop_at, by
        self.made: list[int] = []
        self.seen: list[int] = []
        self.threads: set[str] = set()

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"net": self.net}

    def batch(self, index: int, size: int) -> Numbers:
        self.made.append(index)
        return Numbers(torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(index)), index)

    def turns(self, batch: Numbers, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
        if batch.index == self.stop_at:
            signal.raise_signal(self.by)
        self.seen.append(images_seen)
        loss = self.loss(batch, generator)
        yield Turn("net", loss, {"loss": loss})

    def loss(self, batch: Numbers, generator: torch.Generator) -> Tensor:
        return (self.net(batch.x) - batch.x / 2).pow(2).mean()

    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        folder.mkdir(parents=True)
        for name, module in weights.items():
            assert not module.training
            write_tensors(folder / f"{name}.{MODEL}", module.state_dict())
        (folder / "config.json").write_text("{}", "utf-8")


class TwoParts(OnePart):
    """A generator and a critic with batch norm and dropout, both random numbers' kinds, and a number of its own."""

    def __init__(self, *, stop_at: int = -1, by: signal.Signals = signal.SIGTERM) -> None:
        super().__init__(stop_at=stop_at, by=by)
        self.critic = nn.Sequential(nn.Linear(WIDTH, 3), nn.BatchNorm1d(3), nn.Dropout(0.3), nn.Linear(3, 1))
        self.scale = 0.0

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"net": self.net, "critic": self.critic}

    def turns(self, batch: Numbers, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
        if batch.index == self.stop_at:
            signal.raise_signal(self.by)
        if self.scale == 0.0:
            self.scale = float(batch.x.std())
        noise = torch.randn(batch.x.shape, generator=generator)
        made = self.net(batch.x + noise) / self.scale
        loss = (made - batch.x).pow(2).mean() - 0.1 * self.critic(made).mean()
        yield Turn("net", loss, {"loss": loss.detach()})
        loss = (self.critic(batch.x) - 1).pow(2).mean() + self.critic(made.detach()).pow(2).mean()
        yield Turn("critic", loss, {"loss": loss.detach()})

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.scale = state["scale"]


def settings(output: Path) -> LoopConfig:
    """A dozen steps of two batches of four."""
    return LoopConfig(
        output=output,
        images=96,
        batch=4,
        accumulate=2,
        lr=0.05,
        warmup=16,
        ema=0.9,
        save_every=32,
        log_every=2,
        workers=0,
        device="cpu",
    )


def run(recipe: OnePart, config: LoopConfig, **changes: object) -> dict[str, Tensor]:
    """Train, and give every tensor of the last checkpoint: "file/part/key" -> tensor."""
    config = replace(config, **changes)  # type: ignore[arg-type]  # names and types are the test's own
    train(recipe, config)
    return kept(config.output)


def checkpoints(output: Path) -> list[Path]:
    """Oldest first."""
    return sorted(p for p in (output / "checkpoints").glob("*") if p.name.isdigit())


def kept(output: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint."""
    files = read_tensors(checkpoints(output)[-1])
    return {f"{file}/{key}": tensor for file, content in files.items() for key, tensor in content.items()}


def state(output: Path) -> State:
    """The counters of the newest checkpoint."""
    return read_state(checkpoints(output)[-1])


def require_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """The same keys, and the very same bits."""
    assert found.keys() == wanted.keys()
    different = [key for key in wanted if not torch.equal(found[key], wanted[key])]
    assert different == [], f"these differ: {different}"
