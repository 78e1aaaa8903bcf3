"""The networks against the original code's numbers, on the weights that the rule gives their original keys.

They come in through the loader of original files, so the names are proved too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from golden_cases import TEXT_TOWER, agree, golden, meta, weights
from safelight.checkpoints import read
from safelight.checkpoints.keys import Layout
from safelight.checkpoints.layouts import ldm, transformers
from safelight.doors import Conditioning
from safelight.models.autoencoder import LOGVAR_RANGE, Autoencoder, AutoencoderConfig
from safelight.models.clip import Clip, ClipText, ClipTextConfig, ClipVision, ClipVisionConfig
from safelight.models.networks import Config, shapes_of
from safelight.models.unet import UNet, UNetConfig
from safelight.presets import PRESETS

SD1 = UNetConfig(channels=(32, 64, 128, 128), context_width=48)
SD2 = replace(SD1, heads=(2, 4, 8, 8), linear_projection=True)
LDM = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=(32, 64, 96, 128),
    transformer_depth=(0, 1, 1, 1),
    heads=(2, 4, 6, 8),
    context_width=None,
)
UNETS: dict[str, UNetConfig] = {
    "unet_sd1": SD1,
    "unet_sd1_inpaint9": replace(SD1, in_channels=9),
    "unet_ldm_txt2img_style": replace(SD1, context_width=40),
    "unet_ldm_cin256v2_style": replace(LDM, channels=(32, 64, 96, 160), heads=(1, 1, 1, 1), context_width=40),
    "unet_ldm_layout2img_style": replace(LDM, transformer_depth=(0, 3, 3, 3), middle_depth=3, context_width=40),
    "unet_ldm_uncond_celeba_style": LDM,
    "unet_ldm_new_attention_order": LDM,
    "unet_ldm_num_classes": replace(LDM, classes=10),
    "unet_ldm_inpainting_big_style": replace(LDM, in_channels=7, heads=(8, 8, 8, 8), resnet_resampling=True),
    "unet_sd2": SD2,
    "unet_sd2_depth5": replace(SD2, in_channels=5),
    "unet_sd21_unclip": replace(SD2, vector_width=64),
    "unet_x4_upscaler": UNetConfig(
        in_channels=7,
        channels=(32, 64, 64, 128),
        transformer_depth=(0, 1, 1, 1),
        context_width=48,
        linear_projection=True,
        context_only=(0, 1, 2),
        classes=1000,
    ),
    "unet_sdxl_base": replace(
        SD2,
        channels=(32, 64, 128),
        transformer_depth=(0, 2, 3),
        middle_depth=3,
        heads=(2, 4, 8),
        vector_width=96,
        size_width=16,
    ),
    "unet_sdxl_refiner": replace(SD2, transformer_depth=(0, 2, 2, 0), middle_depth=2, vector_width=96, size_width=16),
}
AUTOENCODERS: dict[str, AutoencoderConfig] = {
    "vae_kl_f8": AutoencoderConfig(channels=(32, 64, 128, 128)),
    "vae_kl_f4_embed3": AutoencoderConfig(latent_channels=3, channels=(32, 64, 128)),
    "vae_kl_f16_attn": AutoencoderConfig(
        latent_channels=16, channels=(32, 32, 64, 64, 128), blocks_per_level=1, attention_levels=(4,)
    ),
    "vae_vq_f4": AutoencoderConfig(latent_channels=3, channels=(32, 64, 128), codebook_size=64),
    "vae_vq_f8_attn": AutoencoderConfig(channels=(32, 64, 64, 128), attention_levels=(3,), codebook_size=64),
}
KL, VQ = ([case for case in AUTOENCODERS if f"_{kind}_" in case] for kind in ("kl", "vq"))


def filled(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    module.load_state_dict(tensors, strict=True)
    module.eval().requires_grad_(False)


def unet(case: str) -> UNet:
    network = UNet(UNETS[case])
    pairs = ldm.unet(UNETS[case], heads_first=case != "unet_ldm_new_attention_order")
    layout = Layout({"unet": pairs}, {"unet": shapes_of(UNETS[case])})
    filled(network, layout.load(weights(case, before=ldm.UNET), case)[0]["unet"])
    return network


def autoencoder(case: str) -> Autoencoder:
    network, config = Autoencoder(AUTOENCODERS[case]), AUTOENCODERS[case]
    layout = Layout({"autoencoder": ldm.autoencoder(config)}, {"autoencoder": shapes_of(config)})
    filled(network, layout.load(weights(case), case)[0]["autoencoder"])
    return network


def clip_text(case: str, config: ClipTextConfig) -> ClipText:
    network = ClipText(config)
    filled(network, transformers.text_layout(config).load(weights(case), case)[0]["text"])
    return network


# The UNet


def told(data: dict[str, Tensor]) -> Conditioning:
    """The doors that a case has; labels are (B,) there."""
    vector = data.get("y")
    return Conditioning(data.get("context"), vector[:, None] if vector is not None and vector.ndim == 1 else vector)


@pytest.mark.parametrize("case", UNETS)
def test_unet(case: str) -> None:
    data = golden(case)
    agree(case, unet(case)(data["x"], data["t"].float(), told(data)), data["out"])


def test_what_is_stacked_under_the_latent_may_come_by_its_own_door() -> None:
    data = golden("unet_sd1_inpaint9")
    cond = Conditioning(context=data["context"], concat=data["x"][:, 4:])
    out = unet("unet_sd1_inpaint9")(data["x"][:, :4], data["t"].float(), cond)
    agree("unet_sd1_inpaint9 by doors", out, data["out"])


@pytest.mark.parametrize("case", [case for case in UNETS if any(name.startswith("act.") for name in golden(case))])
def test_the_inside_of_the_unet(case: str) -> None:
    data, network = golden(case), unet(case)
    depth = UNETS[case].transformer_depth
    places = {
        "label_emb": "class_embedding" if UNETS[case].size_width is None else "add_embedding",
        "time_embed": "time_embedding",
        "input_blocks.0": "conv_in",
        "input_blocks.1": f"down_blocks.0.{'attentions' if depth[0] > 0 else 'resnets'}.0",
        "middle_block": "mid_block",
        "output_blocks.0": f"up_blocks.0.{'attentions' if depth[-1] > 0 else 'resnets'}.0",
        "output_blocks.2": "up_blocks.0.upsamplers.0",
    }
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> None:
        def note(_module: nn.Module, _inputs: object, out: Tensor) -> None:
            seen[name] = out

        network.get_submodule(places[name]).register_forward_hook(note)

    compared = [name.removeprefix("act.") for name in data if name.startswith("act.")]
    for name in compared:
        watch(name)
    network(data["x"], data["t"].float(), told(data))
    for name in compared:
        agree(f"{case} {name}", seen[name], data[f"act.{name}"])


# The autoencoder


@pytest.mark.parametrize("case", KL)
def test_autoencoder(case: str) -> None:
    data, network = golden(case), autoencoder(case)
    agree(f"{case} encoder", network.encoder(data["x"]), data["encoder_out"])
    mean, logvar = network.encode(data["x"])
    agree(f"{case} mean", mean, data["mean"])
    agree(f"{case} logvar", logvar, data["logvar"])
    agree(f"{case} decoded", network.decode(data["mean"]), data["dec_of_mode"])


def test_the_sample_that_training_decodes() -> None:
    data, network = golden("vae_kl_f8"), autoencoder("vae_kl_f8")
    network.post_quant_conv = network.decoder = nn.Identity()  # type: ignore[assignment]  # so it shows
    sample, _, logvar = network(data["x"], data["posterior_noise"])
    agree("vae_kl_f8 sample", sample, data["sample"])
    agree("vae_kl_f8 deviation", (0.5 * logvar).exp(), data["std"])


def test_the_log_variance_is_clamped() -> None:
    data, network = golden("vae_kl_f8"), Autoencoder(AUTOENCODERS["vae_kl_f8"])
    network.encoder = network.quant_conv = nn.Identity()  # type: ignore[assignment]  # given the moments
    mean, logvar = network.encode(data["big_moments"])
    assert torch.equal(logvar, data["big_logvar_clamped"])
    assert torch.equal(mean, data["big_moments"].chunk(2, 1)[0])
    assert (float(logvar.min()), float(logvar.max())) == LOGVAR_RANGE


@pytest.mark.parametrize("case", VQ)
def test_vq_autoencoder(case: str) -> None:
    data, network = golden(case), autoencoder(case)
    latent, logvar = network.encode(data["x"])
    agree(f"{case} encoded", latent, data["interface_encode"])
    assert torch.equal(latent + torch.exp(0.5 * logvar) * torch.randn_like(latent), latent), "it is certain"
    agree(f"{case} decoded", network.decode(latent), data["interface_decode"])
    agree(f"{case} decoded as it is", network.decode_entries(latent), data["interface_decode_not_quantized"])
    agree(f"{case} any latent decoded", network.decode(data["z"]), data["interface_decode_z"])
    agree(f"{case} there and back", network(data["x"], torch.randn_like(latent))[0], data["dec"])


@pytest.mark.parametrize("case", VQ)
def test_the_codebook(case: str) -> None:
    data, network = golden(case), autoencoder(case)
    found = network.quantise(data["prequant"])
    assert torch.equal(found.indices.flatten(), data["indices"])
    assert torch.equal(found.entries, data["codebook_entry"])
    assert torch.equal(found.latent, data["quant"]), "to the last bit: what is added is rounded"
    agree(f"{case} losses", found.commitment_loss + 0.25 * found.codebook_loss, data["emb_loss"])


# CLIP


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_tower(activation: str) -> None:
    case = f"clip_text_hf_{activation}"
    assert meta(case)["config"]["hidden_act"] == activation
    config = replace(TEXT_TOWER, activation="gelu" if activation == "gelu" else "quick_gelu")
    data, network = golden(case), clip_text(case, config)
    said = network(data["tokens"])
    assert len(said.hidden) == config.layers + 1
    agree(f"{case} last", said.last, data["last_hidden_state"])
    agree(f"{case} pooled", said.pooled, data["pooler_output"])
    agree(f"{case} penultimate", network.final_layer_norm(said.hidden[-2]), data["penultimate_final_norm"])


def test_text_tower_layer_by_layer_and_with_another_padding() -> None:
    data = golden("clip_text_hf_quick_gelu")
    network = clip_text("clip_text_hf_quick_gelu", TEXT_TOWER)
    said = network(data["tokens"])
    for i in (0, 3):
        agree(f"text hidden {i}", said.hidden[i], data[f"hidden_states.{i}"])
    padded = network(data["tokens_pad0"])
    agree("text last, padded with 0", padded.last, data["last_hidden_state_pad0"])
    agree("text pooled, padded with 0", padded.pooled, data["pooler_output_pad0"])


def test_image_tower() -> None:
    data = golden("clip_vision_hf")
    config = ClipVisionConfig(
        width=32,
        layers=3,
        heads=4,
        mlp_width=64,
        image_size=56,
        patch=14,
        activation="gelu",
        projection_width=24,
    )
    network = ClipVision(config)
    filled(network, weights("clip_vision_hf", within="vision_model."))
    (projection,) = weights("clip_vision_hf", within="visual_projection.").values()
    agree("image states", network.states(data["pixel_values"]), data["last_hidden_state"])
    agree("image embeddings", network(data["pixel_values"]) @ projection.T, data["image_embeds"])


OPENAI_NAMES = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "transformer.resblocks": "text_model.encoder.layers",
    "ln_final": "text_model.final_layer_norm",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "visual.ln_post": "vision_model.post_layernorm",
}
OPENAI_LAYER = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def from_openai(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's and OpenCLIP's names -> ours; they stack q, k and v, and keep the projections transposed."""
    found = {"logit_scale": tensors["logit_scale"]}
    found["text_projection.weight"] = tensors["text_projection"].T
    found["visual_projection.weight"] = tensors["visual.proj"].T
    for key, tensor in tensors.items():
        head = next((theirs for theirs in OPENAI_NAMES if key.startswith(theirs)), None)
        if head is None:
            continue
        name = OPENAI_NAMES[head] + key.removeprefix(head)
        before, _, kind = name.rpartition(".attn.in_proj_")
        if before:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{before}.self_attn.{part}_proj.{kind}"] = third
            continue
        for theirs, ours in OPENAI_LAYER.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
        found[name] = tensor
    return found


