"""Parts in files of their own, beside a model or for one that lacks them; and what files are said to be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import safelight
from safelight.checkpoints import configs, read, write_folder
from safelight.checkpoints.alone import read_normalizer, read_texts, read_vae
from safelight.checkpoints.files import read_tensors
from safelight.checkpoints.layouts import openclip, original, transformers
from safelight.checkpoints.writing import write_tensors
from safelight.errors import ModelFileError, RequestError
from safelight.models.clip import ClipTextConfig
from safelight.models.normalizer import NormalizerConfig
from safelight.presets import PRESETS, Preset
from safelight.tasks.files import FileCard, ModelCard, convert_model, describe
from safelight.tasks.loading import open_checkpoint
from safelight.tasks.requests import TextToImage
from safelight.tasks.sources import Reading
from toy_family import filled, toy_model, toy_preset

TOYS = {name: toy_preset(preset) for name, preset in PRESETS.items()}
XL = filled(TOYS["sdxl"], seed=3)
Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _among_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("detect", "alone"):
        monkeypatch.setattr(f"safelight.checkpoints.{module}.PRESETS", TOYS)


def only(monkeypatch: pytest.MonkeyPatch, name: str) -> Preset:
    """At toy size some members are like others, that are told apart at their true size."""
    monkeypatch.setattr("safelight.checkpoints.detect.PRESETS", {name: TOYS[name]})
    return TOYS[name]


def tower(name: str, part: str = "text") -> ClipTextConfig:
    config = TOYS[name].networks[part]
    assert isinstance(config, ClipTextConfig)
    return config


def saved(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    write_tensors(path, tensors)
    return path


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Text encoders, in every naming


def by_transformers(config: ClipTextConfig, weights: Weights) -> Weights:
    return transformers.text_layout(config).save({"text": weights})


def without_prefix(config: ClipTextConfig, weights: Weights) -> Weights:
    return transformers.text_layout(config, "").save({"text": weights})


def by_openclip(config: ClipTextConfig, weights: Weights) -> Weights:
    above = f"transformer.resblocks.{config.layers}.ln_1.weight"
    return {**openclip.text_layout(config).save({"text": weights}), "logit_scale": torch.ones(()), above: torch.ones(3)}


def in_a_whole_clip(config: ClipTextConfig, weights: Weights) -> Weights:
    beside = {
        "vision_model.embeddings.class_embedding": torch.ones(4),
        "visual_projection.weight": torch.ones(4, 4),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "logit_scale": torch.ones(()),
        f"text_model.encoder.layers.{config.layers}.layer_norm1.bias": torch.ones(4),
    }
    return {**by_transformers(config, weights), **beside}


def in_an_original_file(config: ClipTextConfig, weights: Weights) -> Weights:
    stage = "cond_stage_model."
    if config.activation == "gelu":
        return {stage + "model." + key: tensor for key, tensor in by_openclip(config, weights).items()}
    return {stage + "transformer." + key: tensor for key, tensor in by_transformers(config, weights).items()}


def by_comfyui(config: ClipTextConfig, weights: Weights) -> Weights:
    """clip_l.safetensors and clip_g.safetensors: with the projection, be it used or not."""
    projection = {"text_projection.weight": torch.ones(config.projection_width, config.width)}
    return {**projection, **by_transformers(config, weights), "logit_scale": torch.ones(())}


NAMINGS = (by_transformers, without_prefix, by_openclip, in_a_whole_clip, in_an_original_file, by_comfyui)


@pytest.mark.parametrize("naming", NAMINGS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("name", "part"), [("sd1", "text"), ("sd2-v", "text"), ("sdxl", "text"), ("sdxl", "text_2")])
def test_a_text_encoder_is_read_in_every_naming(
    tmp_path: Path, name: str, part: str, naming: Callable[[ClipTextConfig, Weights], Weights]
) -> None:
    config, weights = tower(name, part), filled(TOYS[name], seed=9).parts[part]
    file = saved(tmp_path / "x.safetensors", naming(config, weights))
    found = read_texts([file], {words.part: words.tower for words in TOYS[name].words})
    assert found.keys() == {part}
    assert equal(found[part], weights)


def test_both_text_encoders_come_in_any_order_or_from_a_whole_model(tmp_path: Path) -> None:
    towers = {words.part: words.tower for words in TOYS["sdxl"].words}
    small = saved(tmp_path / "l.safetensors", by_comfyui(tower("sdxl"), XL.parts["text"]))
    large = saved(tmp_path / "g.safetensors", by_comfyui(tower("sdxl", "text_2"), XL.parts["text_2"]))
    whole = saved(tmp_path / "whole.safetensors", original.save(XL.preset, XL.parts))
    write_folder(tmp_path / "folder", XL)
    for sources in ([small, large], [large, small], [whole], [tmp_path / "folder"]):
        found = read_texts(sources, towers)
        assert all(equal(found[part], XL.parts[part]) for part in ("text", "text_2"))
    with pytest.raises(ModelFileError, match=r"l\.safetensors does not fit as text_2: .*--text-encoder"):
        read_texts([small, small], towers)
    with pytest.raises(ModelFileError, match="too many: the model has 2"):
        read_texts([small, large, small], towers)
    with pytest.raises(ModelFileError, match=r"g\.safetensors does not fit as text: .*--text-encoder"):
        read_texts([large], {"text": tower("sdxl")})


def test_folders_of_transformers_are_read_and_their_config_is_heeded(tmp_path: Path) -> None:
    theirs = pytest.importorskip("transformers")
    config = tower("sdxl", "text_2")
    fields = {key: value for key, value in configs.text_json(config).items() if key != "architectures"}
    network = theirs.CLIPTextModelWithProjection(theirs.CLIPTextConfig(**fields))
    network.save_pretrained(tmp_path / "x")
    weights = {key.removeprefix("text_model."): tensor for key, tensor in network.state_dict().items()}
    found = read_texts([tmp_path / "x"], {"text_2": config})["text_2"]
    assert all(torch.equal(found[key], weights[key]) for key in found)
    content = json.loads((tmp_path / "x/config.json").read_text())
    for change, said in (({"hidden_act": "quick_gelu"}, "hidden_act"), ({"num_attention_heads": 4}, "attention_heads")):
        (tmp_path / "x/config.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(ModelFileError, match=rf"config\.json: .*{said} is .*expected .*as the model's own"):
            read_texts([tmp_path / "x"], {"text_2": config})


def test_latent_diffusions_transformer_is_a_text_encoder_too(tmp_path: Path) -> None:
    made = filled(TOYS["ldm-text"], seed=2)
    towers = {"text": made.preset.words[0].tower}
    write_folder(tmp_path / "folder", made)
    whole = saved(tmp_path / "whole.safetensors", original.save(made.preset, made.parts))
    for source in (tmp_path / "folder", tmp_path / "folder/bert/model.safetensors", whole):
        assert equal(read_texts([source], towers)["text"], made.parts["text"])


# A model whose file lacks parts


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl", "ldm-text", "ldm-celeba"])
def test_a_file_that_lacks_parts_draws_with_those_that_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    only(monkeypatch, name)
    model = toy_model(PRESETS[name])
    weights, towers = model.weights(), [words.part for words in model.preset.words]
    model.save(tmp_path / "model")
    bare = {part: tensors for part, tensors in weights.items() if part not in (*towers, "autoencoder")}
    file = saved(tmp_path / "bare.safetensors", original.save(model.preset, bare))
    words = next(iter(sorted((tmp_path / "model").glob("tokenizer*"))), None)
    lacking = read(file, preset=model.preset)
    assert lacking.absent() == [part for part in model.networks if part not in bare]
    for missed in (r"autoencoder.*--vae", *[r"text.*--text-encoder"][: len(towers)]):
        with pytest.raises(ModelFileError, match=rf"bare\.safetensors has no .*{missed}"):
            safelight.load(file, "cpu", tokenizer=words)
    given = safelight.load(
        file,
        "cpu",
        tokenizer=words,
        vae=tmp_path / "model",
        text_encoder=[tmp_path / "model"] if towers else [],
    )
    ask = TextToImage(prompt="a dog", seed=1) if towers else safelight.Unconditional(seed=1)
    assert all(equal(given.weights()[part], weights[part]) for part in weights)
    assert given.draw(ask)[0].size == model.draw(ask)[0].size
    card = describe(str(file))
    assert isinstance(card, ModelCard)
    assert (card.preset, card.absent) == (name, lacking.absent())
    assert "not in it: give one by --vae" in card.text()


def test_a_part_that_is_there_by_half_is_missing_keys(tmp_path: Path) -> None:
    tensors = original.save(XL.preset, XL.parts)
    key = "first_stage_model.decoder.conv_in.bias"
    file = saved(tmp_path / "x.safetensors", {k: t for k, t in tensors.items() if k != key})
    with pytest.raises(ModelFileError, match=rf"1 key missing \({key}\)"):
        read(file)


def test_what_a_model_has_not_is_not_given_to_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "x", filled(TOYS["ddpm"]))
    for reading, said in (
        (Reading(vae="x"), "leave out --vae"),
        (Reading(text_encoder=("x",)), "leave out --text-encoder"),
        (Reading(normalizer="x"), "leave out --normalizer"),
    ):
        with pytest.raises(RequestError, match=said):
            open_checkpoint(tmp_path / "x", reading)


# Autoencoders in folders


def as_it_is(folder: Path) -> None:
    """Safetensors."""


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "diffusion_pytorch_model.safetensors"), folder / "diffusion_pytorch_model.bin")
    (folder / "diffusion_pytorch_model.safetensors").unlink()


def as_fp16(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    file.rename(folder / "diffusion_pytorch_model.fp16.safetensors")


def as_shards(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    placed = {}
    for i, keys in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        name = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        save_file({key: tensors[key] for key in keys}, folder / name)
        placed |= dict.fromkeys(keys, name)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


@pytest.mark.parametrize("change", [as_it_is, as_bin, as_fp16, as_shards], ids=lambda f: f.__name__)
def test_an_autoencoder_is_read_from_its_folder_and_from_a_whole_models(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    write_folder(tmp_path / "x", XL)
    change(tmp_path / "x/vae")
    assert XL.preset.autoencoder is not None
    for source in (tmp_path / "x", tmp_path / "x/vae", str(tmp_path / "x/vae")):
        found = read_vae(source, XL.preset.autoencoder, XL.preset.latent_scale)
        assert equal(found, XL.parts["autoencoder"])


def test_an_autoencoder_of_another_language_is_refused_by_its_config(tmp_path: Path) -> None:
    write_folder(tmp_path / "x", XL)
    assert XL.preset.autoencoder is not None
    with pytest.raises(ModelFileError, match=r"config\.json: scaling_factor is 0\.13025, .* scaled by 0\.18215"):
        read_vae(tmp_path / "x", XL.preset.autoencoder, PRESETS["sd1"].latent_scale)
    config = json.loads((tmp_path / "x/vae/config.json").read_text())
    (tmp_path / "x/vae/config.json").write_text(json.dumps({**config, "scaling_factor": None}))
    read_vae(tmp_path / "x", XL.preset.autoencoder, PRESETS["sd1"].latent_scale)


# The statistics of Stable unCLIP

STATISTICS = {"mean": torch.linspace(-1, 1, 12)[None], "std": torch.linspace(0.5, 2, 12)[None]}


def unclip_file(path: Path, preset: Preset) -> Path:
    """As the original ones are: without statistics."""
    tensors = original.save(preset, filled(preset).parts)
    return saved(path, {k: t for k, t in tensors.items() if k not in original.STATISTICS.values()})


@pytest.mark.parametrize("kind", ["pair", "list", "safetensors", "folder", "beside", "inside"])
def test_statistics_of_embeddings_are_read_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    preset = only(monkeypatch, "unclip-l")
    file = unclip_file(tmp_path / "unclip.safetensors", preset)
    pair = (STATISTICS["mean"][0], STATISTICS["std"][0])
    given: Path | None = tmp_path / f"given.{'safetensors' if kind == 'safetensors' else 'th'}"
    if kind in ("pair", "list"):
        torch.save(pair if kind == "pair" else list(pair), given)
    elif kind == "safetensors":
        save_file(STATISTICS, tmp_path / "given.safetensors")
    elif kind == "folder":
        made = filled(preset)
        made.parts["normalizer"] = dict(STATISTICS)
        write_folder(tmp_path / "folder", made)
        given = tmp_path / "folder"
    elif kind == "beside":
        (tmp_path / "karlo_models").mkdir()
        torch.save(pair, tmp_path / "karlo_models/ViT-L-14_stats.th")
        given = None
    else:
        inside = {theirs: STATISTICS[ours] for ours, theirs in original.STATISTICS.items()}
        saved(file, {**read_tensors(file), **inside})
        given = None
    found = open_checkpoint(file, Reading(normalizer=None if given is None else str(given)))
    assert equal(found.parts["normalizer"], STATISTICS)
    found.require_whole()


def test_without_statistics_an_original_unclip_says_how_to_give_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = unclip_file(tmp_path / "unclip.safetensors", only(monkeypatch, "unclip-l"))
    with pytest.raises(ModelFileError, match=r"unclip\.safetensors has no normalizer in it: give one by --normalizer"):
        safelight.load(file)
    with pytest.raises(ModelFileError, match="--normalizer"):
        convert_model(str(file), tmp_path / "out")
    for tensors in (
        {"mean": torch.zeros(1, 7), "std": torch.ones(1, 7)},
        {"mean": torch.zeros(1, 12)},
        {"mean": torch.zeros(1, 12), "std": torch.zeros(1, 12)},
        {"mean": torch.full((1, 12), torch.nan), "std": torch.ones(1, 12)},
    ):
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(ModelFileError, match=r"bad\.safetensors (does not hold a mean|is damaged)"):
            read_normalizer(tmp_path / "bad.safetensors", NormalizerConfig(12))


def test_openclips_embeddings_come_under_noise_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = unclip_file(tmp_path / "unclip.safetensors", only(monkeypatch, "unclip-h"))
    found = read(file)
    found.require_whole()
    assert equal(found.parts["normalizer"], {"mean": torch.zeros(1, 12), "std": torch.ones(1, 12)})


def test_an_unclip_that_was_converted_keeps_its_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "unclip-l")
    model = toy_model(PRESETS["unclip-l"])
    model.save(tmp_path / "folder")
    convert_model(str(tmp_path / "folder"), tmp_path / "one.safetensors", layout="original")
    assert equal(read(tmp_path / "one.safetensors").parts["normalizer"], model.weights()["normalizer"])


# What converting keeps


def test_the_layer_above_is_written_again_where_it_was(tmp_path: Path) -> None:
    """SD 2's last text layer is of no use here; the original code, and programs that look for it, have it back."""
    made = filled(TOYS["sd2-depth"])
    layers = made.preset.words[0].tower.layers
    above = {f"cond_stage_model.model.transformer.resblocks.{layers}.ln_1.weight": torch.arange(3.0)}
    ema = {"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones((), dtype=torch.int64)}
    file = saved(tmp_path / "x.safetensors", {**original.save(made.preset, made.parts), **above, **ema})
    convert_model(str(file), tmp_path / "half.safetensors", dtype="float16", layout="original")
    found = read_tensors(tmp_path / "half.safetensors")
    assert found.keys() == {*original.save(made.preset, made.parts), *above}
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    [dropped] = read(tmp_path / "half.safetensors").dropped
    assert dropped.key in above


def test_a_latent_scale_of_ones_own_survives_the_original_layout(tmp_path: Path) -> None:
    made = filled(TOYS["ldm-churches"])
    tensors = {**original.save(made.preset, made.parts), "scale_factor": torch.tensor(0.3)}
    file = saved(tmp_path / "x.safetensors", tensors)
    convert_model(str(file), tmp_path / "y.safetensors", layout="original")
    assert read(tmp_path / "y.safetensors").preset.latent_scale == pytest.approx(0.3)
    for bad in (torch.tensor(0.0), torch.tensor(torch.nan), torch.ones(3)):
        saved(file, {**tensors, "scale_factor": bad})
        with pytest.raises(ModelFileError, match=r"x\.safetensors: scale_factor is .*expected a number above 0"):
            read(file)


# What files say that they are


def test_a_part_alone_is_shown_with_the_members_that_it_fits(tmp_path: Path) -> None:
    write_folder(tmp_path / "x", XL)
    for source, kind, fits in (
        (tmp_path / "x/vae", "autoencoder", {"sd1", "sdxl", "sd2-v"}),
        (tmp_path / "x/vae/diffusion_pytorch_model.safetensors", "autoencoder", {"sd1", "sdxl", "sd2-v"}),
        (tmp_path / "x/text_encoder_2", "text encoder", {"sdxl", "sdxl-refiner", "sdxl-turbo"}),
        (tmp_path / "x/unet/diffusion_pytorch_model.safetensors", "unet", set()),
    ):
        card = describe(str(source))
        assert isinstance(card, FileCard)
        assert card.kind == kind
        assert fits <= set(card.presets)
        assert card.dtypes == ["float32"]
        assert card.parameters == sum(t.numel() for t in XL.parts[card_part(kind)].values())
        assert f"{card.parameters:,} parameters" in card.text()
    lora = saved(tmp_path / "lora.safetensors", {"lora_unet_x.lora_down.weight": torch.zeros(2, 3)})
    assert describe(str(lora)).text().startswith("a LoRA, not a model: 6 parameters in 1 tensors, float32")


def card_part(kind: str) -> str:
    return {"autoencoder": "autoencoder", "text encoder": "text_2", "unet": "unet"}[kind]
