"""`read`: a single file, a folder, and everything that is neither."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoint_cases import manifest, same, toy_checkpoint
from safelight.checkpoints import Checkpoint, configs, read, write_folder
from safelight.checkpoints.layouts import diffusers, ldm
from safelight.checkpoints.layouts import original as whole_file
from safelight.checkpoints.vocabulary import cached_tokenizer
from safelight.errors import ModelFileError
from safelight.models.tokenizer import END, START, ClipTokenizer
from safelight.presets import PRESETS, Preset

TOY = toy_checkpoint()
BETAS = {"betas": torch.linspace(0, 1, 10), "alphas_cumprod": torch.linspace(1, 0, 10)}


def with_the_habits_of(one: Preset, other: Preset) -> Preset:
    """The other preset, but for what the files of diffusers do not say: they hold no name, no steps, no guidance."""
    return replace(other, name=one.name, title=one.title, steps=one.steps, spacing=one.spacing, guidance=one.guidance)


def original(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A single file's tensors in the original layout, with what the real ones carry beside the weights."""
    preset = checkpoint.preset
    layout = whole_file.layout(preset)
    position_ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    return {**layout.save(checkpoint.parts), **BETAS, position_ids: torch.arange(77)[None]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "toy", TOY)
    return tmp_path / "toy"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_unet(folder: Path, **changes: object) -> None:
    """As a stranger's folder, which has no preset beside."""
    (folder / "safelight.json").unlink(missing_ok=True)
    edit(folder / "unet/config.json", **changes)


@pytest.mark.parametrize("name", ["toy.safetensors", "toy.ckpt"])
def test_a_single_file_gives_the_same_weights(tmp_path: Path, name: str) -> None:
    tensors, path = original(TOY), tmp_path / name
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors, "epoch": 1}, path)
    else:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    found = read(path, preset=TOY.preset)
    assert same(found.parts, TOY.parts)
    assert {key for key, _ in found.dropped} == tensors.keys() - set(whole_file.layout(TOY.preset).save(TOY.parts))
    assert found.source == path


def test_a_single_file_is_found_among_the_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.checkpoints.detect.PRESETS", {**PRESETS, "toy": TOY.preset})
    save_file(original(TOY), tmp_path / "x.safetensors")
    assert read(tmp_path / "x.safetensors").preset == TOY.preset


def test_the_running_average_is_read_only_when_asked_for(tmp_path: Path) -> None:
    averaged = toy_checkpoint(seed=1)
    twins = {ldm.ema_name(k): v for k, v in original(averaged).items() if k.startswith(ldm.UNET)}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    path = tmp_path / "full.safetensors"
    save_file({**original(TOY), **twins, **counters}, path)
    assert same({"unet": read(path, preset=TOY.preset).parts["unet"]}, {"unet": TOY.parts["unet"]})
    found = read(path, preset=TOY.preset, ema=True)
    assert same({"unet": found.parts["unet"]}, {"unet": averaged.parts["unet"]})
    assert same({"text": found.parts["text"]}, {"text": TOY.parts["text"]})


def test_no_running_average_is_said(tmp_path: Path, folder: Path) -> None:
    save_file(original(TOY), tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match="no running average"):
        read(tmp_path / "x.safetensors", preset=TOY.preset, ema=True)
    with pytest.raises(ModelFileError, match="leave out --ema"):
        read(folder, ema=True)


def test_a_file_without_a_vocabulary_says_so_when_words_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(original(TOY), tmp_path / "x.safetensors")
    found = read(tmp_path / "x.safetensors", preset=TOY.preset)
    assert found.tokenizers == {}
    with pytest.raises(ModelFileError, match=r"x\.safetensors holds no vocabulary.*--tokenizer"):
        found.vocabularies()["text"]
    with pytest.raises(ModelFileError, match="--tokenizer"):
        write_folder(tmp_path / "out", found)
    TOY.vocabularies()["text"].write(tmp_path / "words")
    given = read(tmp_path / "x.safetensors", preset=TOY.preset, tokenizer=tmp_path / "words")
    assert given.vocabularies()["text"].vocab == TOY.vocabularies()["text"].vocab


