"""Token merging: attention over fewer positions, alike ones as one (ToMe for SD: Bolya & Hoffman 2023).

Within a context the self-attentions of the finest level see positions merged, and what they answer is handed back to
all that were merged. No weight is changed, nothing is trained; afterwards the network is as it was.

Shapes: B batch, L positions (h * w) of a level, D destinations, R positions that are merged, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.spatial_transformer import SpatialTransformer, TransformerBlock
from safelight.models.unet import UNet, UNetConfig
from safelight.sending import sent

SQUARE = 2
"""One position of each square of so many by so many may be merged into: the rest, 3/4, is the most that is merged."""
_MIX = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Merge:
    """Which positions become one."""

    rows: Tensor
    """(B, L - R) positions that are left, the destinations last."""
    gone: Tensor
    """(B, R) positions that are merged."""
    back: Tensor
    """(B, L) for every position, where among those left its answer is."""

    def merged(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L - R, C): a destination is the mean of itself and of all that are merged into it."""
        B, left, C = len(x), self.rows.shape[1], x.shape[2]
        y = _picked(x, self.rows).flatten(0, 1)
        into = _flat(self.back.gather(1, self.gone), left)  # (B * R,)
        count = torch.ones(B * left, dtype=x.dtype, device=x.device)
        count.index_add_(0, into, torch.ones_like(into, dtype=x.dtype))
        y.index_add_(0, into, _picked(x, self.gone).flatten(0, 1))
        return (y / count[:, None]).view(B, left, C)

    def handed_back(self, y: Tensor) -> Tensor:
        """(B, L - R, C) -> (B, L, C): those that were merged get the same answer."""
        return _picked(y, self.back)


def matched(metric: Tensor, size: tuple[int, int], ratio: float, choice: Tensor) -> Merge:
    """Which positions are merged: those that are most like the destination that is most like them (sec. 3, 4.1).

    Args:
        metric: (B, L, C), compared by the angle.
        size: (h, w) of the level; where a side is odd, its last row or column is no destination.
        ratio: R / L, 0 to 1; no more are merged than there are beside the destinations.
        choice: (B, h // 2, w // 2) on the CPU, from 0 to 3: which position of each square is the destination.
    """
    (h, w), (B, L, _) = size, metric.shape
    top, left = (torch.arange(side // SQUARE) * SQUARE for side in size)
    places = (top[:, None] + choice // SQUARE) * w + left + choice % SQUARE  # (B, h/2, w/2)
    to = places.flatten(1)
    others = torch.ones(B, h * w, dtype=torch.bool).scatter_(1, to, False).nonzero()[:, 1].view(B, -1)
    to, others = sent(to, metric.device), sent(others, metric.device)  # (B, D), (B, L - D)
    if to.shape[1] == 0:  # a level of a single row or column
        return Merge(others, others[:, :0], torch.arange(L, device=metric.device).expand(B, L))
    unit = F.normalize(metric, dim=-1)
    best, into = (_picked(unit, others) @ _picked(unit, to).transpose(1, 2)).max(dim=-1)  # (B, L - D)
    order = best.argsort(dim=-1, descending=True)
    count = min(others.shape[1], int(L * ratio))
    gone, stays = order[:, :count], order[:, count:]
    rows = torch.cat([others.gather(1, stays), to], dim=1)
    back = torch.empty(B, L, dtype=torch.long, device=metric.device)
    back.scatter_(1, rows, torch.arange(rows.shape[1], device=metric.device).expand_as(rows))
    back.scatter_(1, others.gather(1, gone), into.gather(1, gone) + stays.shape[1])
    return Merge(rows, others.gather(1, gone), back)


def mergeable_level(config: UNetConfig) -> int | None:
    """The finest level whose transformers attend to the picture itself; None: there is none."""
    if config.context_width is None:
        return None
    levels = [i for i, depth in enumerate(config.transformer_depth) if depth > 0 and i not in config.context_only]
    return min(levels, default=None)


@contextmanager
def merged_tokens(unet: UNet, ratio: float, seeds: Sequence[int]) -> Iterator[None]:
    """Within it the self-attentions of the finest level that has any merge a part of their positions.

    The destinations are chosen by chance for each layer, the same for every row of one seed: what is told and what is
    avoided meet the same, and a picture does not depend on its batch. Enter it around a single question.

    Args:
        ratio: the part of the positions that is merged, 0 to 0.75. 0 changes nothing.
        seeds: one for each picture; a batch is these rows, again and again.

    Raises:
        ValueError: the network has no such attention, or the ratio is out of range.
    """
    level = mergeable_level(unet.config)
    if level is None:
        raise ValueError("this UNet has no transformers whose positions could be merged")
    if not 0 <= ratio <= 1 - 1 / SQUARE**2:
        raise ValueError(f"from 0 to {1 - 1 / SQUARE**2:g} of the positions can be merged, not {ratio}")
    count = len(unet.config.channels)
    sides = (unet.down_blocks[level], unet.up_blocks[count - 1 - level])
    found = [module for side in sides for module in side.modules() if isinstance(module, SpatialTransformer)]
    with ExitStack() as hooks:
        if ratio > 0:
            for place, transformer in enumerate(found):
                _attach(hooks, transformer, _Merging(ratio, seeds, place))
        yield


@dataclass
class _Merging:
    """The merging in one transformer, from its size to the answer of each attention."""

    ratio: float
    seeds: Sequence[int]
    place: int
    size: tuple[int, int] = (0, 0)
    merges: dict[int, Merge] = field(default_factory=dict)

    def look(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.size = (inputs[0].shape[-2], inputs[0].shape[-1])

    def match(self, number: int, x: Tensor) -> None:
        """Block `number` is given x (B, L, C)."""
        h, w = self.size
        kinds, shape = SQUARE * SQUARE, (h // SQUARE, w // SQUARE)
        choices = []
        for seed in self.seeds:
            own = (seed + _MIX * (1 + self.place * 256 + number)) % 2**64
            choices.append(torch.randint(kinds, shape, generator=torch.Generator().manual_seed(own)))
        choice = torch.stack(choices).repeat(len(x) // len(choices), 1, 1)
        self.merges[number] = matched(x, self.size, self.ratio, choice)


def _attach(hooks: ExitStack, transformer: SpatialTransformer, merging: _Merging) -> None:
    """Hooks, which are taken away with the stack."""
    hooks.callback(transformer.register_forward_pre_hook(merging.look).remove)
    for number, block in enumerate(transformer.transformer_blocks):
        assert isinstance(block, TransformerBlock)
        _attach_block(hooks, block, merging, number)


def _attach_block(hooks: ExitStack, block: TransformerBlock, merging: _Merging, number: int) -> None:
    def match(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        merging.match(number, inputs[0])

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (merging.merges[number].merged(inputs[0]), *inputs[1:])

    def after(module: nn.Module, inputs: object, y: Tensor) -> Tensor:
        return merging.merges.pop(number).handed_back(y)

    hooks.callback(block.register_forward_pre_hook(match).remove)
    hooks.callback(block.attn1.register_forward_pre_hook(before).remove)
    hooks.callback(block.attn1.register_forward_hook(after).remove)


def _flat(index: Tensor, length: int) -> Tensor:
    """Indices within each picture (B, M) as indices into all of them, one behind the other (B * M,)."""
    return (index + torch.arange(len(index), device=index.device)[:, None] * length).flatten()


def _picked(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each picture: (B, N, C), (B, M) -> (B, M, C)."""
    return x.flatten(0, 1).index_select(0, _flat(index, x.shape[1])).view(*index.shape, x.shape[2])
