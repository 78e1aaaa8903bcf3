"""What half precision cannot hold is asked again in float32, and said."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from safelight.presets import PRESETS
from safelight.tasks.model import Model
from safelight.tasks.precision import PrecisionWarning, careful, first_overflow
from safelight.tasks.requests import TextToImage
from toy_family import toy_model

ASK = TextToImage(prompt="a dog", seed=1, guidance=1.0)


def _half() -> Model:
    model = toy_model(PRESETS["sd1"])
    return Model(model.preset, {part: network.half() for part, network in model.networks.items()}, model.tokenizers)


def _off(a: Image.Image, b: Image.Image) -> float:
    pairs = zip(a.tobytes(), b.tobytes(), strict=True)
    return sum(abs(x - y) for x, y in pairs) / len(a.tobytes())


@pytest.mark.parametrize(
    ("part", "layer"),
    [("autoencoder", "decoder.mid_block.resnets.0.conv1"), ("unet", "down_blocks.0.resnets.0.conv1")],
)
def test_the_layer_is_named_and_the_picture_is_that_of_float32(part: str, layer: str) -> None:
    half = _half()
    # Beyond 65504 behind this layer, and back in the norm that follows: float32 is as before but for rounding.
    for parameter in half.networks[part].get_submodule(layer).parameters():
        parameter.data = (parameter.data.float() * 1e5).clamp(-6e4, 6e4).half()
    whole = toy_model(PRESETS["sd1"])
    for name, network in whole.networks.items():
        network.load_state_dict({key: value.float() for key, value in half.networks[name].state_dict().items()})
    weights = {key: parameter.data_ptr() for key, parameter in half.networks[part].named_parameters()}
    with pytest.warns(PrecisionWarning, match=f"{layer} went beyond float16: asked again in float32"):
        (image,) = half.draw(ASK)
    assert {key: parameter.data_ptr() for key, parameter in half.networks[part].named_parameters()} == weights
    assert next(half.networks[part].parameters()).dtype == torch.float16
    (expected,) = whole.draw(ASK)
    assert len(set(image.tobytes())) > 16
    assert _off(image, expected) < 8, "of 255, as half precision elsewhere makes it"


def test_nothing_is_said_where_all_is_finite() -> None:
    (image,) = _half().draw(ASK)  # a warning would be an error here
    assert len(set(image.tobytes())) > 16


def test_what_float32_cannot_hold_either_is_returned_as_it_is() -> None:
    network = torch.nn.Linear(2, 2).half()
    x = torch.full((1, 2), torch.inf)
    with pytest.warns(PrecisionWarning):
        assert not careful(network, lambda dtype: network(x.to(dtype))).isfinite().all()
    assert first_overflow(network, lambda: network(torch.ones(1, 2).half())) is None