def whole_clip(case: str) -> Clip:
    openai = case == "openai_clip"
    width, text_layers, vision_heads = (64, 3, 1) if openai else (32, 4, 2)
    text = replace(
        TEXT_TOWER,
        width=width,
        layers=text_layers,
        mlp_width=4 * width,
        activation="quick_gelu" if openai else "gelu",
    )
    vision = ClipVisionConfig(
        width=width,
        layers=3,
        heads=vision_heads,
        mlp_width=4 * width,
        image_size=56,
        patch=14,
        activation=text.activation,
        projection_width=24,
    )
    clip = Clip(text, vision)
    filled(clip, from_openai(weights(case)))
    return clip


@pytest.mark.parametrize("case", ["openai_clip", "open_clip_text_and_vision"])
def test_both_towers_of_the_original_clips(case: str) -> None:
    data, clip = golden(case), whole_clip(case)
    agree(f"{case} text", clip.text_projection(clip.text_model(data["tokens"]).pooled), data["encode_text"])
    agree(f"{case} image", clip.visual_projection(clip.vision_model(data["pixels"])), data["encode_image"])
    for ours, theirs in (
        (clip.embed_text(data["tokens"]), data["encode_text"]),
        (clip.embed_image(data["pixels"]), data["encode_image"]),
    ):
        agree(f"{case} of length 1", ours, theirs / theirs.norm(dim=-1, keepdim=True))


