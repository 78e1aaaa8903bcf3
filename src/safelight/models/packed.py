"""Networks on the CPU: all products by oneDNN, with kernels laid out once as it computes with them.

PyTorch lays kernels out at every call, which for the deep levels of a UNet takes as long as the arithmetic. And its
matrix products are those of a library that knows not every processor well: oneDNN's took from 0.4 to 0.9 of the time.
Weights of linear layers stay as they are: laid out they would be some percent faster, and there twice. Attention is in
tiles (`tiled_attention`), where that is faster.

`pack` exchanges the classes of layers for those below; the networks' own code and parameters stay as they are. A
convolution lays its kernel out when it is first asked, and again when it meets another one: adapters, which put other
tensors in the place of the weights and take them away, need to know nothing of it.

With gradients, on another device or in another dtype than float32, a packed layer is what it was.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from safelight.models import winograd
from safelight.models.layers import DoublingConv, PositionAttention, ResnetBlock, Upsample, attend, inferring, watched
from safelight.models.norms import Norm
from safelight.models.packing import HELD, Form, Packing, Pages, Room, Tiles, version
from safelight.models.spatial_transformer import GEGLU, Attention, TransformerBlock
from safelight.models.tiled_attention import attend_tiled

SMALLEST = 1 << 25
"""Parameters of a network below which it is left as it is: its layers take microseconds, and what is done about them
in Python would take longer than they."""
SMALLEST_WEIGHT = 1 << 12
"""Numbers of a weight that is worth it."""
TILES: Tiles = ((1024, (4, 4)), (256, (2, 2)))
"""A laid out kernel is 4, 2.7 or 1.8 times as large as it was: the deep levels, which have most of the weights and few
positions, would gain less time than they would cost memory."""
FINE_TILES: Tiles = ((1024, (2, 4)), (256, (2, 2)))
"""The same, more exact: for an autoencoder, of which nearly all is such convolutions."""
WINOGRAD_CHANNELS = 192
"""With fewer channels, reading and writing the picture takes longer than what is saved."""
LARGE = 32 << 20
"""Bytes of an activation of one picture from which on a residual block goes over it in strips."""
STRIP = 16 << 20
"""Bytes of a strip of one picture."""


class DnnLinear(nn.Linear):
    """A linear layer by oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        weight = _ready(self, x)
        return super().forward(x) if weight is None else winograd.linear(x, weight, self.bias)


