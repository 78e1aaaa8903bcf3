"""A member's network told of a request, under all the guidance that it asks for, as one `Denoise`."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from safelight.adapters.embeddings import Taught
from safelight.diffusion.denoiser import Denoise, Denoiser
from safelight.diffusion.guidance import (
    Beside,
    Guidance,
    Projection,
    Said,
    SelfAttention,
    Window,
    guided,
    interval_of_steps,
    multi_diffusion,
    within,
)
from safelight.diffusion.noise import Noise
from safelight.diffusion.reusing import place_among
from safelight.doors import Conditioning
from safelight.errors import RequestError
from safelight.models.attention_maps import MIDDLE, attention_received, chosen_attentions, identity_attention
from safelight.models.freeu import FreeU, freeu
from safelight.models.merging import mergeable_level, merged_tokens
from safelight.presets.preset import UNET
from safelight.tasks.canvas import Canvas
from safelight.tasks.fields import GuidanceFields
from safelight.tasks.member import Member
from safelight.tasks.prompts.wording import Wording
from safelight.tasks.request import Request
from safelight.tasks.resolve import needed, steps_of
from safelight.tasks.told import Clock, Teller, Told


def steered(
    member: Member,
    request: Request,
    noise: Noise,
    wordings: Sequence[Wording],
    canvas: Canvas | None,
    levels: Tensor,
    clock: Clock,
    weaker: Denoise | None = None,
    taught: Mapping[str, Taught] | None = None,
) -> Denoise:
    """The network told of what a resolved request says, under its guidance.

    Args:
        levels: (n + 1,) the sampler's sigmas.
        clock: read at every call: prompts may change from step to step.
        weaker: another's answer, which the request's `autoguidance` leads away from.
        taught: words that its text towers know beyond their own, by part.

    Raises:
        RequestError: the request lacks what the member must be told, or asks for guidance that does not go together.
    """
    hidden = None if canvas is None else (canvas.picture(), canvas.hole())
    teller = Teller(
        preset=member.preset,
        networks=member.networks,
        tokenizers=member.tokenizers,
        encode=member.to_latent,
        request=request,
        noise=noise,
        wordings=wordings,
        steps=steps_of(request, levels),
        clock=clock,
        canvas=hidden,
        taught={} if taught is None else taught,
    )
    told = teller.tell(member.device, member.dtype)
    member.networks.will_call(UNET, len(levels) - 1)
    try:
        if request.window is None:
            return _guided(member, request, told, levels, weaker)
        if weaker is not None:
            raise RequestError("autoguidance does not go by windows: leave out --window or --autoguidance")
        return _by_windows(member, request, told, levels)
    except ValueError as error:
        raise RequestError(f"this guidance cannot be: {error}") from error


def unsteered(request: Request) -> Request:
    """The same request without guidance."""
    off: dict[str, object] = {name: field.default for name, field in GuidanceFields.model_fields.items()}
    return request.changed(**off, guidance=1.0)


def _guided(member: Member, request: Request, told: Told, levels: Tensor, weaker: Denoise | None = None) -> Denoise:
    """The denoiser told of both sides, under the guidance that the request asks for."""
    beside = [] if weaker is None else [Beside(weaker, needed(request.autoguidance))]
    if request.pag is not None:
        layers = MIDDLE if request.pag_layers is None else request.pag_layers
        chosen_attentions(member.unet, layers)  # what there is not is said before the first step
        alone = guided(_denoiser(member, request, levels), told.branches, told.uncond)
        beside.append(Beside(within(lambda: identity_attention(member.unet, layers), alone), request.pag))
    attention = None
    if request.sag is not None:
        attention = SelfAttention(lambda: attention_received(member.unet), request.sag)
    denoise = guided(
        _denoiser(member, request, levels),
        told.branches,
        told.uncond,
        _guidance(member, request, levels),
        empty=told.empty,
        levels=levels,
        beside=beside,
        attention=attention,
    )
    if request.freeu is not None:
        settings = FreeU(*request.freeu)
        denoise = within(lambda: freeu(member.unet, settings), denoise)
    return _merging(member, request, levels, denoise)


def _denoiser(member: Member, request: Request, levels: Tensor) -> Denoiser[Conditioning]:
    """The member's, with a memory of its own if the deep part of the network is not asked at every step."""
    if request.deep_every is None or request.deep_every == 1:
        return member.denoiser()
    below, joins = 1 if request.deep_below is None else request.deep_below, member.preset.unet.joins
    if below > joins:
        raise RequestError(f"deep_below cannot be {below}: the network of {member.preset.name} has {joins} joins")
    return member.reusing(levels, request.deep_every, below)


