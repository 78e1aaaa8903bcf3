"""Pictures that are too large to be encoded or decoded at once: strip by strip, and the same numbers but for rounding.

Others cut the latent into overlapping tiles and blend what comes of them. The group norms and the attention of each
tile then see that tile only, so that brightness and colour differ between tiles. Here nothing is cut. A layer is
evaluated on strips of rows, with as many rows above and below as it sees; what depends on the whole picture is found
first, from all strips: mean and variance of a group norm, keys and values of the attention.

What this costs: the finest level's activations can be kept only once, so that what is needed both for a norm's
statistics and behind it is computed again. This is the first convolution of each residual block of that level (twice),
and in the decoder the upsampling before it (three times), of which `DoublingConv` saves about as much: 1.3 to 1.5
times the time in all. At most one activation of the finest level is in memory, with what a few strips need: for Stable
Diffusion's autoencoder in float32 512 bytes per pixel, and half a gigabyte.

Shapes: B batch, C channels, H W size of a picture or an activation, h w latent size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.memory import give_back
from safelight.models.autoencoder import Autoencoder, Level, Middle
from safelight.models.layers import PositionAttention, ResnetBlock, Upsample, attend
from safelight.models.norms import Norm
from safelight.models.packed import PackedResnetBlock

MOST_AT_ONCE = 3 << 30
"""Bytes of memory up to which a picture is encoded or decoded at once."""
ACTIVATIONS, ACTIVATIONS_PACKED = 4, 8 / 3
"""So many times the largest activation are in memory then, at most; of `PackedResnetBlock`s fewer."""
STRIP_BYTES = 32 << 20
"""Of a strip of an activation; some five times as much is in memory while it is made."""
QUERIES_AT_ONCE = 4096
"""Where attention holds all scores in memory, they are of so many queries at a time."""


def too_large(autoencoder: Autoencoder, height: int, width: int, dtype: torch.dtype, batch: int = 1) -> bool:
    """Whether pictures (batch, 3, height, width) should not be encoded or decoded at once."""
    widths = autoencoder.config.channels
    numbers = max(
        width_here * (height >> level) * (width >> level)
        for level in range(len(widths))
        for width_here in widths[level : level + 2]  # an upsampled activation still has the coarser level's channels
    )
    packed = isinstance(autoencoder.encoder.mid_block.resnets[0], PackedResnetBlock)
    return batch * numbers * dtype.itemsize * (ACTIVATIONS_PACKED if packed else ACTIVATIONS) > MOST_AT_ONCE


def decode(autoencoder: Autoencoder, z: Tensor) -> Tensor:
    """`Autoencoder.decode`, of many pictures one by one, and of a large one in strips: (B, C, h, w) -> (B, 3, H, W)."""
    factor, (B, _, h, w) = autoencoder.config.factor, z.shape
    if not too_large(autoencoder, h * factor, w * factor, z.dtype, B):
        return autoencoder.decode(z)
    if B > 1:
        return torch.cat([decode(autoencoder, one) for one in torch.split(z, 1)])
    return decode_in_strips(autoencoder, z)


def encode(autoencoder: Autoencoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """`Autoencoder.encode`, likewise: (B, 3, H, W) -> mean and logvar, each (B, C, h, w)."""
    B, _, H, W = pixels.shape
    if not too_large(autoencoder, H, W, pixels.dtype, B):
        return autoencoder.encode(pixels)
    if B > 1:
        means, logvars = zip(*(encode(autoencoder, one) for one in torch.split(pixels, 1)), strict=True)
        return torch.cat(means), torch.cat(logvars)
    return encode_in_strips(autoencoder, pixels)


def decode_in_strips(autoencoder: Autoencoder, z: Tensor, strip_bytes: int = STRIP_BYTES) -> Tensor:
    """As `Autoencoder.decode`, with bounded memory and without gradients: (B, C, h, w) -> (B, 3, H, W).

    Args:
        strip_bytes: size of a strip of an activation; see `STRIP_BYTES`.
    """
    decoder, config = autoencoder.decoder, autoencoder.config
    entries = z if autoencoder.quantize is None else autoencoder.quantise(z).latent
    B, _, h, w = z.shape
    finest = B * config.channels[0] * (h * config.factor) * (w * config.factor)
    with torch.no_grad():
        strips = _Strips.of(strip_bytes, finest, z)
        conv_in = nn.Sequential(autoencoder.post_quant_conv, decoder.conv_in)
        x: Rows = strips.keep(Made(Whole(entries), conv_in, decoder.conv_in.out_channels, halo=1))
        x = strips.middle(decoder.mid_block, x)
        for level in decoder.up_blocks:
            x = strips.level(cast(Level, level), x)
        return strips.out(decoder.conv_norm_out, decoder.conv_out, x)


def encode_in_strips(autoencoder: Autoencoder, pixels: Tensor, strip_bytes: int = STRIP_BYTES) -> tuple[Tensor, Tensor]:
    """As `Autoencoder.encode`, with bounded memory and without gradients: (B, 3, H, W) -> 2 times (B, C, h, w).

    Args:
        strip_bytes: size of a strip of an activation; see `STRIP_BYTES`.
    """
    encoder, config = autoencoder.encoder, autoencoder.config
    B, _, H, W = pixels.shape
    finest = B * config.channels[0] * H * W
    with torch.no_grad():
        strips = _Strips.of(strip_bytes, finest, pixels)
        x: Rows = strips.keep(Made(Whole(pixels), encoder.conv_in, config.channels[0], halo=1))
        for level in encoder.down_blocks:
            x = strips.level(cast(Level, level), x)
        x = strips.middle(encoder.mid_block, x)
        return autoencoder.moments(strips.out(encoder.conv_norm_out, encoder.conv_out, x))


class Rows(ABC):
    """An activation (B, C, H, W) of which some rows at a time can be had."""

    shape: tuple[int, int, int, int]
    """B, C, H, W."""
    row: int
    """How many numbers are in memory for a row, at most."""

    @abstractmethod
    def read(self, start: int, end: int) -> Tensor:
        """Rows `start` to `end` (not included), within 0 to H: (B, C, end - start, W)."""

    @abstractmethod
    def forget(self, before: int) -> None:
        """Rows before this one will not be asked for again."""


class Whole(Rows):
    """Rows of one tensor."""

    def __init__(self, x: Tensor) -> None:
        """(B, C, H, W)."""
        B, C, H, W = x.shape
        self.shape, self.row = (B, C, H, W), B * C * W
        self.x: Tensor | None = x

    def read(self, start: int, end: int) -> Tensor:
        assert self.x is not None
        return self.x[:, :, start:end]

    def forget(self, before: int) -> None:
        if before >= self.shape[2]:
            self.x = None


class Rooms:
    """Memory of one activation after the other, in flat tensors of one size.

    Whatever stays on a CPU's heap, between what layers take and give back all the time, leaves holes that the next
    strip just does not fit in: together as much again as an activation. So all rooms are there from the beginning, and
    in one piece; the system finds memory for them when something is put in.
    """

    def __init__(self, size: int, count: int, like: Tensor) -> None:
        """Say how many numbers go into one, how many rooms there should be, and numbers of which kind."""
        self.size, self.like = size, like.new_empty(0)
        self.free = list(like.new_empty(count, size))

    def take(self, size: int, dtype: torch.dtype) -> Tensor:
        """(size,) or more, with whatever was in it."""
        if dtype != self.like.dtype:
            return self.like.new_empty(size, dtype=dtype)
        room = self.free.pop() if self.free else None
        return self.like.new_empty(max(size, self.size)) if room is None or room.numel() < size else room

    def give(self, room: Tensor) -> None:
        """Take back one that nothing is in any more."""
        if room.dtype == self.like.dtype:
            self.free.append(room)


class Kept(Rows):
    """Rows in memory, which is given back room by room."""

    def __init__(self, shape: tuple[int, int, int, int], rooms: Rooms) -> None:
        """Say whose rows, and where they go."""
        B, C, _, W = self.shape = shape
        self.row, self.rooms = B * C * W, rooms
        self.each = max(rooms.size // self.row, 1)
        """Rows in a room."""
        self.held: dict[int, Tensor] = {}
        """The rooms, by their number."""
        self.dtype, self.last = rooms.like.dtype, False
        """As in the first rows: of the numbers (`careful` has some in float32); whether channels are side by side."""

    def fill(self, rows: Rows, start: int, end: int) -> None:
        """Keep some of these rows; those before them are kept already."""
        self._take(start, end)  # before anything of the strip is there: see `Rooms`
        x = rows.read(start, end)
        if start == 0:
            self.last = x.stride(1) == 1
            if x.dtype != self.dtype:
                self.forget(self.shape[2])
                self.dtype = x.dtype
                self._take(start, end)
        for k, (low, high) in self._spans(start, end).items():
            self._rows(k, low, high).copy_(x[:, :, low - start : high - start])

    def _take(self, start: int, end: int) -> None:
        """Rooms for these rows."""
        for k in self._spans(start, end):
            if k not in self.held:
                self.held[k] = self.rooms.take(self.each * self.row, self.dtype)

    def read(self, start: int, end: int) -> Tensor:
        parts = [self._rows(k, low, high) for k, (low, high) in self._spans(start, end).items()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def forget(self, before: int) -> None:
        for k in [k for k in self.held if (k + 1) * self.each <= before or before >= self.shape[2]]:
            self.rooms.give(self.held.pop(k))

    def _spans(self, start: int, end: int) -> dict[int, tuple[int, int]]:
        """Which of these rows are in which room."""
        n = self.each
        return {k: (max(start, k * n), min(end, (k + 1) * n)) for k in range(start // n, -(-end // n))}

    def _rows(self, k: int, start: int, end: int) -> Tensor:
        """Those rows, all of them in one room."""
        (B, C, _, W), n = self.shape, self.each
        room, rows = self.held[k][: n * self.row], slice(start - k * n, end - k * n)
        x = room.view(B, n, W, C).permute(0, 3, 1, 2) if self.last else room.view(B, C, n, W)
        return x[:, :, rows]


class Made(Rows):
    """Rows that are computed from those of another activation, each time anew."""

    def __init__(
        self, source: Rows, make: Callable[[Tensor], Tensor], channels: int, *, halo: int = 0, times: int = 1
    ) -> None:
        """Say how.

        Args:
            make: (B, C, n, W) -> (B, channels, times * n, times * W); rows near its ends may be wrong.
            halo: how many rows of the source they see above and below their own.
        """
        B, _, H, W = source.shape
        self.shape = (B, channels, times * H, times * W)
        self.row = max(B * channels * times * W, source.row // times)
        self.source, self.make, self.halo, self.times = source, make, halo, times

    def read(self, start: int, end: int) -> Tensor:
        low = max(start // self.times - self.halo, 0)
        high = min(-(-end // self.times) + self.halo, self.source.shape[2])
        first = low * self.times
        return self.make(self.source.read(low, high))[:, :, start - first : end - first]

    def forget(self, before: int) -> None:
        done = before >= self.shape[2]
        self.source.forget(self.source.shape[2] if done else max(before // self.times - self.halo, 0))


class Halved(Rows):
    """Rows behind a `Downsample` that pads right and below only."""

    def __init__(self, source: Rows, make: Callable[[Tensor], Tensor]) -> None:
        """make: (B, C, n, W) -> (B, C, n / 2, W / 2), rounded down."""
        B, C, H, W = source.shape
        self.shape = (B, C, H // 2, W // 2)
        self.row = 2 * source.row
        self.source, self.make = source, make

    def read(self, start: int, end: int) -> Tensor:
        return self.make(self.source.read(2 * start, min(2 * end + 1, self.source.shape[2])))

    def forget(self, before: int) -> None:
        self.source.forget(self.source.shape[2] if before >= self.shape[2] else 2 * before)


def _sum(y: Tensor, skip: Tensor) -> Tensor:
    """In the place of y, which nobody else has, unless one of them is in float32 only (see `careful`)."""
    return y.add_(skip) if y.dtype == skip.dtype else y + skip


@dataclass(frozen=True)
class _Strips:
    """How the layers of an autoencoder are evaluated."""

    at_once: int
    """Numbers in a strip of an activation."""
    finest: int
    """Numbers in an activation of the finest level: no larger one is kept."""
    rooms: Rooms
    """Where activations are kept."""

    @classmethod
    def of(cls, strip_bytes: int, finest: int, x: Tensor) -> Self:
        """For what is given."""
        give_back()  # what earlier work left
        at_once = strip_bytes // x.element_size()
        size = max(at_once // 2, 1)
        return cls(at_once, finest, Rooms(size, 5 * finest // (4 * size) + 8, x))  # some are never quite full

    def spans(self, rows: Rows) -> Iterator[tuple[int, int]]:
        """First row, and the one behind the last, of each strip."""
        H, step = rows.shape[2], max(self.at_once // rows.row, 1)
        return ((start, min(start + step, H)) for start in range(0, H, step))

    def keep(self, rows: Rows) -> Kept:
        """Compute all rows, and let go of what they are made from."""
        kept = Kept(rows.shape, self.rooms)
        for start, end in self.spans(rows):
            kept.fill(rows, start, end)
            rows.forget(end)
        self.tidy(rows)
        return kept

    def tidy(self, rows: Rows) -> None:
        """Give back the holes that strips of these left on the heap, and that not all of the next layer would fit in.

        Not behind small ones, which leave little: the system takes time to find all that memory again.
        """
        if 2 * rows.row * rows.shape[2] >= self.finest:
            give_back()

    def keep_if_small(self, rows: Rows) -> Rows:
        """`keep`, unless that is more than what will be kept of the finest level anyway."""
        return self.keep(rows) if math.prod(rows.shape) <= self.finest else rows

    def norm(self, norm: nn.GroupNorm, rows: Rows, channels: slice = slice(None)) -> Norm:
        """Measure the rows, or some channels of them, for a norm."""
        measured = Norm.of(norm, (rows.read(start, end)[:, channels] for start, end in self.spans(rows)))
        self.tidy(rows)
        return measured

    def resnet(self, block: ResnetBlock, x: Rows) -> Kept:
        """A `ResnetBlock` of an autoencoder."""
        (B, _, H, W), C, norm1 = x.shape, block.conv1.out_channels, self.norm(block.norm1, x)
        numbers = B * C * H * W

        def skip(x: Tensor) -> Tensor:
            y: Tensor = x if block.conv_shortcut is None else block.conv_shortcut(x)
            return y

        def first(x: Tensor) -> Tensor:
            y: Tensor = block.conv1(F.silu(norm1(x), inplace=True))
            return y

        def second(h: Tensor) -> Tensor:
            y: Tensor = block.conv2(F.silu(norm2(h), inplace=True))
            return y

        if 2 * numbers > self.finest:
            norm2 = self.norm(block.norm2, Made(x, first, C, halo=1))
            return self.keep(Made(x, lambda x: _sum(second(first(x)), skip(x)), C, halo=2))
        both = self.keep(Made(x, lambda x: torch.cat([skip(x), first(x)], dim=1), 2 * C, halo=1))
        norm2 = self.norm(block.norm2, both, slice(C, None))
        return self.keep(Made(both, lambda both: _sum(second(both[:, C:]), both[:, :C]), C, halo=1))

    def attention(self, block: PositionAttention, x: Rows) -> Kept:
        """A `PositionAttention`: all keys and values, and then the queries."""
        (B, C, H, W), norm = x.shape, self.norm(block.group_norm, x)

        def tokens(x: Tensor) -> Tensor:  # (B, C, n, W) -> (B, n*W, C)
            return norm(x).flatten(2).transpose(1, 2)

        for start, end in self.spans(x):
            some, of = tokens(x.read(start, end)), slice(start * W, end * W)
            keys, values = block.to_k(some), block.to_v(some)
            if start == 0:
                k, v = keys.new_empty(B, H * W, C), values.new_empty(B, H * W, C)
            k[:, of], v[:, of] = keys, values

        def attended(x: Tensor) -> Tensor:
            queries = block.to_q(tokens(x)).split(QUERIES_AT_ONCE, dim=1)
            y = block.to_out[0](torch.cat([attend(q, k, v, block.heads) for q in queries], dim=1))
            out: Tensor = x + y.transpose(1, 2).reshape(x.shape)
            return out

        return self.keep(Made(x, attended, C))

    def middle(self, block: Middle, x: Rows) -> Rows:
        """A `Middle`."""
        x = self.resnet(cast(ResnetBlock, block.resnets[0]), x)
        for attention in block.attentions:
            x = self.attention(cast(PositionAttention, attention), x)
        return self.resnet(cast(ResnetBlock, block.resnets[1]), x)

    def level(self, level: Level, x: Rows) -> Rows:
        """A `Level`, and the way to the next."""
        for i, block in enumerate(level.resnets):
            x = self.resnet(cast(ResnetBlock, block), x)
            if len(level.attentions) > 0:
                x = self.attention(cast(PositionAttention, level.attentions[i]), x)
        if level.downsamplers is not None:
            x = self.keep(Halved(x, level.downsamplers[0]))
        if level.upsamplers is not None:
            conv = cast(Upsample, level.upsamplers[0]).conv
            x = self.keep_if_small(Made(x, lambda x: conv(x, both=True), x.shape[1], halo=1, times=2))
        return x

    def out(self, norm: nn.GroupNorm, conv: nn.Conv2d, x: Rows) -> Tensor:
        """The last norm and convolution: (B, C, H, W)."""
        found = self.norm(norm, x)
        rows = self.keep(Made(x, lambda x: conv(F.silu(found(x), inplace=True)), conv.out_channels, halo=1))
        return rows.read(0, rows.shape[2]).clone()  # no part of a room
