"""Whole numbers of 8 bits: what layers answer, next to exact sums; pictures do not depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from safelight.adapters.kinds import Full
from safelight.adapters.patching import patched
from safelight.doors import Conditioning
from safelight.models import int8, int8_products, packed, packing
from safelight.models.layers import DoublingConv, ResnetBlock, Upsample
from safelight.models.spatial_transformer import GEGLU, Attention
from safelight.models.unet import UNet
from toy import toy_unet

Numbers = NDArray[np.float64]
CLOSE = 2e-6
"""Largest difference from exact sums, in units of the largest answer: float32's own."""


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _rounded_input(x: Tensor) -> Numbers:
    """What a layer understands of one picture: 256 levels from the least to the largest, 0 among them."""
    numbers = x.double().numpy()
    least, largest = min(float(numbers.min()), 0.0), max(float(numbers.max()), 0.0)
    scale = (largest - least) / 255
    zero = np.round(-least / scale)
    understood: Numbers = (np.clip(np.round(numbers / scale) + zero, 0, 255) - zero) * scale
    return understood


def _rounded_weight(weight: Tensor) -> Numbers:
    rows = weight.double().flatten(1).numpy()
    scales = np.abs(rows).max(axis=1, keepdims=True) / int8_products.HIGHEST
    rounded: Numbers = (np.round(rows / scales) * scales).reshape(tuple(weight.shape))
    return rounded


