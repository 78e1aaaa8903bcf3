"""`--low-memory` on a GPU: weights stay in pinned memory of the host, and travel while the GPU computes something else.

A network of which only the host has the weights is expected some time before it is asked. A thread reads its file, the
first time, and gives the copies to a stream of their own; who asks the network has its stream wait for them. Nobody
else waits: neither the CPU nor what the GPU has to do meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from safelight.sending import layout

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Luggage:
    """A network's weights, on their way or there."""

    weights: Weights
    """On the device; not to be read before the copies are made."""
    come: torch.cuda.Event
    """When they are."""


class Carrying(Protocol):
    """What brings networks to a device: what `Networks` knows of `Carrier`."""

    def begin(self, part: str, make: Callable[[], nn.Module]) -> Future[Luggage]: ...

    def end(self, part: str, coming: Future[Luggage]) -> nn.Module: ...

    def drop(self, part: str, coming: Future[Luggage]) -> None: ...

    def back(self, part: str) -> None: ...


class Carrier:
    """Brings networks to a GPU, one after the other, in the order in which they were begun."""

    def __init__(self, device: torch.device) -> None:
        """device: a CUDA device."""
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._kept: dict[str, tuple[nn.Module, Weights]] = {}

    def begin(self, part: str, make: Callable[[], nn.Module]) -> Future[Luggage]:
        """Have the network of a part brought, which `make` makes on the host if it was never asked for."""
        return self._thread.submit(self._send, part, make, torch.cuda.current_stream(self.device))

    def end(self, part: str, coming: Future[Luggage]) -> nn.Module:
        """The network, to be asked on the stream that is current now."""
        luggage = coming.result()
        torch.cuda.current_stream(self.device).wait_event(luggage.come)
        module, _ = self._kept[part]
        module.load_state_dict(luggage.weights, assign=True)
        return module

    def drop(self, part: str, coming: Future[Luggage]) -> None:
        """Let go of what nobody asked for: its memory is for others only when the copies are made."""
        if not coming.cancel():
            torch.cuda.current_stream(self.device).wait_event(coming.result().come)

    def back(self, part: str) -> None:
        """Let go of the weights on the device; those on the host are what they were."""
        module, pinned = self._kept[part]
        module.load_state_dict(pinned, assign=True)

    def _send(self, part: str, make: Callable[[], nn.Module], user: torch.cuda.Stream) -> Luggage:
        if part not in self._kept:
            module = make()
            self._kept[part] = module, {name: pinned(x, self.device) for name, x in module.state_dict().items()}
        _, weights = self._kept[part]
        with torch.cuda.stream(user):  # memory of the stream that will use it, and that lets go of it
            there = {name: torch.empty_like(x, device=self.device) for name, x in weights.items()}
        self._stream.wait_stream(user)  # of whose work some may still use that memory
        with torch.cuda.stream(self._stream):
            for name, x in weights.items():
                there[name].copy_(x, non_blocking=True)
            come = torch.cuda.Event()  # type: ignore[no-untyped-call]
            come.record(self._stream)
        return Luggage(there, come)


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """A weight in memory of the host that a GPU reads by itself, laid out as it is computed with there."""
    return x.to(x.device, memory_format=layout(x, device)).pin_memory()
