"""Merging for good, merging of models, and a LoRA from two of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapter_cases import draw, manifests, random_lora, shapes
from safelight.adapters.card import Card
from safelight.adapters.extraction import extracted
from safelight.adapters.kinds import Full, LoRA
from safelight.adapters.lora import Adapter, Strength, changes, read_lora, write_lora
from safelight.adapters.merging import Shares, add_difference, block_of, blocks_of, weighted_sum, with_adapters
from safelight.adapters.names import Layer, adapted, written
from safelight.adapters.patching import patched
from safelight.checkpoints import Checkpoint
from safelight.errors import RequestError
from safelight.models.networks import NETWORKS
from safelight.presets import PRESETS
from safelight.presets.preset import UNET
from toy_family import filled, toy_preset


def model(name: str, seed: int = 0) -> Checkpoint:
    return filled(toy_preset(PRESETS[name]), seed)


def numbers(checkpoint: Checkpoint) -> dict[tuple[str, str], Tensor]:
    return {(part, name): tensor for part, weights in checkpoint.parts.items() for name, tensor in weights.items()}


@pytest.mark.parametrize("name", ["sd1", "sdxl", "tiny"])
def test_merged_for_good_is_what_is_patched_on(name: str) -> None:
    plain = model(name)
    kept = {key: tensor.clone() for key, tensor in numbers(plain).items()}
    adapters = [
        (random_lora(plain.preset, convolutions=True), Strength(0.5, 0.8)),
        (random_lora(plain.preset, seed=1, dora=True), Strength(-0.3, 1.0)),
    ]
    merged = with_adapters(plain, adapters)
    assert merged.preset == plain.preset
    for part, config in adapted(plain.preset.networks).items():
        network = NETWORKS[type(config)](config)
        network.load_state_dict(plain.parts[part])
        with patched(network, changes(adapters, part)):
            for key, tensor in network.state_dict().items():
                assert torch.equal(merged.parts[part][key], tensor), f"{part}: {key}"
    touched = {(part, f"{layer}.weight") for part, layer, _ in shapes(plain.preset, convolutions=True)}
    for key, tensor in numbers(merged).items():
        assert (tensor is plain.parts[key[0]][key[1]]) == (key not in touched), f"{key} was copied for nothing"
    assert all(torch.equal(tensor, kept[key]) for key, tensor in numbers(plain).items()), "the model itself changed"


def test_a_bias_that_a_model_cannot_store_is_refused() -> None:
    plain = model("sd1")
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    adapter = Adapter({UNET: {layer: Full(None, draw(160))}}, Card("x"))
    with pytest.raises(RequestError, match=r"gives unet's .*attn1.to_q a bias"):
        with_adapters(plain, [(adapter, Strength())])


# Several models


def test_a_weighted_sum() -> None:
    one, other = model("sd1", 1), model("sd1", 2)
    for share in (0.0, 0.3, 1.0, 1.5):
        merged = numbers(weighted_sum(one, other, Shares(share)))
        for key, tensor in merged.items():
            a, b = numbers(one)[key].double(), numbers(other)[key].double()
            torch.testing.assert_close(tensor.double(), (1 - share) * a + share * b, atol=1e-6, rtol=1e-5)
        if share == 0:
            assert all(tensor is numbers(one)[key] for key, tensor in merged.items())


def test_the_difference_of_two_added_to_a_third() -> None:
    one, two, three = (model("sd1", seed) for seed in (1, 2, 3))
    for key, tensor in numbers(add_difference(one, two, three, Shares(0.7))).items():
        a, b, c = (numbers(m)[key].double() for m in (one, two, three))
        torch.testing.assert_close(tensor.double(), a + 0.7 * (b - c), atol=1e-6, rtol=1e-5)


def test_a_model_becomes_one_for_inpainting() -> None:
    """Inpainting + (a model - what both came from): its further channels in stay its own."""
    inpainting, tuned, base = model("sd1-inpainting", 1), model("sd1", 2), model("sd1", 3)
    merged = add_difference(inpainting, tuned, base, Shares(1.0))
    own, new = inpainting.parts[UNET]["conv_in.weight"], merged.parts[UNET]["conv_in.weight"]
    change = tuned.parts[UNET]["conv_in.weight"] - base.parts[UNET]["conv_in.weight"]
    torch.testing.assert_close(new[:, :4], own[:, :4] + change)
    assert torch.equal(new[:, 4:], own[:, 4:])
    with pytest.raises(RequestError, match=r"unet's conv_in.weight is \(40, 4, 3, 3\) in the first and \(40, 9"):
        weighted_sum(tuned, inpainting, Shares())
    with pytest.raises(RequestError, match="differ in their channels in"):
        add_difference(inpainting, tuned, inpainting, Shares())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_is_the_first_models(dtype: torch.dtype) -> None:
    one, other = model("tiny", 1), model("tiny", 2)
    half = replace(one, parts={p: {k: t.to(dtype) for k, t in w.items()} for p, w in one.parts.items()})
    for key, tensor in numbers(weighted_sum(half, other, Shares(0.4))).items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, torch.lerp(numbers(half)[key].float(), numbers(other)[key], 0.4).to(dtype))


def test_models_of_two_kinds_are_refused() -> None:
    for name, part in (("sd2-base", "text|unet"), ("sdxl", "text|unet|autoencoder")):
        with pytest.raises(RequestError, match=rf"different kinds cannot be merged: ({part})'s .*give models of one"):
            weighted_sum(model("sd1"), model(name), Shares())
    with pytest.raises(RequestError, match=r"no block 'IN99' .* IN00, .* OUT07"):
        weighted_sum(model("sd1"), model("sd1"), Shares(0.5, {"IN99": 1.0}))
    with pytest.raises(RequestError, match="share of nan"):
        weighted_sum(model("sd1"), model("sd1"), Shares(float("nan")))


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"), [("sd1", 12, 12), ("sd2-v", 12, 12), ("sdxl", 9, 9), ("sdxl-refiner", 12, 12)]
)
def test_blocks_are_numbered_as_people_number_them(name: str, inputs: int, outputs: int) -> None:
    found = blocks_of(PRESETS[name].unet)
    assert found == (*(f"IN{i:02d}" for i in range(inputs)), "M00", *(f"OUT{i:02d}" for i in range(outputs)))


def test_a_weight_is_in_the_block_that_its_original_name_says() -> None:
    """kohya's list of SDXL's layers has the original names."""
    for said in manifests("keymap_kohya")["sdxl"].values():
        found = re.search(r"\.(input_blocks|middle_block|output_blocks)(?:\.(\d+))?\.", said["original"])
        assert found is not None
        expected = (
            "M00" if found[1] == "middle_block" else f"{'IN' if found[1][0] == 'i' else 'OUT'}{int(found[2]):02d}"
        )
        assert block_of(f"{said['diffusers']}.weight", PRESETS["sdxl"].unet) == expected
    for name, block in (
        ("time_embedding.linear_1.weight", "IN00"),
        ("conv_in.bias", "IN00"),
        ("conv_out.bias", "OUT08"),
    ):
        assert block_of(name, PRESETS["sdxl"].unet) == block


def test_each_block_takes_its_share() -> None:
    one, other = model("sd1", 1), model("sd1", 2)
    config = one.preset.unet
    share = {"IN00": 1.0, "M00": 0.0, "OUT03": 0.25}
    seen = set()
    for (part, name), tensor in numbers(weighted_sum(one, other, Shares(0.5, share))).items():
        block = block_of(name, config) if part == UNET else None
        seen.add(block)
        expected = torch.lerp(one.parts[part][name], other.parts[part][name], share.get(str(block), 0.5))
        torch.testing.assert_close(tensor, expected)
    assert seen == {None, *blocks_of(config)}


# A LoRA from two models


def tuned(plain: Checkpoint, rank: int | None, *, every: bool = False) -> Checkpoint:
    """A model that differs in all that kohya's tools train by differences of a rank; None: of full rank."""
    parts = {part: dict(weights) for part, weights in plain.parts.items()}
    for seed, (part, layer, shape) in enumerate(shapes(plain.preset, convolutions=every)):
        weight = parts[part][f"{layer}.weight"]
        change = draw(*weight.shape, seed=seed, scale=0.1)
        if rank is not None:
            flat = change.flatten(1)
            change = (flat[:, :rank] @ draw(rank, flat.shape[1], seed=seed + 1, scale=0.3)).view(shape)
        parts[part][f"{layer}.weight"] = weight + change
    return replace(plain, parts=parts)