def _merging(member: Member, request: Request, levels: Tensor, denoise: Denoise) -> Denoise:
    """The same, whose finest attentions see positions merged: into which is chosen by seed and noise level alone."""
    ratio = request.merge_tokens
    if ratio is None or ratio == 0:
        return denoise
    if mergeable_level(member.preset.unet) is None:
        raise RequestError(f"{member.preset.name} has no transformers that could merge tokens: leave out merge_tokens")
    first, batch, place = needed(request.seed), request.batch, place_among(levels)

    def merging(x: Tensor, sigma: Tensor) -> Tensor:
        sigmas = sigma.tolist() if sigma.ndim else [float(sigma)] * batch
        seeds = [_chance(first + k, place(level)) for k, level in enumerate(sigmas)]
        with merged_tokens(member.unet, ratio, seeds):
            return denoise(x, sigma)

    return merging


def _chance(seed: int, step: int) -> int:
    """A number below 2**64 for a picture at one of its steps."""
    return int.from_bytes(hashlib.blake2b(struct.pack("<QQ", seed, step), digest_size=8).digest(), "little")


def _guidance(member: Member, request: Request, levels: Tensor) -> Guidance:
    """What is done with the answers to the two sides."""
    apg = None
    if request.apg is not None:
        eta, norm, momentum = request.apg
        apg = Projection(eta, None if norm == 0.0 else norm, momentum)
    between = request.guidance_interval
    return Guidance(
        scale=needed(request.guidance),
        batched=not request.one_by_one,
        cfg_pp=request.cfg_pp,
        interval=None if between is None else interval_of_steps(levels, *between),
        perp_neg=request.perp_neg,
        apg=apg,
        rescale=0.0 if request.guidance_rescale is None else request.guidance_rescale,
        threshold=request.threshold,
        threshold_reach=1.0 if member.preset.autoencoder is None else None,
    )


def _by_windows(member: Member, request: Request, told: Told, levels: Tensor) -> Denoise:
    """Overlapping parts of the latent, each as large as the network likes."""
    factor = member.preset.factor
    size = needed(request.height) // factor, needed(request.width) // factor
    side = needed(request.window) // factor
    if side == 0 or side * factor != request.window:
        raise RequestError(f"window {request.window} is not a multiple of {factor}, the autoencoder's factor")
    window = min(side, size[0]), min(side, size[1])
    stride = tuple(max(length // 2, 1) for length in window)
    return multi_diffusion(
        lambda part: _guided(member, request, _cut(told, part), levels), size, window, (stride[0], stride[1])
    )


def _cut(told: Told, part: Window) -> Told:
    """What is told of a part of the picture: what is stacked under the latent, and where prompts act, is cut to it."""

    def cut(cond: Conditioning) -> Conditioning:
        return cond if cond.concat is None else replace(cond, concat=part.cut(cond.concat))

    def said(say: Said[Conditioning]) -> Said[Conditioning]:
        return partial(_same, say, cut, {})

    branches = (
        replace(branch, say=said(branch.say), mask=None if branch.mask is None else part.cut(branch.mask))
        for branch in told.branches
    )
    return Told(
        tuple(branches),
        None if told.uncond is None else said(told.uncond),
        None if told.empty is None else said(told.empty),
    )


def _same(
    say: Said[Conditioning],
    change: Callable[[Conditioning], Conditioning],
    known: dict[int, tuple[Conditioning, Conditioning]],
) -> Conditioning:
    """What is said, changed: the very same object while nothing changes."""
    cond = say()
    if id(cond) not in known:
        known[id(cond)] = cond, change(cond)  # kept beside it, so that nothing else takes its number
    return known[id(cond)][1]
