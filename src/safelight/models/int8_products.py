"""Numbers as whole ones of 8 bits, and their products by oneDNN, with exact sums in 32 bits and an answer in float32.

Weights are from -127 to 127, with a scale for each output; what they are multiplied with is from 0 to 255, between its
own least and largest number (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", eqs. 1 and 3).

Shapes: C channels in, N channels out.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from safelight.models.packing import Form

HIGHEST = 127 if torch.cpu._is_vnni_supported() else 63
"""Of a weight. Processors without VNNI add two products up in 16 bits before they go on in 32: there must be room."""
LEVELS = 255
"""Of what a layer is given, from the least to the largest."""
AS_FLOAT = (1.0, 0, torch.float32)
"""Scale, zero and dtype of an answer that is not to be rounded."""


@dataclass(frozen=True)
class Quantised:
    """A weight in whole numbers."""

    codes: Tensor
    """(N, ...), int8."""
    scales: Tensor
    """(N,), float32: the weight is about codes * scales."""
    sums: Tensor
    """(N,), float32: of an output's weights, as rounded."""

    @classmethod
    def of(cls, weight: Tensor) -> Quantised:
        """The nearest whole numbers of a weight (N, ...), by the largest of each output."""
        rows = weight.detach().flatten(1).float()
        scales = rows.abs().amax(dim=1).clamp_min_(torch.finfo(torch.float32).tiny) / HIGHEST
        codes = (rows / scales[:, None]).round_().clamp_(-HIGHEST, HIGHEST)
        return cls(codes.to(torch.int8).view(weight.shape), scales, codes.sum(dim=1) * scales)

    def chunk(self) -> tuple[Quantised, Quantised]:
        """Of the first half of the outputs, and of the second."""
        halves = zip(self.codes.chunk(2), self.scales.chunk(2), self.sums.chunk(2), strict=True)
        first, second = (Quantised(*half) for half in halves)
        return first, second


@dataclass(frozen=True)
class Given:
    """What a layer is given, in whole numbers: about (codes - zero) * scale."""

    codes: Tensor
    """uint8."""
    scale: float
    zero: int

    @classmethod
    def of(cls, x: Tensor) -> Given | None:
        """Between its least and its largest number, 0 among them; None if these are not finite."""
        pixels = x.ndim == 4 and not x.is_contiguous()
        in_order = x.permute(0, 2, 3, 1) if pixels else x  # of what is channels-last it would make a copy first
        least, largest = (float(end) for end in torch.aminmax(in_order))
        least, largest = min(least, 0.0), max(largest, 0.0)
        if not math.isfinite(largest - least):
            return None
        scale = max((largest - least) / LEVELS, float(torch.finfo(torch.float32).tiny))
        zero = round(-least / scale)
        return cls(_rounded(x, scale, zero), scale, zero)


def product(given: Given, form: Form, bias: Tensor | None, then: str = "none", onto: Tensor | None = None) -> Tensor:
    """(..., C) -> (..., N), float32.

    Args:
        form: `for_products` of a weight.
        then: done to the answer on its way out: "gelu" or "relu".
        onto: (..., N), float32: the answer is added to it, in its place.
    """
    packed, scales, zeros = form
    given_and_weight = given.codes, given.scale, given.zero, packed, scales, zeros
    linear = torch.ops.onednn.qlinear_pointwise
    y: Tensor = (
        linear(*given_and_weight, bias, *AS_FLOAT, then, [], "none")
        if onto is None
        else linear.binary(*given_and_weight, onto, bias, *AS_FLOAT, 1.0, 0, "sum", 1.0, then, [], "none")
    )
    return y


def for_products(weight: Quantised) -> Form:
    """A weight (N, C), or a pointwise kernel, laid out."""
    codes = weight.codes.flatten(1)
    return [torch.ops.onednn.qlinear_prepack(codes, None), weight.scales, no_zeros(weight)]


def no_zeros(weight: Quantised) -> Tensor:
    """Weights have no zero but 0; oneDNN asks for one of each output."""
    return torch.zeros(len(weight.scales), dtype=torch.int64)


@cache
def supported() -> bool:
    """Whether this PyTorch, on this processor, multiplies so: it is tried, with the largest numbers there are."""
    x = torch.ones(16, 16)
    try:
        given, form = Given.of(x), for_products(Quantised.of(x))
        return given is not None and torch.allclose(product(given, form, None), 16 * x)
    except (RuntimeError, AttributeError, NotImplementedError):  # there is no such operator, or not for it
        return False


def _rounded(x: Tensor, scale: float, zero: int) -> Tensor:
    """The nearest whole numbers to x / scale + zero, from 0 to 255."""
    if not _rounds_at_once():
        return x.mul(1 / scale).round_().add_(zero).clamp_(0, LEVELS).to(torch.uint8)
    y = torch.quantize_per_tensor(x, scale, zero, torch.quint8)
    return torch.empty(0, dtype=torch.uint8).set_(y.untyped_storage(), y.storage_offset(), y.shape, y.stride())


@cache
def _rounds_at_once() -> bool:
    """PyTorch can do it in one pass, not in four; it says once that the type of tensor that this makes will go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (
            hasattr(torch, "quantize_per_tensor")
            and torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8).numel() == 1
        )
