"""A model's networks by part: all held in memory, or each brought when it is asked for and let go after its work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Self

import torch
from torch import nn

from safelight.models.packed import expect
from safelight.presets.preset import UNET
from safelight.tasks.carrying import Carrying, Luggage

Make = Callable[[], nn.Module]
Wear = Callable[[str, nn.Module], AbstractContextManager[object]]
"""(part, network) -> a context within which the network is changed: adapters."""


class Networks(Mapping[str, nn.Module]):
    """Networks by the part that they play, in evaluation mode, without gradients.

    What is asked for is there; `free` lets go of what can be brought again.
    """

    def __init__(
        self,
        makers: Mapping[str, Make],
        device: torch.device,
        dtype: torch.dtype,
        *,
        frees: bool = False,
        precision: str | None = None,
        carrier: Carrying | None = None,
    ) -> None:
        """Networks that are made when they are first asked for.

        Args:
            makers: what makes the network of a part, on the device and in the dtype.
            frees: whether `free` lets go of them, to be made again.
            precision: what they compute in, if the dtype of what goes in and comes out does not say it.
            carrier: brings them to the device; they are made on the host, then.
        """
        self.device, self.dtype, self._frees = device, dtype, frees
        self.precision = str(dtype).removeprefix("torch.") if precision is None else precision
        self._makers = dict(makers)
        self._held: dict[str, nn.Module] = {}
        self._wear: Wear | None = None
        self._worn: dict[str, ExitStack] = {}
        self._carrier = carrier
        self._coming: dict[str, Future[Luggage]] = {}

    @classmethod
    def of(cls, networks: Mapping[str, nn.Module]) -> Self:
        """Networks that are there already, all on the device and in the dtype of the UNet: nothing is let go."""
        weight = next(networks[UNET].parameters())
        held = cls({}, weight.device, weight.dtype)
        held._held = {part: _still(network) for part, network in networks.items()}
        return held

    def __getitem__(self, part: str) -> nn.Module:
        if part not in self._held:
            self._held[part] = _still(self._makers[part]() if self._carrier is None else self._carried(part))
            self._put_on(part)
        return self._held[part]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._held, **self._makers})

    def __len__(self) -> int:
        return len({**self._held, **self._makers})

    def __contains__(self, part: object) -> bool:  # Mapping's own would bring the network to see whether it is there
        return part in self._held or part in self._makers

    def expect(self, part: str) -> None:
        """Say that a part will be asked for soon: where networks are carried, this one begins to come.

        Whoever says so has it asked for, or calls `free`.
        """
        if self._carrier is not None and part in self and part not in self._held and part not in self._coming:
            self._coming[part] = self._carrier.begin(part, self._makers[part])

    def will_call(self, part: str, times: int) -> None:
        """Say how often a part is going to be called; see `packed.expect`. One that is not here is not laid out."""
        if part in self._held:
            expect(self._held[part], times)

    def bring(self) -> None:
        """Make every network now."""
        for part in self:
            self[part]

    def free(self, *, but: tuple[str, ...] = ()) -> None:
        """Let go of every network, except those named, if that is how they are to be held."""
        going = [part for part in self._held if self._frees and part not in but]
        for part in going:
            self._take_off(part)
            del self._held[part]
        if self._carrier is not None:
            for part in going:
                self._carrier.back(part)
            for part in [part for part in self._coming if part not in but]:
                self._carrier.drop(part, self._coming.pop(part))
        if going and self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def worn(self, wear: Wear) -> Iterator[None]:
        """Within it every network is within `wear(part, network)`, those that are brought meanwhile too.

        Raises:
            RuntimeError: something is worn already.
        """
        if self._wear is not None:
            raise RuntimeError("these networks are changed already, by a drawing that is not at its end")
        self._wear = wear
        try:
            for part in list(self._held):
                self._put_on(part)
            yield
        finally:
            for part in list(self._worn):
                self._take_off(part)
            self._wear = None

    def _carried(self, part: str) -> nn.Module:
        assert self._carrier is not None
        self.expect(part)
        return self._carrier.end(part, self._coming.pop(part))

    def _put_on(self, part: str) -> None:
        if self._wear is not None:
            stack = self._worn[part] = ExitStack()
            stack.enter_context(self._wear(part, self._held[part]))

    def _take_off(self, part: str) -> None:
        self._worn.pop(part, ExitStack()).close()


def _still(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)
