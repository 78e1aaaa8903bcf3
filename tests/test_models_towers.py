"""What words, boxes and pictures are read with: numbers of the original code, and the libraries.

Weights come in through the layouts, so that the names are proved with the numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from golden_cases import TEXT_TOWER, agree, golden, meta, weights
from safelight.checkpoints.keys import Layout, Op
from safelight.checkpoints.layouts import bert, openclip, transformers
from safelight.errors import ModelFileError, RequestError
from safelight.models.bert import Bert, BertConfig
from safelight.models.clip import Clip, ClipText, ClipTextConfig, ClipVision, ClipVisionConfig
from safelight.models.networks import shapes_of

OPEN = replace(TEXT_TOWER, mlp_width=128, activation="gelu", projected=True)
OPEN_VISION = ClipVisionConfig(
    width=32,
    layers=3,
    heads=2,
    mlp_width=128,
    image_size=56,
    activation="gelu",
    projection_width=24,
    projected=True,
)
OPENAI = replace(TEXT_TOWER, width=64, layers=3, mlp_width=256, projected=True)
OPENAI_VISION = replace(OPEN_VISION, width=64, heads=1, mlp_width=256, activation="quick_gelu")


def filled(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    module.load_state_dict(tensors, strict=True)
    module.eval().requires_grad_(False)


def text_tower(config: ClipTextConfig, layout: Layout, tensors: dict[str, Tensor]) -> ClipText:
    tower = ClipText(config)
    filled(tower, layout.load(tensors, "golden")[0]["text"])
    return tower


def image_tower(config: ClipVisionConfig, layout: Layout, tensors: dict[str, Tensor]) -> ClipVision:
    tower = ClipVision(config)
    filled(tower, layout.load(tensors, "golden")[0]["vision"])
    return tower


# The original numbers


def test_openclips_text_tower_as_sdxl_reads_it() -> None:
    data = golden("open_clip_text_and_vision")
    tower = text_tower(OPEN, openclip.text_layout(OPEN), weights("open_clip_text_and_vision"))
    said = tower(data["tokens"])
    assert said.embedding is not None
    agree("open_clip penultimate", tower.attended(said, "penultimate"), data["v2_nonlegacy_penultimate_no_norm"])
    agree("open_clip embedding", said.embedding, data["encode_text"])
    agree("open_clip last", tower.attended(said), data["v1_last_with_ln_final"])
    agree("open_clip normed", tower.attended(said, "penultimate_normed"), data["v1_penultimate_with_ln_final"])


def test_openclips_text_tower_as_sd2_reads_it() -> None:
    """A layer less than the file has, and the last states: the same numbers as those before the last layer."""
    data, config = golden("open_clip_text_and_vision"), replace(OPEN, layers=3, projected=False)
    layout = openclip.text_layout(config)
    tensors, dropped = layout.load(weights("open_clip_text_and_vision"), "golden")
    why = dict(dropped)
    assert {key.split(".")[0] for key in why} == {"transformer", "visual", "text_projection", "logit_scale"}
    assert sum(key.startswith("transformer.resblocks.3.") for key in why) == 12
    tower = ClipText(config)
    filled(tower, tensors["text"])
    said = tower(data["tokens"])
    agree("open_clip, a layer less", tower.attended(said), data["v1_penultimate_with_ln_final"])
    assert said.embedding is None


@pytest.mark.parametrize(
    ("case", "text", "vision"),
    [("open_clip_text_and_vision", OPEN, OPEN_VISION), ("openai_clip", OPENAI, OPENAI_VISION)],
    ids=["open_clip", "openai"],
)
def test_both_towers_of_the_original_clips(case: str, text: ClipTextConfig, vision: ClipVisionConfig) -> None:
    data, file = golden(case), weights(case)
    embedding = text_tower(text, openclip.text_layout(text), file)(data["tokens"]).embedding
    assert embedding is not None
    agree(f"{case} text", embedding, data["encode_text"])
    tower = image_tower(vision, openclip.vision_layout(vision), file)
    agree(f"{case} image", tower(data["pixels"]), data["encode_image"])


def test_image_tower_with_its_projection() -> None:
    data = golden("clip_vision_hf")
    config = replace(OPEN_VISION, heads=4, mlp_width=64)
    tower = image_tower(config, transformers.vision_layout(config), weights("clip_vision_hf"))
    agree("vision with projection", tower(data["pixel_values"]), data["image_embeds"])
    agree("vision states", tower.states(data["pixel_values"]), data["last_hidden_state"])


def test_clip_skip() -> None:
    data, layout = golden("clip_text_hf_quick_gelu"), transformers.text_layout(TEXT_TOWER)
    tower = text_tower(TEXT_TOWER, layout, weights("clip_text_hf_quick_gelu"))
    said = tower(data["tokens"])
    assert torch.equal(tower.attended(said), said.last)
    agree("hidden 3", tower.attended(said, "penultimate"), data["hidden_states.3"])
    agree("hidden 0", tower.attended(said, "penultimate", 3), data["hidden_states.0"])
    once = tower.attended(said, skip=1)
    assert torch.equal(once, tower.attended(said, "penultimate_normed"))
    assert torch.equal(once, tower.final_layer_norm(said.hidden[-2]))
    data = golden("clip_text_hf_gelu")
    tower = text_tower(replace(TEXT_TOWER, activation="gelu"), layout, weights("clip_text_hf_gelu"))
    agree("skip 1", tower.attended(tower(data["tokens"]), skip=1), data["penultimate_final_norm"])


@pytest.mark.parametrize(("states", "skip"), [("last", 5), ("penultimate", 4), ("last", -1), ("penultimate", -1)])
def test_no_more_layers_are_skipped_than_there_are(states: Any, skip: int) -> None:
    tower = ClipText(TEXT_TOWER)
    with pytest.raises(RequestError, match=f"cannot skip {skip} layers: the text tower has 4"):
        tower.attended(tower(torch.full((1, 3), 299)), states, skip)


def test_the_transformer_of_latent_diffusion() -> None:
    data, told = golden("cond_bert_embedder"), meta("cond_bert_embedder")["config"]
    config = BertConfig(
        vocab_size=told["vocab_size"],
        width=told["n_embed"],
        layers=told["n_layer"],
        mlp_width=4 * told["n_embed"],
        context_length=told["max_seq_len"],
    )
    layout = Layout({"text": bert.transformer(config)}, {"text": shapes_of(config)}, bert.DROPS)
    tensors, dropped = layout.load(weights("cond_bert_embedder", before=bert.PREFIX), "golden")
    assert [key.removeprefix(bert.TRANSFORMER) for key, _ in dropped] == ["to_logits.weight", "to_logits.bias"]
    network = Bert(config)
    filled(network, tensors["text"])
    agree("bert", network(data["tokens"]), data["out"])
    agree("bert, 9 tokens", network(data["tokens9"]), data["out9"])


# The libraries, on the same random weights


def lively(module: nn.Module) -> None:
    """Random numbers for what the libraries begin at 0 or 1, too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.08 * torch.randn(parameter.shape, generator=generator))
    module.eval().requires_grad_(False)