def _exact(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's answer to what it understands, in float64."""
    pictures = torch.from_numpy(np.stack([_rounded_input(picture) for picture in x]))
    if isinstance(layer, GEGLU):
        value, gate = F.linear(
            pictures, torch.from_numpy(_rounded_weight(layer.proj.weight)), layer.proj.bias.double()
        ).chunk(2, -1)
        return value * F.gelu(gate)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    weight, bias = torch.from_numpy(_rounded_weight(layer.weight)), None if layer.bias is None else layer.bias.double()
    if isinstance(layer, nn.Linear):
        return F.linear(pictures, weight, bias)
    return F.conv2d(pictures, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class _Holder(nn.Module):
    """Enough of a UNet for `quantise`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def _quantise(layer: nn.Module, monkeypatch: pytest.MonkeyPatch, below: int | None = None) -> None:
    name = "layer.proj.weight" if isinstance(layer, GEGLU) else "layer.weight"
    monkeypatch.setattr(int8, "_layers", lambda network: {name: layer})
    monkeypatch.setattr(int8, "_below", lambda network: {} if below is None else {layer: below})
    int8.quantise(_Holder(layer), {})  # type: ignore[arg-type]


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 40), (3, 17, 24)),
    "linear without a bias": (lambda: nn.Linear(24, 40, bias=False), (1, 17, 24)),
    "3x3": (lambda: nn.Conv2d(16, 24, 3, padding=1), (2, 16, 9, 7)),
    "3x3 without a bias": (lambda: nn.Conv2d(16, 24, 3, padding=1, bias=False), (1, 16, 9, 7)),
    "strided": (lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), (2, 16, 9, 8)),
    "strided, unpadded": (lambda: nn.Conv2d(16, 24, 3, stride=2), (1, 16, 9, 8)),
    "5x3": (lambda: nn.Conv2d(8, 8, (5, 3), padding=(2, 1)), (1, 8, 9, 8)),
    "1x1": (lambda: nn.Conv2d(16, 24, 1), (2, 16, 5, 7)),
    "behind a doubling": (lambda: DoublingConv(16, 16, 3, padding=1), (1, 16, 6, 6)),
    "gated": (lambda: GEGLU(16, 32), (2, 11, 16)),
}


@pytest.mark.parametrize("asked", LAYERS)
@pytest.mark.parametrize("moved", [0.0, 0.7, -30.0, 3.0])
def test_answers_are_exact_sums_of_rounded_numbers(asked: str, moved: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the least and the largest number lie: also above and below zero."""
    torch.manual_seed(0)
    make, shape = LAYERS[asked]
    layer = make()
    x = torch.randn(shape) + moved
    plain = layer(x)
    wanted = _exact(layer, x)
    _quantise(layer, monkeypatch)
    y = layer(x)
    assert y.dtype == torch.float32 and y.shape == plain.shape
    assert float((y - wanted).abs().max() / wanted.abs().max()) < CLOSE
    assert 1e-4 < float((y - plain).std() / plain.std()) < (0.02 if abs(moved) < 3 else 0.2), "it is rounded, no more"


@pytest.mark.parametrize("asked", LAYERS)
def test_without_pytorchs_quantised_tensors_the_answers_are_the_same(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which are announced to go."""
    torch.manual_seed(0)
    make, shape = LAYERS[asked]
    layer, x = make(), torch.randn(shape)
    _quantise(layer, monkeypatch)
    y = layer(x)
    monkeypatch.setattr(int8_products, "_rounds_at_once", lambda: False)
    assert float((layer(x) - y).abs().max() / y.abs().max()) < 0.01


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("moved", [0.0, 3.0])
def test_doubling_and_convolution_at_once_are_as_one_after_the_other(
    bias: bool, moved: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of a kernel's weights are rounded, not the weights."""
    torch.manual_seed(0)
    upsample = Upsample(16)
    if not bias:
        upsample.conv.bias = None
    x = torch.randn(3, 16, 5, 7) * torch.tensor([1.0, 10.0, 0.1])[:, None, None, None] + moved
    wanted, wanted_odd = upsample(x), upsample(x, (11, 13))
    _quantise(upsample.conv, monkeypatch)
    after = upsample(x)
    upsample.__class__ = packed.PackedUpsample
    at_once = upsample(x)
    assert at_once.shape == wanted.shape and at_once.is_contiguous(memory_format=torch.channels_last)
    odd = upsample(x, (11, 13))
    for answer, exact in ((at_once, wanted), (after, wanted), (odd, wanted_odd)):
        for one, other in zip(answer, exact, strict=True):
            assert _decibels(one, other) > (38 if moved == 0 else 28)
    assert not torch.equal(at_once, after), "else it was not done at once"
    assert torch.equal(upsample.conv(x, both=True), at_once)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_a_shortcut_rounds_each_half_by_itself(
    bias: bool, order: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the weight, too; of two pictures each for itself."""
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 40, 1, bias=bias)
    layer.weight.data[:, :16] *= 5
    x = torch.randn(2, 24, 5, 7) * torch.tensor([1.0, 50.0])[:, None, None, None]
    x[:, :16] /= 100
    plain = layer(x)
    weight = torch.from_numpy(
        np.concatenate([_rounded_weight(part) for part in layer.weight.split((16, 8), 1)], axis=1)
    )
    halves = [torch.from_numpy(np.stack([_rounded_input(half) for half in part])) for part in (x[:, :16], x[:, 16:])]
    wanted = F.conv2d(torch.cat(halves, dim=1), weight, None if layer.bias is None else layer.bias.double())
    _quantise(layer, monkeypatch, below=16)
    y = layer(x.contiguous(memory_format=order))
    assert isinstance(layer, int8.Int8Shortcut) and y.is_contiguous(memory_format=torch.channels_last)
    assert float((y - wanted).abs().max() / wanted.abs().max()) < CLOSE
    assert _decibels(y, plain) > 38
    x[1, 20, 3, 3] = torch.nan
    assert bool(layer(x)[0].isfinite().all()) and not bool(layer(x)[1].isfinite().all())


def _read(unet: UNet) -> dict[str, int8.Quantised]:
    weights = int8.rounded_weights(unet)
    return {name: int8.Quantised.of(int8.multiplied(unet, name, weight)) for name, weight in weights.items()}


def _asked(batch: int = 2, context: int | None = 24) -> tuple[Tensor, Tensor, Conditioning]:
    torch.manual_seed(1)
    x, t = torch.randn(batch, 4, 10, 14), torch.tensor([700.0, 3.0, 500.0])[:batch]
    return x, t, Conditioning(context=None if context is None else torch.randn(batch, 7, context))


def _decibels(answer: Tensor, wanted: Tensor) -> float:
    return float(20 * torch.log10(wanted.std() / (answer - wanted).std()))


@pytest.mark.parametrize(("linear", "context"), [(False, 24), (True, 24), (False, None)])
def test_a_unet_answers_nearly_the_same(linear: bool, context: int | None) -> None:
    """And layers that gain nothing, or that error comes from, are left as they are."""
    unet, asked = toy_unet(linear, context), _asked(context=context)
    wanted = unet(*asked)
    int8.quantise(unet, {})
    assert _decibels(unet(*asked), wanted) > 30
    rounded = int8._INT8.values()
    kept = [name for name, layer in unet.named_modules() if type(layer) in (nn.Linear, nn.Conv2d)]
    assert all(type(unet.get_submodule(name)) in rounded for name in ("down_blocks.0.resnets.0.conv1",))
    assert {"conv_in", "conv_out", "up_blocks.1.resnets.1.conv2"} <= set(kept)
    wide, narrow = (cast(ResnetBlock, unet.get_submodule(f"up_blocks.{n}.resnets.0")).conv_shortcut for n in (0, 1))
    assert isinstance(wide, int8.Int8Shortcut) and isinstance(narrow, int8.Int8Shortcut)
    assert (wide.below, narrow.below) == (64, 64), "and 64 and 32 that were kept"
    assert type(unet.get_submodule("down_blocks.1.resnets.0.conv_shortcut")) is int8.Int8Conv2d
    assert all("time_emb_proj" in name or name not in kept for name in kept if "down_blocks.0.resnets.0" in name)


def test_a_picture_does_not_depend_on_the_others_of_its_batch() -> None:
    """To the bit, for layers that the CPU does alike in every batch."""
    layer = nn.Linear(32, 48)
    holder = nn.ModuleDict({"layer": layer})
    layer.__class__ = int8.Int8Linear
    layer.packing = packing.Packing(packing.Room(1e9), packing.HELD, (), (lambda: None, None))  # type: ignore[assignment, arg-type]
    layer.read = None  # type: ignore[assignment]
    torch.manual_seed(0)
    x = torch.randn(3, 9, 32) * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    together = holder["layer"](x)
    for one, alone in zip(together, x, strict=True):
        assert torch.equal(one, layer(alone[None])[0])


def test_queries_keys_and_values_are_rounded_once_and_are_those_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = toy_unet()
    int8.quantise(unet, {})
    attention = next(part for part in unet.modules() if isinstance(part, Attention))
    x = torch.randn(2, 9, attention.to_q.in_features) * torch.tensor([1.0, 100.0])[:, None, None]
    rounded: list[Tensor] = []
    of = int8_products.Given.of
    monkeypatch.setattr(int8_products.Given, "of", lambda x: rounded.append(x) or of(x))
    together = attention(x)
    assert len(rounded) == 2 * 2, "of two pictures what is given, and the answer"
    seen: list[Tensor] = []
    hook = attention.to_k.register_forward_hook(lambda layer, given, answer: seen.append(answer))
    assert torch.equal(attention(x), together) and len(rounded) == 4 + 2 * 4
    assert len(seen) == 1, "who looks at a layer sees its answer"
    hook.remove()
    x[1, 2, 3] = torch.nan
    assert bool(attention(x)[0].isfinite().all()) and not bool(attention(x)[1].isfinite().all())


class _Noted:
    """What is brought, and let go of."""

    def __init__(self) -> None:
        self.brought: set[int] = set()
        self.released: set[int] = set()

    def bring(self, weight: Tensor) -> None:
        self.brought.add(id(weight))

    def release(self, weight: Tensor) -> None:
        self.released.add(id(weight))


def test_another_weight_is_rounded_when_it_is_met_and_the_first_comes_back() -> None:
    """Adapters put other tensors in the place of weights."""
    unet, asked = toy_unet(), _asked()
    plain = unet(*asked)
    read = _read(unet)
    pages = _Noted()
    int8.quantise(unet, read, pages)
    before = unet(*asked)
    name = "down_blocks.0.resnets.0.conv1"
    weight = unet.get_submodule(name).weight
    assert isinstance(weight, Tensor) and {id(weight), id(read[f"{name}.weight"].codes)} <= pages.released
    assert id(weight) not in pages.brought, "it was not read"
    change = torch.randn_like(weight) * 0.1
    with patched(unet, {name: [(Full(change, None), 1.0)]}):
        other = unet(*asked)
        assert _decibels(other, before) < 30
        weight_there = unet.get_submodule(name).weight
        assert isinstance(weight_there, Tensor) and id(weight_there) not in pages.released
    assert torch.equal(unet(*asked), before)
    plain_other = toy_unet()
    plain_other.get_submodule(name).weight.data += change  # type: ignore[operator]
    assert _decibels(other, plain_other(*asked)) > 30 > _decibels(other, plain)


def test_what_was_written_to_a_weight_is_seen() -> None:
    """Although its whole numbers were read from a file."""
    unet, asked = toy_unet(), _asked()
    read = _read(unet)
    int8.quantise(unet, read)
    before = unet(*asked)
    unet.get_submodule("mid_block.resnets.0.conv1").weight.data.mul_(0)  # type: ignore[operator]
    unet.get_submodule("mid_block.resnets.0.conv1").weight.mul_(1)  # type: ignore[operator]
    assert not torch.equal(unet(*asked), before)


def test_weights_of_half_precision_answer_in_float32() -> None:
    """They stay as their file has them."""
    unet, asked = toy_unet(), _asked()
    wanted = unet(*asked)
    for weight in int8.rounded_weights(unet).values():
        weight.data = weight.data.bfloat16()
    int8.quantise(unet, {})
    y = unet(*asked)
    assert y.dtype == torch.float32 and _decibels(y, wanted) > 30


def test_with_gradients_nothing_is_rounded() -> None:
    """They would be lost on the way."""
    unet, (x, t, cond) = toy_unet(), _asked()
    wanted = unet(x, t, cond)
    int8.quantise(unet, {})
    with torch.enable_grad():
        x.requires_grad_()
        y = unet(x, t, cond)
        y.sum().backward()
    assert float((y - wanted).abs().max()) < 1e-5 and x.grad is not None and bool(x.grad.abs().sum() > 0)


def test_what_is_not_finite_stays_so() -> None:
    """It is not made into a picture."""
    unet, (x, t, cond) = toy_unet(), _asked()
    int8.quantise(unet, {})
    x[1, 0, 0, 0] = torch.nan
    assert not bool(unet(x, t, cond)[1].isfinite().all())


def test_where_memory_is_short_a_layer_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer, and answers."""
    unet, asked = toy_unet(), _asked()
    wanted = unet(*asked)
    monkeypatch.setattr(packing.Room, "free", classmethod(lambda cls: cls(0)))
    int8.quantise(unet, {})
    with pytest.warns(packing.ShortMemoryWarning, match="memory is short"):
        assert float((unet(*asked) - wanted).abs().max()) < 1e-5