class ContextLinear(DnnLinear):
    """Keys or values of the words: what they are told is the same at every step, and is answered once."""

    told: WeakTensorKeyDictionary

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, in_features) -> (B, L, out_features)."""
        if (weight := _ready(self, x)) is None:
            return super().forward(x)
        state = id(weight), version(weight)
        if x not in self.told or self.told[x][0] != state:
            self.told[x] = (state, super().forward(x), weight)
        answer: Tensor = self.told[x][1]
        return answer


class PackedConv2d(nn.Conv2d):
    """A convolution whose kernel is laid out; one of 3x3 is Winograd's where that is faster. One with fewer positions
    than outputs is a linear layer, with the kernel as it is.
    """

    packing: Packing

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), channels-last."""
        weight = _ready(self, x)
        if weight is None:
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        if self._is((1, 1), (0, 0)):  # a linear layer on every position
            return winograd.linear(x.permute(0, 2, 3, 1), weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        tile = self._tile(x.shape[2] * x.shape[3])
        if tile is None and self.groups == 1:
            size = self._size_out(x.shape[2:])
            if math.prod(size) < self.out_channels:
                return self._gathered(x, weight, size)
        return self._convolved(x, weight, tile)

    def strip(self, x: Tensor, positions: int) -> Tensor:
        """Some rows, of which what is around them is given, too: (B, C, n + 2, W + 2) channels-last -> (B, C', n, W).

        Args:
            positions: of the whole picture.
        """
        return self._convolved(x, self.weight, self._tile(positions), border=0)

    def _gathered(self, x: Tensor, weight: Tensor, size: tuple[int, ...]) -> Tensor:
        """As a linear layer on all that a position sees: there are fewer positions than outputs, so that it is less
        work to have these in the kernel's order than to lay the kernel out.
        """
        seen = F.unfold(x, self.kernel_size, self.dilation, cast(tuple[int, int], self.padding), self.stride)
        y = winograd.linear(seen.transpose(1, 2), weight.flatten(1), self.bias)
        return y.view(len(x), *size, self.out_channels).permute(0, 3, 1, 2)

    def _size_out(self, size: Sequence[int]) -> tuple[int, ...]:
        """Height and width of the answer to such a picture."""
        way = zip(size, self.kernel_size, cast(tuple[int, int], self.padding), self.stride, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, p, s, d in way)

    def _convolved(self, x: Tensor, weight: Tensor, tile: winograd.Tile | None, border: int = 1) -> Tensor:
        form = self._form(weight, tile)
        if tile is not None:
            return winograd.convolve(x, form, self.bias, tile, border)
        padding, *way = self._way()
        given = padding if border else (0, 0)
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, form[0], self.bias, given, *way, "none", [], "")
        return y

    def doubled(self, x: Tensor) -> Tensor | None:
        """As `DoublingConv.doubled`, by Winograd's way."""
        weight = _ready(self, x)
        if weight is None or not self._is((3, 3), (1, 1)):
            return None
        x = x.contiguous(memory_format=torch.channels_last)
        return winograd.convolve_doubled(x, self._form(weight, winograd.DOUBLED), self.bias)

    def _is(self, kernel: tuple[int, int], padding: tuple[int, int]) -> bool:
        plain = (self.stride, self.dilation, self.groups) == ((1, 1), (1, 1), 1)
        return plain and (self.kernel_size, self.padding) == (kernel, padding)

    def _tile(self, positions: int) -> winograd.Tile | None:
        """For so many positions of a picture, so that it is the same in every batch."""
        if self._is((3, 3), (1, 1)) and min(self.in_channels, self.out_channels) >= WINOGRAD_CHANNELS:
            return next((tile for least, tile in self.packing.tiles if positions >= least), None)
        return None

    def _way(self) -> tuple[object, ...]:
        return self.padding, self.stride, self.dilation, self.groups

    def _form(self, weight: Tensor, tile: winograd.Tile | None) -> Form:
        def as_kernel(weight: Tensor) -> Form:
            return [torch.ops.mkldnn._reorder_convolution_weight(weight, *self._way())]

        if tile is None:
            return self.packing.ready(weight, as_kernel, as_kernel, None)

        def at_points(weight: Tensor) -> Form:
            return list(winograd.at_points(weight, tile))

        def in_order(weight: Tensor) -> Form:  # oneDNN's: this takes longer than one call gains
            return [torch.ops.mkldnn._reorder_linear_weight(values) for values in at_points(weight)]

        return self.packing.ready(weight, in_order, at_points, tile)


class PackedDoublingConv(PackedConv2d, DoublingConv):
    """The same, for the convolution behind a doubling."""

    def forward(self, x: Tensor, both: bool = False) -> Tensor:
        """As `DoublingConv.forward`."""
        return DoublingConv.forward(self, x, both=True) if both else PackedConv2d.forward(self, x)


class PackedUpsample(Upsample):
    """Doubling and convolution, at once where that is faster."""

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """As `Upsample.forward`."""
        may = not watched(self.conv) and size in (None, (2 * x.shape[-2], 2 * x.shape[-1]))
        y = self.conv.doubled(x) if may else None
        return super().forward(x, size) if y is None else y


