"""Guidance tells the same pictures several things: what comes before the first of them is heard is computed once.

diffusers' UNet, which computes everything for each of them, says what must come out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import toy_family
from golden_cases import off
from safelight.checkpoints.configs import unet_json
from safelight.doors import Conditioning
from safelight.models.unet import Deep, UNet, UNetConfig
from safelight.presets import PRESETS
from safelight.tasks.requests import Inpaint, TextToImage
from test_tasks_family import _ask

PLAIN = UNetConfig(channels=(16, 32, 48), transformer_depth=(2, 1, 0), heads=(2, 4, 4), context_width=24, norm_groups=8)
CONFIGS = {
    "words at once": PLAIN,
    "words from the second level on": replace(PLAIN, transformer_depth=(0, 1, 1)),
    "words in the middle alone": replace(PLAIN, transformer_depth=(0, 0, 0)),
    "words only": replace(PLAIN, context_only=(0,), linear_projection=True),
    "blocks that resample": replace(PLAIN, resnet_resampling=True, scale_shift=True, transformer_depth=(0, 0, 1)),
    "a vector": replace(PLAIN, vector_width=6),
    "a picture below": replace(PLAIN, in_channels=7),
}
PICTURES, TOLD, SIZE = 2, 3, (9, 12)


def draw(*size: int, seed: int) -> Tensor:
    """In float64: batches of another size are rounded otherwise, which is not what is asked for here."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(config: UNetConfig) -> UNet:
    torch.manual_seed(0)
    return UNet(config).double().eval().requires_grad_(False)


def parts(config: UNetConfig) -> list[Conditioning]:
    vector = None if config.vector_width is None else draw(PICTURES, config.vector_width, seed=8)
    extra = config.in_channels - config.out_channels
    concat = draw(PICTURES, extra, *SIZE, seed=9) if extra else None
    return [Conditioning(draw(PICTURES, 7, 24, seed=k), vector, concat) for k in range(TOLD)]


X, T = draw(PICTURES, 4, *SIZE, seed=5).repeat(TOLD, 1, 1, 1), torch.tensor([3.0, 700.0]).repeat(TOLD)


def rows_of(layer: nn.Module) -> list[int]:
    """Is told how many pictures a layer is given at each call."""
    seen: list[int] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_pictures_told_several_things_at_once(name: str) -> None:
    config = CONFIGS[name]
    unet, conds = network(config), parts(CONFIGS[name])
    apart = torch.cat([unet(X[:PICTURES], T[:PICTURES], cond) for cond in conds])
    first, last = rows_of(unet.conv_in), rows_of(unet.conv_out)
    got = unet(X, T, Conditioning.stack(conds, same_pictures=True))
    assert (first, last) == ([PICTURES], [TOLD * PICTURES])
    assert off(got, apart) < 1e-13


@pytest.mark.parametrize("name", ["words at once", "words in the middle alone"])
def test_as_diffusers_computes_it(name: str) -> None:
    ours, conds = network(CONFIGS[name]), parts(CONFIGS[name])
    theirs = UNet2DConditionModel.from_config(unet_json(CONFIGS[name], SIZE[1])).double().eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    told = Conditioning.stack(conds, same_pictures=True)
    with torch.no_grad():
        assert off(ours(X, T, told), theirs(X, T, told.context).sample) < 1e-6


@pytest.mark.parametrize("joins", [1, 4, PLAIN.joins])
def test_with_the_deep_part_of_before(joins: int) -> None:
    unet, told = network(PLAIN), Conditioning.stack(parts(PLAIN), same_pictures=True)
    for given in (None, draw(TOLD * PICTURES, *deep_shape(unet, joins), seed=6)):
        shared, whole = Deep(joins, given), Deep(joins, given)
        got = unet(X, T, told, shared)
        assert off(got, unet(X, T, replace(told, alike=1), whole)) < 1e-13
        assert shared.found is not None
        assert whole.found is not None
        assert off(shared.found, whole.found) < 1e-13


def deep_shape(unet: UNet, joins: int) -> torch.Size:
    deep = Deep(joins)
    unet(X, T, Conditioning.stack(parts(PLAIN)), deep)
    assert deep.found is not None
    return deep.found.shape[1:]


def test_only_what_differs_by_its_words_alone_is_alike() -> None:
    word, other = draw(2, 7, 24, seed=0), draw(2, 7, 24, seed=1)
    door = draw(2, 3, *SIZE, seed=2)

    def alike(one: Conditioning, two: Conditioning) -> int:
        assert Conditioning.stack([one, two]).alike == 1, "they may be of different pictures"
        return Conditioning.stack([one, two], same_pictures=True).alike

    assert alike(Conditioning(word), Conditioning(other)) == 2
    assert alike(Conditioning(word, concat=door), Conditioning(other, concat=door)) == 2
    assert alike(Conditioning(word, concat=door), Conditioning(other, concat=door + 1)) == 1
    assert alike(Conditioning(word, vector=word[:, 0]), Conditioning(other, vector=other[:, 0])) == 1
    assert alike(Conditioning(concat=door), Conditioning(concat=door)) == 1, "nothing is told later"
    told = Conditioning.stack([Conditioning(word), Conditioning(other)], same_pictures=True)
    assert told.map(lambda x: x.double()).alike == 2


@pytest.mark.parametrize(("name", "rows"), [("sd1", 2), ("sd1-inpainting", 2), ("sdxl", 4)])
def test_a_guided_picture(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's sides differ in what is added to the time, too."""
    model = toy_family.toy_model(PRESETS[name])
    request = _ask(Inpaint if "inpainting" in name else TextToImage, model.preset).changed(batch=2, steps=3)
    seen = rows_of(model.unet.conv_in)
    pictures = model.draw(request)
    assert set(seen) == {rows}
    stack = Conditioning.stack
    monkeypatch.setattr(Conditioning, "stack", lambda conds, same_pictures=False: stack(conds))
    for one, other in zip(pictures, model.draw(request), strict=True):
        assert np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() <= 1
    assert set(seen) == {rows, 4}
