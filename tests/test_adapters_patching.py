"""Patches come off: afterwards a network's parameters are the very objects that they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapter_cases import draw, random_lora
from safelight.adapters.kinds import OFT, Full, Kind, LoRA, Norm
from safelight.adapters.lora import Changes, Strength, changes
from safelight.adapters.patching import patched
from safelight.doors import Conditioning
from safelight.presets import PRESETS
from toy_family import toy_model


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(12, 8)
        self.bare = nn.Linear(8, 8, bias=False)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6)


def lora(shape: tuple[int, ...], seed: int = 0) -> LoRA:
    kind = LoRA.fresh(shape, 2, 2.0, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        kind.lora_up.weight.copy_(draw(*kind.lora_up.weight.shape, seed=seed))
    return kind


def some() -> Changes:
    """Something on every layer."""
    return {
        "linear": [(lora((8, 12)), 0.8), (lora((8, 12), 1), -0.3)],
        "bare": [(Full(None, draw(8)), 1.0)],
        "conv": [(OFT(draw(3, 2, 2)), 1.0), (lora((6, 3, 3, 3)), 0.5)],
        "norm": [(Norm(draw(6), draw(6)), 0.5)],
    }


def state(network: nn.Module) -> dict[str, tuple[int, Tensor]]:
    """Every parameter's identity, and a copy of its numbers."""
    return {name: (id(p), p.detach().clone()) for name, p in network.named_parameters(remove_duplicate=False)}


def same(network: nn.Module, before: Mapping[str, tuple[int, Tensor]]) -> None:
    after = dict(network.named_parameters(remove_duplicate=False))
    assert list(after) == list(before), "parameters came or went"
    for name, (identity, numbers) in before.items():
        assert id(after[name]) == identity, f"{name} is another object"
        assert torch.equal(after[name], numbers), f"{name} has other numbers"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_afterwards_everything_is_as_it_was(dtype: torch.dtype, mode: type[torch.inference_mode]) -> None:
    network = Small().to(dtype)
    before = state(network)
    with mode():
        with patched(network, some()):
            for name in ("linear.weight", "bare.bias", "conv.weight", "norm.weight", "norm.bias"):
                parameter = network.get_parameter(name)
                assert parameter.dtype == dtype
                assert name not in before or not torch.equal(parameter, before[name][1]), f"{name} is not changed"
            for name in ("linear.bias", "conv.bias", "bare.weight"):
                assert id(network.get_parameter(name)) == before[name][0], f"{name} was copied for nothing"
        same(network, before)


def test_afterwards_means_after_errors_too() -> None:
    network = Small()
    before = state(network)
    with pytest.raises(ZeroDivisionError), patched(network, some()):
        raise ZeroDivisionError
    same(network, before)
    with pytest.raises(RuntimeError), patched(network, {**some(), "bare": [(lora((9, 9)), 1.0)]}):
        pytest.fail("a kind that does not fit was taken")
    same(network, before)
    with pytest.raises(AttributeError), patched(network, {**some(), "nowhere": [(lora((9, 9)), 1.0)]}):
        pytest.fail("a layer that is not there was changed")
    same(network, before)


def test_all_are_computed_on_the_own_weight_and_summed() -> None:
    """So that the order does not matter, which it would were the second to rotate what the first made."""
    network = Small()
    weight = network.conv.weight.detach().clone()
    turn, add = OFT(draw(3, 2, 2)), lora((6, 3, 3, 3))
    expected = weight + (turn.changed(weight, None, 0.7)[0] - weight) + (add.changed(weight, None, 0.5)[0] - weight)
    made = []
    for kinds in ([(turn, 0.7), (add, 0.5)], [(add, 0.5), (turn, 0.7)]):
        with patched(network, {"conv": kinds}):
            made.append(network.conv.weight.detach().clone())
            torch.testing.assert_close(made[-1], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(made[0], made[1], atol=1e-6, rtol=0)
    two = [(Full(None, draw(8, seed=1)), 1.0), (Full(None, draw(8, seed=2)), 0.5)]
    for layer, bias in (("bare", torch.zeros(8)), ("linear", network.linear.bias.detach().clone())):
        with patched(network, {layer: two}):
            torch.testing.assert_close(
                network.get_parameter(f"{layer}.bias"), bias + draw(8, seed=1) + 0.5 * draw(8, seed=2)
            )


def test_a_strength_of_zero_costs_and_changes_nothing() -> None:
    network = Small()
    before = state(network)
    with patched(network, {name: [(kind, 0.0) for kind, _ in kinds] for name, kinds in some().items()}):
        same(network, before)


def test_patches_nest() -> None:
    network = Small()
    before, kind = state(network), lora((8, 12))
    with patched(network, {"linear": [(kind, 1.0)]}):
        middle = state(network)
        with patched(network, {"linear": [(kind, 1.0)]}):
            twice = before["linear.weight"][1] + 2 * kind.difference(before["linear.weight"][1])
            torch.testing.assert_close(network.linear.weight.detach(), twice)
        same(network, middle)
    same(network, before)


def test_weights_that_are_views_of_a_file_stay_views(tmp_path: Path) -> None:
    network = Small()
    save_file(dict(network.state_dict()), tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    network.load_state_dict(load_file(tmp_path / "w.safetensors"), assign=True)
    pointers = {name: p.data_ptr() for name, p in network.named_parameters()}
    with patched(network, some()):
        pass
    assert {name: p.data_ptr() for name, p in network.named_parameters()} == pointers
    assert (tmp_path / "w.safetensors").read_bytes() == content


@pytest.mark.parametrize("name", ["sd1", "sdxl", "tiny"])
def test_a_member_answers_as_before_when_its_patches_are_off(name: str) -> None:
    model = toy_model(PRESETS[name])
    adapter = random_lora(model.preset, convolutions=True)
    unet, config = model.networks["unet"], model.preset.unet
    assert config.context_width is not None
    cond = Conditioning(
        draw(2, 5, config.context_width), None if config.vector_width is None else draw(2, config.vector_width)
    )
    x, t = draw(2, config.in_channels, 8, 8), torch.tensor([3.0, 700.0])
    before, weights = unet(x, t, cond), state(unet)
    with torch.inference_mode(), patched(unet, changes([(adapter, Strength(1.0, 0.8))], "unet")):
        assert float((unet(x, t, cond) - before).abs().max()) > 0.1
    same(unet, weights)
    assert torch.equal(unet(x, t, cond), before)


def test_kinds_are_not_changed_by_being_used() -> None:
    kinds: list[Kind] = [kind for entries in some().values() for kind, _ in entries]
    before = [{key: tensor.clone() for key, tensor in kind.state_dict().items()} for kind in kinds]
    network = Small()
    for _ in range(2):
        with patched(network, dict(zip(("linear",), ([(kinds[0], 1.0)],), strict=True))):
            pass
    for kind, tensors in zip(kinds, before, strict=True):
        assert all(torch.equal(tensors[key], tensor) for key, tensor in kind.state_dict().items())
