"""Hypernetworks: recorded numbers, every activation against PyTorch's own layers, networks against diffusers'."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention as TheirAttention
from safetensors.torch import save_file
from torch import Tensor, nn

from golden_cases import GOLDEN, agree, golden, meta
from safelight.adapters.hypernetwork_files import SHAPE, THEIR_INITIALISATIONS, read_hypernetwork, write_hypernetwork
from safelight.adapters.hypernetworks import (
    ACTIVATIONS,
    INITIALISATIONS,
    LINEAR,
    UNUSABLE,
    Hypernetwork,
    HypernetworkConfig,
    attended_widths,
    bent,
    require_fits,
    standard_dropout,
)
from safelight.adapters.origin import Origin
from safelight.doors import Conditioning
from safelight.errors import ModelFileError, RequestError, SafelightError
from safelight.models.spatial_transformer import TransformerBlock
from safelight.models.unet import UNet
from safelight.presets import PRESETS
from test_parity_networks import UNETS, both_unets, randn

FILES = GOLDEN / "adapters" / "files"
CASES = ("hypernetwork_plain", "hypernetwork_relu_ln_dropout")
EXACT = 1e-5


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of the size that training leaves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def hypernetwork(*widths: int, seed: int = 0, **shape: Any) -> Hypernetwork:
    return cast(Hypernetwork, lively(Hypernetwork(widths, HypernetworkConfig(**shape)), seed))


# Recorded numbers


@pytest.mark.parametrize("case", CASES)
def test_the_recorded_files_give_the_recorded_numbers(case: str) -> None:
    found, arrays = read_hypernetwork(FILES / f"{case}.pt"), golden(f"adapters/{case}")
    assert found.widths == (32, 48)
    assert found.origin.step == 1000
    assert not found.training
    count = 0
    for name, expected in arrays.items():
        if not name.startswith("ctx"):
            of, width, strength = name.split("_")
            bend = found.bend(int(width), of)  # type: ignore[arg-type]
            agree(name, bend(arrays[f"ctx{width}"], float(strength.removeprefix("strength"))), expected, EXACT)
            count += 1
    assert count == 8
    said = meta(f"adapters/{case}")["config"]
    assert list(found.config.structure) == said["ls"]
    assert (found.config.norm, found.config.activate_output) == (said["ln"], said["actout"])


# Files, against PyTorch's own layers in a row


def theirs_by_name() -> dict[str, type[nn.Module]]:
    """Activations as the web UI gathers them: its own names, and every class of PyTorch's module in small letters."""
    names: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU,
        "leakyrelu": nn.LeakyReLU,
        "elu": nn.ELU,
        "swish": nn.Hardswish,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
    }
    module = torch.nn.modules.activation
    classes = inspect.getmembers(module, lambda x: inspect.isclass(x) and x.__module__ == module.__name__)
    return names | {name.lower(): kind for name, kind in classes}


