"""Differences that are products of two of low rank: LoHa, element by element, and LoKr, Kronecker's.

Hyeon-Woo et al. 2022 (FedPara), Edalati et al. 2022 (KronA), Yeh et al. 2024 (LyCORIS).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.adapters.kinds.additive import Additive, by_rows, dora_of, expected_alpha
from safelight.adapters.kinds.kind import Shape, base, forgetful, kept, like, require_rank, size

_TUCKER = "ijk, ip, jr -> prk"
"""Core (R, R, prod(k)), outputs (R, O), inputs (R, I)."""


class LoHa(Additive):
    """alpha / R * (w1_a @ w1_b) * (w2_a @ w2_b)."""

    title: ClassVar[str] = "LoHa"
    NEEDS: ClassVar[tuple[str, ...]] = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    CORES: ClassVar[tuple[str, ...]] = ("hada_t1", "hada_t2")
    OWN: ClassVar[frozenset[str]] = frozenset({*NEEDS, *CORES})

    def __init__(
        self,
        pairs: tuple[Tensor, Tensor, Tensor, Tensor],
        cores: tuple[Tensor, Tensor] | None = None,
        alpha: Tensor | float | None = None,
        dora_scale: Tensor | None = None,
    ) -> None:
        """pairs: a (O, R), b (R, I * prod(k)), twice; with cores (R, R, *k), a (R, O) and b (R, I)."""
        super().__init__(alpha, dora_scale)
        self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b = (nn.Parameter(x) for x in pairs)
        one, other = (None, None) if cores is None else cores
        self.hada_t1, self.hada_t2 = kept(one), kept(other)

    @classmethod
    def expected(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Mapping[str, Shape]:
        """As `Kind.expected`."""
        rank = size(tensors, cls.NEEDS[1], 0)
        if any(core in tensors for core in cls.CORES):
            a, b = (rank, shape[0]), (rank, shape[1])
            cores = dict.fromkeys(cls.CORES, (rank, rank, *shape[2:]))
        else:
            a, b, cores = (shape[0], rank), (rank, math.prod(shape[1:])), {}
        return {**dict(zip(cls.NEEDS, (a, b, a, b), strict=True)), **cores, **expected_alpha(tensors, shape)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Self:
        """As `Kind.of`."""
        a, b, c, d = (tensors[ending] for ending in cls.NEEDS)
        cores = (tensors[cls.CORES[0]], tensors[cls.CORES[1]]) if cls.CORES[0] in tensors else None
        return cls((a, b, c, d), cores, tensors.get("alpha"), dora_of(tensors, shape))

    @classmethod
    def fresh(
        cls, shape: Shape, rank: int, alpha: float, generator: torch.Generator | None = None, *, tucker: bool = False
    ) -> Self:
        """One that changes nothing yet: w2_a is 0, the others are normal, of deviation 1, or 0.1 on w1_a and cores.

        Raises:
            RequestError: the layer cannot have this rank.
        """
        require_rank(rank, shape)

        def normal(*sizes: int, std: float = 1.0) -> Tensor:
            return torch.randn(sizes, generator=generator) * std

        if tucker and len(shape) > 2 and math.prod(shape[2:]) > 1:
            cores = (normal(rank, rank, *shape[2:], std=0.1), normal(rank, rank, *shape[2:], std=0.1))
            first = (normal(rank, shape[0], std=0.1), normal(rank, shape[1]))
            return cls((*first, torch.zeros(rank, shape[0]), normal(rank, shape[1])), cores, alpha)
        inputs = math.prod(shape[1:])
        first = (normal(shape[0], rank, std=0.1), normal(rank, inputs))
        return cls((*first, torch.zeros(shape[0], rank), normal(rank, inputs)), None, alpha)

    @property
    def rank(self) -> int:
        """R."""
        return self.hada_w1_b.shape[0]

    def _halves(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        one = _made(self.hada_w1_a, self.hada_w1_b, self.hada_t1, weight)
        other = _made(self.hada_w2_a, self.hada_w2_b, self.hada_t2, weight)
        return one.view(weight.shape), other.view(weight.shape)

    def difference(self, weight: Tensor) -> Tensor:
        """As `Additive.difference`."""
        one, other = self._halves(weight)
        return self.scale * one * other

    def combined(self, weight: Tensor, strength: float) -> Tensor:
        """As `Additive.combined`, in one pass over the weight."""
        scale = strength * self.scale
        if torch.is_grad_enabled() or self.hada_t1 is not None:
            return torch.addcmul(weight, *self._halves(weight), value=scale)
        flat = weight.flatten(1)
        a, b, c, d = (like(x, weight) for x in (self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b))

        def fill(rows: slice, out: Tensor) -> None:
            torch.addcmul(flat[rows], a[rows] @ b, c[rows] @ d, value=scale, out=out)

        return by_rows(flat, fill).view(weight.shape)


class LoKr(Additive):
    """alpha / R * kron(w1, w2), each whole or a product of two; the scale is 1 where both are whole."""

    title: ClassVar[str] = "LoKr"
    OWN: ClassVar[frozenset[str]] = frozenset(
        {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}
    )

    def __init__(
        self,
        first: Tensor | tuple[Tensor, Tensor],
        second: Tensor | tuple[Tensor, Tensor],
        core: Tensor | None = None,
        alpha: Tensor | float | None = None,
        dora_scale: Tensor | None = None,
    ) -> None:
        """first (o, i) or its a (o, R) and b (R, i); second (O / o, I / i, *k) or its a and b, b with the kernel in its
        columns; with a core (R, R, *k), a is (R, O / o) and b (R, I / i)."""
        super().__init__(alpha, dora_scale)
        one, pair = (first, (None, None)) if isinstance(first, Tensor) else (None, first)
        self.lokr_w1, self.lokr_w1_a, self.lokr_w1_b = kept(one), kept(pair[0]), kept(pair[1])
        two, pair = (second, (None, None)) if isinstance(second, Tensor) else (None, second)
        self.lokr_w2, self.lokr_w2_a, self.lokr_w2_b = kept(two), kept(pair[0]), kept(pair[1])
        self.lokr_t2 = kept(core)

    @classmethod
    def expected(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Mapping[str, Shape]:
        """As `Kind.expected`. How a layer is factored, only the file knows: the first factor says."""
        found: dict[str, Shape] = expected_alpha(tensors, shape)
        if "lokr_w1_a" in tensors or "lokr_w1_b" in tensors:
            rows, columns = size(tensors, "lokr_w1_a", 0), size(tensors, "lokr_w1_b", 1)
            rank = size(tensors, "lokr_w1_b", 0)
            found |= {"lokr_w1_a": (rows, rank), "lokr_w1_b": (rank, columns)}
        else:
            rows, columns = size(tensors, "lokr_w1", 0), size(tensors, "lokr_w1", 1)
            found["lokr_w1"] = (rows, columns)
        outputs = shape[0] // rows if rows and shape[0] % rows == 0 else 0
        inputs = shape[1] // columns if columns and shape[1] % columns == 0 else 0
        rank = size(tensors, "lokr_w2_b", 0)
        if "lokr_t2" in tensors:
            found |= {"lokr_t2": (rank, rank, *shape[2:]), "lokr_w2_a": (rank, outputs), "lokr_w2_b": (rank, inputs)}
        elif "lokr_w2_a" in tensors or "lokr_w2_b" in tensors:
            found |= {"lokr_w2_a": (outputs, rank), "lokr_w2_b": (rank, inputs * math.prod(shape[2:]))}
        else:
            found["lokr_w2"] = (outputs, inputs, *shape[2:])
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], shape: Shape) -> Self:
        """As `Kind.of`."""

        def factor(name: str) -> Tensor | tuple[Tensor, Tensor]:
            return tensors[name] if name in tensors else (tensors[f"{name}_a"], tensors[f"{name}_b"])

        core, alpha = tensors.get("lokr_t2"), tensors.get("alpha")
        return cls(factor("lokr_w1"), factor("lokr_w2"), core, alpha, dora_of(tensors, shape))

    @classmethod
    def fresh(
        cls, shape: Shape, rank: int, alpha: float, generator: torch.Generator | None = None, *, factor: int = -1
    ) -> Self:
        """One that changes nothing yet: the second factor, or its b, is 0.

        Args:
            factor: rows and columns of the first factor, where they divide the layer's; -1: as many as the second's.

        Raises:
            RequestError: the layer cannot have this rank.
        """
        require_rank(rank, shape)
        (o, outputs), (i, inputs) = _factors(shape[0], factor), _factors(shape[1], factor)
        first = torch.empty(o, i)
        nn.init.kaiming_uniform_(first, math.sqrt(5), generator=generator)
        if rank >= max(outputs, inputs) / 2:  # then two matrices would be larger than one
            return cls(first, torch.zeros(outputs, inputs, *shape[2:]), None, alpha)
        a = torch.empty(outputs, rank)
        nn.init.kaiming_uniform_(a, math.sqrt(5), generator=generator)
        return cls(first, (a, torch.zeros(rank, inputs * math.prod(shape[2:]))), None, alpha)

    @property
    def rank(self) -> int | None:
        """R; None where both factors are whole."""
        low = self.lokr_w1_b if self.lokr_w2_b is None else self.lokr_w2_b
        return None if low is None else low.shape[0]

    def _pair(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """alpha / R * first (o, i), and second (O / o, I / i, *k)."""
        if self.lokr_w1 is None:
            assert self.lokr_w1_a is not None and self.lokr_w1_b is not None
            first = like(self.lokr_w1_a, weight) @ like(self.lokr_w1_b, weight)
        else:
            first = like(self.lokr_w1, weight)
        if self.lokr_w2 is None:
            assert self.lokr_w2_a is not None and self.lokr_w2_b is not None
            second = _made(self.lokr_w2_a, self.lokr_w2_b, self.lokr_t2, weight)
        else:
            second = like(self.lokr_w2, weight)
        (o, i), (outputs, inputs, *kernel) = first.shape, weight.shape
        return self.scale * first, second.reshape(outputs // o, inputs // i, *kernel)

    def difference(self, weight: Tensor) -> Tensor:
        """As `Additive.difference`."""
        first, second = self._pair(weight)
        return torch.kron(first.view(*first.shape, *(1 for _ in weight.shape[2:])), second)

    def added(self, x: Tensor, layer: nn.Module) -> Tensor:
        """What is to be added to layer(x), by one factor after the other and without their product. Not of a DoRA."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        first, second = (factor.to(x.dtype) for factor in self._pair(weight))
        i = first.shape[1]
        if not isinstance(layer, nn.Conv2d):
            y = F.linear(x.reshape(*x.shape[:-1], i, -1), second)  # (..., i, O / o)
            return torch.einsum("oi, ...ip -> ...op", first, y).flatten(-2)
        y = base(x.reshape(len(x) * i, -1, *x.shape[2:]), layer, second, None)  # (B i, O / o, h, w)
        return torch.einsum("oi, bi... -> bo...", first, y.reshape(len(x), i, *y.shape[1:])).flatten(1, 2)

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        """As `Kind.forward`."""
        if self.dora_scale is not None:
            return super().forward(x, layer)
        y: Tensor = type(layer).forward(layer, x)  # the layer's own, whoever stands in for it
        return y + forgetful(self.added, x, layer).to(y.dtype)


def _made(a: Tensor, b: Tensor, core: Tensor | None, weight: Tensor) -> Tensor:
    """A weight from its two factors, with the kernel in its columns, or from those and a core, (O, I, prod(k))."""
    a, b = like(a, weight), like(b, weight)
    return a @ b if core is None else torch.einsum(_TUCKER, like(core, weight).reshape(*core.shape[:2], -1), a, b)


def _factors(number: int, factor: int) -> tuple[int, int]:
    """number as a product, the smaller first: of `factor`, or as even as it can be below that."""
    if factor > 0 and number % factor == 0:
        return min(factor, number // factor), max(factor, number // factor)
    most = math.isqrt(number) if factor <= 0 else min(factor, math.isqrt(number))
    small = next(n for n in range(most, 0, -1) if number % n == 0)
    return small, number // small