@pytest.mark.parametrize("name", ["sd1", "sd2-base", "sdxl", "tiny"])
@pytest.mark.parametrize("rank", [3, None], ids=["low", "full"])
def test_a_lora_of_the_right_rank_is_the_difference(name: str, rank: int | None, tmp_path: Path) -> None:
    plain = model(name)
    after = tuned(plain, rank, every=True)
    found = extracted(after, plain, rank if rank is not None else 4096, 3 if rank is not None else 4096)
    assert found.left_out == ()
    assert found.kept == pytest.approx(1.0, abs=1e-6)
    merged = numbers(with_adapters(plain, [(found.adapter, Strength())]))
    for key, tensor in numbers(after).items():
        torch.testing.assert_close(merged[key], tensor, atol=2e-5, rtol=1e-4, msg=str(key))
    write_lora(tmp_path / "x.safetensors", found.adapter, plain.preset)
    again = read_lora(tmp_path / "x.safetensors", plain.preset)
    parts = adapted(plain.preset.networks)
    wanted = {
        written(Layer(part, layer), ending, parts)
        for part, layer, _ in shapes(plain.preset, convolutions=True)
        for ending in ("alpha", "lora_down.weight", "lora_up.weight")
    }
    assert set(load_file(tmp_path / "x.safetensors")) == wanted
    assert again.kinds.keys() == found.adapter.kinds.keys()


