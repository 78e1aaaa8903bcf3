"""How near one picture is to another."""

from __future__ import annotations

import torch
from PIL import Image

from safelight.tasks.pictures import to_pixels


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio in decibels of two RGB pictures of one size; infinite where they are equal.

    10 log10(peak^2 / mean squared error) over all pixels and channels.
    """
    difference = to_pixels(one).double() - to_pixels(other).double()
    return float(-10 * torch.log10(difference.square().mean() / 4))  # -1 to 1: the peak is 2
