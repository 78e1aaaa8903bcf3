"""What half precision cannot hold is computed in float32: those layers, no others, and it is said once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.layers import PositionAttention, heads_apart
from safelight.models.strips import decode_in_strips
from safelight.presets import PRESETS
from safelight.tasks.model import Model
from safelight.tasks.precision import HALF, PrecisionWarning, careful, upcast
from safelight.tasks.requests import TextToImage
from toy_family import toy_model

ASK = TextToImage(prompt="a dog", seed=1, guidance=1.0)
TOY = AutoencoderConfig(channels=(16, 32), blocks_per_level=1, norm_groups=8)


def _half() -> Model:
    model = toy_model(PRESETS["sd1"])
    return Model(model.preset, {part: network.half() for part, network in model.networks.items()}, model.tokenizers)


def _off(a: Image.Image, b: Image.Image) -> float:
    pairs = zip(a.tobytes(), b.tobytes(), strict=True)
    return sum(abs(x - y) for x, y in pairs) / len(a.tobytes())


def _too_large(network: nn.Module, layer: str, factor: float = 1e5) -> None:
    """Beyond 65504 behind this layer, and back in the norm that follows: float32 is as before but for rounding."""
    for parameter in network.get_submodule(layer).parameters():
        parameter.data = (parameter.data.float() * factor).clamp(-6e4, 6e4).half()


@contextmanager
def _as_before(network: nn.Module) -> Iterator[None]:
    """Fails if a weight is another one afterwards, or if something still watches."""
    weights = {key: (p.data_ptr(), p.dtype, p.sum().item()) for key, p in network.named_parameters()}
    yield
    assert {key: (p.data_ptr(), p.dtype, p.sum().item()) for key, p in network.named_parameters()} == weights
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]
    assert sum(hooks) == 0, "hooks were left behind"


@pytest.mark.parametrize(
    ("part", "layer"),
    [("autoencoder", "decoder.mid_block.resnets.0.conv1"), ("unet", "down_blocks.0.resnets.0.conv1")],
)
def test_the_layer_is_named_and_the_picture_is_that_of_float32(part: str, layer: str) -> None:
    half = _half()
    _too_large(half.networks[part], layer)
    whole = toy_model(PRESETS["sd1"])
    for name, network in whole.networks.items():
        network.load_state_dict({key: value.float() for key, value in half.networks[name].state_dict().items()})
    with _as_before(half.networks[part]):
        with pytest.warns(
            PrecisionWarning, match=f"{layer} went beyond float16: it and 1 more are computed in float32"
        ):
            (image,) = half.draw(ASK)
        (again,) = half.draw(ASK)  # a second warning would be an error
    found = upcast(half.networks[part])
    assert (found.layers, found.whole) == ((layer, layer.replace("conv1", "norm2")), False)
    assert again.tobytes() == image.tobytes()
    (expected,) = whole.draw(ASK)
    assert len(set(image.tobytes())) > 16
    assert _off(image, expected) < 8, "of 255, as half precision elsewhere makes it"


def _decoders() -> list[Callable[[Autoencoder, Tensor], Tensor]]:
    return [Autoencoder.decode, lambda autoencoder, z: decode_in_strips(autoencoder, z, strip_bytes=1 << 12)]


@pytest.mark.parametrize("decode", _decoders(), ids=["at once", "in strips"])
@torch.inference_mode()
def test_a_sum_that_is_too_large(decode: Callable[[Autoencoder, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    half = Autoencoder(TOY).half().eval()
    for block in half.decoder.mid_block.resnets:  # each 4e4 is within the range, and two are not
        block.conv2.bias.data[::2] = 4e4
        block.conv2.bias.data[1::2] = -4e4
    exact = Autoencoder(TOY).eval()
    exact.load_state_dict({key: value.float() for key, value in half.state_dict().items()})
    z = torch.randn(1, 4, 16, 12)
    assert not half.decode(z.half()).isfinite().all(), "this test needs an overflow"
    with _as_before(half), pytest.warns(PrecisionWarning, match=r"decoder\.mid_block\.resnets\.1\.conv2 went beyond"):
        found = careful(half, lambda dtype: decode(half, z.to(dtype)))
    layers = upcast(half).layers
    assert not upcast(half).whole
    assert len(layers) <= 8, f"{layers} are more than had to be"
    expected = exact.decode(z)
    assert (found.float() - expected).abs().max() < 0.02 * expected.abs().max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = careful(half, lambda dtype: decode(half, z.to(dtype)))
    torch.testing.assert_close(again, found)


def _attend_in_half(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """With the scores in the dtype of the queries, as attention was written before it was one operation."""
    q, k, v = (heads_apart(x, heads) for x in (q, k, v))
    return (F.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v).transpose(1, 2).flatten(2)


@torch.inference_mode()
def test_queries_and_keys_that_are_too_large_together() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(PositionAttention(16, groups=4, eps=1e-6), nn.Conv2d(16, 16, 1)).half()
    for layer in (network[0].to_q, network[0].to_k):
        layer.weight.data *= 400
    x = torch.randn(1, 16, 4, 4)
    ask = lambda dtype: network(x.to(dtype))  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = careful(network, ask)
    assert found.dtype == torch.float16, "scores are in float32 where attention is one operation"
    network[0].attending = _attend_in_half
    assert not network(x.half()).isfinite().all(), "this test needs an overflow"
    with _as_before(network), pytest.warns(PrecisionWarning, match=r"0\.to_q went beyond float16: it and 2 more are"):
        mended = careful(network, ask)
    assert set(upcast(network).layers) == {"0.to_q", "0.to_k", "0.to_v"}
    torch.testing.assert_close(mended, found, atol=2e-3, rtol=2e-3)


@torch.inference_mode()
def test_keys_that_are_too_large_by_themselves() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(PositionAttention(16, groups=4, eps=1e-6)).half()
    _too_large(network, "0.to_k")
    x = torch.randn(1, 16, 4, 4)
    with _as_before(network), pytest.warns(PrecisionWarning):
        found = careful(network, lambda dtype: network(x.to(dtype)))
    assert set(upcast(network).layers) == {"0.to_q", "0.to_k", "0.to_v"}
    torch.testing.assert_close(found.float(), network.float()(x), atol=5e-2, rtol=5e-2)


class _Functional(nn.Module):
    """Its weight is used outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 300.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x * self.weight * self.weight, 1)


