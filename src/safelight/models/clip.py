"""CLIP's two towers (Radford et al. 2021): words for the UNet, and pictures and words in one space.

Shapes: B batch, L tokens, D tower width, P width of the common space, S side of the picture in pixels.
Parameter names are those of the transformers files, without their leading `text_model.` or `vision_model.`: with
a projection, of CLIPTextModelWithProjection and CLIPVisionModelWithProjection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.errors import RequestError
from safelight.models.layers import attend, look_up

LAYER_EPS = 1e-5

# Mean and deviation per channel of the pictures that OpenAI trained on, pixels in [0, 1].
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

Activation = Literal["quick_gelu", "gelu"]
States = Literal["last", "penultimate", "penultimate_normed", "embedding"]
"""Which states of a text tower a network attends to: those after the last layer and the final norm (SD 1), or those
that enter the last layer, as they are (SDXL) or through the final norm (SD 2, were its tower not given a layer short:
then they are its last)."""


@dataclass(frozen=True)
class ClipTextConfig:
    """The shape of a text tower. The defaults are ViT-L/14's (123,060,480 parameters)."""

    vocab_size: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    context_length: int = 77
    """L: prompts are always padded and truncated to it, with both ends marked."""
    activation: Activation = "quick_gelu"
    projection_width: int = 768
    """P."""
    start_token: int = 49406
    end_token: int = 49407
    pad_token: int = 49407
    """What a prompt is filled up with: OpenAI's towers were trained with 49407, OpenCLIP's with 0."""
    projected: bool = False
    """Whether the projection to P belongs to the tower: only SDXL's second one uses it."""


@dataclass(frozen=True)
class ClipVisionConfig:
    """The shape of an image tower. The defaults are ViT-L/14's."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    image_size: int = 224
    """S, in pixels."""
    patch: int = 14
    """Side of a patch, in pixels."""
    activation: Activation = "quick_gelu"
    projection_width: int = 768
    """P."""
    projected: bool = False
    """Whether the projection to P belongs to the tower, as it does where pictures are conditions (unCLIP)."""


@dataclass(frozen=True)
class TextOutput:
    """What the text tower says of a prompt."""

    last: Tensor
    """(B, L, D), after the final norm: what SD 1.x attends to."""
    hidden: tuple[Tensor, ...]
    """(B, L, D) each: the embeddings, then the output of every layer, without the final norm."""
    pooled: Tensor
    """(B, D): `last` at the first end token."""
    embedding: Tensor | None = None
    """(B, P): `pooled`, projected, of whatever length it has; None if the projection is no part of the tower."""


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the approximation that OpenAI's weights were trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        y: Tensor = self.out_proj(attend(q, k, v, self.heads, causal=self.causal))
        return y


class Mlp(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        y: Tensor = self.fc2(self.activation(self.fc1(x)))
        return y


class Layer(nn.Module):
    """Attention and MLP, each after a norm and around a skip."""

    def __init__(self, config: ClipTextConfig | ClipVisionConfig, *, causal: bool) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, LAYER_EPS)
        self.self_attn = SelfAttention(config.width, config.heads, causal=causal)
        self.layer_norm2 = nn.LayerNorm(config.width, LAYER_EPS)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = x + self.self_attn(self.layer_norm1(x))
        y: Tensor = x + self.mlp(self.layer_norm2(x))
        return y


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: ClipTextConfig | ClipVisionConfig, *, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, causal=causal) for _ in range(config.layers))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, L, D) -> the input and the output of every layer, each (B, L, D)."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return tuple(states)


class TextEmbeddings(nn.Module):
    """Token plus position."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)

    def forward(self, ids: Tensor, taught: Tensor | None = None) -> Tensor:
        """(B, L) -> (B, L, D); `taught` as in `look_up`."""
        y: Tensor = look_up(self.token_embedding, ids, taught) + self.position_embedding.weight[: ids.shape[1]]
        return y


