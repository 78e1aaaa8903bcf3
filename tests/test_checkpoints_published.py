"""What is published of folders in diffusers' layout, keys and configs: read as the members it is of, written again."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from checkpoint_cases import manifest
from folder_cases import WRITTEN, edit, plain
from safelight.checkpoints.described import described
from safelight.checkpoints.fields import PRETRAINED
from safelight.checkpoints.folder import descriptions, files_of
from safelight.checkpoints.index import read_index
from safelight.checkpoints.kinds import KINDS, class_of, config_json, layout_of
from safelight.checkpoints.pipelines import PIPELINES
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.networks import Config, shapes_of
from safelight.models.tokenizer import END, START
from safelight.presets import PRESETS, ldm
from safelight.presets.conditions import TEXT
from toy_family import PIECES

HUB_FIELDS, ALL_FIELDS = "reconstructed_hub_fields", "all_fields_with_diffusers_0_42_1_defaults"

PUBLISHED = manifest("folders")
WITHOUT_CONFIG = {
    "sd15_vae_old_names": ("AutoencoderKL", PUBLISHED["configs"]["sd15_vae"][HUB_FIELDS]),
    "ldm_text2im_large_256_bert": ("LDMBertModel", {}),
    "sd21_unclip_l_image_normalizer": ("StableUnCLIPImageNormalizer", {"embedding_dim": 768}),
    "sd21_unclip_h_image_normalizer": ("StableUnCLIPImageNormalizer", {"embedding_dim": 1024}),
}
"""Class and config of the components whose config stands elsewhere, or is all defaults."""
UNSHAPING = {*PRETRAINED, "sample_size", "force_upcast", "upcast_attention", "attention_dropout", "dropout"}
DROPPED = ("position_ids", "to_logits.weight", "to_logits.bias", "dpt.pooler.dense.weight", "dpt.pooler.dense.bias")


def component(name: str, which: str = HUB_FIELDS) -> tuple[str, dict[str, Any]]:
    """Class and config of a published component."""
    if name in WITHOUT_CONFIG:
        return WITHOUT_CONFIG[name]
    config = PUBLISHED["configs"][name]
    if "_class_name" in config:
        return config["_class_name"], config[which]
    return config["architectures"][0], {key: value for key, value in config.items() if key != "certainty"}


def described_by(path: Path, name: str, which: str = HUB_FIELDS) -> Config:
    kind, content = component(name, which)
    path.write_text(json.dumps(content))
    return KINDS[kind].read(path).config


@pytest.mark.parametrize("name", PUBLISHED["components"])
def test_the_published_keys_are_those_of_the_published_config(tmp_path: Path, name: str) -> None:
    config = described_by(tmp_path / "config.json", name)
    assert class_of(config) == component(name)[0]
    file = {
        key: torch.empty(shape[:-1], dtype=getattr(torch, shape[-1]), device="meta")
        for key, shape in PUBLISHED["components"][name].items()
    }
    layout = layout_of(config, "part", file)
    parts, dropped = layout.load(file, name)
    assert parts["part"].keys() == shapes_of(config).keys()
    assert all(drop.key.endswith(DROPPED) for drop in dropped)
    kept = {key: tuple(t.shape) for key, t in file.items() if key not in {drop.key for drop in dropped}}
    assert {key: tuple(t.shape) for key, t in layout.save(parts).items()} == kept
    if name != "sd15_vae_old_names":
        assert layout_of(config, "part").save(parts).keys() == kept.keys(), "what we write has other names"


@pytest.mark.parametrize("name", [name for name in PUBLISHED["components"] if name not in WITHOUT_CONFIG])
def test_a_published_config_is_written_again(tmp_path: Path, name: str) -> None:
    kind, content = component(name)
    config = described_by(tmp_path / "config.json", name)
    assert described_by(tmp_path / "all.json", name, ALL_FIELDS) == config
    scale = content.get("scaling_factor", 1.0)
    written = config_json(config, replace(PRESETS["sd1"], latent_scale=scale))
    differing = {
        key: (written.get(key), value)
        for key, value in content.items()
        if key not in UNSHAPING and written.get(key) != value
    }
    assert differing == {}
    (tmp_path / "again.json").write_text(json.dumps(written))
    assert KINDS[kind].read(tmp_path / "again.json").config == config


HUB = {
    "sd1": ("stable-diffusion-v1-5", "sd15_unet", "sd15_vae", "sd15_text_encoder"),
    "sd1-inpainting": ("stable-diffusion-inpainting", "sd15_inpainting_unet", "sd15_vae", "sd15_text_encoder"),
    "sd2-base": ("stable-diffusion-2-base / 2-1-base", "sd2_base_unet", "sd2_vae", "sd2_text_encoder"),
    "sd2-v": ("stable-diffusion-2-1 (768)", "sd21_v_unet", "sd2_vae", "sd2_text_encoder"),
    "sd2-inpainting": ("stable-diffusion-2-inpainting", "sd2_inpainting_unet", "sd2_vae", "sd2_text_encoder"),
    "sd2-depth": (
        *("stable-diffusion-2-depth", "sd2_depth_unet", "sd2_vae", "sd2_text_encoder"),
        "sd2_depth_depth_estimator",
    ),
    "x4-upscaler": ("stable-diffusion-x4-upscaler", "sd_x4_upscaler_unet", "sd_x4_upscaler_vae", "sd2_text_encoder"),
    "unclip-l": (
        *("stable-diffusion-2-1-unclip (-h) / -small (-l)", "sd21_unclip_l_unet", "sd2_vae", "sd2_text_encoder"),
        *("sd21_unclip_l_image_encoder", "sd21_unclip_l_image_normalizer"),
    ),
    "unclip-h": (
        *("stable-diffusion-2-1-unclip (-h) / -small (-l)", "sd21_unclip_h_unet", "sd2_vae", "sd2_text_encoder"),
        *("sd21_unclip_h_image_encoder", "sd21_unclip_h_image_normalizer"),
    ),
    "sdxl": (
        *("stable-diffusion-xl-base-1.0", "sdxl_base_unet", "sdxl_vae", "sdxl_text_encoder"),
        "sdxl_text_encoder_2",
    ),
    "sdxl-refiner": (
        *("stable-diffusion-xl-refiner-1.0", "sdxl_refiner_unet", "sdxl_vae", None),
        "sdxl_text_encoder_2",
    ),
    "sd-turbo": ("sd-turbo", "sd_turbo_unet", "sd2_vae", "sd2_text_encoder"),
    "sdxl-turbo": ("sdxl-turbo", "sdxl_turbo_unet", "sdxl_vae", "sdxl_text_encoder", "sdxl_text_encoder_2"),
    "ldm-text": (
        *("ldm-text2im-large-256", "ldm_text2im_large_256_unet", "ldm_text2im_large_256_vqvae"),
        "ldm_text2im_large_256_bert",
    ),
    "ldm-celeba": ("ldm-celebahq-256", "ldm_celebahq_256_unet", "ldm_celebahq_256_vqvae"),
    "ldm-upscaling": (
        *("ldm-super-resolution-4x-openimages", "ldm_super_resolution_4x_openimages_unet"),
        "ldm_super_resolution_4x_openimages_vqvae",
    ),
}
"""Member -> its entry among the published settings, then the component in each folder of its pipeline."""
PADS = {"!": ("sd2", "sd-turbo", "unclip", "x4")}


def published_folder(folder: Path, name: str) -> None:
    """What a member's repository says of itself: everything but weights and words."""
    entry, *components = HUB[name]
    hub = PUBLISHED["hub"][entry]
    base = PUBLISHED["hub"]["stable-diffusion-xl-base-1.0"]
    pipeline = PIPELINES[WRITTEN[name]]
    index = (
        {key: value for key, value in hub["model_index"].items() if not isinstance(value, list)}
        if "model_index" in hub
        else {}
    )
    index |= {"_class_name": WRITTEN[name], "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    for place, part in zip(pipeline.places, components, strict=True):
        kind, content = (None, {}) if part is None else component(part)
        index[place.folder] = [None, None] if kind is None else ["a library", kind]
        (folder / place.folder).mkdir(parents=True)
        (folder / place.folder / "config.json").write_text(
            json.dumps({"_class_name": kind, **content} if "in_channels" in content else content)
        )
    for place in pipeline.vocabularies:
        there = any(p.part == place.part and index[p.folder] != [None, None] for p in pipeline.places)
        index[place.folder] = ["transformers", place.kinds[0]] if there else [None, None]
        (folder / place.folder).mkdir()
        pad = "!" if name.startswith(PADS["!"]) or place.folder == "tokenizer_2" else "<|endoftext|>"
        (folder / place.folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
    for scheduler in ("scheduler", *pipeline.noises):
        said = hub[scheduler] if isinstance(hub[scheduler], dict) else base[scheduler]
        index[scheduler] = ["diffusers", said["_class_name"]]
        (folder / scheduler).mkdir()
        (folder / scheduler / "scheduler_config.json").write_text(json.dumps(said))
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def real_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vocabularies of the real sizes, of which these tests need no more."""
    folder = tmp_path_factory.mktemp("words")
    words = ["!", *(f"filler {i}" for i in range(49405)), START, END]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    pieces = [*PIECES, *(f"filler {i}" for i in range(30522 - len(PIECES)))]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": END}))
    return folder


@pytest.mark.parametrize("name", HUB)
def test_the_published_folder_of_a_member_is_that_member(tmp_path: Path, real_words: Path, name: str) -> None:
    published_folder(tmp_path / "x", name)
    found, tokenizers = described(tmp_path / "x", read_index(tmp_path / "x/model_index.json"), real_words)
    differing = {f.name: (getattr(found, f.name), getattr(PRESETS[name], f.name)) for f in fields(found)}
    assert {key: pair for key, pair in differing.items() if pair[0] != pair[1]} == {}
    assert tokenizers.keys() == {words.part for words in found.words}


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "tiny"])  # whose words are its own
def test_what_we_write_of_a_member_at_its_true_size_describes_it(tmp_path: Path, real_words: Path, name: str) -> None:
    preset = PRESETS[name]
    for file, content in descriptions(preset).items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(json.dumps(content))
    for place in PIPELINES[WRITTEN[name]].vocabularies:
        pads = [w.tower.pad_token for w in preset.words if w.part == place.part and hasattr(w.tower, "pad_token")]
        (tmp_path / place.folder).mkdir()
        pad = END if pads != [0] else "!"
        (tmp_path / place.folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": pad}}))
    contents = read_index(tmp_path / "model_index.json")
    if name == "ldm-text-f4":  # 1e4 words of another model have not this size; the vocabulary is BERT's all the same
        assert preset.networks[TEXT].vocab_size == 30522
    found, _ = described(tmp_path, contents, real_words)
    alike = {"ldm-ffhq": "ldm-celeba", "ldm-bedrooms": "ldm-celeba"}  # the same but for their names
    assert found == PRESETS[alike.get(name, name)]
    needed, wanted = files_of(contents)
    assert {*needed, *wanted} >= {file for file in descriptions(preset) if "feature_extractor" not in file} - {
        "model_index.json"
    }


@pytest.mark.parametrize(
    ("habits", "name"),
    [
        ({"_class_name": "PNDMScheduler"}, "sd2-base"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}, "sd2-base"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}, "sd2-base"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, "sd-turbo"),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}, "sd-turbo"),
        ({"prediction_type": "v_prediction"}, "sd2-v"),
        ({"prediction_type": "v_prediction", "timestep_spacing": "trailing"}, "sd2-v"),
    ],
    ids=str,
)
def test_of_members_with_the_same_networks_the_schedule_and_its_habits_choose(
    tmp_path: Path, real_words: Path, habits: dict[str, object], name: str
) -> None:
    published_folder(tmp_path / "x", "sd2-base")
    edit(tmp_path / "x/scheduler/scheduler_config.json", **habits)
    found, _ = described(tmp_path / "x", read_index(tmp_path / "x/model_index.json"), real_words)
    assert found.name == name
    assert (found.width, found.height) == (512, 512), "the folder's own word"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITTEN)
def test_diffusers_builds_every_network_at_its_true_size_from_what_we_write(name: str) -> None:
    preset = PRESETS[name]
    for part, config in preset.networks.items():
        kind, content = class_of(config), config_json(config, preset)
        with torch.device("meta"):
            theirs = built(str(kind), content)
        shapes = {key: tuple(t.shape) for key, t in plain(theirs.state_dict()).items() if not key.endswith(DROPPED)}
        assert shapes == dict(shapes_of(config)), part


@pytest.mark.parametrize("config", [value for value in vars(ldm).values() if isinstance(value, AutoencoderConfig)])
def test_diffusers_builds_every_autoencoder_of_latent_diffusion(tmp_path: Path, config: AutoencoderConfig) -> None:
    """The attention levels and codebooks, too, whether or not a pipeline uses them."""
    content = config_json(config, replace(PRESETS["ldm-celeba"], autoencoder=config))
    with torch.device("meta"):
        theirs = built(str(class_of(config)), content)
    assert {key: tuple(t.shape) for key, t in theirs.state_dict().items()} == dict(shapes_of(config))
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert KINDS[str(class_of(config))].read(tmp_path / "config.json").config == config


def built(kind: str, content: dict[str, object]) -> nn.Module:
    """The libraries' own network of a config.json."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    if kind == "LDMBertModel":
        module = diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion
        return module.LDMBertModel(module.LDMBertConfig(**content))
    if kind == "StableUnCLIPImageNormalizer":
        module = diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer
        return module.StableUnCLIPImageNormalizer.from_config(content)
    if hasattr(diffusers, kind):
        return getattr(diffusers, kind).from_config(content)
    network = getattr(transformers, kind)
    return network(network.config_class(**content))


GOOGLES = {  # google/ddpm-cifar10-32, and -celebahq-256, -church-256, -bedroom-256, -cat-256, which are alike
    "ddpm-cifar10": (32, [128, 256, 256, 256], 1, 35_746_307),
    "ddpm-256": (256, [128, 128, 256, 256, 512, 512], 4, 113_673_219),
}


@pytest.mark.parametrize("name", GOOGLES)
def test_the_authors_own_ddpm_is_read_from_its_published_config(tmp_path: Path, name: str) -> None:
    side, channels, attending, parameters = GOOGLES[name]
    ways = {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    levels = {key: [kinds[i != attending] for i in range(len(channels))] for key, kinds in ways.items()}
    levels["up_block_types"].reverse()
    said = {"act_fn": "silu", "attention_head_dim": None, "center_input_sample": False, "downsample_padding": 0}
    said |= {"flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "norm_eps": 1e-06}
    said |= {"mid_block_scale_factor": 1, "norm_num_groups": 32, "out_channels": 3, "time_embedding_type": "positional"}
    config = {"_class_name": "UNet2DModel", "sample_size": side, "block_out_channels": channels, **levels, **said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found, size = KINDS["UNet2DModel"].read(tmp_path / "config.json").config, side
    assert found == PRESETS[name].unet
    assert PRESETS[name].width == size
    assert sum(math.prod(shape) for shape in shapes_of(found).values()) == parameters
