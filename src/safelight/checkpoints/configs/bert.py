"""`bert/config.json`: of diffusers' LDMBertModel, the transformer of latent diffusion's text models."""

from __future__ import annotations

from pathlib import Path

from safelight.checkpoints.fields import PRETRAINED, Fields
from safelight.models.bert import BertConfig

BERT = "LDMBertModel"
MOST_LAYERS = 256
_IGNORED = (
    *PRETRAINED,
    *("activation_dropout", "attention_dropout", "classifier_dropout", "dropout", "encoder_layerdrop", "init_std"),
)


def read_bert(path: Path) -> BertConfig:
    """`bert/config.json` -> our config.

    Raises:
        ModelFileError: a field asks for a network that we do not have.
    """
    fields = Fields(path)
    layers = fields.whole("encoder_layers", 32, MOST_LAYERS)
    fields.must({"model_type": "ldmbert", "activation_function": "gelu", "num_hidden_layers": layers})
    fields.must({"scale_embedding": False})
    fields.ignore(_IGNORED)
    config = BertConfig(
        vocab_size=fields.whole("vocab_size", 30522),
        width=fields.whole("d_model", 1280),
        layers=layers,
        heads=fields.whole("encoder_attention_heads", 8),
        head_width=fields.whole("head_dim", 64),
        mlp_width=fields.whole("encoder_ffn_dim", 5120),
        context_length=fields.whole("max_position_embeddings", 77),
    )
    fields.done()
    return config


def bert_json(config: BertConfig) -> dict[str, object]:
    """Our config -> `bert/config.json`."""
    return {
        "architectures": [BERT],
        "model_type": "ldmbert",
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "encoder_layers": config.layers,
        "num_hidden_layers": config.layers,
        "encoder_attention_heads": config.heads,
        "head_dim": config.head_width,
        "encoder_ffn_dim": config.mlp_width,
        "max_position_embeddings": config.context_length,
        "activation_function": "gelu",
        "pad_token_id": 0,
    }
