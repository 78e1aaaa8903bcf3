"""Folders of every kind of pipeline: against the published configs and keys, and with diffusers itself, both ways.

The registry drives the tests: each member is made small, and written, read and compared, or refused by name.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoint_cases import same
from folder_cases import REFUSED, WRITTEN, edit, plain, without_habits
from golden_cases import agree
from safelight.checkpoints import Checkpoint, read, write_folder
from safelight.checkpoints.folder import SamplingWarning, descriptions
from safelight.checkpoints.index import read_index
from safelight.checkpoints.layouts import diffusers as layouts
from safelight.checkpoints.pipelines import PIPELINES, pipeline_for
from safelight.doors import Conditioning
from safelight.errors import ModelFileError
from safelight.models.bert import Bert
from safelight.models.layers import sinusoids
from safelight.models.networks import NETWORKS
from safelight.presets import PRESETS
from safelight.presets.conditions import (
    DEPTH,
    TEXT,
    TEXT_2,
    VISION,
    DepthMap,
    HiddenPicture,
    Numbers,
    SeenPicture,
    SmallPicture,
    Words,
)
from safelight.presets.preset import AUTOENCODER, UNET
from toy_family import CLIP_WORDS, SIZE_WIDTH, filled, toy_preset

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

ORACLES = [name for name in WRITTEN if name not in ("sd2-v", "sd-turbo", "sdxl-turbo", "ldm-ffhq", "ldm-bedrooms")]
"""Those whose folders differ in more than a number."""

# Every member, both ways


@pytest.mark.parametrize("name", PRESETS)
def test_a_member_is_written_and_read_back_or_refused_by_name(tmp_path: Path, name: str) -> None:
    made = filled(toy_preset(PRESETS[name]))
    if name in REFUSED:
        with pytest.raises(ModelFileError, match=REFUSED[name]) as caught:
            write_folder(tmp_path / "x", made)
        assert "diffusers" in str(caught.value)
        assert list(tmp_path.iterdir()) == []
        return
    write_folder(tmp_path / "x", made)
    found = read(tmp_path / "x")
    assert found.preset == made.preset
    assert same(found.parts, made.parts)
    assert found.dropped == ()
    assert json.loads((tmp_path / "x/model_index.json").read_text())["_class_name"] == WRITTEN[name]
    for part, tokenizer in made.tokenizers.items():
        texts = ["a red apple, 7!", ""]
        assert torch.equal(found.tokenizers[part](texts), tokenizer(texts))
    (tmp_path / "x/safelight.json").unlink()
    assert without_habits(read(tmp_path / "x").preset) == without_habits(made.preset)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ORACLES)
def test_diffusers_reads_what_we_write_and_we_read_what_it_writes(tmp_path: Path, name: str) -> None:
    made = filled(toy_preset(PRESETS[name]))
    write_folder(tmp_path / "ours", made)
    pipeline = getattr(diffusers, WRITTEN[name]).from_pretrained(tmp_path / "ours")
    places = {p.folder: p.part for p in PIPELINES[WRITTEN[name]].places if p.part in made.parts}
    loaded = {part: plain(getattr(pipeline, folder).state_dict()) for folder, part in places.items()}
    if "bert" in places:  # which predicts words, too, by weights that we have not
        loaded[TEXT] = {key: t for key, t in loaded[TEXT].items() if not key.startswith("to_logits.")}
    assert same(loaded, made.parts)
    for place in PIPELINES[WRITTEN[name]].vocabularies:
        if place.part in made.tokenizers:
            said = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
            ids = getattr(pipeline, place.folder)(["a red apple on a dog"], **said).input_ids
            assert torch.equal(ids, made.tokenizers[place.part](["a red apple on a dog"]))
    agree_in_numbers(pipeline, made)

    pipeline.save_pretrained(tmp_path / "theirs")
    back = read(tmp_path / "theirs")
    assert same(back.parts, made.parts)
    assert without_habits(back.preset) == without_habits(made.preset)
    assert {drop.key.partition(".")[0] for drop in back.dropped} <= {"bert/to_logits"}


def agree_in_numbers(pipeline: Any, made: Checkpoint) -> None:
    """The networks that diffusers has loaded compute what ours do: so the fields that shape nothing are right, too."""
    preset, generator = made.preset, torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    config, t = preset.unet, torch.tensor([500.0])
    side = max(16, 2 ** (len(config.channels) - 1))
    x = randn(1, config.in_channels, side, side)
    context = None if config.context_width is None else randn(1, 5, config.context_width)
    vector, told = None, {} if context is None else {"encoder_hidden_states": context}
    if config.classes is not None:
        vector = torch.tensor([[7]])
        told["class_labels"] = vector[0]
    elif config.size_width is not None:
        assert config.vector_width is not None
        count = 5 if any(isinstance(c, Numbers) and c.aesthetic for c in preset.conditions) else 6
        pooled, sizes = randn(1, config.vector_width - count * SIZE_WIDTH), torch.arange(count) * 10.0
        vector = torch.cat([pooled, sinusoids(sizes, SIZE_WIDTH).reshape(1, -1)], dim=1)
        told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes[None]}
    elif config.vector_width is not None:
        vector = randn(1, config.vector_width)
        told["class_labels"] = vector
    agree(
        "unet",
        network_of(made, UNET)(x, t, Conditioning(context=context, vector=vector)),
        pipeline.unet(x, t, **told).sample,
    )
    if preset.autoencoder is not None:
        theirs = pipeline.vae if hasattr(pipeline, "vae") else pipeline.vqvae
        z = randn(1, preset.autoencoder.latent_channels, 4, 4)
        agree("autoencoder", network_of(made, AUTOENCODER).decode(z), theirs.decode(z).sample)
    for condition in preset.conditions:
        match condition:
            case Words():
                agree_in_words(pipeline, made, condition)
            case SeenPicture():
                pixels = randn(1, 3, condition.tower.image_size, condition.tower.image_size)
                agree("picture", network_of(made, VISION)(pixels), pipeline.image_encoder(pixels).image_embeds)
            case DepthMap():
                pixels = randn(1, 3, condition.network.image_size, condition.network.image_size)
                depth = pipeline.depth_estimator(pixels).predicted_depth
                agree("depth", network_of(made, DEPTH)(pixels)[:, 0], depth)


def agree_in_words(pipeline: Any, made: Checkpoint, words: Words) -> None:
    network, ids = network_of(made, words.part), made.tokenizers[words.part](["a red apple on a dog"])
    if isinstance(network, Bert):
        agree("words", network(ids), pipeline.bert(ids)[0])
        return
    said = getattr(pipeline, {TEXT: "text_encoder", TEXT_2: "text_encoder_2"}[words.part])(
        ids, output_hidden_states=True
    )
    theirs = said.last_hidden_state if words.states == "last" else said.hidden_states[-2]
    agree("words", network.attended(network(ids), words.states), theirs)
    if words.pooled:
        agree("pooled words", network(ids).embedding, said.text_embeds)


def network_of(made: Checkpoint, part: str) -> Any:
    config = made.preset.networks[part]
    network = NETWORKS[type(config)](config)
    network.load_state_dict(made.parts[part])
    return network.eval().requires_grad_(False)


def test_a_folder_written_in_half_precision_and_in_shards_by_diffusers_is_read(tmp_path: Path) -> None:
    made = filled(toy_preset(PRESETS["sdxl"]))
    write_folder(tmp_path / "ours", made)
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "ours")
    pipeline.to(torch.float16)
    pipeline.save_pretrained(tmp_path / "theirs", variant="fp16", max_shard_size="200KB")
    files = [path.name for path in (tmp_path / "theirs").rglob("*.safetensors")]
    assert all(".fp16" in name for name in files)
    assert any("-of-" in name for name in files)
    half = {part: {key: t.half() for key, t in tensors.items()} for part, tensors in made.parts.items()}
    assert same(read(tmp_path / "theirs").parts, half)


# What does not fit


@pytest.mark.parametrize(
    ("name", "file", "changes", "said"),
    [
        ("sd1", "model_index.json", {"_class_name": "FluxPipeline"}, "_class_name is 'FluxPipeline', expected one of"),
        ("sd1", "model_index.json", {"_class_name": None}, "_class_name is None, expected one of"),
        ("sd1", "model_index.json", {"text_encoder": [None, None]}, "it has no text_encoder"),
        ("sd1", "model_index.json", {"transformer": ["diffusers", "X"]}, "it has a part 'transformer'"),
        ("sd1", "unet/config.json", {"in_channels": 9}, "in_channels is 9, expected 4 in a StableDiffusionPipeline"),
        (
            "sd1",
            "unet/config.json",
            {"_class_name": "UNet2DModel"},
            "_class_name is 'UNet2DModel', expected UNet2DCond",
        ),
        ("sd1", "unet/config.json", {"cross_attention_dim": 40}, "cross_attention_dim is 40, expected 24"),
        ("sd1-inpainting", "unet/config.json", {"in_channels": 5}, "in_channels is 5, expected 9"),
        ("sd2-depth", "depth_estimator/config.json", {"is_hybrid": False}, "is_hybrid"),
        ("sd2-depth", "depth_estimator/config.json", {"readout_type": "add"}, "readout_type"),
        ("sd2-depth", "depth_estimator/config.json", {"neck_hidden_sizes": [1, 2, 3, 4]}, "neck_hidden_sizes"),
        ("sd2-depth", "depth_estimator/config.json", {"backbone_config": {"layer_type": "x"}}, "depths"),
        ("x4-upscaler", "unet/config.json", {"num_class_embeds": 20}, "num_class_embeds is 20, expected 1000"),
        ("x4-upscaler", "unet/config.json", {"only_cross_attention": [True]}, "only_cross_attention"),
        ("x4-upscaler", "model_index.json", {"low_res_scheduler": [None, None]}, "it has no low_res_scheduler"),
        ("x4-upscaler", "model_index.json", {"max_noise_level": "high"}, "max_noise_level is 'high', expected a whole"),
        ("x4-upscaler", "low_res_scheduler/scheduler_config.json", {"beta_schedule": "x"}, "beta_schedule"),
        ("unclip-l", "image_encoder/config.json", {"hidden_act": "relu"}, "hidden_act"),
        ("unclip-l", "image_normalizer/config.json", {"embedding_dim": "x"}, "embedding_dim"),
        ("unclip-l", "unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        (
            "unclip-l",
            "unet/config.json",
            {"projection_class_embeddings_input_dim": None},
            "projection_class_embeddings",
        ),
        (
            "sdxl",
            "unet/config.json",
            {"addition_time_embed_dim": 7},
            "projection_class_embeddings_input_dim is 68, exp",
        ),
        ("sdxl", "unet/config.json", {"addition_embed_type": "image"}, "addition_embed_type"),
        (
            "sdxl",
            "model_index.json",
            {"force_zeros_for_empty_prompt": 1},
            "force_zeros_for_empty_prompt is 1, expected",
        ),
        ("sdxl", "model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModel"]}, "text_encoder_2 is"),
        ("ldm-text", "bert/config.json", {"scale_embedding": True}, "scale_embedding"),
        ("ldm-text", "model_index.json", {"tokenizer": ["transformers", "CLIPTokenizer"]}, "expected BertTokenizer"),
        ("ldm-celeba", "vqvae/config.json", {"norm_type": "spatial"}, "norm_type"),
        ("ldm-celeba", "vqvae/config.json", {"up_block_types": ["AttnUpDecoderBlock2D"] * 3}, "up_block_types"),
        ("ldm-celeba", "unet/config.json", {"attention_head_dim": 5}, "attention_head_dim"),
        ("ldm-celeba", "unet/config.json", {"freq_shift": 2}, "freq_shift"),
        ("ldm-celeba", "unet/config.json", {"downsample_padding": True}, "downsample_padding"),
        ("ldm-celeba", "unet/config.json", {"flip_sin_to_cos": 1}, "flip_sin_to_cos"),
        ("ldm-celeba", "unet/config.json", {"downsample_type": "resnet"}, "downsample_type"),
        ("ldm-celeba", "unet/config.json", {"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups"),
        ("ddpm", "unet/config.json", {"num_class_embeds": 10}, "num_class_embeds"),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" not in value and " " not in value else "",
)
def test_what_does_not_fit_is_one_line_with_file_and_field(
    tmp_path: Path, name: str, file: str, changes: dict[str, object], said: str
) -> None:
    write_folder(tmp_path / "x", filled(toy_preset(PRESETS[name])))
    (tmp_path / "x/safelight.json").unlink()
    edit(tmp_path / "x" / file, **changes)
    with pytest.raises(ModelFileError) as caught:
        read(tmp_path / "x")
    assert str(caught.value).startswith(str(tmp_path / "x" / file)), caught.value
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_folder_must_be_what_it_is_said_to_be(tmp_path: Path) -> None:
    preset = toy_preset(PRESETS["sdxl"])
    write_folder(tmp_path / "x", filled(preset))
    edit(tmp_path / "x/model_index.json", force_zeros_for_empty_prompt=False)
    with pytest.raises(ModelFileError, match=r"model_index\.json does not fit the preset sdxl: zeros is False"):
        read(tmp_path / "x")
    edit(tmp_path / "x/model_index.json", force_zeros_for_empty_prompt=True)
    with pytest.raises(ModelFileError, match=r"does not fit the preset sd1: the list of networks is .*text_2"):
        read(tmp_path / "x", preset=PRESETS["sd1"])
    with pytest.raises(ModelFileError, match=r"unet/config\.json does not fit the preset sdxl: channels is"):
        read(tmp_path / "x", preset=PRESETS["sdxl"])
    with pytest.raises(ModelFileError, match=r"text_encoder/config\.json does not fit .* width is 24, expected 40"):
        towers = {"text": replace(preset.words[0].tower, width=40)}
        read(tmp_path / "x", preset=preset.with_towers(towers))


def test_the_upscalers_latent_scale_is_its_pipelines(tmp_path: Path) -> None:
    made = filled(toy_preset(PRESETS["x4-upscaler"]))
    with pytest.raises(ModelFileError, match=r"StableDiffusionUpscalePipeline knows no latent scale but 0\.08333"):
        write_folder(tmp_path / "x", replace(made, preset=replace(made.preset, latent_scale=0.5)))
    write_folder(tmp_path / "x", made)
    (tmp_path / "x/safelight.json").unlink()
    edit(tmp_path / "x/vae/config.json", scaling_factor=0.18215)
    assert read(tmp_path / "x").preset.latent_scale == PRESETS["x4-upscaler"].latent_scale


def test_a_vq_autoencoder_whose_file_says_no_scale_has_none(tmp_path: Path) -> None:
    write_folder(tmp_path / "x", filled(toy_preset(PRESETS["ldm-celeba"])))
    (tmp_path / "x/safelight.json").unlink()
    config = json.loads((tmp_path / "x/vqvae/config.json").read_text())
    del config["scaling_factor"]
    (tmp_path / "x/vqvae/config.json").write_text(json.dumps(config))
    assert read(tmp_path / "x").preset.latent_scale == 1.0


def test_a_kl_autoencoder_that_is_wider_inside_is_refused_on_writing(tmp_path: Path) -> None:
    preset = toy_preset(PRESETS["sd1"])
    assert preset.autoencoder is not None
    preset = replace(preset, autoencoder=replace(preset.autoencoder, inner_channels=6))
    with pytest.raises(ModelFileError, match="diffusers has no KL autoencoder with 6 channels inside and 4"):
        write_folder(tmp_path / "x", filled(preset))


def test_a_unet_with_a_context_and_residual_blocks_between_levels_is_refused_on_writing(tmp_path: Path) -> None:
    preset = toy_preset(PRESETS["sd1"])
    preset = replace(preset, unet=replace(preset.unet, resnet_resampling=True))
    with pytest.raises(ModelFileError, match="diffusers has no UNet with a context and residual blocks"):
        write_folder(tmp_path / "x", filled(preset))


def test_a_pipeline_is_of_the_right_sampler() -> None:
    assert pipeline_for(PRESETS["ddpm"])[0] == "DDIMPipeline"
    assert pipeline_for(replace(PRESETS["ddpm"], sampler="ddpm"))[0] == "DDPMPipeline"
    assert descriptions(PRESETS["ldm-celeba"])["scheduler/scheduler_config.json"]["_class_name"] == "DDIMScheduler"
    euler = descriptions(replace(PRESETS["ldm-celeba"], sampler="euler"))
    assert euler["scheduler/scheduler_config.json"]["_class_name"] == "DDIMScheduler", "the pipeline knows no other"


def test_what_diffusers_samples_otherwise_is_said_and_kept_beside(tmp_path: Path) -> None:
    made = filled(toy_preset(PRESETS["sd1"]))
    odd = replace(made, preset=replace(made.preset, sampler="er_sde"))
    with pytest.warns(SamplingWarning) as said:
        write_folder(tmp_path / "odd", odd)
    (line,) = (str(one.message) for one in said)
    assert line.startswith("diffusers will sample odd otherwise than Safelight, which reads safelight.json: ")
    assert "er_sde" in line and "\n" not in line
    assert read(tmp_path / "odd").preset.sampler == "er_sde"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_folder(tmp_path / "plain", made)


def test_a_given_vocabulary_does_not_change_what_prompts_are_filled_up_with(tmp_path: Path) -> None:
    made = filled(toy_preset(PRESETS["sdxl"]))
    write_folder(tmp_path / "x", made)
    CLIP_WORDS.write(tmp_path / "words")
    found = read(tmp_path / "x", tokenizer=tmp_path / "words")
    for part, tokenizer in made.tokenizers.items():
        assert torch.equal(found.tokenizers[part]([""]), tokenizer([""]))


def test_inpainting_pipelines_hold_plain_networks_too(tmp_path: Path) -> None:
    made = filled(toy_preset(PRESETS["sd1"]))
    write_folder(tmp_path / "x", made)
    edit(tmp_path / "x/model_index.json", _class_name="StableDiffusionInpaintPipeline")
    assert read(tmp_path / "x").preset == made.preset


def test_a_pipeline_of_pictures_is_written_with_what_its_member_was_taught_of_noise(tmp_path: Path) -> None:
    made = filled(toy_preset(PRESETS["x4-upscaler"]))
    write_folder(tmp_path / "x", made)
    index = json.loads((tmp_path / "x/model_index.json").read_text())
    [small_picture] = [c for c in made.preset.conditions if isinstance(c, SmallPicture)]
    assert index["max_noise_level"] == small_picture.most


def test_a_large_model_that_inpaints_has_its_pipeline(tmp_path: Path) -> None:
    preset = toy_preset(PRESETS["sdxl"])
    preset = replace(preset, unet=replace(preset.unet, in_channels=9), conditions=(*preset.conditions, HiddenPicture()))
    made = filled(preset)
    write_folder(tmp_path / "x", made)
    assert read_index(tmp_path / "x/model_index.json").name == "StableDiffusionXLInpaintPipeline"
    (tmp_path / "x/safelight.json").unlink()
    assert read(tmp_path / "x").preset.conditions == preset.conditions


def test_old_names_of_attention_over_positions_are_read(tmp_path: Path) -> None:
    made = filled(toy_preset(PRESETS["ldm-celeba"]))
    write_folder(tmp_path / "x", made)
    assert made.preset.autoencoder is not None
    for file, layout in (
        ("unet", layouts.unet_layout(made.preset.unet, old_names=True)),
        ("vqvae", layouts.autoencoder_layout(made.preset.autoencoder, old_names=True)),
    ):
        tensors = layout.save(made.parts)
        assert any(".query." in key for key in tensors)
        save_file(tensors, tmp_path / "x" / file / "diffusion_pytorch_model.safetensors")
    assert same(read(tmp_path / "x").parts, made.parts)