def test_all_of_it_where_single_layers_do_not_help() -> None:
    network, calls = _Functional().half(), []

    def ask(dtype: torch.dtype) -> Tensor:
        calls.append(dtype)
        return network(x.to(dtype))

    x = torch.randn(2, 4)
    with torch.inference_mode(), _as_before(network):
        with pytest.warns(PrecisionWarning, match="_Functional went beyond float16: all of it is computed in float32"):
            found = careful(network, ask)
        calls.clear()
        again = careful(network, ask)  # a warning would be an error
    assert upcast(network).whole
    assert calls == [torch.float32], "it is not asked in vain any more"
    torch.testing.assert_close(found, F.group_norm(x, 1), atol=1e-3, rtol=1e-3)
    assert torch.equal(again, found)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_it_costs_nothing_where_all_is_finite(dtype: torch.dtype) -> None:
    network, calls = nn.Sequential(nn.Conv2d(2, 2, 1), nn.GroupNorm(1, 2)).to(dtype), []

    def ask(asked: torch.dtype) -> Tensor:
        calls.append(asked)
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]
        assert sum(hooks) == 0, "nothing watches before something is found"
        return network(torch.ones(1, 2, 3, 3).to(asked))

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        careful(network, ask)
    assert calls == [dtype]


def test_nothing_is_said_where_all_is_finite() -> None:
    (image,) = _half().draw(ASK)  # a warning would be an error here
    assert len(set(image.tobytes())) > 16


def test_what_float32_cannot_hold_either_is_returned_as_it_is() -> None:
    network = nn.Sequential(nn.Linear(2, 2)).half()
    x = torch.full((1, 2), torch.inf)
    with torch.inference_mode():
        with pytest.warns(PrecisionWarning):
            assert not careful(network, lambda dtype: network(x.to(dtype))).isfinite().all()
        assert upcast(network).layers == (), "the input's fault is not held against the network"
        assert careful(network, lambda dtype: network(torch.ones(1, 2).to(dtype))).dtype == torch.float16