class PackedResnetBlock(ResnetBlock):
    """A residual block that goes over a large picture strip by strip: beside what it is given and its answer nothing of
    that size is in memory.
    """

    def forward(self, x: Tensor, time: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """As `ResnetBlock.forward`."""
        large = 4 * x[0].numel() >= LARGE and inferring(x, self.conv1.weight)
        plain = time is None and self.resample is None and not any(watched(part) for part in self.children())
        if not (large and plain and _in_strips(self.conv1) and _in_strips(self.conv2)):
            return super().forward(x, time, size)
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.empty(len(x), self.conv1.out_channels, *x.shape[2:], memory_format=torch.channels_last)
        for k in range(len(x)):
            given, h = x[k : k + 1], y[k : k + 1]
            _norm_and_convolve(self.norm1, cast(PackedConv2d, self.conv1), given, h)

            def skip(some: slice, given: Tensor = given) -> Tensor:
                rows = given[:, :, some]
                return rows if self.conv_shortcut is None else cast(Tensor, self.conv_shortcut(rows))

            _norm_and_convolve(self.norm2, cast(PackedConv2d, self.conv2), h, h, skip)
        return y


def _in_strips(conv: nn.Module) -> bool:
    return isinstance(conv, PackedConv2d) and conv._is((3, 3), (1, 1))


def _rows(x: Tensor) -> int:
    """Of a strip of a picture."""
    return max(STRIP // (4 * x[0, :, 0].numel()), 1)


def _norm_and_convolve(
    norm: nn.GroupNorm, conv: PackedConv2d, x: Tensor, out: Tensor, skip: Callable[[slice], Tensor] | None = None
) -> None:
    """Norm, SiLU and convolution of a picture (1, C, H, W) -> `out` (1, C', H, W), which may be the picture itself.

    Args:
        skip: what is added to some rows of the answer.
    """
    (_, C, H, W), step = x.shape, _rows(x)
    found = Norm.of(norm, (x[:, :, start : start + step] for start in range(0, H, step)))
    above = x.new_zeros(1, C, 1, W + 2)
    for start in range(0, H, step):
        end = min(start + step, H)
        rows = torch.empty(1, C, end - start + 2, W + 2, memory_format=torch.channels_last)
        below = min(end + 1, H)
        inside = rows[:, :, 1 : 1 + below - start, 1:-1]
        torch.addcmul(found.shift, x[:, :, start:below], found.scale, out=inside)
        F.silu(inside, inplace=True)
        rows[:, :, :, :1], rows[:, :, :, -1:], rows[:, :, :1] = 0, 0, above
        if below == end:
            rows[:, :, -1:] = 0
        above = rows[:, :, -2:-1].clone()
        answer, some = conv.strip(rows, H * W), slice(start, end)
        if skip is None:
            out[:, :, some] = answer
        else:
            torch.add(answer, skip(some), out=out[:, :, some])


class DnnGEGLU(GEGLU):
    """A gated linear unit whose two halves are products of their own: GELU and gate are done on the way out of them."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, inner)."""
        weight = _ready(self.proj, x)
        if weight is None:
            return super().forward(x)
        (value, gate), (value_bias, gate_bias) = weight.chunk(2), self.proj.bias.chunk(2)
        opened = torch.ops.mkldnn._linear_pointwise(x, gate, gate_bias, "gelu", [], "none")
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, opened, value, value_bias, "mul")
        return y


_PACKED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: DnnLinear,
    nn.Conv2d: PackedConv2d,
    DoublingConv: PackedDoublingConv,
    GEGLU: DnnGEGLU,
    ResnetBlock: PackedResnetBlock,
    Upsample: PackedUpsample,
}
_PLAIN = {packed: plain for plain, packed in _PACKED.items()} | {ContextLinear: nn.Linear}


def pack(network: nn.Module, pages: Pages = HELD, tiles: Tiles = TILES) -> None:
    """Have a network computed so; does nothing to small networks, and without oneDNN.

    Args:
        pages: of the weights as they are now; those that are laid out are let go of.
    """
    parameters = sum(weight.numel() for weight in network.parameters())
    if parameters < SMALLEST or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    room = Room.free()
    for module in network.modules():
        if isinstance(module, Attention | PositionAttention) and module.attending is attend:
            module.attending = attend_tiled
        packed = _PACKED.get(type(module))
        weight = module.proj.weight if isinstance(module, GEGLU) else getattr(module, "weight", None)
        if packed is None or (isinstance(weight, Tensor) and weight.numel() < SMALLEST_WEIGHT):
            continue
        module.__class__ = packed
        if isinstance(module, PackedConv2d):
            read = weakref.ref(module.weight), version(module.weight)
            module.packing = Packing(room, pages, tiles, read)
    for layer in told_of_the_words(network):
        if type(layer) is DnnLinear:
            layer.__class__ = ContextLinear
            cast(ContextLinear, layer).told = WeakTensorKeyDictionary()


def unpack(network: nn.Module) -> None:
    """Make a network's layers what they were before `pack`."""
    for module in network.modules():
        if isinstance(module, Attention | PositionAttention) and module.attending is attend_tiled:
            module.attending = attend
        plain = _PLAIN.get(type(module))
        if plain is not None:
            for name in ("packing", "told"):
                vars(module).pop(name, None)
            module.__class__ = plain


def expect(network: nn.Module, calls: int) -> None:
    """Say that a network is going to be called so often: for few calls, what is laid out is not kept. Where nobody says
    so, many are expected.
    """
    for module in network.modules():
        packing = vars(module).get("packing")
        if isinstance(packing, Packing):  # one room for all of them
            packing.room.calls = calls + (0 if packing.room.calls is None else packing.room.calls)
            return


def told_of_the_words(network: nn.Module) -> Iterator[nn.Module]:
    """Layers that are given the same at every step of a drawing: what the words make of themselves."""
    for block in network.modules():
        if isinstance(block, TransformerBlock):
            for attention in (block.attn1, block.attn2) if block.context_only else (block.attn2,):
                yield attention.to_k
                yield attention.to_v


def _ready(layer: nn.Module, x: Tensor) -> Tensor | None:
    """The layer's weight, if its laid out form may be used now."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight if weight.dtype == torch.float32 and inferring(x, weight) else None
