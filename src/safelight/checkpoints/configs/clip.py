"""`text_encoder/config.json`, `image_encoder/config.json`, sections of a whole CLIP's; `image_normalizer/config.json`.

With a projection, CLIPTextModelWithProjection and CLIPVisionModelWithProjection; without, CLIPTextModel.
"""

from __future__ import annotations

from pathlib import Path

from safelight.checkpoints.fields import PRETRAINED, Fields
from safelight.models.clip import ACTIVATIONS, LAYER_EPS, Activation, ClipTextConfig, ClipVisionConfig
from safelight.models.normalizer import NormalizerConfig

TEXT, TEXT_PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
VISION_PROJECTED = "CLIPVisionModelWithProjection"
NORMALIZER = "StableUnCLIPImageNormalizer"
MOST_LAYERS = 256
_IGNORED = (*PRETRAINED, "attention_dropout", "dropout")


def read_text(path: Path, section: str | None = None, *, projected: bool = False) -> ClipTextConfig:
    """`text_encoder/config.json` -> our config. The marks' ids are settled by the tokenizer.

    Args:
        section: where in the file, if it describes more (that of a whole CLIP: `text_config`).
        projected: whether the tower has its projection, which the class says and not the file.

    Raises:
        ModelFileError: a field asks for a network that we do not have.
    """
    fields = Fields(path, section)
    fields.must({"layer_norm_eps": LAYER_EPS})
    fields.word("model_type", "clip_text_model", ("clip_text_model", "clip"))
    activation = _activation(fields)
    width, heads = fields.whole("hidden_size", 512), fields.whole("num_attention_heads", 8)
    if width % heads:
        raise fields.bad("num_attention_heads", heads, f"a divisor of hidden_size {width}")
    vocab = fields.whole("vocab_size", 49408)
    fields.ignore(_IGNORED)
    config = ClipTextConfig(
        vocab_size=vocab,
        width=width,
        layers=fields.whole("num_hidden_layers", 12, MOST_LAYERS),
        heads=heads,
        mlp_width=fields.whole("intermediate_size", 2048),
        context_length=fields.whole("max_position_embeddings", 77),
        activation=activation,
        projection_width=fields.whole("projection_dim", 512),
        # Old files say 0, 2 and 1 here, the defaults of another model; CLIP's marks are the last two of its
        # words.
        start_token=vocab - 2,
        end_token=vocab - 1,
        pad_token=vocab - 1,
        projected=projected,
    )
    fields.done()
    return config


def text_json(config: ClipTextConfig) -> dict[str, object]:
    """Our config -> `text_encoder/config.json`."""
    return {
        "architectures": [text_class(config)],
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.context_length,
        "hidden_act": config.activation,
        "projection_dim": config.projection_width,
        "layer_norm_eps": LAYER_EPS,
        "bos_token_id": config.start_token,
        "eos_token_id": config.end_token,
        "pad_token_id": config.pad_token,
    }


def text_class(config: ClipTextConfig) -> str:
    """transformers' class of such a tower."""
    return TEXT_PROJECTED if config.projected else TEXT


def read_vision(path: Path, section: str | None = None, *, projected: bool = False) -> ClipVisionConfig:
    """`image_encoder/config.json`, or the section of an image tower in the file of a whole CLIP -> our config.

    section, projected: as `read_text`.

    Raises:
        ModelFileError: a field asks for a network that we do not have.
    """
    fields = Fields(path, section)
    fields.must({"layer_norm_eps": LAYER_EPS, "num_channels": 3, "model_type": "clip_vision_model"})
    fields.ignore(_IGNORED)
    width, heads = fields.whole("hidden_size", 768), fields.whole("num_attention_heads", 12)
    if width % heads:
        raise fields.bad("num_attention_heads", heads, f"a divisor of hidden_size {width}")
    config = ClipVisionConfig(
        width=width,
        layers=fields.whole("num_hidden_layers", 12, MOST_LAYERS),
        heads=heads,
        mlp_width=fields.whole("intermediate_size", 3072),
        image_size=fields.whole("image_size", 224),
        patch=fields.whole("patch_size", 32),
        activation=_activation(fields),
        projection_width=fields.whole("projection_dim", 512),
        projected=projected,
    )
    fields.done()
    return config


def vision_json(config: ClipVisionConfig) -> dict[str, object]:
    """Our config -> `image_encoder/config.json`, or the section of an image tower."""
    named: dict[str, object] = {"architectures": [VISION_PROJECTED]} if config.projected else {}
    return {
        **named,
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "image_size": config.image_size,
        "patch_size": config.patch,
        "hidden_act": config.activation,
        "projection_dim": config.projection_width,
        "layer_norm_eps": LAYER_EPS,
    }


def read_normalizer(path: Path) -> NormalizerConfig:
    """`image_normalizer/config.json` -> our config.

    Raises:
        ModelFileError: a field asks for something that we do not have.
    """
    fields = Fields(path)
    fields.kind(None, (NORMALIZER,))
    config = NormalizerConfig(width=fields.whole("embedding_dim", 768))
    fields.done()
    return config


def normalizer_json(config: NormalizerConfig) -> dict[str, object]:
    """Our config -> `image_normalizer/config.json`."""
    return {"_class_name": NORMALIZER, "embedding_dim": config.width}


def _activation(fields: Fields) -> Activation:
    word = fields.word("hidden_act", "quick_gelu", ACTIVATIONS)
    return "quick_gelu" if word == "quick_gelu" else "gelu"
