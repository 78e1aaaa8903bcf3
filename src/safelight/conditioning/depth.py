"""A picture's depth to the concat door of SD 2 depth, by the MiDaS network or from a map that the user has.

Shapes: B batch, H W size in pixels, h w that of the latent. Depth is inverse depth throughout: large is near.
What is resized, how, and in which order follows the original code (`AddMiDaS`, `LatentDepth2ImageDiffusion`). The
diffusers pipeline squeezes every picture into a square instead; of a square one both make the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.doors import Conditioning
from safelight.models.depth import MULTIPLE, Depth

SLACK = 0.001
"""The original's, added to the span of the network's depths, which are thousands."""

FLAT = 1e-6
"""Relative span below which a depth is one value and the rounding of its resizing."""


def picture_depth_door(network: Depth, pixels: Tensor, size: tuple[int, int]) -> Conditioning:
    """The door for pictures.

    Args:
        pixels: (B, 3, H, W) in [-1, 1], of any size: the network is shown them in its own.
        size: (h, w).

    Returns:
        `concat` (B, 1, h, w) float32 in [-1, 1], on the network's device.
    """
    return Conditioning(concat=on_latent(estimate(network, pixels), size, slack=SLACK))


def map_depth_door(depth: Tensor, size: tuple[int, int]) -> Conditioning:
    """The door for depth maps of the user's: grey pictures, near things bright.

    Args:
        depth: (B, 1, H, W), of any size and range, whole numbers too: its zero and its unit do not count.
        size: (h, w).

    Returns:
        `concat` (B, 1, h, w) float32 in [-1, 1], on the map's device.
    """
    return Conditioning(concat=on_latent(depth, size, slack=0.0))


@torch.no_grad()
def estimate(network: Depth, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> inverse depth (B, 1, H', W') float32, of the size that the network saw."""
    shown = for_network(pixels.float(), network.config.image_size)
    depth: Tensor = network(shown.to(next(network.parameters())))
    return depth.float()


def for_network(pixels: Tensor, side: int) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> (B, 3, H', W') of `network_size`, with the mean and deviation that it wants.

    Bicubic without antialiasing, as OpenCV has it. A mean and a deviation of 0.5 in [0, 1] are [-1, 1] as it is.
    """
    size = network_size(pixels.shape[-2], pixels.shape[-1], side)
    return F.interpolate(pixels, size=size, mode="bicubic", align_corners=False)


def network_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The size in which a picture is shown to the network: multiples of 32 pixels, of about the same proportions.

    Of the two scales that would make a side `side` long, the one nearer to 1 is taken (MiDaS's "minimal").
    """
    scale = min(side / height, side / width, key=lambda scale: abs(1 - scale))
    rows, columns = (max(round(scale * length / MULTIPLE), 1) * MULTIPLE for length in (height, width))
    return rows, columns


def on_latent(depth: Tensor, size: tuple[int, int], *, slack: float) -> Tensor:
    """Inverse depth (B, 1, H, W) -> (B, 1, h, w) float32: resized bicubically, then each stretched over [-1, 1].

    2 (d - min) / (max - min + slack) - 1. A picture whose depth is the same everywhere is -1 everywhere.
    """
    resized = F.interpolate(depth.float(), size=size, mode="bicubic", align_corners=False)
    low, high = resized.amin((1, 2, 3), keepdim=True), resized.amax((1, 2, 3), keepdim=True)
    flat = high - low <= FLAT * torch.maximum(low.abs(), high.abs())
    span = (high - low + slack).masked_fill(flat, 1.0)
    return (2 * (resized - low) / span - 1).masked_fill(flat, -1.0)
