"""The convolutional half of the depth network: three stages of a ResNet with standardised weights ("BiT").

Shapes: B batch, C channels, H W height and width. Parameter names are those of transformers' `BitBackbone`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

WEIGHT_EPS = 1e-8  # of the standardised weights
NORM_EPS = 1e-5
NARROWING = 4  # a bottleneck's inside has 1 / 4 of its channels


def padded_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around x (B, C, H, W), so that a window gives ceil(H / stride) rows; an odd one goes right and below.

    TensorFlow's rule, in which these weights were trained: a strided window is not centred as torch would centre it.
    """
    missing = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]]
    above, left = (count // 2 for count in missing)
    return F.pad(x, (left, missing[1] - left, above, missing[0] - above))


class StandardisedConv(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1 when they are used (Qiao et al. 2019, eq. 4)."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        filters = self.weight.float()  # the eps is below what half precision can tell from 0
        variance = filters.var((1, 2, 3), correction=0, keepdim=True)
        filters = (filters - filters.mean((1, 2, 3), keepdim=True)) * (variance + WEIGHT_EPS).rsqrt()
        kernel, stride = self.kernel_size[0], self.stride[0]
        return F.conv2d(padded_same(x, kernel, stride), filters.to(x.dtype), stride=stride)


class Stem(nn.Module):
    """To a quarter of the size: a wide convolution and the largest of every 3 x 3."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.convolution = StandardisedConv(3, width, 7, stride=2)
        self.norm = nn.GroupNorm(groups, width, NORM_EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H/4, W/4)."""
        x = F.relu(self.norm(self.convolution(pixels)))
        return F.max_pool2d(padded_same(x, 3, 2), 3, stride=2)  # nothing is below the padding's zeros


class Downsample(nn.Module):
    """The way around a block that changes the shape."""

    def __init__(self, channels_in: int, channels_out: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv = StandardisedConv(channels_in, channels_out, 1, stride)
        self.norm = nn.GroupNorm(groups, channels_out, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        y: Tensor = self.norm(self.conv(x))
        return y


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a skip (He et al. 2015, fig. 5, right); the 3x3 one makes the stride."""

    def __init__(self, channels_in: int, channels_out: int, groups: int, stride: int, *, first: bool) -> None:
        super().__init__()
        inside = channels_out // NARROWING
        self.downsample = Downsample(channels_in, channels_out, groups, stride) if first else None
        self.conv1 = StandardisedConv(channels_in, inside, 1)
        self.norm1 = nn.GroupNorm(groups, inside, NORM_EPS)
        self.conv2 = StandardisedConv(inside, inside, 3, stride)
        self.norm2 = nn.GroupNorm(groups, inside, NORM_EPS)
        self.conv3 = StandardisedConv(inside, channels_out, 1)
        self.norm3 = nn.GroupNorm(groups, channels_out, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        skip = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(self.norm3(self.conv3(x)) + skip)


class Stage(nn.Module):
    """Bottlenecks of one width; the first changes the shape."""

    def __init__(self, channels_in: int, channels_out: int, groups: int, stride: int, blocks: int) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for i in range(blocks):
            first = i == 0
            entering = channels_in if first else channels_out
            self.layers.append(Bottleneck(entering, channels_out, groups, stride if first else 1, first=first))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        y: Tensor = self.layers(x)
        return y


class Stages(nn.Module):
    """The first stage keeps the size, each further one halves it."""

    def __init__(self, stem_width: int, widths: tuple[int, ...], blocks: tuple[int, ...], groups: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        entering = stem_width
        for i, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
            self.stages.append(Stage(entering, width, groups, 1 if i == 0 else 2, depth))
            entering = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """The stem's (B, C, H, W) -> the output of every stage."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class ResNet(nn.Module):
    """Stem and stages."""

    def __init__(self, stem_width: int, widths: tuple[int, ...], blocks: tuple[int, ...], groups: int) -> None:
        super().__init__()
        self.embedder = Stem(stem_width, groups)
        self.encoder = Stages(stem_width, widths, blocks, groups)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> per stage (B, C, H/4, W/4), then H/8, H/16"""
        features: list[Tensor] = self.encoder(self.embedder(pixels))
        return features


class Backbone(nn.Module):
    """The network one name deeper, as the files have it."""

    def __init__(self, stem_width: int, widths: tuple[int, ...], blocks: tuple[int, ...], groups: int) -> None:
        super().__init__()
        self.bit = ResNet(stem_width, widths, blocks, groups)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> per stage (B, C, H/4, W/4), then H/8, H/16."""
        features: list[Tensor] = self.bit(pixels)
        return features
