"""Every kind of adapter: against LyCORIS' numbers, PEFT's layers and what any kind must do."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapter_cases import draw
from golden_cases import GOLDEN, golden, meta
from safelight.adapters.kinds import (
    IA3,
    KINDS,
    OFT,
    Full,
    GLoRA,
    Kind,
    LoHa,
    LoKr,
    LoRA,
    Norm,
    Unfit,
    additive,
    built,
    unfit,
)
from safelight.errors import RequestError

LYCORIS = sorted(path.name for path in (GOLDEN / "adapters" / "lycoris").iterdir())
LINEAR, CONV = (20, 24), (16, 12, 3, 3)
EXACT = 1e-5
STRENGTHS = (1.0, 0.6)


def recorded(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What LyCORIS computed, and the tensors of its file."""
    arrays = golden(f"adapters/lycoris/{case}")
    return arrays, {key.removeprefix("sd."): value for key, value in arrays.items() if key.startswith("sd.")}


def answer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def close(what: str, ours: Tensor, theirs: Tensor, most: float = EXACT) -> None:
    error = float((ours.detach() - theirs.detach()).abs().max())
    print(f"{what}: {error:.1e}")
    assert error <= most, f"{what} is off by {error:.1e}, {most:.0e} is allowed"


def test_every_recorded_kind_is_here() -> None:
    assert len(LYCORIS) == 36
    kinds = {type(built(file, tuple(arrays["org_weight"].shape))) for arrays, file in map(recorded, LYCORIS)}
    assert kinds == set(KINDS), "a kind is not tested against recorded numbers"


@pytest.mark.parametrize("case", [case for case in LYCORIS if not case.startswith("dylora")])
def test_a_kind_computes_what_lycoris_computes(case: str) -> None:
    arrays, file = recorded(case)
    weight, bias = arrays["org_weight"], arrays["org_bias"]
    kind = built(file, tuple(weight.shape))
    assert isinstance(kind, Kind), kind
    if case.startswith("full_diff"):  # recorded is the new weight alone
        close("weight", kind.changed(weight, bias)[0], arrays["diff_weight"])
        assert torch.equal(kind.changed(weight, bias)[1], bias + file["diff_b"])
        return
    for strength in STRENGTHS if "forward_mult1.0" in arrays else ():
        new, new_bias = kind.changed(weight, bias, strength)
        if weight.ndim > 1:
            close(f"answer at {strength}", answer(arrays["x"], new, new_bias), arrays[f"forward_mult{strength}"])
        if case.startswith("loha"):  # merging, the recorded version applied alpha / rank twice
            recorded_scale = meta(f"adapters/lycoris/{case}")["scale"]
            close(
                f"weight at {strength}",
                weight + recorded_scale * (new - weight),
                arrays[f"merged_weight_mult{strength}"],
            )
        else:
            close(f"weight at {strength}", new, arrays[f"merged_weight_mult{strength}"])
        if isinstance(kind, Norm):
            assert new_bias is not None
            close(f"bias at {strength}", new_bias, arrays[f"merged_bias_mult{strength}"])
    if "forward_mult1.0" not in arrays:
        pytest.fail("this case would compare nothing")


@pytest.mark.parametrize("case", [case for case in LYCORIS if case.startswith("dylora")])
def test_dylora_is_a_lora_of_whatever_rank_is_taken(case: str) -> None:
    """LyCORIS takes a random number of blocks of its rank each time, and divides alpha by it. Of such a rank, with that
    alpha, ours is the same. The file does not say that there are blocks: all who read it take it for a LoRA."""
    arrays, file = recorded(case)
    weight, bias = arrays["org_weight"], arrays["org_bias"]
    block = meta(f"adapters/lycoris/{case}")["kwargs"]["block_size"]
    for strength in STRENGTHS:
        errors = []
        for rank in range(block, len(file["lora_down.weight"]) + 1, block):
            taken = {
                "lora_down.weight": file["lora_down.weight"][:rank],
                "lora_up.weight": file["lora_up.weight"][:, :rank],
                "alpha": file["alpha"] / (rank / block) * rank,
            }
            kind = built(taken, tuple(weight.shape))
            assert isinstance(kind, LoRA), kind
            new, new_bias = kind.changed(weight, bias, strength)
            errors.append(float((new - arrays[f"merged_weight_mult{strength}"]).abs().max()))
            errors.append(float((answer(arrays["x"], new, new_bias) - arrays[f"forward_mult{strength}"]).abs().max()))
        assert min(errors[::2]) <= EXACT and min(errors[1::2]) <= EXACT, errors


