"""What the training loop asks of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

B = TypeVar("B")


@dataclass(frozen=True)
class Turn:
    """One optimizer's turn within a step: the loss that trains one part."""

    part: str
    """Key of `Recipe.parts`. Only this part's parameters get gradients from the loss."""
    loss: Tensor
    """Scalar."""
    log: Mapping[str, Tensor | float]
    """Numbers for the curves."""


class Recipe(Protocol[B]):
    """What is trained and by which losses."""

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """What is trained: each has its own AdamW and its own average. The loop moves them to the device."""
        ...

    def batch(self, index: int, size: int) -> B:
        """Batch `index` (from 0, endlessly) of `size` images: a function of the two, called from threads."""
        ...

    def turns(self, batch: B, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
        """The losses of one batch. Each is differentiated, and its part moved, before the next is asked for.

        Args:
            batch: its tensors are on the device of the parts.
            generator: a CPU generator, the only source of random numbers.
            images_seen: before this batch.
        """
        ...

    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        """Write the usable result into a folder that is not there yet; `weights` are averages if kept."""
        ...


@runtime_checkable
class Keeping(Protocol):
    """A recipe with numbers of its own, beside its parts, that a resumed run needs."""

    def state_dict(self) -> dict[str, float]:
        """The numbers, for the checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take them back."""
        ...


@runtime_checkable
class Shown(Protocol):
    """A recipe that shows now and then what has been learned."""

    def show(self, images_seen: int, step_images: int) -> None:
        """Called between the steps of the weights, with the averages in their place where there are some.

        It must leave everything as it was.

        Args:
            images_seen: so far, never 0.
            step_images: in each step.
        """
        ...


@runtime_checkable
class Paced(Protocol):
    """A recipe that does not train all that it trains at the loop's learning rate."""

    def pace(self, part: str, parameter: str) -> float:
        """How fast a parameter of a part learns: a factor of the loop's rate."""
        ...
