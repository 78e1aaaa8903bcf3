"""The transformer that latent diffusion's first models read words and boxes with (Rombach et al. 2022, app. E.2.1).

It has BERT's tokens and BERT's shape, but was trained together with its UNet and never on words alone. Shapes: B batch,
L tokens, D width, heads x H inner width of the attention, which is another than D.

Parameter names are those of diffusers' LDMBertModel, but for `to_logits`: no picture needs the words predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.layers import attend, look_up

LAYER_EPS = 1e-5


@dataclass(frozen=True)
class BertConfig:
    """The shape of a transformer over tokens. The defaults read the words of the 1.45B text-to-image model."""

    vocab_size: int = 30522
    width: int = 1280
    """D, the width of the context door."""
    layers: int = 32
    heads: int = 8
    head_width: int = 64
    """H."""
    mlp_width: int = 5120
    context_length: int = 77
    """Most tokens; padding is attended to like any other, so prompts are always filled up to it."""


class SelfAttention(nn.Module):
    """Multi-head self-attention, without biases but for the way out."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(config.width, inner, bias=False)
        self.v_proj = nn.Linear(config.width, inner, bias=False)
        self.out_proj = nn.Linear(inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        y: Tensor = self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads))
        return y


class Layer(nn.Module):
    """Attention and MLP, each after a norm and around a skip."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.width, LAYER_EPS)
        self.self_attn = SelfAttention(config)
        self.final_layer_norm = nn.LayerNorm(config.width, LAYER_EPS)
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        y: Tensor = x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))
        return y


class Encoder(nn.Module):
    """Tokens and positions through all layers and a last norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.embed_positions = nn.Embedding(config.context_length, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.width, LAYER_EPS)

    def forward(self, ids: Tensor, taught: Tensor | None = None) -> Tensor:
        """(B, L) -> (B, L, D); `taught` as in `look_up`."""
        x = look_up(self.embed_tokens, ids, taught) + self.embed_positions.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.layer_norm(x)
        return y


class Bert(nn.Module):
    """Tokens that all see each other, padding included: there is no mask."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Encoder(config)

    def forward(self, ids: Tensor, taught: Tensor | None = None) -> Tensor:
        """ids (B, L) int64, L at most `context_length` -> (B, L, D).

        `taught` (n, D) are the vectors of ids from `vocab_size` on: see `look_up`.
        """
        y: Tensor = self.model(ids, taught)
        return y