def test_text_tower_with_projection_against_transformers() -> None:
    torch.manual_seed(0)
    theirs = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=OPEN.vocab_size,
            hidden_size=OPEN.width,
            intermediate_size=OPEN.mlp_width,
            num_hidden_layers=OPEN.layers,
            num_attention_heads=OPEN.heads,
            projection_dim=OPEN.projection_width,
            hidden_act=OPEN.activation,
            bos_token_id=OPEN.start_token,
            eos_token_id=OPEN.end_token,
            pad_token_id=0,
        )
    )
    lively(theirs)
    file = theirs.state_dict()
    layout = transformers.text_layout(OPEN, transformers.prefix_of(file))
    tower = text_tower(OPEN, layout, dict(file))
    ids = torch.randint(1, 298, (2, 77), generator=torch.Generator().manual_seed(0))
    ids[0, 5:], ids[1, 76] = 0, 299
    ids[0, 5] = 299
    said, expected = tower(ids), theirs(ids, output_hidden_states=True)
    assert said.embedding is not None
    agree("text embedding", said.embedding, expected.text_embeds)
    agree("text penultimate", tower.attended(said, "penultimate"), expected.hidden_states[-2])
    back = layout.save({"text": tower.state_dict()})
    assert back.keys() == file.keys()
    assert all(torch.equal(back[key], file[key]) for key in file)