def test_of_a_higher_rank_it_keeps_the_largest() -> None:
    """Eckart and Young: no other of this rank is nearer; torch's own SVD is the judge."""
    plain = model("sd1")
    after = tuned(plain, None)
    found = extracted(after, plain, 4)
    held = whole = 0.0
    for part, layer, _ in shapes(plain.preset):
        weight = f"{layer}.weight"
        difference = (after.parts[part][weight] - plain.parts[part][weight]).flatten(1)
        values = torch.linalg.svdvals(difference.double())
        kind = found.adapter.kinds[part][layer]
        assert isinstance(kind, LoRA)
        rest = difference - kind.difference(plain.parts[part][weight]).flatten(1)
        assert float(rest.double().square().sum()) == pytest.approx(float(values[4:].square().sum()), rel=1e-4)
        held, whole = held + float(values[:4].square().sum()), whole + float(values.square().sum())
    assert found.kept == pytest.approx(held / whole, rel=1e-5)


def test_what_a_lora_cannot_hold_is_said() -> None:
    plain = model("sd1")
    after = tuned(plain, 2)
    parts = {part: dict(weights) for part, weights in after.parts.items()}
    for name in ("conv_in.weight", "conv_out.bias", "down_blocks.0.resnets.0.conv1.weight"):
        parts[UNET][name] = parts[UNET][name] + 1
    found = extracted(replace(after, parts=parts), plain, 2)
    assert set(found.left_out) == {
        "unet: conv_in.weight",
        "unet: conv_out.bias",
        "unet: down_blocks.0.resnets.0.conv1.weight",
    }
    found = extracted(replace(after, parts=parts), plain, 2, 2)
    assert "unet: down_blocks.0.resnets.0.conv1.weight" not in found.left_out


def test_half_precision_keeps_nearly_all(tmp_path: Path) -> None:
    plain = model("sd1")
    after = tuned(plain, 3)
    write_lora(tmp_path / "x.safetensors", extracted(after, plain, 3).adapter, plain.preset, dtype=torch.float16)
    merged = numbers(with_adapters(plain, [(read_lora(tmp_path / "x.safetensors", plain.preset), Strength())]))
    for key, tensor in numbers(after).items():
        torch.testing.assert_close(merged[key], tensor, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda plain: extracted(plain, plain, 4), "do not differ"),
        (lambda plain: extracted(tuned(plain, 2), plain, 0), "rank of 1 at least, not 0"),
        (lambda plain: extracted(model("sd2-base"), plain, 4), "differ in kind"),
    ],
)
def test_what_cannot_be_extracted_is_refused(call: Callable[[Checkpoint], object], expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        call(model("sd1"))
