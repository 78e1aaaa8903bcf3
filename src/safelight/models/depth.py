"""How far away a picture's things are: DPT-hybrid (Ranftl et al. 2021), the MiDaS network inside SD 2 depth.

A ResNet makes features of strides 4, 8 and 16; a vision transformer goes over the last; two of the one and two of
the other are fused from coarse to fine.

Shapes: B batch, H W size in pixels, h w that of the token grid (H/16, W/16), L = 1 + h w tokens with the class token
first, D width, F width of the fusion. Parameter names are those of transformers' `DPTForDepthEstimation`. Two of them
are in every file and compute nothing: the transformer's last norm, and the first residual unit of the first fusion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.errors import RequestError
from safelight.models.depth_backbone import Backbone
from safelight.models.layers import attend

PATCH = 16
"""Pixels per token: the stem's 4, halved by two stages."""
MULTIPLE = 2 * PATCH
"""Sides of a picture are multiples of it: the coarsest features have half the size of the token grid."""
HEAD_WIDTH = 32


@dataclass(frozen=True)
class DepthConfig:
    """The shape of the network. The defaults are dpt-hybrid-midas (122,377,985 parameters)."""

    stem_width: int = 64
    stage_widths: tuple[int, int, int] = (256, 512, 1024)
    stage_blocks: tuple[int, int, int] = (3, 4, 9)
    norm_groups: int = 32
    """Divides the stem's width and a quarter of each stage's."""
    width: int = 768
    """D."""
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    taps: tuple[int, int] = (8, 11)
    """The layers, counted from 0, whose outputs are fused."""
    neck_widths: tuple[int, int] = (768, 768)
    """Channels that these are brought to."""
    fusion_width: int = 256
    """F."""
    image_size: int = 384
    """Side of the pictures that it was trained on, in pixels. Positions are interpolated for others."""
    norm_eps: float = 1e-12
    """Of the layer norms, as the published config has it; the original code's is 1e-6."""


class Embeddings(nn.Module):
    """The last stage's features as tokens, a class token before them, plus position."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.grid = config.image_size // PATCH
        self.backbone = Backbone(config.stem_width, config.stage_widths, config.stage_blocks, config.norm_groups)
        self.projection = nn.Conv2d(config.stage_widths[-1], config.width, 1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.grid**2 + 1, config.width))

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) -> tokens (B, L, D), and the features of the stages before the last."""
        *features, last = self.backbone(pixels)
        grid = self.projection(last)  # (B, D, h, w)
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), grid.flatten(2).transpose(1, 2)], dim=1)
        return tokens + self.positions(grid.shape[-2], grid.shape[-1]), features

    def positions(self, height: int, width: int) -> Tensor:
        """The position embedding of a grid of that size: (1, 1 + height * width, D)."""
        first, rest = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        square = rest.transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        resized = F.interpolate(square, size=(height, width), mode="bilinear", align_corners=False)
        return torch.cat([first, resized.flatten(2).transpose(1, 2)], dim=1)


class Projections(nn.Module):
    """Queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return attend(self.query(x), self.key(x), self.value(x), self.heads)


class Dense(nn.Module):
    """A linear layer, one name deeper than we would have it."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D')."""
        y: Tensor = self.dense(x)
        return y