def test_image_tower_with_projection_against_transformers() -> None:
    torch.manual_seed(0)
    theirs = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=OPEN_VISION.width,
            intermediate_size=OPEN_VISION.mlp_width,
            num_hidden_layers=OPEN_VISION.layers,
            num_attention_heads=OPEN_VISION.heads,
            projection_dim=OPEN_VISION.projection_width,
            hidden_act=OPEN_VISION.activation,
            image_size=OPEN_VISION.image_size,
            patch_size=OPEN_VISION.patch,
        )
    )
    lively(theirs)
    file = theirs.state_dict()
    layout = transformers.vision_layout(OPEN_VISION, transformers.prefix_of(file, prefix=transformers.VISION_PREFIX))
    tower = image_tower(OPEN_VISION, layout, dict(file))
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    agree("picture embedding", tower(pixels), theirs(pixels).image_embeds)
    back = layout.save({"vision": tower.state_dict()})
    assert back.keys() == file.keys()
    assert all(torch.equal(back[key], file[key]) for key in file)


def test_the_transformer_of_latent_diffusion_against_diffusers() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, width=24, layers=3, heads=3, head_width=16, mlp_width=56, context_length=12)
    theirs = LDMBertModel(
        LDMBertConfig(  # type: ignore[no-untyped-call]  # theirs
            vocab_size=config.vocab_size,
            max_position_embeddings=config.context_length,
            encoder_layers=config.layers,
            encoder_ffn_dim=config.mlp_width,
            encoder_attention_heads=config.heads,
            head_dim=config.head_width,
            d_model=config.width,
        )
    )
    lively(theirs)
    tensors, dropped = bert.diffusers_layout(config).load(theirs.state_dict(), "theirs")
    assert [key for key, _ in dropped] == ["to_logits.weight", "to_logits.bias"]
    network = Bert(config)
    filled(network, tensors["text"])
    ids = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(3))
    agree("bert against diffusers", network(ids), theirs(ids)[0])
    missing, unexpected = theirs.load_state_dict(
        bert.diffusers_layout(config).save({"text": network.state_dict()}), strict=False
    )
    assert (missing, unexpected) == (["to_logits.weight", "to_logits.bias"], [])


# Layouts


def test_queries_keys_and_values_come_out_of_one_matrix_and_go_back() -> None:
    file = weights("open_clip_text_and_vision")
    for layout, part in ((openclip.text_layout(OPEN), "text"), (openclip.vision_layout(OPEN_VISION), "vision")):
        parts, dropped = layout.load(file, "golden")
        kept = {key for key in file if key not in dict(dropped)}
        back = layout.save(parts)
        assert back.keys() == kept
        assert all(torch.equal(back[key], file[key]) for key in kept)
        layer = parts[part]
        assert torch.equal(
            layer["encoder.layers.1.self_attn.k_proj.bias"],
            file[f"{'visual.' if part == 'vision' else ''}transformer.resblocks.1.attn.in_proj_bias"][32:64],
        )


def test_a_tower_that_is_short_of_two_layers_is_refused() -> None:
    config = replace(OPEN, layers=2)
    with pytest.raises(ModelFileError, match=r"transformer\.resblocks\.3\."):
        openclip.text_layout(config).load(weights("open_clip_text_and_vision"), "x")


def test_the_projections_of_a_whole_clip_are_its_own() -> None:
    clip = Clip(OPEN, OPEN_VISION)
    bare = Clip(replace(OPEN, projected=False), replace(OPEN_VISION, projected=False))
    assert clip.state_dict().keys() == bare.state_dict().keys()
    assert "text_projection.weight" in clip.state_dict()


def test_a_projection_is_written_outside_of_the_towers_prefix() -> None:
    names = {pair.ours: pair for pair in transformers.text(OPEN, "a.text_model.")}
    assert names["text_projection.weight"].theirs == "a.text_projection.weight"
    assert names["text_projection.weight"].op == Op()
    assert {pair.theirs for pair in transformers.text(OPEN, "")} == shapes_of(OPEN).keys()