@pytest.mark.parametrize("case", LYCORIS)
def test_a_kind_is_stored_as_it_was_in_the_file(case: str) -> None:
    arrays, file = recorded(case)
    kind = built(file, tuple(arrays["org_weight"].shape))
    assert isinstance(kind, Kind)
    stored = kind.state_dict()
    assert stored.keys() == file.keys()
    for ending, tensor in file.items():
        assert torch.equal(stored[ending].reshape(tensor.shape).to(tensor.dtype), tensor), ending


def fresh_kinds(shape: tuple[int, ...]) -> Mapping[str, Kind]:
    """One of each kind that training makes."""
    generator = torch.Generator().manual_seed(1)
    found: dict[str, Kind] = {
        "lora": LoRA.fresh(shape, 3, 1.5, generator),
        "loha": LoHa.fresh(shape, 3, 1.5, generator),
        "lokr": LoKr.fresh(shape, 1, 0.5, generator, factor=2),
        "lokr, whole": LoKr.fresh(shape, 8, 4.0, generator),
    }
    if len(shape) > 2:
        found["lora, tucker"] = LoRA.fresh(shape, 3, 1.5, generator, tucker=True)
        found["loha, tucker"] = LoHa.fresh(shape, 3, 1.5, generator, tucker=True)
    return found


@pytest.mark.parametrize("shape", [LINEAR, CONV], ids=["linear", "convolution"])
@pytest.mark.parametrize("dora", [False, True], ids=["plain", "dora"])
def test_a_fresh_kind_changes_nothing_and_learns(shape: tuple[int, ...], dora: bool) -> None:
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], 3, stride=2, padding=1)
    layer.requires_grad_(False)
    x = draw(2, shape[1]) if len(shape) == 2 else draw(2, shape[1], 7, 7)
    for name, kind in fresh_kinds(shape).items():
        if dora:
            kind.decompose(layer.weight)  # type: ignore[operator]  # of all these
        close(f"{name}, fresh", kind(x, layer), layer(x), 1e-6)
        with torch.no_grad():
            for parameter in kind.parameters():
                parameter.add_(draw(*parameter.shape, seed=3, scale=0.2))
        assert float((kind(x, layer) - layer(x)).detach().abs().max()) > 0.01, f"{name} does nothing"
        whole = copy.deepcopy(layer)
        weight, bias = kind.changed(layer.weight, layer.bias)
        whole.weight, whole.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
        close(f"{name}, training's way and use's", kind(x, layer), whole(x))
        kind(x, layer).square().sum().backward()
        for key, parameter in kind.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), f"{name}: {key} learns nothing"


