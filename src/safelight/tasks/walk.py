"""The one way from a request to steps: tell the networks, choose the sigmas, let a sampler walk the denoiser.

What differs between tasks is where the walk starts, and what the networks are told (`told`).
Shapes: B batch, C latent channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from safelight.diffusion.denoiser import Denoise
from safelight.diffusion.guidance import keep_known
from safelight.diffusion.noise import Noise, NoiseSource, Sent
from safelight.diffusion.samplers import SampleFunction, Step, bind, finish, start
from safelight.presets.conditions import HiddenPicture
from safelight.presets.preset import AUTOENCODER, UNET
from safelight.tasks import inputs
from safelight.tasks.canvas import Canvas
from safelight.tasks.drawn import drawn_on
from safelight.tasks.handover import handed_over
from safelight.tasks.member import Member
from safelight.tasks.pictures import require_finite, to_pixels
from safelight.tasks.precision import looked_at_later
from safelight.tasks.prompts.wording import Wording
from safelight.tasks.request import Request
from safelight.tasks.requests import DepthToImage, ImageToImage, Inpaint, Prompted
from safelight.tasks.resolve import needed, noise_levels, sampler_options
from safelight.tasks.steering import steered, unsteered
from safelight.tasks.told import Clock
from safelight.tasks.wearing import NAKED, Outfit


@dataclass(frozen=True)
class Walk:
    """All that the steps of a request need."""

    sampler: SampleFunction
    levels: Tensor
    """(n + 1,) sigmas."""
    x: Tensor
    """(B, C, h, w) where it starts."""
    denoise: Denoise
    noise: NoiseSource
    canvas: Canvas | None
    """What inpainting draws on."""
    clock: Clock
    again: Callable[[], Walk]
    """The same walk from its beginning."""
    ending: Callable[[], None]
    """Called before the last step."""

    def steps(self) -> Iterator[Step]:
        """The sampler's steps.

        To see whether numbers are finite is to wait for the device that has them. Where that is not the CPU it is done
        at the end; if some are not, those steps are made again, each looked at, and yielded again.

        Raises:
            RequestError: a step is not finite.
        """
        if not far(self.x.device):
            yield from self._made(None)
            return
        finite: list[Tensor] = []
        yield from self._made(finite)
        good = torch.stack(finite).tolist()
        if not all(good):
            yield from islice(self.again()._made(None), good.index(False), None)

    def _made(self, finite: list[Tensor] | None) -> Iterator[Step]:
        """The steps, each looked at before it is yielded; or `finite` is given a () bool for each."""
        with torch.inference_mode():
            walk = self.sampler(self.denoise, self.x, self.levels, self.noise)
        sigma, last = float(self.levels[0]), float(self.levels[-2])
        while True:
            if sigma <= last:
                self.ending()
            with torch.inference_mode():  # not around the yield: what the reader does is the reader's affair
                step = next(walk, None) if finite is None else _put_down(walk, finite)
                if step is None:
                    return
                if finite is None:
                    require_finite(step.x, f"step {step.index + 1}")
                self.clock.step, sigma = step.index + 2, step.sigma_next
            yield step

    def end(self, x: Tensor) -> Tensor:
        """The latent to decode, of the x after the last step."""
        return finish(x, self.levels)


def far(device: torch.device) -> bool:
    """Whether the CPU gives a device its work and goes on."""
    return device.type != "cpu"


def _put_down(walk: Iterator[Step], finite: list[Tensor]) -> Step | None:
    """The next step, and whether it and all answers that it is made of are finite."""
    answers: list[Tensor] = []
    with looked_at_later(answers):
        step = next(walk, None)
    if step is not None:
        finite.append(torch.stack([*answers, torch.isfinite(step.x).all()]).all())
    return step


@torch.inference_mode()
def prepare(
    member: Member,
    request: Request,
    wordings: Sequence[Wording],
    refiner: Member | None = None,
    guide: Member | None = None,
    worn: Outfit = NAKED,
) -> Walk:
    """Everything up to the first step: pictures are encoded, conditions are told, noise is drawn.

    Networks that are needed no more are let go.

    Args:
        request: resolved.
        wordings: what is said to each picture of the batch, or one for all.
        refiner: who takes over at the request's `switch`.
        guide: a weaker member that the request's `autoguidance` leads away from.
        worn: adapters that the member has on (`Outfit.on`); here their words are taught.

    Raises:
        RequestError: the request lacks what the member must be told, or a picture cannot be read.
    """
    levels = noise_levels(request, member.schedule)
    canvas = drawn_on(request) if isinstance(request, Inpaint) else None
    noise = _noise(member, request)
    x, known = _first(member, request, noise().to(member.device), levels, canvas)
    clock = Clock()
    for part in (*(words.part for words in member.preset.words), UNET):  # in the order in which they are asked
        member.networks.expect(part)

    def told(other: Member, asked: Request) -> Denoise:
        again = _noise(member, request)
        again()  # that which the walk starts from: conditions under noise meet the same as the member's
        denoise = steered(other, asked, again, wordings, canvas, levels, clock)
        other.networks.free(but=(UNET,))
        return denoise

    weaker = None if guide is None else told(guide, unsteered(request))
    denoise = steered(member, request, noise, wordings, canvas, levels, clock, weaker, worn.taught(member))
    member.networks.free(but=(UNET,))
    if refiner is not None and isinstance(request, Prompted):
        denoise = handed_over(member, denoise, refiner, told(refiner, request), needed(request.switch))
    if known is not None:
        denoise = keep_known(denoise, *known)
    sampler = bind(needed(request.sampler), sampler_options(request), member.schedule)
    ending = partial(member.networks.expect, AUTOENCODER)
    again = partial(prepare, member, request, wordings, refiner, guide, worn)
    return Walk(sampler, levels, x, denoise, Sent(noise, member.device), canvas, clock, again, ending)


def _noise(member: Member, request: Request) -> Noise:
    shape = member.latent_shape(needed(request.width), needed(request.height))
    return Noise([needed(request.seed) + k for k in range(request.batch)], shape)


def _first(
    member: Member, request: Request, noise: Tensor, levels: Tensor, canvas: Canvas | None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Where the walk starts (B, C, h, w), at noise, or at a picture under noise (Meng et al. 2022); and what of
    the latent is known, (1, C, h, w), with a mask (1, 1, h, w) that is 1 there.
    """
    if not isinstance(request, ImageToImage):
        return start(noise, levels), None
    picture = _fitted(request) if canvas is None else canvas.picture()
    latent = member.to_latent(to_pixels(picture))
    forgets = request.strength == 1.0 and isinstance(request, Inpaint | DepthToImage)
    x = start(noise, levels) if forgets else latent + noise * float(levels[0])
    if canvas is None or any(isinstance(c, HiddenPicture) for c in member.preset.conditions):
        return x, None
    hole = inputs.numbers(canvas.hole()).to(latent.device) / 255
    return x, (latent, 1 - F.adaptive_max_pool2d(hole, latent.shape[-2:]))


def _fitted(request: ImageToImage) -> Image.Image:
    """The picture started from, cut and scaled to the size that is drawn."""
    size = (needed(request.width), needed(request.height))
    return ImageOps.fit(inputs.picture(request, "image"), size, Image.Resampling.LANCZOS)
