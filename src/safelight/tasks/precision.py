"""Half precision ends at 65504 (float16). A network that went beyond is asked again in float32, once, and says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


class PrecisionWarning(UserWarning):
    """A network was asked again in float32."""


def careful(network: nn.Module, ask: Callable[[torch.dtype], Tensor]) -> Tensor:
    """The answer of `ask(dtype)`, which runs the network on inputs of that dtype; finite wherever float32 is.

    The network's weights are in float32 while it is asked again, and are the very tensors of before afterwards. Its
    first layer that overflowed is named in a `PrecisionWarning`.

    Args:
        network: whose parameters are all of one dtype.
    """
    dtype = next(network.parameters()).dtype
    answer = ask(dtype)
    if dtype not in HALF or bool(torch.isfinite(answer).all()):
        return answer
    layer = first_overflow(network, lambda: ask(dtype))
    place = type(network).__name__ if layer is None else f"{type(network).__name__}'s {layer}"
    name = str(dtype).removeprefix("torch.")
    warnings.warn(f"{place} went beyond {name}: asked again in float32", PrecisionWarning, stacklevel=2)
    with in_float32(network):
        return ask(torch.float32)


def first_overflow(network: nn.Module, ask: Callable[[], object]) -> str | None:
    """The name of the first layer whose output is not finite while `ask` runs the network; None: there is none."""
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(look(name)) for name, module in leaves]
    try:
        ask()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Its weights in float32; afterwards the very tensors that were there."""
    before = [(parameter, parameter.data) for parameter in network.parameters()]
    try:
        with torch.inference_mode(False):  # a tensor made in it cannot take a parameter's place
            for parameter, data in before:
                parameter.data = data.float()
        yield
    finally:
        for parameter, data in before:
            parameter.data = data