@pytest.mark.parametrize("shape", [LINEAR, CONV], ids=["linear", "convolution"])
@pytest.mark.parametrize("dora", [False, True], ids=["plain", "dora"])
def test_training_keeps_nothing_of_a_weights_size_and_has_the_same_gradients(
    shape: tuple[int, ...], dora: bool
) -> None:
    """Against the whole new weight, which PyTorch differentiates with all that it keeps for that."""
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], 3, stride=2, padding=1)
    layer.requires_grad_(False)
    given = draw(2, shape[1]) if len(shape) == 2 else draw(2, shape[1], 3, 3)
    for name, kind in fresh_kinds(shape).items():
        if dora:
            kind.decompose(layer.weight)  # type: ignore[operator]  # of all these
        with torch.no_grad():
            for parameter in kind.parameters():
                parameter.add_(draw(*parameter.shape, seed=3, scale=0.2))
        found = []
        for whole in (True, False):
            kept: list[int] = []

            def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
                kept.append(tensor.numel())
                return tensor

            x = given.clone().requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                if whole:
                    weight, bias = kind.changed(layer.weight, layer.bias)
                    y = F.linear(x, weight, bias) if len(shape) == 2 else F.conv2d(x, weight, bias, 2, 1)
                else:
                    y = kind(x, layer)
            others = max(size for size in kept if size != layer.weight.numel()) if kept else 0
            y.square().sum().backward()
            found.append([x.grad, *(parameter.grad for parameter in kind.parameters())])
            kind.zero_grad()
        made = kept.count(layer.weight.numel())  # the layer's own, at most, which is there anyway
        assert made <= 1, f"{name} keeps {made} tensors of the weight's size"
        assert others < layer.weight.numel(), f"{name} keeps {others} numbers"
        for ours, theirs in zip(found[1], found[0], strict=True):
            assert ours is not None and theirs is not None
            close(f"{name}, gradient of {tuple(ours.shape)}", ours, theirs, 1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("shape", [LINEAR, CONV], ids=["linear", "convolution"])
def test_made_some_rows_at_a_time_a_weight_is_the_same(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(additive, "BLOCK", 3 * 24)  # three rows of the linear layer, one of the convolution
    weight = draw(*shape)
    for name, kind in fresh_kinds(shape).items():
        with torch.no_grad():
            for parameter in kind.parameters():
                parameter.add_(draw(*parameter.shape, seed=3, scale=0.2))
            by_rows, _ = kind.changed(weight, None, 0.6)
        whole, _ = kind.changed(weight, None, 0.6)
        close(name, by_rows, whole, 1e-6)


@pytest.mark.parametrize("kind", [LoRA, LoHa, LoKr])
def test_a_rank_larger_than_the_layer_is_refused(kind: type[LoRA | LoHa | LoKr]) -> None:
    with pytest.raises(RequestError, match=r"rank 21 is not from 1 to 20.*\(20, 24\)"):
        kind.fresh(LINEAR, 21, 1.0)
    with pytest.raises(RequestError, match="rank 0 is not"):
        kind.fresh(CONV, 0, 1.0)


def test_lokr_factors_as_lycoris_does() -> None:
    """Shapes of its manifests: SD 1's layers by a factor of 8."""
    for shape, first in (((768, 768), (8, 8)), ((320, 4, 3, 3), (8, 2)), ((20, 24), (4, 4)), ((7, 24), (1, 4))):
        kind = LoKr.fresh(shape, 1, 1.0, factor=8 if 768 in shape or len(shape) > 2 else -1)
        assert kind.lokr_w1 is not None
        assert tuple(kind.lokr_w1.shape) == first


# PEFT's layers


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.conv = nn.Linear(24, 20), nn.Conv2d(12, 16, 3, padding=1)


CONFIGS: Mapping[str, tuple[object, type[Kind]]] = {
    "lora": (peft.LoraConfig(r=4, lora_alpha=6, target_modules=["linear", "conv"]), LoRA),
    "rslora": (peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["linear", "conv"]), LoRA),
    "dora": (peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=["linear", "conv"]), LoRA),
    "loha": (peft.LoHaConfig(r=4, alpha=6, target_modules=["linear", "conv"]), LoHa),
    "loha, tucker": (peft.LoHaConfig(r=4, alpha=6, use_effective_conv2d=True, target_modules=["conv"]), LoHa),
    "lokr": (peft.LoKrConfig(r=1, alpha=3, target_modules=["linear", "conv"]), LoKr),
    "lokr, tucker": (peft.LoKrConfig(r=1, alpha=3, use_effective_conv2d=True, target_modules=["conv"]), LoKr),
    "lokr, both": (peft.LoKrConfig(r=1, alpha=3, decompose_both=True, target_modules=["linear"]), LoKr),
    "ia3": (peft.IA3Config(target_modules=["linear", "conv"], feedforward_modules=[]), IA3),
    "ia3, on input": (peft.IA3Config(target_modules=["linear"], feedforward_modules=["linear"]), IA3),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_kind_computes_what_peft_computes(name: str) -> None:
    config, cls = CONFIGS[name]
    plain = _Two()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(copy.deepcopy(plain), config)  # type: ignore[arg-type]
    with torch.no_grad():
        for i, parameter in enumerate(p for p in wrapped.parameters() if p.requires_grad):
            parameter.add_(draw(*parameter.shape, seed=i, scale=0.3))
    for layer_name, x in (("linear", draw(3, 24)), ("conv", draw(2, 12, 7, 7))):
        theirs, ours = getattr(wrapped.base_model.model, layer_name), getattr(plain, layer_name)
        if layer_name not in config.target_modules:  # type: ignore[attr-defined]
            continue
        kind = built(_from_peft(name, theirs, ours.weight.ndim), tuple(ours.weight.shape))
        assert type(kind) is cls, kind
        expected = theirs(x)
        assert float((expected - ours(x)).detach().abs().max()) > 0.05, "it does nothing"
        new, bias = kind.changed(ours.weight, ours.bias)
        if cls is IA3 and not bool(kind.on_input):  # theirs scales what comes out, with the bias
            bias = bias * (1 + kind.weight.reshape(-1))
        close(f"{name}, {layer_name}", answer(x, new, bias), expected)


def _from_peft(name: str, layer: nn.Module, axes: int) -> dict[str, Tensor]:
    """The tensors of one of PEFT's layers under the endings of files."""
    found: dict[str, Tensor] = {}
    for key, tensor in layer.named_parameters():
        if "base_layer" in key:
            continue
        parts = [p for p in key.split(".") if p not in ("default", "weight")]
        found[parts[0]] = tensor.detach()
    if "lora_A" in found:
        scaling = layer.scaling["default"]  # type: ignore[index,union-attr]
        result = {
            "lora_down.weight": found["lora_A"],
            "lora_up.weight": found["lora_B"],
            "alpha": torch.tensor(4 * scaling),
        }
        if "lora_magnitude_vector" in found:
            lengths = found["lora_magnitude_vector"]
            result["dora_scale"] = lengths.reshape(-1, *(1 for _ in range(axes - 1)))
        return result
    if "ia3_l" in found:
        on_input = name.endswith("on input")
        return (
            {"weight": found["ia3_l"].reshape(-1) - 1, "on_input": torch.tensor(on_input)}
            if axes == 2
            else {"weight": found["ia3_l"] - 1, "on_input": torch.tensor(False)}
        )
    rank = layer.r["default"]  # type: ignore[index,union-attr]
    return {**found, "alpha": torch.tensor(float(layer.scaling["default"]) * rank)}  # type: ignore[index,union-attr]


# What does not fit

GOOD = {"lora_down.weight": torch.ones(4, 24), "lora_up.weight": torch.ones(20, 4), "alpha": torch.tensor(4.0)}
WRONG: Mapping[str, tuple[Mapping[str, Tensor | None], str, str]] = {
    "half": ({"lora_up.weight": None}, "lora_up.weight", "is missing"),
    "another layer": ({"lora_up.weight": torch.ones(21, 4)}, "lora_up.weight", r"\(21, 4\), expected \(20, 4\)"),
    "two ranks": ({"lora_up.weight": torch.ones(20, 5)}, "lora_up.weight", r"\(20, 5\), expected \(20, 4\)"),
    "a scalar": ({"lora_down.weight": torch.ones(())}, "lora_down.weight", r"shape \(\)"),
    "no rank": (
        {"lora_down.weight": torch.ones(0, 24), "lora_up.weight": torch.ones(20, 0)},
        "lora_down.weight",
        "shape",
    ),
    "rank": (
        {"lora_down.weight": torch.ones(25, 24), "lora_up.weight": torch.ones(20, 25)},
        "lora_up.weight",
        "rank 25.*at most 24",
    ),
    "whole numbers": ({"lora_up.weight": torch.ones(20, 4, dtype=torch.int64)}, "lora_up.weight", "whole numbers"),
    "alphas": ({"alpha": torch.ones(2)}, "alpha", r"\(2,\)"),
    "not a number": ({"lora_up.weight": torch.full((20, 4), torch.nan)}, "lora_up.weight", "not finite"),
    "infinite": ({"alpha": torch.tensor(torch.inf)}, "alpha", "not finite"),
    "two kinds": ({"diff": torch.ones(20, 24)}, "lora_down.weight", "several kinds"),
    "another's": ({"rescale": torch.ones(20, 1)}, "lora_down.weight", "several kinds"),
    "lengths": ({"dora_scale": torch.ones(3, 1)}, "dora_scale", r"expected \(20, 1\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_by_its_ending(name: str) -> None:
    changes, ending, why = WRONG[name]
    tensors = {key: tensor for key, tensor in {**GOOD, **changes}.items() if tensor is not None}
    found = built(tensors, LINEAR)
    assert isinstance(found, Unfit), "it was accepted"
    assert found.ending == ending
    assert re.search(why, found.why), found.why


def test_what_belongs_to_nothing_is_refused() -> None:
    found = unfit({"alpha": torch.tensor(1.0)}, LINEAR)
    assert found is not None and "stands alone" in found.why
    found = unfit(GOOD, (20,))
    assert found is not None and "norm" in found.why
    for wrong in (torch.ones(5, 3, 4), torch.ones(7, 5, 4, 4), torch.ones(4)):
        assert unfit({"oft_blocks": wrong}, LINEAR) is not None
    assert isinstance(built({"oft_blocks": torch.zeros(5, 4, 4)}, LINEAR), OFT)
    assert isinstance(built({"diff_b": torch.zeros(20)}, LINEAR), Full)
    glora = {"a1.weight": torch.ones(24, 2), "a2.weight": torch.ones(2, 24), "b1.weight": torch.ones(20, 2)}
    assert isinstance(built({**glora, "b2.weight": torch.ones(2, 24)}, LINEAR), GLoRA)
    found = unfit(glora, LINEAR)
    assert found is not None


def test_alpha_is_the_rank_where_it_lacks_or_is_zero() -> None:
    weight = torch.zeros(LINEAR)
    made = {
        name: built({**GOOD, **changes}, LINEAR)
        for name, changes in {
            "rank": {},
            "zero": {"alpha": torch.tensor(0.0)},
            "half": {"alpha": torch.tensor(2.0)},
        }.items()
    }
    lacking = built({key: GOOD[key] for key in list(GOOD)[:2]}, LINEAR)
    sums = {name: float(kind.changed(weight, None)[0][0, 0]) for name, kind in {**made, "lacking": lacking}.items()}
    assert sums == {"rank": 4.0, "zero": 4.0, "half": 2.0, "lacking": 4.0}
