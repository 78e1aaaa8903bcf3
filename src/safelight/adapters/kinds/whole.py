"""Kinds without a rank, or that begin from the weight itself: full differences, norms, (IA)3 and GLoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from safelight.adapters.kinds.additive import Additive, expected_alpha
from safelight.adapters.kinds.kind import Changed, Kind, Named, Shape, kept, like, size


class Full(Kind):
    """W + strength * diff, and the same of the bias."""

    title: ClassVar[str] = "full difference"
    NAMES: ClassVar[tuple[str, str]] = ("diff", "diff_b")
    OWN: ClassVar[frozenset[str]] = frozenset(NAMES)
    BESIDE: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """weight (O, I, *k) or (C,), bias (O,); one may lack."""
        super().__init__()
        for name, tensor in zip(self.NAMES, (weight, bias), strict=True):
            self.register_parameter(name, kept(tensor))

    @classmethod
    def expected(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Mapping[str, Shape]:
        """As `Kind.expected`."""
        both = zip(cls.NAMES, (shape, shape[:1]), strict=True)
        return {name: wanted for name, wanted in both if name in tensors}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Self:
        """As `Kind.of`."""
        weight, bias = (tensors.get(name) for name in cls.NAMES)
        return cls(None if weight is None else weight.reshape(shape), None if bias is None else bias.reshape(-1))

    def changed(self, weight: Tensor, bias: Tensor | None, strength: float = 1.0) -> Changed:
        """As `Kind.changed`. A layer without a bias gets one where the file has it."""
        own, own_bias = (self._parameters[name] for name in self.NAMES)
        new = weight if own is None else torch.add(weight.float(), like(own, weight), alpha=strength)
        if own_bias is None:
            return new, bias
        step = strength * like(own_bias, weight)
        return new, step if bias is None else bias.float() + step


class Norm(Full):
    """The same of a norm, under other names."""

    title: ClassVar[str] = "norm"
    NAMES: ClassVar[tuple[str, str]] = ("w_norm", "b_norm")
    OWN: ClassVar[frozenset[str]] = frozenset(NAMES)


class IA3(Kind):
    """Rows, or columns, times 1 + strength * weight (Liu et al. 2022, as LyCORIS stores it)."""

    title: ClassVar[str] = "(IA)3"
    OWN: ClassVar[frozenset[str]] = frozenset({"weight", "on_input"})
    BESIDE: ClassVar[frozenset[str]] = frozenset()

    on_input: Tensor

    def __init__(self, weight: Tensor, *, on_input: bool) -> None:
        """weight: (O,), or (I,) if it is on the input."""
        super().__init__()
        self.weight = kept(weight)
        self.register_buffer("on_input", torch.tensor(on_input))

    @classmethod
    def expected(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Mapping[str, Shape]:
        """As `Kind.expected`."""
        wide = shape[1] if _on_input(tensors) else shape[0]
        found = tensors.get("weight")  # (1, C, 1, 1) of a convolution
        return {"weight": (1, wide) if found is not None and found.ndim > 1 else (wide,), "on_input": ()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Self:
        """As `Kind.of`."""
        weight, on_input = tensors["weight"], _on_input(tensors)
        if len(shape) > 2:
            return cls(weight.reshape(1, -1, *(1 for _ in shape[2:])), on_input=on_input)
        return cls(weight.reshape(-1), on_input=on_input)

    def changed(self, weight: Tensor, bias: Tensor | None, strength: float = 1.0) -> Changed:
        """As `Kind.changed`."""
        assert self.weight is not None
        ones = (1,) * (weight.ndim - 2)
        by = 1 + strength * like(self.weight, weight).reshape(*((1, -1) if self.on_input else (-1, 1)), *ones)
        return weight.float() * by, bias


class GLoRA(Additive):
    """alpha / R * (W a1 a2 + b1 b2), the first over the inputs (Chavan et al. 2023, its two weight terms)."""

    title: ClassVar[str] = "GLoRA"
    NEEDS: ClassVar[tuple[str, ...]] = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    OWN: ClassVar[frozenset[str]] = frozenset(NEEDS)
    BESIDE: ClassVar[frozenset[str]] = frozenset({"alpha"})

    def __init__(self, tensors: tuple[Tensor, Tensor, Tensor, Tensor], alpha: Tensor | None = None) -> None:
        """a1 (I, R, ...), a2 (R, I, ...), b1 (O, R, ...), b2 (R, I, *k)."""
        super().__init__(alpha, None)
        self.a1, self.a2, self.b1, self.b2 = (Named(tensor) for tensor in tensors)

    @classmethod
    def expected(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Mapping[str, Shape]:
        """As `Kind.expected`."""
        rank, outputs, inputs = size(tensors, cls.NEEDS[3], 0), shape[0], shape[1]
        shapes = ((inputs, rank), (rank, inputs), (outputs, rank), (rank, *shape[1:]))
        return {**dict(zip(cls.NEEDS, shapes, strict=True)), **expected_alpha(tensors, shape)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Self:
        """As `Kind.of`."""
        ones = (1,) * (len(shape) - 2)
        a1, a2, b1 = (tensors[ending].reshape(*tensors[ending].shape, *ones) for ending in cls.NEEDS[:3])
        return cls((a1, a2, b1, tensors[cls.NEEDS[3]]), tensors.get("alpha"))

    @property
    def rank(self) -> int:
        """R."""
        return self.b2.weight.shape[0]

    def difference(self, weight: Tensor) -> Tensor:
        """As `Additive.difference`."""
        a1, a2, b1, b2 = (like(x.weight, weight) for x in (self.a1, self.a2, self.b1, self.b2))
        of_weight = torch.einsum("oi..., ir, rj -> oj...", weight, a1.flatten(1), a2.flatten(1))
        return self.scale * (of_weight + (b1.flatten(1) @ b2.flatten(1)).view(weight.shape))


def _on_input(tensors: Mapping[str, Tensor]) -> bool:
    found = tensors.get("on_input")
    return found is not None and found.numel() == 1 and bool(found)
