"""Layouts against the keys and shapes of the real checkpoints, on meta tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from checkpoint_cases import manifest, meta
from safelight.checkpoints.detect import detect
from safelight.checkpoints.keys import CONV_1X1, LINEAR, Layout, Op, Pair
from safelight.checkpoints.layouts import diffusers, ldm, original, transformers
from safelight.errors import ModelFileError
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.networks import shapes_of
from safelight.models.unet import UNetConfig
from safelight.presets import PRESETS

SD1 = PRESETS["sd1"]
PARAMETERS = {"unet": 859_520_964, "autoencoder": 83_653_863, "text": 123_060_480}


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}


@pytest.mark.parametrize("name", ["sd_v1", "sd_v1_full_ema"])
def test_the_original_file_loads_exactly_and_comes_back(name: str) -> None:
    file = meta(name)
    layout = original.layout(SD1, file)
    parts, dropped = layout.load(file, name)
    counts = {part: sum(t.numel() for t in tensors.values()) for part, tensors in parts.items()}
    assert counts == PARAMETERS
    kept = {key: tensor for key, tensor in file.items() if key not in {d.key for d in dropped}}
    assert shapes(layout.save(parts)) == shapes(kept)
    assert all(why for _, why in dropped)


def test_the_running_average_is_chosen_and_its_twin_dropped() -> None:
    file = meta("sd_v1_full_ema")
    parts, dropped = original.layout(SD1, file, ema=True).load(file, "full")
    assert sum(t.numel() for t in parts["unet"].values()) == PARAMETERS["unet"]
    why = dict(dropped)
    assert "model.diffusion_model.out.2.weight" in why
    assert {"model_ema.decay", "model_ema.num_updates"} <= why.keys()
    assert not any(key.startswith("model_ema.diffusion_model") for key in why)


def test_the_running_averages_name_has_no_dots() -> None:
    name = ldm.ema_name("model.diffusion_model.input_blocks.1.0.in_layers.0.weight")
    assert name == "model_ema.diffusion_modelinput_blocks10in_layers0weight"


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("keymap_sd_v1_unet", ldm.unet(SD1.unet)),
        ("keymap_sd_v1_vae", ldm.autoencoder(SD1.autoencoder, ldm.AUTOENCODER)),
    ],
    ids=["unet", "autoencoder"],
)
def test_names_agree_with_the_published_key_map(name: str, pairs: tuple[Pair, ...]) -> None:
    assert {pair.theirs: pair.ours for pair in pairs} == manifest(name)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("sd15_unet", diffusers.unet_layout(SD1.unet)),
        ("sd15_vae", diffusers.autoencoder_layout(SD1.autoencoder)),
        ("sd15_vae_old_names", diffusers.autoencoder_layout(SD1.autoencoder, old_names=True)),
        ("sd15_text_encoder", transformers.text_layout(SD1.networks["text"])),
    ],
)
def test_the_parts_of_a_diffusers_folder_load_exactly_and_come_back(name: str, layout: Layout) -> None:
    file = meta(name)
    parts, dropped = layout.load(file, name)
    assert [d.key for d in dropped] == [key for key in file if key.endswith("position_ids")]
    assert shapes(layout.save(parts)) == shapes({k: v for k, v in file.items() if "position_ids" not in k})


def test_original_to_diffusers_and_back_changes_nothing() -> None:
    file = meta("sd_v1")
    whole = original.layout(SD1, file)
    parts, dropped = whole.load(file, "sd_v1")
    folder = {
        "unet": diffusers.unet_layout(SD1.unet),
        "autoencoder": diffusers.autoencoder_layout(SD1.autoencoder),
        "text": transformers.text_layout(SD1.networks["text"]),
    }
    there = {part: layout.save(parts) for part, layout in folder.items()}
    for part, name in (("unet", "sd15_unet"), ("autoencoder", "sd15_vae"), ("text", "sd15_text_encoder")):
        wanted = {k: v for k, v in meta(name).items() if not k.endswith("position_ids")}
        assert shapes(there[part]) == shapes(wanted)
    back = {part: layout.load(there[part], part)[0][part] for part, layout in folder.items()}
    assert shapes(whole.save(back)) == shapes({k: v for k, v in file.items() if k not in dict(dropped)})


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (
            "small_unet_sd1",
            UNetConfig(channels=(32, 64, 128, 128), context_width=48),
        ),
        (
            "small_unet_sd2",
            UNetConfig(channels=(32, 64, 128, 128), context_width=48, linear_projection=True),
        ),
    ],
)
def test_other_sizes_of_the_unet_have_the_names_of_the_original_code(name: str, config: UNetConfig) -> None:
    pairs = ldm.unet(config)
    ours = {p.theirs.removeprefix(ldm.UNET): p.op.shape(shapes_of(config)[p.ours]) for p in pairs}
    assert ours == {key: tuple(shape[:-1]) for key, shape in manifest(name).items()}


def test_other_sizes_of_the_autoencoder_have_the_names_of_the_original_code() -> None:
    config = AutoencoderConfig(channels=(32, 64, 128, 128))
    pairs = ldm.autoencoder(config)
    ours = {p.theirs: p.op.shape(shapes_of(config)[p.ours]) for p in pairs}
    assert ours == {key: tuple(shape[:-1]) for key, shape in manifest("small_vae_kl_f8").items()}


@pytest.mark.parametrize("op", [Op(rank=2), Op(rank=3), Op(rank=4)], ids=lambda op: f"rank {op.rank}")
@pytest.mark.parametrize("ours", [(6, 5), (6, 5, 1, 1)])
def test_a_matrix_is_read_in_every_rank_and_its_way_out_is_the_inverse(op: Op, ours: tuple[int, ...]) -> None:
    weight = torch.randn(ours)
    for written in ((6, 5), (6, 5, 1), (6, 5, 1, 1)):
        assert op.accepts(written, ours)
        assert torch.equal(op.into(weight.reshape(written), ours), weight)
    assert not op.accepts((5, 6), ours)
    assert not op.accepts((6, 5, 3, 3), ours)
    assert op.rank is not None
    assert op.out_of([weight]).dim() == op.rank
    assert torch.equal(op.into(op.out_of([weight]), ours), weight)


def test_a_matrix_is_a_view_never_a_copy() -> None:
    weight = torch.randn(4, 4)
    assert CONV_1X1.out_of([weight]).data_ptr() == weight.data_ptr()
    assert LINEAR.into(weight[:, :, None, None], (4, 4)).data_ptr() == weight.data_ptr()


def test_text_keys_without_their_prefix_are_read() -> None:
    file = {key.replace("text_model.", ""): tensor for key, tensor in meta("sd15_text_encoder").items()}
    layout = transformers.text_layout(SD1.networks["text"], transformers.prefix_of(file))
    assert sum(t.numel() for t in layout.load(file, "bare")[0]["text"].values()) == PARAMETERS["text"]
    single = {key.replace(".text_model.", "."): tensor for key, tensor in meta("sd_v1").items()}
    parts, _ = original.layout(SD1, single).load(single, "bare")
    assert sum(t.numel() for t in parts["text"].values()) == PARAMETERS["text"]


def test_a_missing_key_an_extra_one_and_a_wrong_shape_are_named_with_the_file() -> None:
    file = meta("sd_v1")
    first, last = "model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.bias"
    file[first] = torch.empty(320, 9, 3, 3, device="meta")
    del file[last]
    file["stranger.weight"] = torch.empty(1, device="meta")
    with pytest.raises(ModelFileError) as caught:
        original.layout(SD1, file).load(file, "x.ckpt")
    line = str(caught.value)
    for part in ("x.ckpt", first, "(320, 4, 3, 3)", "(320, 9, 3, 3)", last, "stranger.weight"):
        assert part in line, line
    assert "\n" not in line


def test_whole_numbers_are_not_weights() -> None:
    file = meta("sd15_unet")
    file["conv_in.bias"] = torch.empty(320, dtype=torch.int8, device="meta")
    with pytest.raises(ModelFileError, match=r"conv_in\.bias: expected \(320,\), found whole numbers"):
        diffusers.unet_layout(SD1.unet).load(file, "x")


def test_many_wrong_keys_make_a_short_line() -> None:
    with pytest.raises(ModelFileError) as caught:
        diffusers.unet_layout(SD1.unet).load({}, "x")
    assert "686 keys missing" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_real_file_is_detected_among_all_presets() -> None:
    assert detect(meta("sd_v1"), "x").name == "sd1"
    assert detect(meta("sd_v1_full_ema"), "x", ema=True).name == "sd1"


def test_an_unknown_member_is_compared_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.checkpoints.detect.PRESETS", {"sd1": SD1, "tiny": PRESETS["tiny"]})
    with pytest.raises(ModelFileError) as caught:
        detect(meta("sd_v1_inpainting"), "inpaint.ckpt")
    line = str(caught.value)
    for part in ("inpaint.ckpt", "sd1", "input_blocks.0.0.weight", "(320, 4, 3, 3)", "(320, 9, 3, 3)"):
        assert part in line, line


def test_two_presets_of_the_same_shapes_are_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    twins = {"sd1": SD1, "twin": replace(SD1, name="twin", prediction="v")}
    monkeypatch.setattr("safelight.checkpoints.detect.PRESETS", twins)
    with pytest.raises(ModelFileError, match=r"sd1, twin.*--preset"):
        detect(meta("sd_v1"), "x")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "LoRA"),
        (["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"], "LoRA"),
        (list(manifest("sd15_unet")), "UNet alone"),
        (list(manifest("sd15_vae")), "autoencoder alone"),
        (["encoder.down.0.block.0.norm1.weight"], "autoencoder alone"),
        (list(manifest("sd15_text_encoder")), "text encoder alone"),
        (["fc.weight"], "no model that Safelight knows"),
    ],
    ids=["kohya", "peft", "unet", "vae", "original vae", "text", "other"],
)
def test_what_is_not_a_model_is_said_to_be_what_it_is(keys: list[str], said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        detect({key: torch.empty(1, device="meta") for key in keys}, "x.safetensors")