def test_clips_vocabulary_is_found_in_the_local_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PRESETS["sd1"].networks["text"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert cached_tokenizer(text) is None
    known = [word for word in TOY.vocabularies()["text"].vocab if not word.startswith("<|")]
    words = [*known, *(f"filler {i}" for i in range(len(known), text.vocab_size - 2)), START, END]
    commit = tmp_path / "models--openai--clip-vit-large-patch14/snapshots/abc"
    ClipTokenizer({word: i for i, word in enumerate(words)}, TOY.vocabularies()["text"].merges).write(commit)
    (tmp_path / "models--openai--clip-vit-large-patch14/refs").mkdir()
    (tmp_path / "models--openai--clip-vit-large-patch14/refs/main").write_text("abc")
    found = cached_tokenizer(text)
    assert found is not None
    assert (found.start_token, found.end_token, found.pad_token) == (49406, 49407, 49407)
    assert cached_tokenizer(TOY.preset.networks["text"]) is None, "it is not that model's"


def test_a_wrong_preset_names_key_expected_and_actual(tmp_path: Path) -> None:
    save_file(original(TOY), tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError) as caught:
        read(tmp_path / "x.safetensors", preset=PRESETS["tiny"])
    for part in ("x.safetensors", "model.diffusion_model.", "expected (", "found ("):
        assert part in str(caught.value)


@pytest.mark.parametrize("source", ["nowhere", "no/such/folder", "./x", "a b/c", "/x/y", "https://x.org/a/b", ""])
def test_what_does_not_exist_is_said_with_what_it_may_be(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match=r"does not exist; give a.*hub id|no model folder"):
        read(source)


@pytest.mark.parametrize("source", ["nowhere.ckpt", "folder/x.safetensors", "/a/b.bin"])
def test_a_missing_file_is_not_looked_for_on_the_hub(source: str) -> None:
    with pytest.raises(ModelFileError, match="is missing"):
        read(source)


def test_a_folder_comes_back_with_its_preset(folder: Path) -> None:
    found = read(folder)
    assert found.preset == TOY.preset
    assert same(found.parts, TOY.parts)
    assert found.vocabularies()["text"].vocab == TOY.vocabularies()["text"].vocab
    assert found.vocabularies()["text"].merges == TOY.vocabularies()["text"].merges
    assert found.dropped == ()


def test_without_its_preset_the_configs_say_the_same(folder: Path) -> None:
    (folder / "safelight.json").unlink()
    preset = read(folder).preset
    assert with_the_habits_of(TOY.preset, preset) == TOY.preset


@pytest.mark.parametrize("name", ["sd1", "tiny"])
def test_a_presets_configs_go_out_and_come_back(tmp_path: Path, name: str) -> None:
    preset = PRESETS[name]
    (tmp_path / "u").write_text(json.dumps(configs.unet_json(preset.unet, 64)))
    assert configs.read_unet(tmp_path / "u") == (preset.unet, 64)
    (tmp_path / "v").write_text(json.dumps(configs.autoencoder_json(preset.autoencoder, 0.5, 512)))
    assert configs.read_autoencoder(tmp_path / "v") == (preset.autoencoder, 0.5)
    (tmp_path / "t").write_text(json.dumps(configs.text_json(preset.networks["text"])))
    assert configs.read_text(tmp_path / "t") == preset.networks["text"]
    for schedule in (
        preset.schedule,
        replace(preset.schedule, kind="linear"),
        replace(preset.schedule, kind="cosine"),
    ):
        for prediction in ("eps", "v"):
            wanted = replace(preset, schedule=schedule, prediction=prediction)
            (tmp_path / "s").write_text(json.dumps(configs.scheduler_json(configs.Scheduling.of(wanted))[0]))
            assert configs.read_schedule(tmp_path / "s", preset) == wanted


@pytest.mark.parametrize("which", ["reconstructed_hub_fields", "all_fields_with_diffusers_0_42_1_defaults"])
def test_the_published_configs_are_sd1(tmp_path: Path, which: str) -> None:
    for part, name in (("u", "sd15_unet"), ("v", "sd15_vae")):
        (tmp_path / part).write_text(json.dumps(manifest(f"{name}.config")[which]))
    text = {k: v for k, v in manifest("sd15_text_encoder.config").items() if k != "certainty"}
    (tmp_path / "t").write_text(json.dumps(text))
    sd1 = PRESETS["sd1"]
    assert configs.read_unet(tmp_path / "u") == (sd1.unet, 64)
    assert configs.read_autoencoder(tmp_path / "v") == (sd1.autoencoder, sd1.latent_scale)
    assert configs.read_text(tmp_path / "t") == sd1.networks["text"]


def test_absent_fields_have_diffusers_defaults(tmp_path: Path) -> None:
    unet = pytest.importorskip("diffusers").UNet2DConditionModel
    (tmp_path / "u").write_text("{}")
    ours, _ = configs.read_unet(tmp_path / "u")
    with torch.device("meta"):
        theirs = {key: tuple(t.shape) for key, t in unet().state_dict().items()}
    assert {p.theirs: p.op.shape(diffusers.shapes_of(ours)[p.ours]) for p in diffusers.unet(ours)} == theirs


@pytest.mark.parametrize(
    "changes",
    [
        {"addition_embed_type": "text_time"},
        {"class_embed_type": "projection"},
        {"num_class_embeds": 1000},
        {"only_cross_attention": True},
        {"only_cross_attention": [True, False]},
        {"mid_block_type": "UNetMidBlock2D"},
        {"resnet_time_scale_shift": "spatial"},
        {"class_embed_type": "timestep"},
        {"time_embedding_type": "fourier"},
        {"conv_in_kernel": 1},
        {"act_fn": "gelu"},
        {"norm_eps": "small"},
        {"down_block_types": ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]},
        {"up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D"]},
        {"block_out_channels": []},
        {"block_out_channels": [1 << 40, 24, 32]},
        {"block_out_channels": "wide"},
        {"layers_per_block": 0},
        {"layers_per_block": 10**9},
        {"layers_per_block": True},
        {"attention_head_dim": 7},
        {"norm_num_groups": 5},
        {"cross_attention_dim": [24, 24, 48]},
        {"use_linear_projection": "yes"},
        {"a_new_kind_of_attention": "sparse"},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_field_that_changes_the_network_is_refused_by_name(folder: Path, changes: dict[str, object]) -> None:
    edit_unet(folder, **changes)
    with pytest.raises(ModelFileError) as caught:
        read(folder)
    assert str(folder / "unet/config.json") in str(caught.value)
    named = {next(iter(changes))} | ({"up_block_types"} if "down_block_types" in changes else set())
    assert any(name in str(caught.value) for name in named)


def test_fields_that_change_nothing_are_let_pass(folder: Path) -> None:
    edit_unet(folder, upcast_attention=True, dropout=0.1, _name_or_path="../../x", a_new_field=None, another=False)
    assert same(read(folder).parts, TOY.parts)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("vae/config.json", {"use_quant_conv": False}),
        ("vae/config.json", {"latents_mean": [0.0]}),
        ("vae/config.json", {"shift_factor": 0.1}),
        ("vae/config.json", {"scaling_factor": -1}),
        ("vae/config.json", {"scaling_factor": float("nan")}),
        ("text_encoder/config.json", {"hidden_act": "relu"}),
        ("text_encoder/config.json", {"model_type": "t5"}),
        ("text_encoder/config.json", {"num_attention_heads": 5}),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}),
        ("scheduler/scheduler_config.json", {"beta_start": 2.0}),
        ("model_index.json", {"unet": ["diffusers", "UNet2DModel"]}),
        ("model_index.json", {"tokenizer_2": ["transformers", "CLIPTokenizer"]}),
        ("model_index.json", {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}),
        ("tokenizer/special_tokens_map.json", {"pad_token": "<|nowhere|>"}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_other_parts_refuse_what_they_are_not(folder: Path, file: str, changes: dict[str, object]) -> None:
    edit(folder / file, **changes)
    with pytest.raises(ModelFileError) as caught:
        read(folder)
    assert str(folder / file) in str(caught.value)
    assert next(iter(changes)) in str(caught.value)


def test_a_preset_that_the_configs_contradict_is_refused_by_field(folder: Path) -> None:
    with pytest.raises(ModelFileError, match=r"unet/config\.json does not fit the preset tiny: channels"):
        read(folder, preset=PRESETS["tiny"])
    edit(folder / "unet/config.json", attention_head_dim=8)
    with pytest.raises(ModelFileError, match=r"heads is \(8, 8, 8\), expected \(2, 3, 4\)"):
        read(folder)
    edit(folder / "unet/config.json", attention_head_dim=[2, 3, 4])
    schedule = folder / "scheduler/scheduler_config.json"
    edit(schedule, prediction_type="v_prediction")
    with pytest.raises(ModelFileError, match="the prediction kind is v, expected eps"):
        read(folder)
    edit(schedule, prediction_type="epsilon", beta_end=0.02)
    with pytest.raises(ModelFileError, match=r"the noise schedule is .*delete safelight\.json"):
        read(folder)
    (folder / "safelight.json").write_text("{}")
    with pytest.raises(ModelFileError, match=r"safelight\.json"):
        read(folder)


def test_every_missing_file_of_a_folder_is_named(folder: Path) -> None:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if name.name in ("safelight.json", "special_tokens_map.json", "tokenizer_config.json"):
            continue
        hidden = path.rename(folder.parent / "hidden")
        with pytest.raises(ModelFileError) as caught:
            read(folder)
        assert name.name in str(caught.value), caught.value
        hidden.rename(path)
    read(folder)


def unet_file(folder: Path) -> Path:
    return folder / "unet/diffusion_pytorch_model.safetensors"


def as_bin(folder: Path) -> None:
    torch.save(load_file(unet_file(folder)), unet_file(folder).with_suffix(".bin"))
    unet_file(folder).unlink()


def as_fp16(folder: Path) -> None:
    unet_file(folder).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")


def as_shards(folder: Path, variant: str = "") -> None:
    tensors = load_file(unet_file(folder))
    unet_file(folder).unlink()
    placed = {}
    for i, part in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        name = f"diffusion_pytorch_model{variant}-0000{i}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, folder / "unet" / name)
        placed |= dict.fromkeys(part, name)
    index = folder / f"unet/diffusion_pytorch_model.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))


def as_fp16_shards(folder: Path) -> None:
    as_shards(folder, ".fp16")


def as_fp16_shards_of_another_name(folder: Path) -> None:
    as_shards(folder, ".fp16")
    (folder / "unet/diffusion_pytorch_model.safetensors.index.fp16.json").rename(
        folder / "unet/diffusion_pytorch_model.fp16.safetensors.index.json"
    )


def as_fp16_text(folder: Path) -> None:
    (folder / "text_encoder/model.safetensors").rename(folder / "text_encoder/model.fp16.safetensors")


def as_bin_text(folder: Path) -> None:
    torch.save(load_file(folder / "text_encoder/model.safetensors"), folder / "text_encoder/pytorch_model.fp16.bin")
    (folder / "text_encoder/model.safetensors").unlink()


@pytest.mark.parametrize(
    "change",
    [
        *(as_bin, as_fp16, as_shards, as_fp16_shards),
        *(as_fp16_shards_of_another_name, as_fp16_text, as_bin_text),
    ],
    ids=lambda f: f.__name__,
)
def test_weights_are_read_from_every_kind_of_file(folder: Path, change: Callable[[Path], None]) -> None:
    change(folder)
    assert same(read(folder).parts, TOY.parts)


def test_safetensors_goes_before_bin_and_full_before_half_precision(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.bin").write_text("never opened")
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_text("never opened")
    assert same(read(folder).parts, TOY.parts)


def test_shards_that_point_outside_are_refused(folder: Path) -> None:
    as_shards(folder)
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    placed = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={key: f"../unet/{name}" for key, name in placed.items()})
    with pytest.raises(ModelFileError, match="not a file beside it"):
        read(folder)


def test_old_names_of_the_autoencoder_and_convolutions_for_matrices_are_read(folder: Path) -> None:
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    layout = diffusers.autoencoder_layout(TOY.preset.autoencoder, old_names=True)
    tensors = layout.save(TOY.parts)
    assert any(".query." in key for key in tensors)
    save_file(tensors, path)
    assert same(read(folder).parts, TOY.parts)
    rank_4 = {k: t[:, :, None, None] if ".query.weight" in k else t for k, t in tensors.items()}
    save_file({k: t.contiguous() for k, t in rank_4.items()}, path)
    assert same(read(folder).parts, TOY.parts)


def test_a_model_without_attention_heads_for_its_middle_is_refused_on_writing(tmp_path: Path) -> None:
    preset = replace(TOY.preset, unet=replace(TOY.preset.unet, middle_depth=1))
    with pytest.raises(ModelFileError, match="diffusers has no UNet"):
        write_folder(tmp_path / "x", replace(TOY, preset=preset))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_vocabulary_is_named(folder: Path) -> None:
    vocab, merges = folder / "tokenizer/vocab.json", folder / "tokenizer/merges.txt"
    whole = vocab.read_text(), merges.read_text()
    for path, content, said in (
        (vocab, "{", "no JSON"),
        (vocab, json.dumps({"a": 1}), "1 words"),
        (vocab, json.dumps({f"w{i}": i for i in TOY.vocabularies()["text"].vocab.values()}), "startoftext"),
        (vocab, json.dumps(dict.fromkeys(TOY.vocabularies()["text"].vocab, "x")), "words"),
        (vocab, json.dumps({**TOY.vocabularies()["text"].vocab, "one more": 5}), "words"),
        (merges, "#version: 0.2\na b c\n", "no pair"),
    ):
        path.write_text(content)
        with pytest.raises(ModelFileError, match=said) as caught:
            read(folder)
        assert str(path) in str(caught.value)
        vocab.write_text(whole[0])
        merges.write_text(whole[1])
    merges.write_bytes(b"\xff\xfe a")
    with pytest.raises(ModelFileError, match=r"merges\.txt is corrupted"):
        read(folder)


@pytest.mark.filterwarnings("ignore")
def test_diffusers_reads_what_we_write_and_we_read_what_diffusers_writes(tmp_path: Path, folder: Path) -> None:
    pipeline_class = pytest.importorskip("diffusers").StableDiffusionPipeline
    pipeline = pipeline_class.from_pretrained(folder)
    assert pipeline.safety_checker is None
    for network, part in (
        (pipeline.unet, "unet"),
        (pipeline.vae, "autoencoder"),
        (pipeline.text_encoder, "text"),
    ):
        found = {key.removeprefix("text_model."): tensor for key, tensor in network.state_dict().items()}
        assert same({part: found}, {part: TOY.parts[part]})
    assert pipeline.vae.config.scaling_factor == TOY.preset.latent_scale
    text = "a red apple on a dog, 7!"
    ids = pipeline.tokenizer([text], padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(ids, TOY.vocabularies()["text"]([text]))

    pipeline.save_pretrained(tmp_path / "theirs")
    back = read(tmp_path / "theirs")
    assert same(back.parts, TOY.parts)
    assert back.vocabularies()["text"].vocab == TOY.vocabularies()["text"].vocab
    assert back.vocabularies()["text"].merges == TOY.vocabularies()["text"].merges
    assert with_the_habits_of(TOY.preset, back.preset) == TOY.preset


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sampler", [*configs.SCHEDULERS, "another"])
def test_diffusers_accepts_every_scheduler_that_is_written(tmp_path: Path, sampler: str) -> None:
    library = pytest.importorskip("diffusers")
    content = configs.scheduler_json(configs.Scheduling.of(replace(TOY.preset, sampler=sampler)))[0]
    if content["_class_name"] == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    scheduler = getattr(library, str(content["_class_name"])).from_config(content)
    unknown = content.keys() - scheduler.config.keys() - {"_class_name"}
    assert unknown <= {"steps_offset"}, f"{unknown} mean nothing to {content['_class_name']}"
    scheduler.set_timesteps(4)


def test_reading_does_not_open_files_of_other_parts(folder: Path) -> None:
    """A folder may hold anything beside: it is not even looked at."""
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/pytorch_model.bin").write_bytes(b"cos\nsystem\n.")
    assert same(read(folder).parts, TOY.parts)


def test_a_half_precision_model_stays_so(tmp_path: Path) -> None:
    half = toy_checkpoint(dtype=torch.float16)
    write_folder(tmp_path / "half", half)
    assert same(read(tmp_path / "half").parts, half.parts)


def test_the_package_does_not_import_the_hub_or_the_oracles_for_a_folder(folder: Path) -> None:
    code = (
        "import sys; from safelight.checkpoints import read; read(sys.argv[1]);"
        "print([m for m in ('huggingface_hub', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_writing_over_an_earlier_model_leaves_no_old_weights(tmp_path: Path, folder: Path) -> None:
    as_shards(folder)
    (folder / "README.md").write_text("mine")
    other = toy_checkpoint(seed=5)
    write_folder(folder, other)
    assert same(read(folder).parts, other.parts)
    assert (folder / "README.md").read_text() == "mine"
    assert sorted(p.name for p in (folder / "unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_a_model_can_be_written_over_the_folder_that_it_is_mapped_from(folder: Path) -> None:
    found = read(folder)
    write_folder(folder, found)
    assert same(found.parts, TOY.parts)
    assert same(read(folder).parts, TOY.parts)
    shutil.rmtree(folder)
    assert same(found.parts, TOY.parts), "what is mapped stays, whatever becomes of the name"