def in_a_row(
    width: int, structure: Sequence[float], activation: str | None, norm: bool, output: bool, dropout: Sequence[float]
) -> nn.Sequential:
    """The layers after the words of the web UI's rule: linear, activation but for the last, norm, dropout."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(structure)):
        layers.append(nn.Linear(int(width * a), int(width * b)))
        if activation not in (None, "linear") and (output or i < len(structure) - 2):
            layers.append(theirs_by_name()[str(activation)]())
        if norm:
            layers.append(nn.LayerNorm(int(width * b)))
        if dropout[i + 1] > 0:
            layers.append(nn.Dropout(dropout[i + 1]))
    return cast(nn.Sequential, lively(nn.Sequential(*layers), seed=width + len(structure)))


def test_every_activation_of_the_web_ui_is_known_or_refused_with_a_reason() -> None:
    assert {*ACTIVATIONS, *UNUSABLE} == set(theirs_by_name())
    for name, reason in UNUSABLE.items():
        with pytest.raises(ValueError, match=name) as caught:
            HypernetworkConfig(activation=name)
        assert reason in str(caught.value)


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", [None, LINEAR, *ACTIVATIONS])
def test_every_activation_with_and_without_norms(
    tmp_path: Path, activation: str | None, norm: bool, output: bool
) -> None:
    same_as_in_a_row(tmp_path, (1, 1.5, 2, 1), activation, norm, output, (0, 0.3, 0, 0))


@pytest.mark.parametrize(
    ("structure", "dropout"),
    [
        ((1, 1), (0, 0)),
        ((1, 2, 1), (0, 0.05, 0)),
        ((1, 0.5, 0.25, 1), (0, 0, 0.9, 0)),
        ((1, 1.3, 1.7, 2.1, 1), (0, 0.1, 0.2, 0.3, 0)),
        ((1, 4, 4, 4, 4, 4, 4, 1), (0,) * 8),
    ],
)
def test_every_structure(tmp_path: Path, structure: Sequence[float], dropout: Sequence[float]) -> None:
    same_as_in_a_row(tmp_path, structure, "relu", True, False, dropout)


def same_as_in_a_row(
    folder: Path,
    structure: Sequence[float],
    activation: str | None,
    norm: bool,
    output: bool,
    dropout: Sequence[float],
) -> None:
    shape = (structure, activation, norm, output, dropout)
    rows = {(width, of): in_a_row(width, *shape) for width in (24, 40) for of in "kv"}
    lively(rows[24, "v"], seed=9)
    saved: dict[object, object] = {
        width: tuple({f"linear.{key}": w for key, w in rows[width, of].state_dict().items()} for of in "kv")
        for width in (24, 40)
    }
    saved |= {"layer_structure": list(structure), "activation_func": activation, "is_layer_norm": norm}
    saved |= {"activate_output": output, "dropout_structure": list(dropout), "name": "x", "step": 1}
    torch.save(saved, folder / "x.pt")
    first = read_hypernetwork(folder / "x.pt")
    for name in ("again.pt", "again.safetensors"):
        write_hypernetwork(folder / name, first)
    for file in ("x.pt", "again.pt", "again.safetensors"):
        found = read_hypernetwork(folder / file)
        assert found.config == first.config
        for (width, of), row in rows.items():
            x = randn(2, 5, width)
            with torch.no_grad():
                ours = found.bend(width, of)(x, 0.7)  # type: ignore[arg-type]
                agree(f"{file} {width} {of}", ours, x + 0.7 * row(x), EXACT)


def test_the_oldest_files_have_two_layers_of_other_names(tmp_path: Path) -> None:
    """Of before the web UI wrote what the layers are: NovelAI's have lists of two, and nothing beside the widths."""
    plain = read_hypernetwork(FILES / "hypernetwork_plain.pt")
    old: dict[object, object] = {
        width: [
            {
                key.replace("linear.0", "linear1").replace("linear.1", "linear2"): w
                for key, w in plain.bend(width, of).state_dict().items()
            }
            for of in ("k", "v")
        ]
        for width in plain.widths
    }
    torch.save(old, tmp_path / "old.pt")
    found = read_hypernetwork(tmp_path / "old.pt")
    assert found.origin == Origin()
    assert found.config == replace(plain.config, activate_output=True), "as the web UI takes what is not said"
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), plain.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("layers", "last", "expected"),
    [
        (1, False, (0, 0)),
        (2, False, (0, 0, 0)),
        (2, True, (0, 0.3, 0)),
        (3, False, (0, 0.3, 0, 0)),
        (3, True, (0, 0.3, 0.3, 0)),
        (4, True, (0, 0.3, 0.3, 0.3, 0)),
    ],
)
def test_where_dropout_is_when_a_file_only_says_that_it_is_used(
    layers: int, last: bool, expected: tuple[float, ...]
) -> None:
    assert standard_dropout((1.0,) * (layers + 1), last) == expected


