"""Kinds that add a difference to a weight, and DoRA, which then sets the length of its rows or columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from safelight.adapters.kinds.kind import ALPHA, Changed, Kind, Shape, kept, like

DORA = "dora_scale"
EPS = torch.finfo(torch.float32).eps
BLOCK = 1 << 20
"""Numbers of a weight that are made at once, where more than one step leads to them."""


class Additive(Kind):
    """W + strength * difference; with `dora_scale`, scaled to that length (Liu et al. 2024, DoRA, eq. 5).

    The strength of a DoRA is LyCORIS': the difference counts whole, and each row of the sum is scaled by
    1 + strength * (dora_scale / length - 1). At small strengths this does not become the weight itself.
    """

    BESIDE: ClassVar[frozenset[str]] = frozenset({ALPHA, DORA})

    alpha: Tensor | None
    """(), what the scale is in units of the rank; None: it is the rank, as 0 says, too."""
    dora_scale: nn.Parameter | None
    """(O, 1, ...) lengths of the rows, or (1, I, ...) of the columns; None: no DoRA."""

    def __init__(self, alpha: Tensor | float | None, dora_scale: Tensor | None) -> None:
        super().__init__()
        number = alpha if alpha is None or isinstance(alpha, Tensor) else torch.tensor(alpha)
        self.register_buffer(ALPHA, None if number is None else number.detach().reshape(()).float())
        self.dora_scale = kept(dora_scale)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        rank, alpha = self.rank, 0.0 if self.alpha is None else float(self.alpha)
        return 1.0 if rank is None or alpha == 0 else alpha / rank

    @abstractmethod
    def difference(self, weight: Tensor) -> Tensor:
        """What strength 1 adds to a weight (float32), in its shape."""

    def combined(self, weight: Tensor, strength: float) -> Tensor:
        """weight (float32) + strength * difference."""
        return torch.add(weight, self.difference(weight), alpha=strength)

    def changed(self, weight: Tensor, bias: Tensor | None, strength: float = 1.0) -> Changed:
        """As `Kind.changed`."""
        new = self.combined(weight.float(), strength if self.dora_scale is None else 1.0)
        if self.dora_scale is not None:
            lengths = like(self.dora_scale, weight)
            of_rows = lengths.shape[0] == new.shape[0] and lengths.numel() == new.shape[0]
            factor = lengths / (_lengths(new, of_rows=of_rows) + EPS)
            new = new * (1 + strength * (factor - 1))
        return new, bias

    def decompose(self, weight: Tensor) -> None:
        """Make it a DoRA that begins as the weight is: lengths of its rows are trained, too."""
        self.dora_scale = kept(_lengths(weight.detach().float(), of_rows=True))


def by_rows(weight: Tensor, fill: Callable[[slice, Tensor], None]) -> Tensor:
    """A new weight (O, I), made some rows at a time, for where nothing is differentiated.

    Memory that is new to the process costs most of the time of making one: this way there is none beside the result.

    Args:
        fill: makes the rows of a slice, in their place.
    """
    out = torch.empty_like(weight)
    rows = max(1, BLOCK // weight.shape[1]) if weight.device.type == "cpu" else len(weight)
    for start in range(0, len(weight), rows):
        fill(slice(start, start + rows), out[start : start + rows])
    return out


def expected_alpha(tensors: Mapping[str, Tensor], shape: Shape) -> dict[str, Shape]:
    """The shapes of what may stand beside a difference, as far as it is there."""
    found: dict[str, Shape] = {}
    if ALPHA in tensors:
        found[ALPHA] = ()
    if (lengths := tensors.get(DORA)) is not None:
        ones = (1,) * (len(shape) - 2)
        of_columns = lengths.ndim > 1 and lengths.shape[0] == 1
        found[DORA] = (1, shape[1], *ones) if of_columns else (shape[0], 1, *ones)
    return found


def dora_of(tensors: Mapping[str, Tensor], shape: Shape) -> Tensor | None:
    """The lengths of a file, with as many axes as the weight."""
    if (lengths := tensors.get(DORA)) is None:
        return None
    return lengths.reshape(expected_alpha(tensors, shape)[DORA])


def _lengths(weight: Tensor, *, of_rows: bool) -> Tensor:
    """Of the rows (O, 1, ...) or the columns (1, I, ...) of a weight (O, I, *k)."""
    kernel = tuple(range(2, weight.ndim))
    lengths: Tensor = torch.linalg.vector_norm(weight, dim=(1, *kernel) if of_rows else (0, *kernel), keepdim=True)
    return lengths
