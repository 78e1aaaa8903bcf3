"""In strips a picture is the same as at once, without seams, in the memory of one activation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from golden_cases import agree
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.layers import DoublingConv, doubled
from safelight.models.networks import unfilled
from safelight.models.packed import pack
from safelight.models.strips import (
    Kept,
    Made,
    Rooms,
    Whole,
    decode,
    decode_in_strips,
    encode,
    encode_in_strips,
    too_large,
)
from safelight.presets import PRESETS
from toy_family import toy_preset

KINDS = {name: config for name, preset in PRESETS.items() if (config := toy_preset(preset).autoencoder) is not None}
SMALL = 1 << 13
"""Bytes of a strip, of which there are then many."""
EXACT = 2e-5


def _toy(config: AutoencoderConfig) -> Autoencoder:
    torch.manual_seed(3)
    return Autoencoder(config).eval().requires_grad_(False)


@pytest.mark.parametrize("name", KINDS)
def test_every_member_decodes_and_encodes_the_same_in_strips(name: str) -> None:
    config = KINDS[name]
    toy, (h, w) = _toy(config), (128 // config.factor, 96 // config.factor)
    z = torch.randn(2, config.latent_channels, h, w)
    agree("decoded", decode_in_strips(toy, z, SMALL), toy.decode(z), EXACT)
    pixels = torch.randn(2, 3, h * config.factor, w * config.factor)
    (mean, logvar), (whole_mean, whole_logvar) = encode_in_strips(toy, pixels, SMALL), toy.encode(pixels)
    agree("encoded", mean, whole_mean, EXACT)
    if config.codebook_size is None:
        agree("log-variance", logvar, whole_logvar, EXACT)
    else:
        assert torch.equal(logvar, whole_logvar)


@pytest.mark.parametrize("strip_bytes", [1, 1 << 12, 1 << 16, 1 << 30])
@pytest.mark.parametrize(
    "config",
    [
        AutoencoderConfig(channels=(16, 32, 32), norm_groups=8),
        AutoencoderConfig(channels=(32, 16), norm_groups=8, attention_levels=(0, 1), inner_channels=8),
        AutoencoderConfig(channels=(16,), norm_groups=8, middle_attention=False, codebook_size=8, blocks_per_level=1),
    ],
    ids=["f4", "attention at all levels", "no levels"],
)
def test_whatever_the_size_of_a_strip(config: AutoencoderConfig, strip_bytes: int) -> None:
    toy = _toy(config)
    z = torch.randn(1, config.latent_channels, 11, 5)  # odd, and no multiple of anything
    agree("decoded", decode_in_strips(toy, z, strip_bytes), toy.decode(z), EXACT)
    pixels = torch.randn(1, 3, 11 * config.factor, 5 * config.factor)
    agree("encoded", encode_in_strips(toy, pixels, strip_bytes)[0], toy.encode(pixels)[0], EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_answer_is_as_near_to_float32(dtype: torch.dtype) -> None:
    toy = _toy(AutoencoderConfig(channels=(16, 32, 32), norm_groups=8)).to(dtype)
    z = torch.randn(1, 4, 16, 12).to(dtype)
    whole, strips = toy.decode(z), decode_in_strips(toy, z, SMALL)
    assert strips.dtype == dtype
    exact = toy.float().decode(z.float())
    assert (strips.float() - exact).abs().mean() <= 1.1 * (whole.float() - exact).abs().mean()


def test_no_seam_on_a_smooth_picture() -> None:
    toy = _toy(AutoencoderConfig(channels=(16, 32, 32), norm_groups=8))
    smooth = torch.linspace(-1, 1, 24)[:, None] * torch.linspace(-1, 1, 20)[None]
    z = smooth.expand(1, 4, -1, -1)
    seam = (decode_in_strips(toy, z, SMALL) - toy.decode(z)).abs().max() / 2  # in pixels from 0 to 1
    assert seam < 1e-4, "far below 1/255"


@pytest.mark.parametrize(
    ("height", "width", "dtype", "large", "large_packed"),
    [
        (512, 512, torch.float32, False, False),
        (768, 768, torch.float32, False, False),
        (1024, 1024, torch.float16, False, False),
        (1024, 1024, torch.float32, True, False),
        (896, 1152, torch.float32, True, False),
        (1536, 1024, torch.float32, True, True),
        (2048, 2048, torch.bfloat16, True, True),
        (256, 8192, torch.float32, True, True),
    ],
)
def test_strips_are_chosen_by_size(
    height: int, width: int, dtype: torch.dtype, large: bool, large_packed: bool
) -> None:
    autoencoder = unfilled(AutoencoderConfig())
    assert isinstance(autoencoder, Autoencoder)
    assert too_large(autoencoder, height, width, dtype) is large
    pack(autoencoder)
    assert too_large(autoencoder, height, width, dtype) is large_packed


def test_of_many_pictures_each_is_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoencoderConfig(channels=(16, 32), norm_groups=8)
    toy, z, pixels = _toy(config), torch.randn(3, 4, 8, 8), torch.randn(3, 3, 16, 16)
    monkeypatch.setattr("safelight.models.strips.MOST_AT_ONCE", 2 * 4 * 32 * 16 * 16 * 4)  # room for two of them
    monkeypatch.setattr("safelight.models.strips.decode_in_strips", None)
    monkeypatch.setattr("safelight.models.strips.encode_in_strips", None)
    assert torch.equal(decode(toy, z), torch.cat([toy.decode(one) for one in z.split(1)]))
    assert torch.equal(decode(toy, z[:2]), toy.decode(z[:2]))
    found, alone = encode(toy, pixels), [toy.encode(one) for one in pixels.split(1)]
    assert all(map(torch.equal, found, map(torch.cat, zip(*alone, strict=True))))


def test_what_is_not_large_is_bit_for_bit_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoencoderConfig(channels=(16, 32), norm_groups=8)
    toy, z, pixels = _toy(config), torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16, 16)
    assert torch.equal(decode(toy, z), toy.decode(z))
    assert all(map(torch.equal, encode(toy, pixels), toy.encode(pixels)))
    monkeypatch.setattr("safelight.models.strips.MOST_AT_ONCE", 4 * 32 * 16 * 16 * 4 - 1)  # one byte too large
    monkeypatch.setattr(Autoencoder, "decode", None)
    monkeypatch.setattr(Autoencoder, "encode", None)
    assert decode(toy, z).shape == (1, 3, 16, 16)
    assert encode(toy, pixels)[0].shape == z.shape


PEAK = """
import resource, sys
import torch
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.strips import decode_in_strips, encode_in_strips

