"""Files of the LoRA family: every key of every tool is used or refused by name, and what is written can be read."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapter_cases import draw, filled, manifests, random_lora
from checkpoint_cases import sparse_file
from golden_cases import weight as ruled
from safelight.adapters.card import About, Card, hash_of
from safelight.adapters.kinds import KINDS, LoRA
from safelight.adapters.layouts import diffusers, kohya
from safelight.adapters.lora import Adapter, Strength, changes, read_lora, write_lora
from safelight.adapters.names import Layer, Names, adapted, layers, targets, written
from safelight.errors import ModelFileError
from safelight.models.networks import shapes_of
from safelight.presets import PRESETS, Preset
from toy_family import toy_preset

FILES = manifests("adapters")
ENDS = {"sd15": "sd1", "sd21": "sd2-v", "sdxl": "sdxl"}
TITLES = {"sd1": "Stable Diffusion 1.x", "sd2-v": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL base"}
TITLED = {
    "glora": "GLoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "oft": "OFT",
}
WITH_WORDS = [name for name, preset in PRESETS.items() if preset.words]


def preset_of(file: str) -> Preset:
    return PRESETS[ENDS[file.rpartition("_")[2]]]


def toy(name: str) -> Preset:
    return toy_preset(PRESETS[name])


# Names


@pytest.mark.parametrize("file", FILES)
def test_every_key_of_a_published_file_is_used(file: str, tmp_path: Path) -> None:
    path, preset = tmp_path / "file.safetensors", preset_of(file)
    sparse_file(path, {key: torch.empty(shape[:-1], device="meta") for key, shape in FILES[file].items()})
    adapter = read_lora(path, preset)
    used = sum(len(kind.state_dict()) for layers_ in adapter.kinds.values() for kind in layers_.values())
    assert used == len(FILES[file])
    assert adapter.dropped == ()
    wanted = next((title for mark, title in TITLED.items() if mark in file), "LoRA")
    assert adapter.titles[0] == wanted
    if file.startswith(("kohya", "lycoris")):
        parts = adapted(preset.networks)
        found = {
            written(Layer(part, layer), ending, parts): [*tensor.shape, "float32"]
            for part, kinds in adapter.kinds.items()
            for layer, kind in kinds.items()
            for ending, tensor in kind.state_dict().items()
        }
        assert found == FILES[file], "it would be written otherwise"


@pytest.mark.parametrize(
    ("file", "convolutions"), [(f, "c3lier" in f) for f in FILES if f.startswith("kohya")], ids=str
)
def test_what_is_trained_by_default_is_what_kohyas_tools_train(file: str, convolutions: bool) -> None:
    parts = adapted(preset_of(file).networks)
    keys = {
        written(Layer(part, layer), ending, parts)
        for part, config in parts.items()
        for layer in targets(config, convolutions=convolutions)
        for ending in ("alpha", "lora_down.weight", "lora_up.weight")
    }
    assert keys == set(FILES[file])


@pytest.mark.parametrize(("end", "preset"), [("sd15", "sd1"), ("sdxl", "sdxl")])
def test_kohyas_names_are_of_the_right_layers(end: str, preset: str) -> None:
    names = Names(adapted(PRESETS[preset].networks))
    table = manifests("keymap_kohya")[end]
    for name, said in table.items():
        for spelled in (name, said.get("alt_kohya_diffusers_name", name)):
            assert names.place(f"{spelled}.alpha") == (Layer("unet", said["diffusers"]), "alpha")
        original = said["original"].removeprefix("model.")
        assert names.place(f"{original}.lora_up.weight") == (Layer("unet", said["diffusers"]), "lora_up.weight")


@pytest.mark.parametrize("preset", WITH_WORDS)
def test_every_layer_of_every_member_has_names_of_its_own(preset: str) -> None:
    parts = adapted(PRESETS[preset].networks)
    names = Names(parts)  # refuses a name that is of two layers
    for part, config in parts.items():
        for layer, shape in layers(config).items():
            assert names.shapes[Layer(part, layer)] == shape
            for spelling in (*kohya.names(part, layer, parts), *diffusers.names(part, layer, parts)):
                for end, ending in {**kohya.ENDINGS, **diffusers.ENDINGS}.items():
                    assert names.place(spelling + end) == (Layer(part, layer), ending), spelling + end


def test_every_ending_of_every_kind_is_known() -> None:
    assert {ending for kind in KINDS for ending in kind.OWN | kind.BESIDE} == set(kohya.ENDINGS.values())


# There and back


@pytest.mark.parametrize("preset", ["sd1", "sd2-base", "sdxl", "sdxl-refiner", "tiny", "ldm-text"])
def test_what_is_written_is_read(preset: str, tmp_path: Path) -> None:
    small, path = toy(preset), tmp_path / "lora.safetensors"
    adapter = random_lora(small, convolutions=True, dora=preset == "sd1")
    write_lora(path, adapter, small)
    found = read_lora(path, small)
    assert {part: set(kinds) for part, kinds in found.kinds.items()} == {
        part: set(kinds) for part, kinds in adapter.kinds.items()
    }
    for part, kinds in adapter.kinds.items():
        for layer, kind in kinds.items():
            for ending, tensor in kind.state_dict().items():
                assert torch.equal(found.kinds[part][layer].state_dict()[ending], tensor), f"{layer}.{ending}"
    write_lora(tmp_path / "half.safetensors", adapter, small, dtype=torch.float16)
    half = read_lora(tmp_path / "half.safetensors", small)
    kind = next(iter(half.kinds["unet"].values()))
    assert isinstance(kind, LoRA)
    assert kind.lora_up.weight.dtype == torch.float16
    assert kind.alpha is not None and float(kind.alpha) == 2.0


def test_a_pytorch_file_is_read_without_running_code(tmp_path: Path) -> None:
    small = toy("sd1")
    write_lora(tmp_path / "a.safetensors", random_lora(small), small)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    torch.save(tensors, tmp_path / "a.pt")
    found = read_lora(tmp_path / "a.pt", small)
    assert sum(len(kind.state_dict()) for kinds in found.kinds.values() for kind in kinds.values()) == len(tensors)
    assert found.sha256 == hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return Path.write_text, (tmp_path / "ran", "code")

    torch.save({**tensors, "x": Bomb()}, tmp_path / "bad.pt")
    with pytest.raises(ModelFileError):
        read_lora(tmp_path / "bad.pt", small)
    assert not (tmp_path / "ran").exists()


def test_the_folder_that_diffusers_writes_is_read(tmp_path: Path) -> None:
    small = toy("sd1")
    write_lora(tmp_path / "pytorch_lora_weights.safetensors", random_lora(small), small)
    assert read_lora(tmp_path, small).kinds.keys() == {"unet", "text"}
    with pytest.raises(ModelFileError, match=r"pytorch_lora_weights.safetensors is missing"):
        read_lora(tmp_path.parent / "nowhere", small) if (tmp_path.parent / "nowhere").is_dir() else read_lora(
            _empty(tmp_path), small
        )


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


# What stands beside the tensors


def test_alpha_beside_the_tensors_counts(tmp_path: Path) -> None:
    """diffusers keeps alpha in metadata, PEFT in a config."""
    small = toy("sd1")
    first, second, *_ = targets(small.unet)
    shapes = layers(small.unet)
    tensors = {}
    for layer in (first, second):
        tensors[f"{layer}.lora_A.weight"] = draw(4, math.prod(shapes[layer][1:])).reshape(4, *shapes[layer][1:])
        tensors[f"{layer}.lora_B.weight"] = draw(shapes[layer][0], 4).reshape(-1, 4, *(1 for _ in shapes[layer][2:]))

    def alphas(adapter: Adapter) -> list[float | None]:
        kinds = [adapter.kinds["unet"][layer] for layer in (first, second)]
        return [None if kind.alpha is None else float(kind.alpha) for kind in kinds]  # type: ignore[union-attr,arg-type]

    path = tmp_path / "diffusers.safetensors"
    named = {f"unet.{key}": tensor for key, tensor in tensors.items()}
    save_file(named, path)
    assert alphas(read_lora(path, small)) == [None, None]
    said = {"unet.lora_alpha": 8, "unet.r": 4, "unet.alpha_pattern": {second.split(".", 2)[2]: 3}}
    save_file(named, path, metadata={"lora_adapter_metadata": json.dumps(said)})
    assert alphas(read_lora(path, small)) == [8.0, 3.0]
    save_file(named, path, metadata={"lora_adapter_metadata": json.dumps({**said, "unet.use_rslora": True})})
    assert alphas(read_lora(path, small)) == [16.0, 6.0]  # 8 / sqrt(4) = 16 / 4
    save_file(named, path, metadata={"lora_adapter_metadata": "{"})
    with pytest.raises(ModelFileError, match="lora_adapter_metadata is no JSON"):
        read_lora(path, small)

    path = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.{key}": tensor for key, tensor in tensors.items()}, path)
    with pytest.raises(ModelFileError, match=r"keeps alpha in adapter_config.json: that is not beside it"):
        read_lora(path, small)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 6}))
    assert alphas(read_lora(path, small)) == [6.0, 6.0]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "alpha": 6}))
    with pytest.raises(ModelFileError, match="peft_type is 'LOKR', expected 'LORA'"):
        read_lora(path, small)


def test_metadata_is_kohyas_and_modelspecs(tmp_path: Path) -> None:
    small, path = toy("sd2-v"), tmp_path / "jojo.safetensors"
    about = About("jojo", trigger="a jojo cat", author="me", date="2026-11-21", training={"ss_num_epochs": "3"})
    write_lora(path, random_lora(small), small, about)
    with safe_open(path, "pt") as file:
        said = file.metadata()
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(content[start:]).hexdigest()
    assert said["sshs_model_hash"] == hash_of(path) == digest
    assert said["modelspec.hash_sha256"] == f"0x{digest}"
    expected = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_output_name": "jojo",
        "ss_num_epochs": "3",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": "jojo",
        "modelspec.trigger_phrase": "a jojo cat",
        "modelspec.prediction_type": "v",
        "modelspec.resolution": f"{small.width}x{small.height}",
    }
    assert expected.items() <= said.items()
    assert all(isinstance(value, str) for value in said.values())
    adapter = read_lora(path, small)
    assert (adapter.sha256, adapter.card.name, adapter.card.alias) == (digest, "jojo", "jojo")
    assert (adapter.card.trigger, adapter.card.author, adapter.card.date) == ("a jojo cat", "me", "2026-11-21")
    write_lora(path, random_lora(small, dora=True), small)
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert said["ss_network_module"] == "lycoris.kohya"
    assert json.loads(said["ss_network_args"]) == {"algo": "lora", "dora_wd": "True"}


@pytest.mark.parametrize(
    ("preset", "architecture", "version"),
    [
        ("sd1", "stable-diffusion-v1/lora", "sd_v1"),
        ("sd2-base", "stable-diffusion-v2-512/lora", "sd_v2"),
        ("sd2-v", "stable-diffusion-v2-768-v/lora", "sd_v2_v"),
        ("sdxl", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0"),
        ("tiny", "safelight-tiny/lora", "safelight_tiny"),
    ],
)
def test_the_family_is_named_as_other_tools_do(preset: str, architecture: str, version: str, tmp_path: Path) -> None:
    layer = targets(PRESETS[preset].unet)[0]
    kind = LoRA.fresh(layers(PRESETS[preset].unet)[layer], 1, 1.0)
    write_lora(tmp_path / "x.safetensors", Adapter({"unet": {layer: kind}}, Card("x")), PRESETS[preset])
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata()["ss_v2"] == str(version.startswith("sd_v2"))
    card = read_lora(tmp_path / "x.safetensors", PRESETS[preset]).card
    assert (card.architecture, card.base_version) == (architecture, version)


def test_a_card_is_of_a_stranger() -> None:
    card = Card.of(
        {
            "ss_output_name": " a\nb\x1b[31m ",
            "modelspec.description": "x" * 100_000,
            "modelspec.author": "None",
            "ss_tag_frequency": json.dumps(
                {"1_cat": {"jojo": 5, "cat": 9, "bad": "many"}, "2_dog": {"cat": 1}, "x": []}
            ),
        },
        "file",
    )
    assert card.alias is not None and card.alias.isprintable()
    assert card.description is not None and len(card.description) <= 4000
    assert (card.name, card.author, card.trigger) == ("file", None, None)
    assert card.words == (("cat", 10), ("jojo", 5))
    for text in ("[" * 100_000, "{", "[]", '{"a": {"b": 1e999}}'):
        assert Card.of({"ss_tag_frequency": text}, "file").words == ()


def test_embeddings_that_come_with_it_are_kept(tmp_path: Path) -> None:
    small, path = toy("sd1"), tmp_path / "pivotal.safetensors"
    write_lora(path, random_lora(small), small)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    vectors = draw(2, 24)
    save_file({**tensors, "bundle_emb.jojo.string_to_param.*": vectors}, path)
    adapter = read_lora(path, small)
    assert torch.equal(adapter.embeddings["jojo"]["string_to_param.*"], vectors)
    write_lora(tmp_path / "again.safetensors", adapter, small)
    assert adapter.embeddings.keys() == read_lora(tmp_path / "again.safetensors", small).embeddings.keys()


def test_the_unused_last_layer_of_sd2s_text_tower_is_dropped(tmp_path: Path) -> None:
    small = toy("sd2-base")
    write_lora(tmp_path / "a.safetensors", random_lora(small), small)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    above = {k.replace("layers_2_", "layers_3_"): v.clone() for k, v in tensors.items() if "_layers_2_" in k}
    save_file({**tensors, **above}, tmp_path / "b.safetensors")
    adapter = read_lora(tmp_path / "b.safetensors", small)
    assert {dropped.key for dropped in adapter.dropped} == above.keys()
    save_file({**tensors, **{k.replace("_3_", "_4_"): v for k, v in above.items()}}, tmp_path / "c.safetensors")
    with pytest.raises(ModelFileError, match=r"layers_4_.* is of no layer"):
        read_lora(tmp_path / "c.safetensors", small)


# Refusals


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith(("kohya_lora_sd", "peft", "lycoris_lokr"))])
@pytest.mark.parametrize("preset", ["sd1", "sd2-v", "sdxl", "sdxl-refiner", "tiny"])
def test_a_lora_of_another_family_is_refused_and_its_family_named(file: str, preset: str, tmp_path: Path) -> None:
    own = ENDS[file.rpartition("_")[2]]
    if preset == own:
        return
    path = tmp_path / "file.safetensors"
    sparse_file(path, {key: torch.empty(shape[:-1], device="meta") for key, shape in FILES[file].items()})
    with pytest.raises(ModelFileError) as refusal:
        read_lora(path, PRESETS[preset])
    said = str(refusal.value)
    assert f"is a LoRA for {TITLES[own]}, and the model is {PRESETS[preset].title}" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("key", "whose"),
    [
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight", "Flux"),
        ("lora_unet_joint_blocks_0_context_block_attn_proj.lora_up.weight", "Stable Diffusion 3"),
        ("transformer.transformer_blocks.0.attn.to_k.lora_A.weight", "Stable Diffusion 3"),
        ("diffusion_model.blocks.0.cross_attn.k.lora_A.weight", "Wan"),
        ("lora_prior_unet_down_blocks_0_0.lora_up.weight", "Stable Cascade"),
    ],
)
def test_a_lora_for_a_model_of_another_kind_is_refused(key: str, whose: str, tmp_path: Path) -> None:
    save_file({key: torch.ones(4, 4)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match=f"is a LoRA for .*{whose}"):
        read_lora(tmp_path / "x.safetensors", PRESETS["sd1"])


Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
T = "lora_te_text_model_encoder_layers_0_mlp_fc1"
BROKEN: Mapping[str, tuple[Mapping[str, Tensor | None], str]] = {
    "half of a pair": ({f"{Q}.lora_up.weight": None}, rf"{Q}\.\S+: lora_up.weight is missing"),
    "not a number": ({f"{Q}.lora_up.weight": torch.full((160, 4), torch.nan)}, rf"{Q}.lora_up.weight .*not finite"),
    "another width": (
        {f"{Q}.lora_down.weight": torch.ones(4, 161)},
        rf"{Q}.lora_down.weight has the shape \(4, 161\), expected \(4, 160\) for a layer of \(160, 160\)",
    ),
    "a rank above the layer": (
        {f"{Q}.lora_down.weight": torch.ones(200, 160), f"{Q}.lora_up.weight": torch.ones(160, 200)},
        rf"{Q}.lora_up.weight has the rank 200, for a layer of \(160, 160\) with at most 160",
    ),
    "an unknown layer": ({"lora_unet_nowhere.alpha": torch.ones(())}, "lora_unet_nowhere.alpha is of no layer"),
    "an unknown ending": ({f"{Q}.lora_sideways.weight": torch.ones(1)}, rf"{Q}.lora_sideways.weight is of no layer"),
    "twice": (
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 160)},
        "is there twice",
    ),
    "alpha alone": ({f"{T}.lora_up.weight": None, f"{T}.lora_down.weight": None}, rf"{T}.alpha stands alone"),
    "a bad name": ({"\x1b[31m\n" * 100: torch.ones(1)}, r"\\x1b"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_line_that_names_the_key(name: str, tmp_path: Path) -> None:
    changed, expected = BROKEN[name]
    small, path = toy("sd1"), tmp_path / "broken.safetensors"
    write_lora(path, random_lora(small), small)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert all(key in tensors for key, value in changed.items() if value is None)
    save_file({k: v for k, v in {**tensors, **changed}.items() if v is not None}, path)
    with pytest.raises(ModelFileError) as refusal:
        read_lora(path, small)
    said = str(refusal.value)
    assert re.search(expected, said), said
    assert said.isprintable() and str(path) in said
    assert re.search(r"; (download|give)", said), "it does not say what to do"


def test_what_is_no_lora_is_refused_by_what_it_is(tmp_path: Path) -> None:
    small = toy("sd1")
    unet = {f"model.diffusion_model.{key}": ruled(key, shape) for key, shape in list(shapes_of(small.unet).items())[:9]}
    for tensors, expected in (
        (unet, "is a model, not a LoRA"),
        ({"emb_params": torch.ones(2, 768)}, "is a textual inversion"),
        ({"anything": torch.ones(3)}, "anything is of no layer"),
        ({"control_model.time_embed.0.weight": torch.ones(3)}, "is a ControlNet"),
    ):
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(ModelFileError, match=expected):
            read_lora(tmp_path / "x.safetensors", small)
    with pytest.raises(ModelFileError, match="is missing"):
        read_lora(tmp_path / "none.safetensors", small)
    save_file({}, tmp_path / "nothing.safetensors")
    with pytest.raises(ModelFileError):
        read_lora(tmp_path / "nothing.safetensors", small)


def test_strengths_are_of_text_and_unet() -> None:
    small = toy("sdxl")
    adapter = random_lora(small)
    both = [(adapter, Strength(0.5, 2.0)), (adapter, Strength(0.0, 1.0))]
    assert {part: [s for _, s in next(iter(changes(both, part).values()))] for part in ("unet", "text", "text_2")} == {
        "unet": [2.0, 1.0],
        "text": [0.5],
        "text_2": [0.5],
    }
    assert changes(both, "autoencoder") == {}
    assert changes([(adapter, Strength(0.0, 0.0))], "unet") == {}
    assert filled("x", {"a": [2, "float32"]})["a"].shape == (2,)
