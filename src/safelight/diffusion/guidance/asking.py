"""Asking one denoiser about several conditions: in one batch or one after the other, and nothing twice.

Shapes: B batch, C latent channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Size, Tensor

from safelight.diffusion.denoiser import C, Denoise, Denoiser


class Stackable(Protocol):
    """A condition whose batches can be joined. What it means is not known here."""

    @classmethod
    def stack(cls, parts: Sequence[Self], *, same_pictures: bool = False) -> Self: ...

    def map(self, change: Callable[[Tensor], Tensor]) -> Self: ...


S = TypeVar("S", bound=Stackable)
Said = Callable[[], C]
"""What is said at this step, with the batch of x: the very same object while nothing changes."""
Watch = Callable[[], AbstractContextManager[Callable[[], Tensor]]]
"""Within it the network is watched; it yields what tells of the network's last answer."""


def always(cond: C) -> Said[C]:
    """The same at every step."""
    return lambda: cond


def conditioned(denoiser: Denoiser[C], cond: C) -> Denoise:
    """The denoiser told cond, without guidance. cond has the batch of x."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(x, sigma, cond)

    return denoise


def within(change: Callable[[], AbstractContextManager[object]], denoise: Denoise) -> Denoise:
    """The same question, asked within a context that changes the network for as long as it answers.

    change: makes the context anew for every call. Others who use the network between two calls do not meet it.
    """

    def changed(x: Tensor, sigma: Tensor) -> Tensor:
        with change():
            return denoise(x, sigma)

    return changed


@dataclass
class Asking(Generic[S]):
    """A denoiser that is asked about several conditions at the same x.

    batched: whether the network sees all conditions that have the same shapes as one batch. If not, one after the
    other: slower, with less memory.
    """

    denoiser: Denoiser[S]
    batched: bool
    _parts: tuple[S, ...] = ()
    _stacked: S | None = None

    def __call__(self, x: Tensor, sigma: Tensor, conds: Sequence[S]) -> list[Tensor]:
        """x0 (B, C, h, w) for each condition, in their order. What is the same object is asked once.

        x: (B, C, h, w). sigma: () or (B,). conds: each with the batch of x; those of the same shapes share a batch.
        """
        different: list[S] = []
        places = [_place(cond, different) for cond in conds]
        answers = self._all(x, sigma, different)
        return [answers[place] for place in places]

    def watched(self, x: Tensor, sigma: Tensor, conds: Sequence[S], watch: Watch) -> tuple[list[Tensor], Tensor]:
        """The same, with the first condition asked alone and watched; and what was seen."""
        with watch() as tell:
            first, seen = self.denoiser(x, sigma, conds[0]), tell()
        rest = self(x, sigma, conds[1:]) if len(conds) > 1 else []
        return [first, *rest], seen

    def _all(self, x: Tensor, sigma: Tensor, conds: list[S]) -> list[Tensor]:
        if len(conds) == 1 or not self.batched:
            return [self.denoiser(x, sigma, cond) for cond in conds]
        if not _same(conds, self._parts):
            self._parts = tuple(conds)
            alike = len({_shapes(cond) for cond in conds}) == 1
            self._stacked = type(conds[0]).stack(conds, same_pictures=True) if alike else None
        if self._stacked is None:
            return [self.denoiser(x, sigma, cond) for cond in conds]
        n = len(conds)
        sigmas = sigma if sigma.ndim == 0 else torch.cat([sigma] * n)
        return list(self.denoiser(torch.cat([x] * n), sigmas, self._stacked).chunk(n))


def _place(cond: S, among: list[S]) -> int:
    """Where this very object stands in the list; put at its end if it is new."""
    for place, other in enumerate(among):
        if cond is other:
            return place
    among.append(cond)
    return len(among) - 1


def _same(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _shapes(cond: Stackable) -> tuple[Size, ...]:
    """The shapes of all that a condition holds: those of the same shapes fit into one batch."""
    found: list[Size] = []

    def look(door: Tensor) -> Tensor:
        found.append(door.shape)
        return door

    cond.map(look)
    return tuple(found)
