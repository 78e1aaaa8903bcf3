"""Networks on the CPU in whole numbers of 8 bits: products take a quarter of the time, weights a quarter of the memory.

Scales of weights are found once (`int8_products`), those of what a layer is given at every call: what a UNet's layers
see grows and shrinks with the noise, and scales that fit all of its steps would fit none. Where the processor
multiplies in bfloat16, attention is in that (`rounded_attention`).

Every picture of a batch has scales of its own, so that it does not depend on the others.

Shapes: B batch, C channels in, N channels out, L tokens, H W picture size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.int8_products import AS_FLOAT, Given, Quantised, for_products, no_zeros, product
from safelight.models.layers import (
    DoublingConv,
    Downsample,
    PositionAttention,
    ResnetBlock,
    Upsample,
    inferring,
    interleaved,
    kernels_of_doubled,
    watched,
)
from safelight.models.packed import PackedUpsample, told_of_the_words
from safelight.models.packing import HELD, Form, Packing, Pages, Room, version
from safelight.models.rounded_attention import attend_rounded
from safelight.models.spatial_transformer import GEGLU, Attention, FeedForward, SpatialTransformer
from safelight.models.unet import Level, UNet
from safelight.models.winograd import DOUBLED, Tile


class Int8Linear(nn.Linear):
    """A linear layer in whole numbers."""

    packing: Packing
    read: Quantised | None

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., in_features) -> (B, ..., out_features)."""
        form = _form(self, self.weight, x, for_products)
        answer = None if form is None else _each(x, lambda given: product(given, form, self.bias))
        return F.linear(x, self.weight.to(x.dtype), self.bias) if answer is None else answer


class Int8Conv2d(nn.Conv2d):
    """A convolution in whole numbers."""

    packing: Packing
    read: Quantised | None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, H', W'), channels-last."""
        pointwise = self.kernel_size == (1, 1) and (self.stride, self.padding, self.groups) == ((1, 1), (0, 0), 1)
        form = _form(self, self.weight, x, for_products if pointwise else self._lay_out)
        if form is not None:
            x = x.contiguous(memory_format=torch.channels_last)
            if pointwise:  # a linear layer on every position
                answer = _each(x.permute(0, 2, 3, 1), lambda given: product(given, form, self.bias))
                answer = None if answer is None else answer.permute(0, 3, 1, 2)
            else:
                answer = _each(x, lambda given: self._convolve(given, form, self.bias))
            if answer is not None:
                return answer
        y: Tensor = self._conv_forward(x, self.weight.to(x.dtype), self.bias)
        return y

    def _convolve(self, given: Given, form: Form, bias: Tensor | None) -> Tensor:
        """As if the zero were 0, which oneDNN does without another pass over the weights; the bias makes up for it."""
        packed, scales, zeros, sums = form
        above, beside = (int(side) for side in self.padding)
        codes = F.pad(given.codes, (beside, beside, above, above), value=given.zero)
        missing = sums * (-given.scale * given.zero)
        weight = packed, scales, zeros, missing if bias is None else missing.add_(bias)
        y: Tensor = torch.ops.onednn.qconv_pointwise(
            codes, given.scale, 0, *weight, *self._way(), *AS_FLOAT, "none", [], ""
        )
        return y

    def _lay_out(self, weight: Quantised) -> Form:
        given = 1.0, 0  # are told at each call
        packed = torch.ops.onednn.qconv_prepack(weight.codes, weight.scales, *given, *self._way())
        return [packed, weight.scales, no_zeros(weight), weight.sums]

    def _way(self) -> tuple[object, ...]:
        return self.stride, (0, 0), self.dilation, self.groups


class Int8DoublingConv(Int8Conv2d, DoublingConv):
    """The same, for the convolution behind a doubling."""

    def forward(self, x: Tensor, both: bool = False) -> Tensor:
        """As `DoublingConv.forward`."""
        return DoublingConv.forward(self, x, both=True) if both else Int8Conv2d.forward(self, x)

    def doubled(self, x: Tensor) -> Tensor | None:
        """As `DoublingConv.doubled`."""
        form = _form(self, self.weight, x, self._lay_out, DOUBLED, kernels_of_doubled)
        if form is None:
            return None
        x, bias = x.contiguous(memory_format=torch.channels_last), None if self.bias is None else self.bias.repeat(4)
        return _each(x, lambda given: interleaved(self._convolve(given, form, bias)))


class Int8Shortcut(Int8Conv2d):
    """A pointwise convolution of what comes from below and what was kept on the way down, which are unlike: each has a
    scale of its own (Li et al. 2023, "Q-Diffusion", sec. 4.2).
    """

    below: int
    """Channels that come from below."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, H, W), channels-last."""
        form = _form(self, self.weight, x, self._lay_out, rounds=lambda weight: _of_halves(weight, self.below))
        if form is not None:
            pixels = x.permute(0, 2, 3, 1)
            halves = torch.tensor_split(pixels, (self.below,), dim=3)
            first, second = (_given(half.contiguous()) for half in halves)
            if first is not None and second is not None:
                pairs = zip(first, second, strict=True)
                sums = [product(b, form[3:], None, onto=product(a, form[:3], self.bias)) for a, b in pairs]
                return _joined(sums).permute(0, 3, 1, 2)
        y: Tensor = self._conv_forward(x, self.weight.to(x.dtype), self.bias)
        return y

    def _lay_out(self, weight: Quantised) -> Form:
        widths = self.below, self.in_channels - self.below
        halves = zip(weight.chunk(), widths, strict=True)
        of_each = (Quantised(half.codes[:, :width].contiguous(), half.scales, half.sums) for half, width in halves)
        return [tensor for half in of_each for tensor in for_products(half)]