def test_the_web_ui_finds_in_a_written_file_what_it_looks_for(tmp_path: Path) -> None:
    made = hypernetwork(32, 64, activation="mish", norm=True, structure=(1, 2, 2, 1), dropout=(0, 0.3, 0.3, 0))
    made.origin = Origin("mine", 20, "base", "0123456789")
    write_hypernetwork(tmp_path / "mine.pt", made)
    saved = torch.load(tmp_path / "mine.pt", weights_only=True)
    assert [key for key in saved if isinstance(key, int)] == [32, 64]
    assert {key: value for key, value in saved.items() if isinstance(key, str)} == {
        "step": 20,
        "name": "mine",
        "layer_structure": [1, 2, 2, 1],
        "activation_func": "mish",
        "is_layer_norm": True,
        "weight_initialization": "Normal",
        "sd_checkpoint": "0123456789",
        "sd_checkpoint_name": "base",
        "activate_output": False,
        "use_dropout": True,
        "dropout_structure": [0, 0.3, 0.3, 0],
        "last_layer_dropout": True,
        "optional_info": None,
    }
    row = in_a_row(64, (1, 2, 2, 1), "mish", True, False, (0, 0.3, 0.3, 0))
    keys, values = saved[64]
    row.load_state_dict({key.removeprefix("linear."): w for key, w in values.items()}, strict=True)
    assert set(keys) == set(values)
    with torch.no_grad():
        x = randn(1, 3, 64)
        assert torch.equal(made.bend(64, "v")(x), x + row(x))
    first = (tmp_path / "mine.pt").read_bytes()
    write_hypernetwork(tmp_path / "mine.pt", made)
    assert (tmp_path / "mine.pt").read_bytes() == first, "the same bytes each time"
    nameless = hypernetwork(32)
    write_hypernetwork(tmp_path / "stem.pt", nameless)
    saved = torch.load(tmp_path / "stem.pt", weights_only=True)
    assert (saved["name"], saved["step"]) == ("stem", 0)


# Files that are none


def _side(width: int = 8, factor: int = 2) -> dict[str, Tensor]:
    shapes = {"linear.0.weight": (width * factor, width), "linear.0.bias": (width * factor,)}
    shapes |= {"linear.1.weight": (width, width * factor), "linear.1.bias": (width,)}
    return {name: randn(*shape) for name, shape in shapes.items()}


def _file(**fields: object) -> Callable[[Path], None]:
    return lambda path: torch.save({8: (_side(), _side()), **fields}, path)


def _pair(keys: object, values: object, width: object = 8) -> Callable[[Path], None]:
    return lambda path: torch.save({width: (keys, values)}, path)


def _safe(fields: object, **more: Tensor) -> Callable[[Path], None]:
    tensors = {f"8.{of}.{name}": w for of in "kv" for name, w in _side().items()} | more
    text = fields if isinstance(fields, str) else json.dumps(fields)
    return lambda path: save_file(tensors, path, {SHAPE: text})


