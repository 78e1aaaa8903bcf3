"""One picture by two members: the first draws what is large, the second details (Podell et al. 2023, sec. 2.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Denoise
from safelight.errors import RequestError
from safelight.presets.preset import AUTOENCODER
from safelight.sending import sent
from safelight.tasks.member import Member

_CLOSE = 1e-2
"""Timesteps that are whole come back from sigmas with an error below this."""


def require_same_latents(first: Member, then: Member) -> None:
    """Whether one can go on with what the other began.

    Raises:
        RequestError: it cannot.
    """
    one, other = first.preset, then.preset

    def space(member: Member) -> object:
        preset = member.preset
        return preset.latent_scale, preset.unet.out_channels, preset.networks.get(AUTOENCODER), preset.schedule

    if space(first) != space(then):
        raise RequestError(
            f"{other.name} cannot go on with what {one.name} began: their latents or noise schedules differ; "
            "give a model of the same family"
        )


def handed_over(first: Member, denoise: Denoise, then: Member, after: Denoise, switch: float) -> Denoise:
    """The first member's answer down to the level where a part `switch` of the timesteps is done, then the second's.

    That is where diffusers cuts, too (`denoising_end` and `denoising_start`).
    """
    steps = first.schedule.steps
    border = steps - switch * steps

    def both(x: Tensor, sigma: Tensor) -> Tensor:
        begins = first.schedule.t(sigma.to("cpu", torch.float64)) >= border - _CLOSE
        if bool(begins.any()) != bool(begins.all()):  # pictures of a batch may step at levels of their own
            return torch.where(sent(begins, x.device).view(-1, 1, 1, 1), denoise(x, sigma), after(x, sigma))
        (then if begins.all() else first).networks.free()  # the one that waits
        return denoise(x, sigma) if begins.all() else after(x, sigma)

    return both