config = AutoencoderConfig(channels=(32, 64), norm_groups=8, blocks_per_level=1, middle_attention=False)
toy = Autoencoder(config).eval()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
z, pixels = torch.randn(1, 4, 512, 512), torch.randn(1, 3, 1024, 1024)
with torch.inference_mode():
    toy.decode(z[..., :64, :64]), toy.encode(pixels[..., :128, :128])
    before = peak()
    decode_in_strips(toy, z, 4 << 20), encode_in_strips(toy, pixels, 4 << 20)
print(peak() - before)
"""


KEEP = "from safelight.memory import keep_memory; keep_memory()"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="it cannot be measured there")
@pytest.mark.parametrize("first", ["", KEEP], ids=["as the C library has it", "as `load` has it"])
def test_memory_is_that_of_one_activation(first: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"{first}\n{PEAK}"], capture_output=True, text=True, check=True)
    one = 32 * 1024 * 1024 * 4
    assert int(done.stdout) < 1.6 * one, f"{int(done.stdout) / one:.2f} activations; at once it is 5"


def test_doubling_and_convolution_at_once() -> None:
    torch.manual_seed(0)
    conv, x = DoublingConv(6, 5, 3, padding=1), torch.randn(2, 6, 7, 4)
    expected = nn.Conv2d.forward(conv, doubled(x))
    assert torch.equal(conv(doubled(x)), expected)
    agree("both", conv(x, both=True), expected, 1e-6)


def test_rows_that_will_not_be_asked_for_are_let_go() -> None:
    x = torch.arange(40.0).view(1, 1, 20, 2)
    rooms = Rooms(3 * 2, 1, x)  # three rows
    kept = Kept((1, 1, 20, 2), rooms)
    for start in range(0, 20, 4):
        kept.fill(Whole(x), start, start + 4)

    def blurred(y: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(y, (3, 1), stride=1, padding=(1, 0), count_include_pad=False)

    made = Made(kept, blurred, 1, halo=1)
    for start, end in ((0, 5), (5, 9), (9, 20)):
        assert torch.equal(made.read(start, end), blurred(x)[:, :, start:end])
        made.forget(end)
        assert all(3 * (k + 1) > end - 1 for k in kept.held) or end == 20, "what is above the halo has gone"
    assert len(rooms.free) == 7 and not kept.held, "and is there for others"
    given = {room.data_ptr() for room in rooms.free}
    other = Kept((1, 3, 2, 2), rooms)
    y = x[:, :, :6].view(1, 3, 2, 2)
    other.fill(Whole(y.contiguous(memory_format=torch.channels_last)), 0, 2)
    assert {room.data_ptr() for room in other.held.values()} < given and len(rooms.free) == 5
    assert torch.equal(other.read(0, 2), y) and other.read(0, 2).stride(1) == 1