class Attention(nn.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Projections(width, heads)
        self.output = Dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        y: Tensor = self.output(self.attention(x))
        return y


class Layer(nn.Module):
    """Attention and MLP, each after a norm and around a skip (Dosovitskiy et al. 2021, eqs. 2 and 3)."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.width, config.norm_eps)
        self.attention = Attention(config.width, config.heads)
        self.layernorm_after = nn.LayerNorm(config.width, config.norm_eps)
        self.intermediate = Dense(config.width, config.mlp_width)
        self.output = Dense(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = x + self.attention(self.layernorm_before(x))
        y: Tensor = x + self.output(F.gelu(self.intermediate(self.layernorm_after(x))))
        return y


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.taps = config.taps
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, L, D) -> the outputs of the tapped layers, each (B, L, D)."""
        tapped = []
        for i, layer in enumerate(self.layer):
            x = layer(x)
            if i in self.taps:
                tapped.append(x)
        return tapped


class Transformer(nn.Module):
    """Pixels to four sets of features, two of which are still tokens."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.width, config.norm_eps)  # in the files; the taps are before it

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(B, 3, H, W) -> features (B, C, H/4, W/4) and (B, C, H/8, W/8); tokens (B, L, D), twice."""
        tokens, features = self.embeddings(pixels)
        return features, self.encoder(tokens)


class ToFeatures(nn.Module):
    """Tokens, already laid out as a picture, to the channels and the size at which they are fused."""

    def __init__(self, width: int, channels: int, *, halves: bool) -> None:
        super().__init__()
        self.projection = nn.Conv2d(width, channels, 1)
        self.resize = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if halves else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, C, h, w), or half of that size."""
        y: Tensor = self.resize(self.projection(x))
        return y


class Reassemble(nn.Module):
    """Tokens to features (sec. 3.1 of the paper): the class token is told to every other ("project").

    The lists have four places each, and the first two are empty: what the ResNet gives are features already.
    """

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.readout_projects = nn.ModuleList([nn.Identity(), nn.Identity()])
        for i, channels in enumerate(config.neck_widths):
            self.layers.append(ToFeatures(config.width, channels, halves=i == 1))
            self.readout_projects.append(nn.Sequential(nn.Linear(2 * config.width, config.width), nn.GELU()))

    def forward(self, tokens: list[Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """(B, L, D) twice -> (B, C, h, w) and (B, C, h/2, w/2)."""
        features = []
        for place, x in enumerate(tokens, start=2):
            told = torch.cat([x[:, 1:], x[:, :1].expand(-1, x.shape[1] - 1, -1)], dim=-1)  # (B, h w, 2 D)
            square = self.readout_projects[place](told).transpose(1, 2).unflatten(2, grid)  # (B, D, h, w)
            features.append(self.layers[place](square))
        return features


class ResidualUnit(nn.Module):
    """ReLU and convolution, twice, around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(width, width, 3, padding=1)
        self.convolution2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W) -> (B, F, H, W)."""
        y: Tensor = x + self.convolution2(F.relu(self.convolution1(F.relu(x))))
        return y


class Fusion(nn.Module):
    """Adds the next finer features to what came from the coarser ones, and doubles the size (RefineNet's block)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(width, width, 1)
        self.residual_layer1 = ResidualUnit(width)
        self.residual_layer2 = ResidualUnit(width)

    def forward(self, x: Tensor, finer: Tensor | None) -> Tensor:
        """x and finer (B, F, H, W) -> (B, F, 2H, 2W). `finer` is None for the coarsest features."""
        if finer is not None:
            x = x + self.residual_layer1(finer)
        x = F.interpolate(self.residual_layer2(x), scale_factor=2.0, mode="bilinear", align_corners=True)
        y: Tensor = self.projection(x)
        return y


class FusionStage(nn.Module):
    """The four fusions, the coarsest first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Fusion(width) for _ in range(4))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Four of (B, F, ...), the finest first, at strides 4, 8, 16 and 32 -> (B, F, H/2, W/2)."""
        coarsest, *finer = reversed(features)
        x: Tensor = self.layers[0](coarsest, None)
        for layer, feature in zip(self.layers[1:], finer, strict=True):
            x = layer(x, feature)
        return x


class Neck(nn.Module):
    """All features to one width, then fused."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        widths = (*config.stage_widths[:2], *config.neck_widths)
        self.reassemble_stage = Reassemble(config)
        self.convs = nn.ModuleList(nn.Conv2d(c, config.fusion_width, 3, padding=1, bias=False) for c in widths)
        self.fusion_stage = FusionStage(config.fusion_width)

    def forward(self, features: list[Tensor], tokens: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """What `Transformer` gives -> (B, F, H/2, W/2)."""
        features = [*features, *self.reassemble_stage(tokens, grid)]
        y: Tensor = self.fusion_stage([conv(x) for conv, x in zip(self.convs, features, strict=True)])
        return y


class Head(nn.Module):
    """Features to one number per pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(width // 2, HEAD_WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(HEAD_WIDTH, 1, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H/2, W/2) -> (B, 1, H, W), 0 or more."""
        y: Tensor = self.head(x)
        return y


class Depth(nn.Module):
    """A picture's inverse depth: large is near, 0 is as far as can be; unit and zero are the picture's own."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.config = config
        self.dpt = Transformer(config)
        self.neck = Neck(config)
        self.head = Head(config.fusion_width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> inverse depth (B, 1, H, W), 0 or more: thousands, with the real weights.

        Raises:
            RequestError: a side is no multiple of 32.
        """
        height, width = pixels.shape[-2:]
        if height % MULTIPLE or width % MULTIPLE:
            raise RequestError(f"depth of {width} x {height} pixels: resize to multiples of {MULTIPLE} first")
        features, tokens = self.dpt(pixels)
        y: Tensor = self.head(self.neck(features, tokens, (height // PATCH, width // PATCH)))
        return y
