"""Networks whose weights are laid out for the CPU answer as before, and are what they were afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.adapters.kinds import Full
from safelight.adapters.patching import patched
from safelight.doors import Conditioning
from safelight.models import packed, packing, winograd
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.layers import ResnetBlock, Upsample, activated, doubled
from safelight.models.norms import Norm
from safelight.models.strips import decode_in_strips
from safelight.models.unet import UNet
from toy import toy_unet

CLOSE = 1e-5
"""Largest difference, in units of the largest answer."""


@pytest.fixture(autouse=True)
def _everything_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy networks are laid out, too, and their convolutions are Winograd's."""
    for name in ("SMALLEST", "SMALLEST_WEIGHT", "WINOGRAD_CHANNELS"):
        monkeypatch.setattr(packed, name, 1)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _told(batch: int = 2, context: int | None = 24, size: tuple[int, int] = (10, 14)) -> Callable[[UNet], Tensor]:
    torch.manual_seed(1)
    x, t = torch.randn(batch, 4, *size), torch.tensor([700.0, 3.0])[:batch]
    cond = Conditioning(context=None if context is None else torch.randn(batch, 7, context))
    return lambda unet: unet(x, t, cond)


TILES: packed.Tiles = ((60, (4, 4)), (40, (2, 4)), (1, (2, 2)))


def _pack(network: nn.Module, pages: packing.Pages = packing.HELD) -> None:
    packed.pack(network, pages, TILES)


def _same(a: Tensor, b: Tensor) -> None:
    difference = float((a - b).abs().max() / b.abs().max())
    assert difference < CLOSE, f"they differ by {difference:.1e} of the largest number"


