"""LPIPS, the learned perceptual distance of two pictures (Zhang et al. 2018, eq. 1), on VGG-16.

Parameter names are those of the public weight files (`net.slice1.0.weight`, `lin0.model.1.weight`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NORM_EPS = 1e-10

# VGG-16 (Simonyan & Zisserman 2015, configuration D), cut behind the last activation of each resolution:
# (index in the original list of layers, channels in, channels out).
SLICES: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)


class Scaling(nn.Module):
    """From [-1, 1] to what VGG was trained on."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        # ImageNet's mean and deviation, carried over from [0, 1] to [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        return (x - self.shift) / self.scale


class VGG16Features(nn.Module):
    """The activations of the five resolutions."""

    def __init__(self) -> None:
        super().__init__()
        for number, layers in enumerate(SLICES, start=1):
            block = nn.ModuleDict({str(index): nn.Conv2d(a, b, 3, padding=1) for index, a, b in layers})
            self.add_module(f"slice{number}", block)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> five feature maps, each of half the size of the one before."""
        features: list[Tensor] = []
        for block in self.children():
            if features:
                x = nn.functional.max_pool2d(x, 2)
            for convolution in block.children():
                x = nn.functional.relu(convolution(x))
            features.append(x)
        return features


class LPIPS(nn.Module):
    """Weighted distance of unit-length VGG features, averaged over positions, summed over resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = Scaling()
        self.net = VGG16Features()
        for i, layers in enumerate(SLICES):
            # The original has a dropout first, hence "model.1" in the files.
            head = nn.ModuleDict({"1": nn.Conv2d(layers[-1][2], 1, 1, bias=False)})
            self.add_module(f"lin{i}", nn.ModuleDict({"model": head}))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y (B, 3, H, W) in [-1, 1] -> distances (B, 1, 1, 1), 0 for equal pictures."""
        pairs = zip(self.net(self.scaling_layer(x)), self.net(self.scaling_layer(y)), strict=True)
        total = torch.zeros((), device=x.device)
        for i, (a, b) in enumerate(pairs):
            head = self.get_submodule(f"lin{i}.model.1")
            total = total + head((unit_length(a) - unit_length(b)).square()).mean((2, 3), keepdim=True)
        return total


def unit_length(x: Tensor) -> Tensor:
    """Each position's channel vector (dim 1) scaled to length 1."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + NORM_EPS)
