"""Changes of a network that come off again: the very tensors that were there are put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from safelight.adapters.kinds import Changed, Kind


@contextmanager
def patched(network: nn.Module, changes: Mapping[str, Sequence[tuple[Kind, float]]]) -> Iterator[None]:
    """While it lasts, layers of a network are changed. Afterwards their parameters are the same objects as before.

    Only what is changed takes memory, once, in the dtype and on the device of what it stands for. On any error nothing
    stays changed. Where one network is changed twice, the inner change is of what the outer one made.

    Args:
        changes: by layer, kinds with their strengths. Each is computed on the layer's own weight, and what they change
            is summed, so that their order does not matter; a strength of 0 changes nothing.
    """
    before: list[tuple[nn.Module, dict[str, nn.Parameter | None]]] = []
    try:
        for name, kinds in changes.items():
            active = [(kind, strength) for kind, strength in kinds if strength != 0]
            if active:
                layer = network.get_submodule(name)
                before.append((layer, dict(layer._parameters)))
                _put(layer, active)
        yield
    finally:
        for layer, parameters in reversed(before):
            layer._parameters.clear()
            layer._parameters.update(parameters)


@torch.no_grad()
def summed(weight: Tensor, bias: Tensor | None, changes: Sequence[tuple[Kind, float]]) -> Changed:
    """Weight and bias with all that several kinds change in them, in their dtype; what none changes is as given."""
    total, total_bias = weight, bias
    for kind, strength in changes:
        new, new_bias = kind.changed(weight, bias, strength)
        if new is not weight:  # the first one's is taken as it is, which saves two passes over the weight
            total = new if total is weight else total + (new - weight)
        if new_bias is not None and new_bias is not bias:
            step = new_bias if bias is None else new_bias - bias
            total_bias = step if total_bias is None else total_bias + step
    return total.to(weight.dtype), None if total_bias is None else total_bias.to(weight.dtype)


def _put(layer: nn.Module, changes: Sequence[tuple[Kind, float]]) -> None:
    own = layer._parameters["weight"]
    assert own is not None
    own_bias = layer._parameters.get("bias")
    weight, bias = own.detach(), None if own_bias is None else own_bias.detach()
    new, new_bias = summed(weight, bias, changes)
    if new is not weight:
        layer._parameters["weight"] = nn.Parameter(new, requires_grad=False)
    if new_bias is not None and new_bias is not bias:
        layer._parameters["bias"] = nn.Parameter(new_bias, requires_grad=False)