def test_the_layers_that_sd2_and_sdxl_attend_to() -> None:
    data = golden("open_clip_text_and_vision")
    tower = whole_clip("open_clip_text_and_vision").text_model
    said = tower(data["tokens"])
    agree("open_clip last", said.last, data["v1_last_with_ln_final"])
    agree("open_clip penultimate", tower.final_layer_norm(said.hidden[-2]), data["v1_penultimate_with_ln_final"])
    agree("open_clip no norm", said.hidden[-2], data["v2_nonlegacy_penultimate_no_norm"])


# All at once


def test_an_original_file_gives_the_original_numbers(tmp_path: Path) -> None:
    """One .safetensors file as Stable Diffusion 1 came in, read by the one door for all files."""
    parts: dict[str, tuple[str, str, Config]] = {
        "unet": ("unet_sd1", ldm.UNET, UNETS["unet_sd1"]),
        "autoencoder": ("vae_kl_f8", ldm.AUTOENCODER, AUTOENCODERS["vae_kl_f8"]),
        "text": ("clip_text_hf_quick_gelu", "cond_stage_model.transformer.", TEXT_TOWER),
    }
    file = {k: v for case, before, _ in parts.values() for k, v in weights(case, before=before).items()}
    save_file(file, tmp_path / "model.safetensors")
    preset = replace(PRESETS["sd1"], unet=UNETS["unet_sd1"], autoencoder=AUTOENCODERS["vae_kl_f8"])
    preset = preset.with_towers({"text": TEXT_TOWER})
    loaded = read(tmp_path / "model.safetensors", preset=preset)

    data, network = golden("unet_sd1"), UNet(preset.unet)
    filled(network, loaded.parts["unet"])
    agree("file, unet", network(data["x"], data["t"], Conditioning(context=data["context"])), data["out"])

    data, vae = golden("vae_kl_f8"), Autoencoder(preset.autoencoder)
    filled(vae, loaded.parts["autoencoder"])
    agree("file, decoded", vae.decode(vae.encode(data["x"])[0]), data["dec_of_mode"])

    data, tower = golden("clip_text_hf_quick_gelu"), ClipText(preset.networks["text"])
    filled(tower, loaded.parts["text"])
    agree("file, text", tower(data["tokens"]).last, data["last_hidden_state"])


@pytest.mark.parametrize(
    ("network", "config", "parameters"),
    [
        (UNet, PRESETS["sd1"].unet, 859_520_964),
        (Autoencoder, PRESETS["sd1"].autoencoder, 83_653_863),
        (ClipText, PRESETS["sd1"].networks["text"], 123_060_480),
    ],
    ids=["unet", "autoencoder", "text"],
)
def test_stable_diffusion_1_has_as_many_parameters(network: type[nn.Module], config: Config, parameters: int) -> None:
    with torch.device("meta"):
        module = network(config)
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert list(module.buffers()) == [], "what is not a parameter would not be trained, averaged, or saved"