class ClipText(nn.Module):
    """The text tower: a causal transformer over a padded prompt, without a padding mask (as SD uses it)."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.width, LAYER_EPS)
        self.text_projection = _projection(config)

    def forward(self, ids: Tensor, taught: Tensor | None = None) -> TextOutput:
        """ids (B, L) int64, L at most `context_length`, each row with at least one end token.

        `taught` (n, D) are the vectors of ids from `vocab_size` on: see `look_up`.
        """
        hidden = self.encoder(self.embeddings(ids, taught))
        last = self.final_layer_norm(hidden[-1])
        # Not argmax of the ids, as the original has it: tokens added by textual inversion have larger ids.
        end = (ids == self.config.end_token).int().argmax(dim=1)
        pooled = last[torch.arange(len(ids), device=ids.device), end]
        embedding = None if self.text_projection is None else self.text_projection(pooled)
        return TextOutput(last, hidden, pooled, embedding)

    def attended(self, said: TextOutput, states: States = "last", skip: int = 0) -> Tensor:
        """The states (B, L, D) that a network attends to; of "embedding" the one (B, 1, P), of length 1.

        Args:
            states: which ones the network was trained with.
            skip: so many layers earlier than those ("clip skip").

        Raises:
            RequestError: there are not so many layers, or what is attended to is behind all of them.
        """
        if states == "embedding":
            if skip != 0 or said.embedding is None:
                raise RequestError("clip skip is for models that attend to a layer's states: leave it out")
            return F.normalize(said.embedding, dim=-1)[:, None]
        earlier = skip + (states != "last")
        if not 0 <= skip <= earlier < len(said.hidden):
            raise RequestError(f"cannot skip {skip} layers: the text tower has {len(said.hidden) - 1}")
        if earlier == 0:
            return said.last
        state = said.hidden[-1 - earlier]
        if states == "penultimate":
            return state
        normed: Tensor = self.final_layer_norm(state)
        return normed


class VisionEmbeddings(nn.Module):
    """Patches with a class token before them, plus position."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        positions = (config.image_size // config.patch) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        nn.init.normal_(self.class_embedding, std=config.width**-0.5)
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.position_embedding = nn.Embedding(positions, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1 + patches, D)."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        y: Tensor = torch.cat([first, patches], dim=1) + self.position_embedding.weight
        return y


class ClipVision(nn.Module):
    """The image tower: a vision transformer (Dosovitskiy et al. 2021) with a norm before the first layer."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, LAYER_EPS)  # spelt so in every file
        self.encoder = Encoder(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.width, LAYER_EPS)
        self.visual_projection = _projection(config)

    def states(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S), normalised -> (B, 1 + patches, D), the last layer without the final norm."""
        states: tuple[Tensor, ...] = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return states[-1]

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S), normalised -> the class token after the final norm (B, D), projected (B, P) if the
        tower has its projection."""
        y: Tensor = self.post_layernorm(self.states(pixels)[:, 0])
        return y if self.visual_projection is None else self.visual_projection(y)


def _projection(config: ClipTextConfig | ClipVisionConfig) -> nn.Linear | None:
    return nn.Linear(config.width, config.projection_width, bias=False) if config.projected else None


class Clip(nn.Module):
    """Both towers and their projections into one space; the projections are its own, whatever the configs say."""

    def __init__(self, text: ClipTextConfig, vision: ClipVisionConfig) -> None:
        super().__init__()
        self.text_model = ClipText(replace(text, projected=False))
        self.vision_model = ClipVision(replace(vision, projected=False))
        self.text_projection = nn.Linear(text.width, text.projection_width, bias=False)
        self.visual_projection = nn.Linear(vision.width, vision.projection_width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # section 2.5 of the paper

    def embed_text(self, ids: Tensor) -> Tensor:
        """ids (B, L) -> (B, P) of length 1."""
        return F.normalize(self.text_projection(self.text_model(ids).pooled), dim=-1)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S), normalised -> (B, P) of length 1."""
        return F.normalize(self.visual_projection(self.vision_model(pixels)), dim=-1)


def initialise(clip: Clip) -> None:
    """The paper's initialisation for training from nothing (as in the released code, section 2.4's GPT-2 recipe)."""
    for tower in (clip.text_model, clip.vision_model):
        width, layers = tower.config.width, tower.config.layers
        nn.init.normal_(tower.embeddings.position_embedding.weight, std=0.01)
        for layer in tower.encoder.layers:
            assert isinstance(layer, Layer)
            attention = layer.self_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                nn.init.normal_(projection.weight, std=width**-0.5)
                nn.init.zeros_(projection.bias)
            depth_scale = (2 * layers) ** -0.5
            nn.init.normal_(attention.out_proj.weight, std=width**-0.5 * depth_scale)
            nn.init.zeros_(attention.out_proj.bias)
            nn.init.normal_(layer.mlp.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(layer.mlp.fc2.weight, std=width**-0.5 * depth_scale)
    nn.init.normal_(clip.text_model.embeddings.token_embedding.weight, std=0.02)
    nn.init.normal_(clip.text_projection.weight, std=clip.text_model.config.width**-0.5)
    nn.init.normal_(clip.visual_projection.weight, std=clip.vision_model.config.width**-0.5)