class Int8GEGLU(GEGLU):
    """A gated linear unit, whose halves are products of the same whole numbers."""

    packing: Packing
    read: Quantised | None

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, inner)."""
        weight, bias = self.proj.weight, self.proj.bias
        form = _form(self, weight, x, _for_halves)
        if form is not None:
            value_bias, gate_bias = bias.chunk(2)

            def gated(given: Given) -> Tensor:
                opened = product(given, form[3:], gate_bias, "gelu")
                return product(given, form[:3], value_bias).mul_(opened)

            answer = _each(x, gated)
            if answer is not None:
                return answer
        value, gate = F.linear(x, weight.to(x.dtype), bias).chunk(2, dim=-1)
        y: Tensor = value * F.gelu(gate)
        return y


class Int8Attention(Attention):
    """What attends to itself: its queries, keys and values are products of the same whole numbers."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """As `Attention.forward`."""
        products: list[Callable[[Given], Tensor]] = []
        for layer in (self.to_q, self.to_k, self.to_v):
            if context is None and isinstance(layer, Int8Linear) and not watched(layer):
                form = _form(layer, layer.weight, x, for_products)
                products += [] if form is None else [partial(product, form=form, bias=layer.bias)]
        found = _all(x, products) if len(products) == 3 else None
        if found is None:
            return super().forward(x, context)
        q, k, v = found
        y: Tensor = self.to_out[0](self.attending(q, k, v, self.heads))
        return y


class Int8FeedForward(FeedForward):
    """One picture after the other: what lies between the layers is four times as wide, and need not be joined."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        answers = [FeedForward.forward(self, picture) for picture in x.chunk(len(x))]
        return answers[0] if len(answers) == 1 else torch.cat(answers)


_INT8: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Int8Linear,
    nn.Conv2d: Int8Conv2d,
    DoublingConv: Int8DoublingConv,
    GEGLU: Int8GEGLU,
}
_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    Upsample: PackedUpsample,
    FeedForward: Int8FeedForward,
    Attention: Int8Attention,
}
_IN = (ResnetBlock, SpatialTransformer, PositionAttention, Downsample, Upsample)
"""Whose layers are worth it: the first, the last, and what is told about time and size are small."""
_FLOAT = "time_emb_proj"
"""What of a block is not; nor is the last block. Of the shipped tiny every layer was tried alone: that block made 17 %
of the error, and 71 % the shortcuts, before each of their halves had a scale of its own."""


def rounded_weights(network: UNet) -> dict[str, nn.Parameter]:
    """A UNet's weights that are worth it to be in whole numbers, by name."""
    return {name: network.get_parameter(name) for name in _layers(network)}


def multiplied(network: UNet, name: str, weight: Tensor) -> Tensor:
    """What is rounded of such a weight: itself, or of a convolution behind a doubling the kernels that do both, or the
    halves of a shortcut.
    """
    layer, below = network.get_submodule(name.rpartition(".")[0]), _below(network)
    if layer in below:
        return _of_halves(weight, below[layer])
    return kernels_of_doubled(weight) if isinstance(layer, DoublingConv) else weight


