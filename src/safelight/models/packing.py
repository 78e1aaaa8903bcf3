"""The laid out forms of weights: kept while there is room, of which weight they are, and pages that are let go of."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from safelight.models import winograd

Tiles = tuple[tuple[int, winograd.Tile], ...]
"""From so many positions of a picture on, convolutions are by tiles of this size."""
CALLS = 16
"""Of a network: for fewer ones its kernels are laid out at each, and not kept. That takes a tenth of its time, and
keeping them as much as it takes in 6 to 30 calls, as new memory is cheap or dear. The answer is the same to the bit."""
SHARE = 0.5
"""Of the memory that is free when a network is packed: what its laid out kernels may take. Others are laid out at
each call. There are two such networks."""


class Pages(Protocol):
    """The memory of weights that can be had from their file."""

    def bring(self, weight: Tensor) -> None:
        """Have all of it there: it is about to be read."""

    def release(self, weight: Tensor) -> None:
        """Let go of it: it can be had again."""


class Held:
    """Of weights that are in memory and stay there."""

    def bring(self, weight: Tensor) -> None:
        """It is there."""

    def release(self, weight: Tensor) -> None:
        """It cannot be had again."""


HELD: Pages = Held()
Form = list[Tensor]
"""What a weight is laid out as: at each of Winograd's points, both halves, or one tensor for all."""


class ShortMemoryWarning(UserWarning):
    """There is no room for what would be quicker."""


@dataclass
class Room:
    """Bytes that may still be taken."""

    left: float
    said: bool = False
    """That it is not enough."""
    calls: int | None = None
    """Of the network, which were and are to come; None: nobody knows."""

    @classmethod
    def free(cls) -> Room:
        """A network's share of what is free now."""
        return cls(SHARE * _free_bytes())

    def keeps(self) -> bool:
        """Whether the network is called often enough for what is laid out to be kept."""
        return self.calls is None or self.calls >= CALLS

    def say_too_small(self) -> None:
        """Once."""
        if not self.said:
            self.said = True
            told = "memory is short: some layers are computed in float32, which takes longer: close other programs"
            warnings.warn(told, ShortMemoryWarning, stacklevel=2)


@dataclass
class Packing:
    """The laid out form of a weight, and of which weight it is."""

    room: Room
    pages: Pages
    tiles: Tiles
    read: tuple[weakref.ref[Tensor], int | None]
    """The weight that was there when the network was packed, and its version then: as its file has it."""
    width: int = 4
    """Bytes of a number that is laid out."""
    reads: bool = True
    """Whether the weight itself is read for it, not something that was made of it before."""
    form: Form | None = None
    """None: none yet, or there was no room for it."""
    _of: weakref.ref[Tensor] | None = None
    _state: tuple[int | None, winograd.Tile | None] = (None, None)

    def ready(
        self,
        weight: Tensor,
        lay_out: Callable[[Tensor], Form],
        each_time: Callable[[Tensor], Form],
        tile: winograd.Tile | None,
    ) -> Form:
        """The form of a weight: kept, or made for this call alone, where few are expected or there is no room.

        Args:
            lay_out, each_time: make it, in either case.
        """
        few = self.form is None and not self.room.keeps()
        form = None if few else self.kept(weight, lay_out, tile)
        return each_time(weight.detach()) if form is None else form

    def kept(self, weight: Tensor, lay_out: Callable[[Tensor], Form], tile: winograd.Tile | None = None) -> Form | None:
        """The form of a weight, of a kernel for tiles of a size, made if there is none or another; None: no room."""
        state = version(weight), tile
        if self._of is None or self._of() is not weight or self._state != state:
            if self.form is not None:
                self.room.left += _bytes(self.form)
                self.form = None
            self._of, self._state = weakref.ref(weight), state
            numbers = weight.numel() if tile is None else winograd.points(tile) * weight[:, :, 0, 0].numel()
            if self.width * numbers <= self.room.left:
                read = self.is_read(weight)
                if read and self.reads:
                    self.pages.bring(weight)
                self.form = lay_out(weight.detach())
                self.room.left -= _bytes(self.form)
                if read:
                    self.pages.release(weight)  # of any other, the numbers would be lost
        return self.form

    def is_read(self, weight: Tensor) -> bool:
        """Whether it is the weight that was there, and nothing was written to it since."""
        own, then = self.read
        return own() is weight and then is not None and then == version(weight)


def version(weight: Tensor) -> int | None:
    """Counts what was written to a tensor; those made in inference mode do not."""
    return None if weight.is_inference() else weight._version


def _bytes(form: Form) -> int:
    return sum(tensor.element_size() * tensor.numel() for tensor in form)


def _free_bytes() -> float:
    """Memory that is free without taking anything from others; where nothing tells, as much as one likes."""
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    return float("inf")
