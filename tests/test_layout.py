"""Channel beside channel, as fast convolutions read: once the weights lie so, nothing on the way lays it out anew."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from adapter_cases import random_lora
from safelight.adapters.lora import Strength, changes, read_lora, write_lora
from safelight.adapters.patching import patched
from safelight.doors import Conditioning
from safelight.models.autoencoder import Autoencoder
from safelight.models.unet import UNet
from safelight.presets import PRESETS
from safelight.presets.preset import AUTOENCODER, UNET
from safelight.sending import layout, sent
from toy_family import toy_model

FIRST = {"conv_in", "encoder.conv_in", "post_quant_conv"}
"""Layers that are given what does not lie so, a latent or pixels: it is small."""
MEMBERS = ["sd1", "sd2-v", "sdxl", "ldm-celeba"]


def strange(network: nn.Module, asked: object) -> list[str]:
    """The convolutions that were given something that lies otherwise."""
    found: list[str] = []
    with ExitStack() as stack, torch.inference_mode():
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d) and name not in FIRST:

                def look(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                    if not given[0].is_contiguous(memory_format=torch.channels_last):
                        found.append(name)

                stack.callback(module.register_forward_pre_hook(look).remove)
        asked()  # type: ignore[operator]
    return found


def test_weights_of_convolutions_lie_so_on_cuda_and_nowhere_else() -> None:
    kernel, matrix = torch.zeros(2, 3, 3, 3), torch.zeros(2, 3)
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert layout(kernel, cuda) == torch.channels_last
    assert layout(matrix, cuda) == layout(kernel, cpu) == torch.preserve_format
    assert sent(kernel, cpu) is kernel
    assert sent(kernel, cpu, torch.float16).dtype == torch.float16


@pytest.mark.parametrize("preset", [name for name in MEMBERS if name in PRESETS])
def test_nothing_undoes_it(preset: str) -> None:
    model = toy_model(PRESETS[preset])
    unet, autoencoder = model.networks[UNET], model.networks[AUTOENCODER]
    assert isinstance(unet, UNet) and isinstance(autoencoder, Autoencoder)
    x = torch.randn(2, unet.config.in_channels, 16, 24)
    for network in (unet, autoencoder):
        network.to(memory_format=torch.channels_last)
    config = unet.config
    told = Conditioning(
        context=None if config.context_width is None else torch.randn(2, 7, config.context_width),
        vector=None if config.vector_width is None else torch.randn(2, config.vector_width),
    )
    ask = lambda: unet(x, torch.full((2,), 500.0), told)  # noqa: E731
    assert strange(unet, ask) == []
    pixels = torch.randn(1, 3, 8 * autoencoder.config.factor, 16 * autoencoder.config.factor)
    assert strange(autoencoder, lambda: autoencoder.decode(autoencoder.encode(pixels)[0])) == []
    unet.to(memory_format=torch.contiguous_format)
    assert strange(unet, ask) != [], "this would not have been seen"


def test_adapters_leave_it(tmp_path: object) -> None:
    model = toy_model(PRESETS["sd1"])
    unet = model.networks[UNET].to(memory_format=torch.channels_last)
    write_lora(tmp_path / "a.safetensors", random_lora(model.preset), model.preset)  # type: ignore[operator]
    lora = read_lora(tmp_path / "a.safetensors", model.preset)  # type: ignore[operator]
    with patched(unet, changes([(lora, Strength(1.0, 1.0))], UNET)):
        kernels = [weight for weight in unet.parameters() if weight.ndim == 4]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
