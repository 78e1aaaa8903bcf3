"""Pictures of latents that are not finished, for a small part of what the autoencoder takes.

Two kinds: a small decoder that was trained for these latents (`models/preview_decoder.py`), and for those that have
none three planes, red, green and blue, fitted here to the model's own encoder.

Shapes: B batch, C latent channels, h w latent size, H W picture size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.preview_decoder import PreviewDecoder
from safelight.presets.preset import UNET
from safelight.tasks.member import Member

Previewing = Callable[[Tensor], Tensor]
"""Scaled latents (B, C, h, w), float32 -> pixels (B, 3, H, W), about in [-1, 1]."""

_SIDE = 32
"""Positions on a side of the latent that the planes are fitted to."""
_GRAINS = (2, 4, 8, 16)
"""Colours on a side of the pictures that make it."""
_RIDGE = 1e-4


class Previews:
    """What a member shows by: the small decoder, if it has one for its latents, else colours alone, fitted once."""

    def __init__(self, member: Member, decoder: PreviewDecoder | None) -> None:
        self._member, self.decoder = member, decoder

    @cached_property
    def show(self) -> Previewing:
        """Made when it is first asked for. What has no latents is shown as it is."""
        if self._member.preset.autoencoder is None:
            return self._member.to_pixels
        return fitted(self._member) if self.decoder is None else decoded_by(self.decoder.to(self._member.device))


def decoded_by(decoder: PreviewDecoder) -> Previewing:
    """What a small decoder makes of latents on its device, channel behind channel, which is how it is quickest."""

    def preview(latent: Tensor) -> Tensor:
        pixels: Tensor = decoder(latent.contiguous(memory_format=torch.channels_last))
        return pixels

    return preview


@torch.inference_mode()
def fitted(member: Member) -> Previewing:
    """The three planes (C + 1 numbers each) that are nearest to what the member's encoder makes of coloured surfaces.

    Least squares over the positions of a picture of smooth colours, fine and coarse: what a position's latent says of
    the mean colour of its pixels. The encoder is asked once, about a picture of 32 by 32 positions.
    """
    factor = member.preset.factor
    pixels = _surfaces(_SIDE * factor)
    latent = member.to_latent(pixels).float().cpu()
    member.networks.free(but=(UNET,))
    colours = F.avg_pool2d(pixels, factor).flatten(2)[0].T.double()  # (n, 3)
    told = _with_one(latent).flatten(2)[0].T.double()  # (n, C + 1)
    weights = torch.linalg.solve(told.T @ told + _RIDGE * torch.eye(told.shape[1]), told.T @ colours).T.float()

    def preview(latent: Tensor) -> Tensor:
        planes = torch.einsum("kc, bchw -> bkhw", weights.to(latent.device), _with_one(latent))
        return F.interpolate(planes, scale_factor=factor, mode="bilinear")

    return preview


def _with_one(latent: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C + 1, h, w): the last is one everywhere."""
    return torch.cat([latent, torch.ones_like(latent[:, :1])], dim=1)


def _surfaces(side: int) -> Tensor:
    """A picture (1, 3, side, side) in [-1, 1], the same every time: all colours, in patches of all sizes."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(1, 3, side, side)
    for grain in _GRAINS:
        colours = torch.rand(1, 3, grain, grain, generator=generator) * 2 - 1
        total += F.interpolate(colours, size=(side, side), mode="bilinear" if grain > 2 else "nearest")
    return total.clamp(-1, 1)