def quantise(network: UNet, read: Mapping[str, Quantised], pages: Pages = HELD) -> None:
    """Have the products of a UNet in whole numbers.

    Args:
        read: the whole numbers of what is `multiplied`, as weights are now, by name; others are found when needed.
        pages: of these, and of the weights; those that are laid out are let go of.
    """
    room, below = Room.free(), _below(network)
    for module in network.modules():
        if isinstance(module, Attention | PositionAttention):
            module.attending = attend_rounded
        if type(module) in _BLOCKS:
            module.__class__ = _BLOCKS[type(module)]
    for name, layer in _layers(network).items():
        weight: Tensor = network.get_parameter(name)
        layer.__class__ = _INT8[type(layer)]
        if layer in below:
            layer.__class__, layer.below = Int8Shortcut, below[layer]  # type: ignore[assignment]
        own, known = (weakref.ref(weight), version(weight)), read.get(name)
        layer.packing = Packing(room, pages, (), own, width=1, reads=known is None)  # type: ignore[assignment]
        layer.read = known  # type: ignore[assignment]


def _layers(network: UNet) -> dict[str, nn.Module]:
    """Layers for whole numbers, by their weight's name."""
    left = {id(layer) for layer in told_of_the_words(network)}  # once for all steps: no time is to be saved
    last = cast(Level, network.up_blocks[-1]).resnets[-1]
    left |= {id(layer) for layer in last.modules()}
    found: dict[str, nn.Module] = {}
    for place, block in network.named_modules():
        if isinstance(block, _IN):
            for name, layer in block.named_modules(prefix=place):
                if type(layer) in _INT8 and id(layer) not in left and not name.endswith(_FLOAT):
                    found[f"{name}.proj.weight" if isinstance(layer, GEGLU) else f"{name}.weight"] = layer
                    left |= {id(part) for part in layer.modules()}
    return found


def _below(network: UNet) -> dict[nn.Module, int]:
    """How many channels come from below, by the shortcut that is given them and what was kept on the way down."""
    channels, found = cast(ResnetBlock, network.mid_block.resnets[-1]).conv2.out_channels, {}
    for block in (cast(ResnetBlock, block) for level in network.up_blocks for block in cast(Level, level).resnets):
        if block.conv_shortcut is not None:
            found[cast(nn.Module, block.conv_shortcut)] = channels
        channels = block.conv2.out_channels
    return found


def _of_halves(weight: Tensor, below: int) -> Tensor:
    """What of a shortcut's weight is multiplied with what comes from below, and below it the rest, with zeros up to the
    same width: (N, C, 1, 1) -> (2N, the larger part of C).
    """
    parts = torch.tensor_split(weight.flatten(1), (below,), dim=1)
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])


def _form(
    layer: Int8Linear | Int8Conv2d | Int8GEGLU,
    weight: Tensor,
    x: Tensor,
    lay_out: Callable[[Quantised], Form],
    tile: Tile | None = None,
    rounds: Callable[[Tensor], Tensor] = Tensor.detach,
) -> Form | None:
    """The laid out form of what is rounded of a layer's weight, if it may be used now."""
    if not inferring(x, weight):
        return None
    read = layer.read if (tile == DOUBLED) == isinstance(layer, DoublingConv) else None

    def laid_out(new: Tensor) -> Form:
        if read is None or not layer.packing.is_read(weight):
            return lay_out(Quantised.of(rounds(new)))
        layer.packing.pages.bring(read.codes)
        form = lay_out(read)
        layer.packing.pages.release(read.codes)
        return form

    form = layer.packing.kept(weight, laid_out, tile)
    if form is None:
        layer.packing.room.say_too_small()
    return form


def _each(x: Tensor, answer: Callable[[Given], Tensor]) -> Tensor | None:
    """The answer to every picture of a batch; None if one of them is not finite."""
    found = _all(x, [answer])
    return None if found is None else found[0]


def _all(x: Tensor, answers: Sequence[Callable[[Given], Tensor]]) -> list[Tensor] | None:
    """Several such answers to the same."""
    given = _given(x)
    return None if given is None else [_joined([answer(picture) for picture in given]) for answer in answers]


def _given(x: Tensor) -> list[Given] | None:
    """The pictures of a batch in whole numbers; None if one of them is not finite."""
    found: list[Given] = []
    for picture in x.chunk(len(x)):
        rounded = Given.of(picture)
        if rounded is None:
            return None
        found.append(rounded)
    return found


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _for_halves(weight: Quantised) -> Form:
    return [tensor for half in weight.chunk() for tensor in for_products(half)]
