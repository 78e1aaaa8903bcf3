"""Pictures to the doors: what CLIP sees in them, and what of them is hidden.

Pixels are (B, 3, H, W) in [-1, 1] throughout, masks (B, 1, H, W) with 1 where the picture is to be made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.doors import Conditioning
from safelight.models.clip import PIXEL_MEAN, PIXEL_STD, ClipVision


def clip_pixels(pixels: Tensor, size: int, *, antialias: bool = True) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> (B, 3, S, S) as an image tower wants them.

    Bicubic with the corners in place, after a Gaussian blur where it shrinks: what the conditions of unCLIP were made
    with in training. It squeezes; pictures that are not square are cropped before, if at all.

    Args:
        size: S, `ClipVisionConfig.image_size`.
        antialias: blur before shrinking (without: retrieval-augmented diffusion).
    """
    if antialias:
        pixels = _blurred(pixels, size)
    fitted = F.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=True)
    mean, std = (fitted.new_tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return ((fitted + 1) / 2 - mean) / std


def _blurred(pixels: Tensor, size: int) -> Tensor:
    """A Gaussian per axis, of deviation (factor - 1) / 2 and reaching twice that far. Where both axes grow: nothing."""
    factors = [side / size for side in pixels.shape[-2:]]
    if max(factors) <= 1:
        return pixels
    for axis, factor in zip((2, 3), factors, strict=True):
        sigma = max((factor - 1) / 2, 0.001)
        reach = max(int(4 * sigma), 3) // 2
        steps = torch.arange(-reach, reach + 1, dtype=pixels.dtype, device=pixels.device)
        kernel = torch.exp(-(steps**2) / (2 * sigma**2))
        shape = [1, 1, 1, 1]
        shape[axis] = len(kernel)
        weight = (kernel / kernel.sum()).reshape(shape).expand(pixels.shape[1], 1, *shape[2:])
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        pixels = F.conv2d(F.pad(pixels, padding, mode="reflect"), weight, groups=pixels.shape[1])
    return pixels


def embed_pictures(tower: ClipVision, pixels: Tensor, *, antialias: bool = True) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> CLIP's embeddings (B, P), of whatever length they have.

    `tower` has its projection. In the tower's dtype.
    """
    weight = tower.embeddings.patch_embedding.weight
    prepared = clip_pixels(pixels.float(), tower.config.image_size, antialias=antialias)
    embedding: Tensor = tower(prepared.to(weight))
    return embedding


@dataclass(frozen=True)
class Hiding:
    """How a model that paints anew was shown what is hidden."""

    hole: float = 0.0
    """The pixels under the mask, in [-1, 1]: grey."""
    kept: float = 0.0
    """What its mask says of pixels that stay; of the others, 1."""
    mask_first: bool = True
    """Whether the mask comes before the picture's latent, or after it."""


HIDINGS: Mapping[Literal["stable", "latent"], Hiding] = {
    "stable": Hiding(),
    "latent": Hiding(hole=-1.0, kept=-1.0, mask_first=False),
}
"""Stable Diffusion 1.5's and 2's way, and latent diffusion's with its black holes (Rombach et al. 2022, sec. 4.5)."""


def hide(pixels: Tensor, mask: Tensor, hiding: Hiding) -> Tensor:
    """The picture (B, 3, H, W) with a hole where the mask is 0.5 and more: to be encoded for `inpainting_door`."""
    return torch.where(mask < 0.5, pixels, hiding.hole)


def inpainting_door(mask: Tensor, hidden: Tensor, hiding: Hiding) -> Conditioning:
    """A mask (B, 1, H, W) and the hidden picture's latent (B, C, h, w), scaled -> `concat` (B, 1 + C, h, w)."""
    hard = torch.where(mask < 0.5, hiding.kept, 1.0).to(hidden)
    small = F.interpolate(hard, size=hidden.shape[-2:], mode="nearest")
    return Conditioning(concat=torch.cat([small, hidden] if hiding.mask_first else [hidden, small], dim=1))