WHOLE = {name: torch.zeros_like(w, dtype=torch.int64) for name, w in _side().items()}
NAN = _side() | {"linear.1.bias": torch.full((8,), torch.nan)}
SPREAD = {name: torch.zeros(1).expand(tuple(1000 * n for n in w.shape)) for name, w in _side().items()}
"""A few bytes that say they are 1 GB."""
BAD: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "missing.pt": (lambda path: None, "is missing"),
    "empty.pt": (lambda path: path.write_bytes(b""), "is empty"),
    "noise.pt": (lambda path: path.write_bytes(bytes(range(256)) * 8), "noise.pt"),
    "list.pt": (lambda path: torch.save([randn(2)], path), "it has no widths"),
    "lora.pt": (lambda path: torch.save({"lora_unet_x.alpha": randn(1)}, path), "it has no widths"),
    "embedding.pt": (
        lambda path: path.write_bytes((FILES / "ti_a1111_sd1_3vec.pt").read_bytes()),
        "it has no widths",
    ),
    "code.pt": (_file(name=Path), "may run code"),
    "one.pt": (lambda path: torch.save({8: (_side(),)}, path), "at 8 it has no pair"),
    "three.pt": (lambda path: torch.save({8: (_side(), _side(), _side())}, path), "at 8 it has no pair"),
    "number.pt": (_pair(_side(), _side() | {"linear.0.bias": 3}), "8.v.'linear.0.bias' is no tensor"),
    "more.pt": (_pair(_side(), _side() | {"linear.2.bias": randn(8)}), "8.v.linear.2.bias has no place"),
    "less.pt": (_pair(_side(), dict(list(_side().items())[:3])), "lacks 8.v.linear.1.bias"),
    "shape.pt": (_pair(_side(), _side(factor=3)), r"8.v.linear.0.weight is \[24, 8\] .* expected \[16, 8\]"),
    "whole.pt": (_pair(_side(), WHOLE), "of int64"),
    "nan.pt": (_pair(NAN, _side()), "8.k.linear.1.bias has numbers that are not finite"),
    "twice.pt": (_pair(_side() | {"linear1.bias": randn(16)}, _side()), "8.k.linear.0.bias stands in it twice"),
    "wide.pt": (_pair(_side(), _side(), 10**5000), "is no width"),
    "negative.pt": (_pair(_side(), _side(), -8), "-8 is no width"),
    "many.pt": (lambda path: torch.save({n: (_side(), _side()) for n in range(8, 40)}, path), "is no width"),
    "structure.pt": (_file(layer_structure=[1, 2]), "1 at both ends"),
    "vast.pt": (_file(layer_structure=[1, 1e300, 1]), "at most 64"),
    "endless.pt": (_file(layer_structure=[1] * 5000), "no list of numbers"),
    "digits.pt": (_file(layer_structure=[1, 10**400, 1]), "too large"),
    "words.pt": (_file(layer_structure="1, 2, 1"), "no list of numbers"),
    "thin.pt": (_file(layer_structure=[1, 0.01, 1]), "leaves nothing of a width of 8"),
    "activation.pt": (_file(activation_func="magic"), "no activation 'magic'"),
    "softmax.pt": (_file(activation_func="softmax"), "over the batch"),
    "typed.pt": (_file(activation_func=7), "activation_func is no name"),
    "dropout.pt": (_file(dropout_structure=[0, 1.5, 0]), "from 0 to 1"),
    "shift.pt": (_file(is_layer_norm=True), "8.k.linear.1.weight is|has no place|lacks"),
    "extension.pt": (_file(skip_connection=True), "it uses 'skip_connection'"),
    "spread.pt": (
        _pair(SPREAD, SPREAD, 8000),
        "more than it has bytes",
    ),
    "plain.safetensors": (lambda path: save_file({"8.k.linear.0.bias": randn(8)}, path), "no 'safelight.hypernetwork'"),
    "json.safetensors": (_safe("{"), "no JSON"),
    "array.safetensors": (_safe([1]), "no JSON object"),
    "long.safetensors": (_safe("[" * 99_999), "no 'safelight.hypernetwork'"),
    "key.safetensors": (_safe({}, **{"8.q.linear.0.bias": randn(8)}), "'8.q.linear.0.bias' is no part"),
    "digit.safetensors": (_safe({}, **{"٣.k.linear.0.bias": randn(8)}), "is no part"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    write, message = BAD[name]
    write(tmp_path / name)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_hypernetwork(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_an_extension_leaves_off_is_no_reason_to_refuse(tmp_path: Path) -> None:
    _file(skip_connection=False, upsample_linear=None, optional_info="by me")(tmp_path / "x.pt")
    assert read_hypernetwork(tmp_path / "x.pt").widths == (8,)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = (FILES / "hypernetwork_plain.pt").read_bytes()
    for size in range(0, len(whole), 5003):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(SafelightError):
            read_hypernetwork(tmp_path / "cut.pt")


# At work


class Bending:
    """diffusers' attention by its own layers, with another context for keys and for values: the published formula."""

    def __init__(self, acting: Sequence[tuple[Hypernetwork, float]]) -> None:
        self.acting = acting

    def __call__(
        self, attention: TheirAttention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        keys = values = context
        for one, strength in self.acting:
            weights, width = one.state_dict(), context.shape[-1]
            if f"pairs.{width}.k.linear.0.weight" in weights:
                keys = keys + strength * two_layers(weights, f"pairs.{width}.k.", keys)
                values = values + strength * two_layers(weights, f"pairs.{width}.v.", values)
        q, k, v = attention.to_q(hidden_states), attention.to_k(keys), attention.to_v(values)
        q, k, v = (attention.head_to_batch_dim(x) for x in (q, k, v))
        shares = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        return attention.to_out[0](attention.batch_to_head_dim(shares @ v))  # type: ignore[no-any-return]


def two_layers(weights: Mapping[str, Tensor], before: str, x: Tensor) -> Tensor:
    x = torch.relu(x @ weights[f"{before}linear.0.weight"].T + weights[f"{before}linear.0.bias"])
    return x @ weights[f"{before}linear.2.weight"].T + weights[f"{before}linear.2.bias"]


AT_WORK = ("sd1", "sd2", "upscaler", "sdxl", "refiner", "tiny")


def asked(config: Any) -> tuple[Tensor, Tensor, Conditioning, dict[str, Any]]:
    """A random question to ours, and what theirs needs beside it."""
    x, t = randn(2, config.in_channels, 16, 16), torch.tensor([3.0, 981.0])
    context, more = randn(2, 7, config.context_width, seed=1), cast("dict[str, Any]", {})
    vector = None
    if config.classes is not None:
        vector = torch.tensor([[3], [9]])
        more["class_labels"] = vector[:, 0]
    elif config.vector_width is not None:
        # Sizes are sinusoids; theirs makes them of numbers, so that both are given those of zeros: cosines 1, sines 0.
        sizes = torch.cat([torch.ones(2, 6, 4), torch.zeros(2, 6, 4)], dim=-1).flatten(1)
        pooled = randn(2, config.vector_width - sizes.shape[1], seed=2)
        vector = torch.cat([pooled, sizes], dim=1)
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros(2, 6)}
    return x, t, Conditioning(context, vector), more


@pytest.mark.parametrize("name", AT_WORK)
def test_networks_bend_as_diffusers_with_the_formula_in_its_attention(name: str) -> None:
    config = UNETS[name]
    ours, theirs = both_unets(config)
    assert isinstance(theirs, UNet2DConditionModel)
    widths = attended_widths(ours)
    assert config.context_width in widths
    whole = hypernetwork(*widths, activation="relu")
    half = hypernetwork(widths[0], seed=3, activation="relu")
    acting = [(whole, 0.8), (half, -0.5)]
    x, t, cond, more = asked(config)
    theirs.set_attn_processor(Bending(acting))
    with torch.no_grad():
        plain = ours(x, t, cond)
        with bent(ours, acting):
            found = ours(x, t, cond)
        expected = theirs(x, t, cond.context, **more).sample
        agree(name, found, expected, EXACT)
        assert (found - plain).abs().max() > 0.01 * plain.abs().max(), "it does something"
        assert torch.equal(ours(x, t, cond), plain)


@pytest.mark.parametrize(("width", "context"), [(320, 768), (640, 1024), (1280, 1024), (640, 2048), (1280, 2048)])
def test_blocks_of_the_published_widths(width: int, context: int) -> None:
    """The same block with its context bent beforehand: keys and values by one network, so that it can be."""
    block = TransformerBlock(width, width // 64, context).eval()
    acting = hypernetwork(context)
    acting.bend(context, "v").load_state_dict(acting.bend(context, "k").state_dict())
    x, told = randn(1, 4, width), randn(1, 5, context)
    with torch.no_grad():
        expected = block(x, acting.bend(context, "k")(told, 0.5))
        with bent(block, [(acting, 0.5)]):
            assert torch.equal(block(x, told), expected)


def unet() -> UNet:
    return cast(UNet, lively(both_unets(UNETS["sd1"])[0]))


def question(network: UNet, dtype: torch.dtype = torch.float32) -> Tensor:
    x, t, cond, _ = asked(network.config)
    with torch.inference_mode():
        y: Tensor = network(x.to(dtype), t, cond.map(lambda door: door.to(dtype)))
    return y


def hooks(network: nn.Module) -> Iterator[object]:
    for module in network.modules():
        yield from module._forward_pre_hooks.values()
        yield from module._forward_hooks.values()


def test_the_network_is_as_it_was_even_after_an_error() -> None:
    network = unet()
    acting = hypernetwork(*attended_widths(network))
    tensors, bits = list(network.parameters()), copy.deepcopy(network.state_dict())
    names = [name for name, _ in network.named_parameters()]
    plain = question(network)
    with pytest.raises(KeyboardInterrupt), bent(network, [(acting, 1.0)]):
        assert [name for name, _ in network.named_parameters()] == names, "nothing of it is part of the network"
        assert all(a is b for a, b in zip(network.parameters(), tensors, strict=True))
        question(network)
        raise KeyboardInterrupt
    assert list(hooks(network)) == []
    assert all(a is b for a, b in zip(network.parameters(), tensors, strict=True))
    assert all(torch.equal(tensor, bits[key]) for key, tensor in network.state_dict().items())
    assert torch.equal(question(network), plain)


def test_none_and_no_strength_cost_nothing() -> None:
    network = unet()
    with bent(network, [(hypernetwork(*attended_widths(network)), 0.0)]):
        assert list(hooks(network)) == []
    with bent(network, []):
        assert list(hooks(network)) == []


def test_several_work_one_behind_the_other() -> None:
    network = unet()
    first, second = (hypernetwork(*attended_widths(network), seed=k, activation="tanh") for k in (1, 2))
    with bent(network, [(first, 1.0), (second, 0.5)]):
        together = question(network)
    with bent(network, [(first, 1.0)]), bent(network, [(second, 0.5)]):
        assert torch.equal(question(network), together)
    with bent(network, [(second, 0.5), (first, 1.0)]):
        assert not torch.allclose(question(network), together), "their order matters"


def test_half_precision_networks_are_bent_in_float32() -> None:
    network = unet()
    acting = hypernetwork(*attended_widths(network))
    with bent(network, [(acting, 1.0)]):
        expected = question(network)
        network.to(torch.bfloat16)
        found = question(network, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert acting.bend(acting.widths[0], "k")(randn(1, 1, acting.widths[0])).dtype == torch.float32
    agree("bfloat16", found.float(), expected, 0.1)


# Which model


def real(name: str) -> UNet:
    with torch.device("meta"):
        return UNet(PRESETS[name].unet)


SD1, SD2, SDXL = (320, 640, 768, 1280), (320, 640, 1024, 1280), (640, 1280, 2048)


@pytest.mark.parametrize(
    ("widths", "name", "strange"),
    [
        (SD1, "sd1", ()),
        ((768,), "sd1", ()),
        ((320,), "sd1", ()),
        ((768, 1024), "sd1", (1024,)),
        ((768, 1024), "sd2-v", (768,)),
        (SD2, "sd2-base", ()),
        (SDXL, "sdxl", ()),
        ((2048,), "sdxl", ()),
        ((96, 128, 160), "tiny", ()),
    ],
)
def test_what_fits(widths: tuple[int, ...], name: str, strange: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert require_fits(Hypernetwork(widths), real(name), name) == strange


@pytest.mark.parametrize(
    ("widths", "name", "family"),
    [
        (SD1, "sd2-v", "Stable Diffusion 1"),
        (SD1, "sdxl", "Stable Diffusion 1"),
        (SD1, "sdxl-refiner", "another family"),
        (SD2, "sd1", "Stable Diffusion 2"),
        (SDXL, "sd1", "Stable Diffusion XL"),
        (SDXL, "sd2-v", "Stable Diffusion XL"),
        ((96, 128, 160), "sd1", "Safelight tiny"),
        ((33,), "sd1", "another family"),
    ],
)
def test_one_of_another_family_is_refused_by_its_name(widths: tuple[int, ...], name: str, family: str) -> None:
    with torch.device("meta"):
        strange = Hypernetwork(widths, file=Path("some.pt"))
        with pytest.raises(ModelFileError, match=f"some.pt is of {family}: it is for the widths") as caught:
            require_fits(strange, real(name), name)
    assert "\n" not in str(caught.value)


def test_a_network_without_a_context_has_no_use_for_one() -> None:
    with torch.device("meta"), pytest.raises(RequestError, match="no use for a hypernetwork"):
        require_fits(Hypernetwork([768]), real("ldm-celeba"), "ldm-celeba")


# Training


@pytest.mark.parametrize("how", INITIALISATIONS)
@pytest.mark.parametrize("activation", ["relu", "leakyrelu"])
def test_they_begin_as_pytorch_draws(how: str, activation: str) -> None:
    config = HypernetworkConfig((1, 3, 1), activation, norm=True)
    made = Hypernetwork([64], config, initialisation=how)  # type: ignore[arg-type]
    made.initialise(torch.Generator().manual_seed(4))
    again = Hypernetwork([64], config, initialisation=how)  # type: ignore[arg-type]
    again.initialise(torch.Generator().manual_seed(4))
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    draw = {
        "normal": lambda w: nn.init.normal_(w, std=0.01),
        "xavier-uniform": nn.init.xavier_uniform_,
        "xavier-normal": nn.init.xavier_normal_,
        "kaiming-uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity=slope),
        "kaiming-normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity=slope),
    }[how]
    slope = "leaky_relu" if activation == "leakyrelu" else "relu"
    torch.manual_seed(0)
    for module in made.modules():
        if isinstance(module, nn.Linear):
            expected = draw(torch.empty_like(module.weight))
            assert module.weight.std().item() == pytest.approx(expected.std().item(), rel=0.05)
            assert module.weight.abs().max().item() == pytest.approx(expected.abs().max().item(), rel=0.5)
        elif isinstance(module, nn.LayerNorm):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.4)
        if isinstance(module, nn.Linear | nn.LayerNorm):
            assert bool((module.bias == 0).all())
    assert set(THEIR_INITIALISATIONS) == set(INITIALISATIONS)


@pytest.mark.parametrize(
    "config",
    [
        HypernetworkConfig(),
        HypernetworkConfig((1, 2, 2, 1), "relu", dropout=(0, 0.5, 0.5, 0)),
        HypernetworkConfig((1, 0.5, 1), "mish", norm=True),
        HypernetworkConfig((1, 2, 1), "sigmoid", activate_output=True, norm=True),
    ],
)
def test_a_last_layer_of_zero_is_nothing_and_learns_from_the_first_step(
    config: HypernetworkConfig,
) -> None:
    drawn, zeroed = (Hypernetwork([48], config, initialisation="kaiming-uniform") for _ in range(2))
    drawn.initialise(torch.Generator().manual_seed(4))
    zeroed.initialise(torch.Generator().manual_seed(4), zero_last=True)
    x = randn(2, 5, 48)
    for of in ("k", "v"):
        bend = zeroed.bend(48, of)  # type: ignore[arg-type]
        assert torch.equal(bend(x), x)
        *earlier, last = [m for m in bend.linear if isinstance(m, nn.Linear | nn.LayerNorm)]
        others = [m for m in drawn.bend(48, of).linear if isinstance(m, nn.Linear | nn.LayerNorm)]  # type: ignore[arg-type]
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(earlier, others, strict=False))
        bend(x).square().sum().backward()
        assert last.weight.grad is not None
        assert bool((last.weight.grad != 0).any())


def test_what_ends_in_an_activation_cannot_begin_as_nothing() -> None:
    ending = Hypernetwork([48], HypernetworkConfig(activation="relu", activate_output=True))
    with pytest.raises(ValueError, match="cannot begin as nothing"):
        ending.initialise(zero_last=True)
    Hypernetwork([48], HypernetworkConfig(activate_output=True)).initialise(zero_last=True)


def test_training_changes_the_hypernetwork_alone_and_lasts_in_its_file(tmp_path: Path) -> None:
    network = unet().requires_grad_(False)
    made = Hypernetwork(attended_widths(network), HypernetworkConfig(activation="relu", dropout=(0, 0.1, 0)))
    made.initialise(torch.Generator().manual_seed(0))
    made.train()
    x, t, cond, _ = asked(network.config)
    before = copy.deepcopy(network.state_dict())
    target = randn(*x.shape, seed=7)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    losses = []
    torch.manual_seed(0)
    for _ in range(12):
        with bent(network, [(made, 1.0)]):
            loss = (network(x, t, cond) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in made.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.98, losses
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    write_hypernetwork(tmp_path / "trained.pt", made)
    found = read_hypernetwork(tmp_path / "trained.pt")
    made.eval()
    with torch.no_grad(), bent(network, [(made, 1.0)]):
        expected = network(x, t, cond)
    with torch.no_grad(), bent(network, [(found, 1.0)]):
        assert torch.equal(network(x, t, cond), expected)
