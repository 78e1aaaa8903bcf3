"""What every kind of adapter is: one small module for one layer, its tensors named as in files.

The same mathematics serves use and training: `Kind.changed` is the new weight, differentiable in the kind's tensors.

Shapes: O outputs, I inputs, k kernel (two numbers; none for a linear layer), R rank. The weight of a layer is
(O, I, *k), or (C,) of a norm.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from safelight.errors import RequestError

Shape = tuple[int, ...]
Changed = tuple[Tensor, Tensor | None]
"""Weight and bias of a layer: float32, or the very tensor that was given where nothing changes."""

ALPHA = "alpha"


class Kind(nn.Module):
    """How one layer is changed. Its state dict has the endings of a file's keys behind the layer's name."""

    title: ClassVar[str]
    """What people call it."""
    OWN: ClassVar[frozenset[str]]
    """Endings that tell this kind from all others."""
    BESIDE: ClassVar[frozenset[str]] = frozenset({ALPHA})
    """Endings that may stand beside these, and that other kinds have, too."""

    @classmethod
    @abstractmethod
    def expected(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Mapping[str, Shape]:
        """The shape that each tensor of a file must have, for a layer of this shape and the rank that the file has.

        What a file needs is here even where it is missing. Trailing sizes of 1 say nothing (`alike`).
        """

    @classmethod
    @abstractmethod
    def of(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Self:
        """The kind around a file's tensors, which have just the shapes expected."""

    @abstractmethod
    def changed(self, weight: Tensor, bias: Tensor | None, strength: float = 1.0) -> Changed:
        """The layer's weight and bias, changed; computed in float32 on their device. The given stay as they are.

        Args:
            strength: 0 changes nothing, 1 is what was trained.
        """

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        """What the changed layer, a linear one or a convolution, says of x: as training asks.

        For the gradient nothing of the weight's size is kept: it is computed again (Chen et al. 2016).
        """
        return forgetful(self._said, x, layer)

    def _said(self, x: Tensor, layer: nn.Module) -> Tensor:
        return base(x, layer, *self.changed(layer.weight, layer.bias))  # type: ignore[arg-type]  # of any such layer

    @property
    def rank(self) -> int | None:
        """R, of kinds that have one."""
        return None


def forgetful(function: Callable[[Tensor, nn.Module], Tensor], x: Tensor, layer: nn.Module) -> Tensor:
    """What a function of x and a layer says; for its gradient, what it computes on the way is computed again."""
    if not torch.is_grad_enabled():
        return function(x, layer)
    y: Tensor = checkpoint(function, x, layer, use_reentrant=False, preserve_rng_state=False)
    return y


def base(x: Tensor, layer: nn.Module, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer or a convolution with another weight and bias, in the dtype of x."""
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear(x, weight, bias)


class Named(nn.Module):
    """A tensor that files call `NAME.weight`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


def kept(tensor: Tensor | None) -> nn.Parameter | None:
    """A tensor of a kind, which may lack it."""
    return None if tensor is None else nn.Parameter(tensor)


def like(tensor: Tensor, weight: Tensor) -> Tensor:
    """A kind's tensor as it is computed with: float32, where the weight is."""
    return tensor.to(weight.device, torch.float32)


def size(tensors: Mapping[str, Tensor], ending: str, axis: int) -> int:
    """A size that only the file knows, such as the rank; 0 if the tensor is missing or has no such axis."""
    tensor = tensors.get(ending)
    return 0 if tensor is None or tensor.ndim <= axis else tensor.shape[axis]


def alike(one: Shape, other: Shape) -> bool:
    """Whether two shapes are the same but for trailing sizes of 1: (O, I), (O, I, 1, 1)."""

    def bare(shape: Shape) -> Shape:
        while shape and shape[-1] == 1:
            shape = shape[:-1]
        return shape

    return bare(one) == bare(other)


def require_rank(rank: int, shape: Shape) -> None:
    """Refuse a rank that is more than a layer's weight can have.

    Raises:
        RequestError: it is, or it is not above 0.
    """
    most = min(shape[0], math.prod(shape[1:]))
    if not 0 < rank <= most:
        raise RequestError(f"rank {rank} is not from 1 to {most}, which is all that a layer of {shape} can have")