@pytest.mark.parametrize("shape", [(1, 8, 16, 16), (2, 5, 7, 9), (1, 3, 2, 4), (1, 4, 1, 1), (3, 16, 33, 6)])
@pytest.mark.parametrize("at_once", [1, winograd.AT_ONCE])
def test_winograds_convolution_is_pytorchs(
    shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In sizes that are no multiples of a tile, at once and in strips of one row of tiles."""
    monkeypatch.setattr(winograd, "AT_ONCE", at_once)
    torch.manual_seed(0)
    layer = nn.Conv2d(shape[1], 6, 3, padding=1)
    x = torch.randn(shape)
    wanted = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1).float()
    _pack(layer)
    y = layer(x)
    assert isinstance(layer, packed.PackedConv2d) and layer.packing.form is not None
    _same(y, wanted)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 6, 3, stride=2, padding=1),
        nn.Conv2d(8, 6, 3),
        nn.Conv2d(8, 6, 1, bias=False),
        nn.Conv2d(8, 6, 1, stride=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 6, (3, 1), padding=(1, 0), dilation=2),
    ],
    ids=str,
)
def test_every_convolution_is_pytorchs(layer: nn.Conv2d) -> None:
    x = torch.randn(2, 8, 13, 9)
    wanted = layer(x)
    _pack(layer)
    assert isinstance(layer, packed.PackedConv2d)
    _same(layer(x), wanted)
    assert layer.packing.form is None or len(layer.packing.form) == 1, "this is not what Winograd's is for"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 40, 3, padding=1),
        nn.Conv2d(8, 40, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(8, 40, (3, 2), padding=(2, 0), stride=(1, 2), dilation=(2, 1)),
    ],
    ids=str,
)
def test_a_kernel_larger_than_the_picture_is_not_laid_out(layer: nn.Conv2d) -> None:
    x = torch.randn(2, 8, 7, 5)
    wanted = layer(x)
    _pack(layer)
    assert isinstance(layer, packed.PackedConv2d)
    layer.packing.tiles = ()
    y = layer(x)
    _same(y, wanted)
    assert layer.packing.form is None and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("linear", [False, True], ids=["1x1", "linear"])
@pytest.mark.parametrize("context", [24, None], ids=["words", "none"])
@pytest.mark.parametrize("size", [(10, 14), (9, 13)], ids=["even", "odd"])
def test_a_packed_unet_answers_as_before_and_is_itself_again(
    linear: bool, context: int | None, size: tuple[int, int]
) -> None:
    unet, ask = toy_unet(linear and context is not None, context), _told(context=context, size=size)
    wanted, classes = ask(unet), [type(module) for module in unet.modules()]
    weights = list(unet.parameters())
    _pack(unet)
    for _ in range(2):
        _same(ask(unet), wanted)
    assert all(a is b for a, b in zip(unet.parameters(), weights, strict=True))
    packed.unpack(unet)
    assert [type(module) for module in unet.modules()] == classes
    assert torch.equal(ask(unet), wanted)
    assert not any({"packing", "told"} & set(vars(module)) for module in unet.modules())


@pytest.mark.parametrize("codebook", [None, 32], ids=["kl", "vq"])
def test_a_packed_autoencoder_answers_as_before_whole_and_in_strips(codebook: int | None) -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=(16, 32), blocks_per_level=1, norm_groups=8, codebook_size=codebook)
    autoencoder = Autoencoder(config).eval().requires_grad_(False)
    pixels, z = torch.rand(1, 3, 22, 18) * 2 - 1, torch.randn(1, 4, 11, 9)
    wanted = autoencoder.encode(pixels)[0], autoencoder.decode(z)
    _pack(autoencoder)
    for found, right in zip((autoencoder.encode(pixels)[0], autoencoder.decode(z)), wanted, strict=True):
        _same(found, right)
    _same(decode_in_strips(autoencoder, z, strip_bytes=4096), wanted[1])


def test_what_an_adapter_changes_is_laid_out_anew() -> None:
    unet, ask = toy_unet(), _told()
    names = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    own = {name: unet.get_parameter(f"{name}.weight") for name in names}
    changes = {name: [(Full(torch.randn_like(weight) / 50, None), 1.0)] for name, weight in own.items()}
    before = ask(unet)
    with patched(unet, changes):
        wanted = ask(unet)
    assert float((wanted - before).abs().max()) > 1e-3
    _pack(unet)
    ask(unet)
    with patched(unet, changes):
        for _ in range(2):
            _same(ask(unet), wanted)
    _same(ask(unet), before)
    assert all(unet.get_parameter(f"{name}.weight") is weight for name, weight in own.items())


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv2d(8, 8, 3, padding=1)], ids=["linear", "convolution"])
def test_a_weight_that_is_written_to_is_laid_out_anew(layer: nn.Linear | nn.Conv2d) -> None:
    layer, x = layer.requires_grad_(False), torch.randn(1, 8, 8, 8)
    _pack(layer)
    layer(x)
    layer.weight.mul_(2)
    _same(layer(x), type(layer).__base__.forward(layer, x))


def test_a_picture_of_another_size_may_need_another_form() -> None:
    layer, small, large = nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 8, 4, 4), torch.randn(1, 8, 9, 9)
    wanted = [layer(x) for x in (small, large, small)]
    _pack(layer)
    for x, right in zip((small, large, small), wanted, strict=True):
        _same(layer(x), right)


def test_for_a_few_calls_nothing_is_kept_and_the_answer_is_the_same() -> None:
    unet, ask = toy_unet(), _told(size=(32, 32))
    _pack(unet)
    packed.expect(unet, packing.CALLS - 1)
    few = ask(unet)
    assert not _laid_out(unet)
    packed.expect(unet, 1)
    assert torch.equal(ask(unet), few), "what was drawn before changes no bit"
    assert _laid_out(unet)


@pytest.mark.parametrize("tile", [(4, 4), (2, 2), winograd.DOUBLED])
def test_a_kernel_in_onednns_order_or_not_gives_the_same_bits(tile: winograd.Tile) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 640, 16, 16).contiguous(memory_format=torch.channels_last)
    plain = list(winograd.at_points(torch.randn(320, 640, 3, 3), tile))
    ordered = [torch.ops.mkldnn._reorder_linear_weight(values) for values in plain]

    def answer(kernel: list[Tensor]) -> Tensor:
        if tile == winograd.DOUBLED:
            return winograd.convolve_doubled(x, kernel, None)
        return winograd.convolve(x, kernel, None, tile)

    assert torch.equal(answer(ordered), answer(plain))


def _laid_out(network: nn.Module) -> list[str]:
    convolutions = ((n, m) for n, m in network.named_modules() if isinstance(m, packed.PackedConv2d))
    return [name for name, module in convolutions if module.packing.form is not None]


@pytest.mark.parametrize("size", [None, (14, 18), (13, 18)], ids=["twice", "twice by name", "another"])
def test_doubling_and_convolution_at_once(size: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = Upsample(6), torch.randn(2, 6, 7, 9)
    wanted = layer(x, size)
    _pack(layer)
    at_once: list[Tensor] = []
    convolve = winograd.convolve_doubled
    monkeypatch.setattr(winograd, "convolve_doubled", lambda *given: (at_once.append(given[0]), convolve(*given))[1])
    monkeypatch.setattr(winograd, "AT_ONCE", 1)
    _same(layer(x, size), wanted)
    assert len(at_once) == (size != (13, 18))
    seen: list[Tensor] = []
    layer.conv.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    _same(layer(x, size), wanted)
    assert torch.equal(seen[0], doubled(x, size)), "who looks sees what the convolution is given"


def test_doubling_is_more_exact_than_a_direct_convolution() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 64, 9, 7).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(96, 64, 3, 3) / 24, torch.randn(96)
    kernel = list(winograd.at_points(weight, winograd.DOUBLED))
    exact = F.conv2d(doubled(x.double()), weight.double(), bias.double(), padding=1)
    answer = winograd.convolve_doubled(x, kernel, bias)
    assert answer.is_contiguous(memory_format=torch.channels_last)
    assert (answer - exact).abs().max() <= (F.conv2d(doubled(x), weight, bias, padding=1) - exact).abs().max()


@pytest.mark.parametrize("channels", [(4, 4), (4, 6)], ids=["the same", "more"])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_block_in_strips_is_the_block(channels: tuple[int, int], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = ResnetBlock(*channels, groups=2, eps=1e-6)
    x = 3 + torch.randn(2, 4, 7, 9)
    wanted, before = block(x), x.clone()
    _pack(block)
    measured: list[int] = []
    of = Norm.of
    monkeypatch.setattr(Norm, "of", lambda *given: (measured.append(1), of(*given))[1])
    monkeypatch.setattr(packed, "LARGE", 4 * x[0].numel())
    monkeypatch.setattr(packed, "STRIP", 4 * 4 * 9 * rows)
    answer = block(x)
    _same(answer, wanted)
    assert len(measured) == 4, "two norms of two pictures"
    assert torch.equal(x, before)
    assert torch.equal(answer[1:], block(x[1:])), "a picture does not depend on the others"
    monkeypatch.setattr(packed, "LARGE", 4 * x[0].numel() + 1)
    del measured[:]
    block(x)
    assert not measured
    monkeypatch.setattr(packed, "LARGE", 0)
    seen: list[Tensor] = []
    block.norm2.register_forward_hook(lambda _, given, answer: seen.append(answer))
    _same(block(x), wanted)
    assert seen[0].shape == wanted.shape and not measured, "who looks sees all of it"


def test_an_activation_in_place_takes_no_answer_from_anybody() -> None:
    torch.manual_seed(0)
    norm, x, seen = nn.GroupNorm(2, 4), torch.randn(1, 4, 3, 3), []
    wanted, before = F.silu(norm(x)), x.clone()
    assert torch.equal(activated(norm, x), wanted) and torch.equal(x, before)
    norm.register_forward_hook(lambda _, given, answer: seen.append(answer))
    activated(norm, x)
    assert torch.equal(seen[0], norm(x))


def test_keys_and_values_of_the_words_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, ask, other = toy_unet(), _told(), _told(batch=1)
    _pack(unet)
    widths: list[int] = []
    computed = winograd.linear

    def counted(x: Tensor, form: Tensor, bias: Tensor | None) -> Tensor:
        widths.append(x.shape[-1])
        return computed(x, form, bias)

    monkeypatch.setattr(winograd, "linear", counted)
    ask(unet)
    blocks = sum(type(module).__name__ == "TransformerBlock" for module in unet.modules())
    assert widths.count(24) == 2 * blocks
    ask(unet)
    other(unet)
    ask(unet)
    assert widths.count(24) == 4 * blocks, "each of two prompts is told once"


def test_gradients_still_flow() -> None:
    unet, ask = toy_unet(), _told()
    wanted = ask(unet)
    _pack(unet)
    with torch.enable_grad():
        unet.requires_grad_(True)
        ask(unet).square().mean().backward()
        assert all(weight.grad is not None for weight in unet.parameters() if weight.ndim == 4)
    _same(ask(unet), wanted)


def test_without_room_nothing_is_kept_and_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, ask = toy_unet(), _told()
    _pack(unet)
    wanted = ask(unet)
    packed.unpack(unet)
    monkeypatch.setattr(packing, "_free_bytes", lambda: 0.0)
    _pack(unet)
    assert torch.equal(ask(unet), wanted)
    assert not _laid_out(unet)


def test_what_was_laid_out_is_told_once() -> None:
    unet, ask = toy_unet(), _told()
    pages = _Noted()
    _pack(unet, pages)
    ask(unet)
    ask(unet)
    assert [id(weight) for weight in pages.brought] == [id(weight) for weight in pages.released]
    assert len(pages.released) == len({id(weight) for weight in pages.released}) > 10


class _Noted:
    """What is brought, and let go of."""

    def __init__(self) -> None:
        self.brought: list[Tensor] = []
        self.released: list[Tensor] = []

    def bring(self, weight: Tensor) -> None:
        self.brought.append(weight)

    def release(self, weight: Tensor) -> None:
        self.released.append(weight)
