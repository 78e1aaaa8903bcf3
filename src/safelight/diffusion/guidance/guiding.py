"""From what is asked for to a `Denoise`: branches, guidance and what perturbs the network, put together once.

Shapes: B batch, C latent channels, h w latent size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple

import torch
from torch import Tensor

from safelight.diffusion.denoiser import Denoise, Denoiser
from safelight.diffusion.guidance.asking import Asking, S, Said, always
from safelight.diffusion.guidance.branches import Branch, Joining
from safelight.diffusion.guidance.formulas import (
    Projecting,
    Projection,
    from_negative,
    plus_plus,
    rescaled_x0,
    thresholded,
    thresholded_like,
)
from safelight.diffusion.guidance.self_attention import SelfAttention
from safelight.sending import sent


@dataclass(frozen=True)
class Guidance:
    """How answers to a condition are strengthened. Nothing is, by default; each field alone says what it does."""

    scale: float = 1.0
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): u + scale (c - u). 1 is none, and asks nothing but c."""
    batched: bool = True
    """Whether the network sees all conditions as one batch, or one after the other, which needs less memory."""
    cfg_pp: bool = False
    """CFG++: the scale is the paper's lambda, 0 to 1, and becomes one for each step (`plus_plus`). Needs levels."""
    interval: tuple[float, float] | None = None
    """Guidance acts where low < sigma <= high (Kynkaanniemi et al. 2024); elsewhere only c is asked and answered.
    `interval_of_steps` gives the one of some of the steps."""
    perp_neg: float | None = None
    """Only what is perpendicular to the condition is avoided, so much of it (`from_negative`). Needs `empty`."""
    apg: Projection | None = None
    """Adaptive projected guidance: what guidance adds is shortened, projected and given a momentum."""
    rescale: float = 0.0
    """From 0 to 1, how much of the contrast that guidance adds is taken back (`rescaled`)."""
    threshold: float | None = None
    """Dynamic thresholding, in and outside the interval: the percentile in (0, 1], as 0.995, where x0 is clipped."""
    threshold_reach: float | None = None
    """How far values may reach unclipped: 1 for pixels (Imagen). None: as far as those of c (latents)."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"the guidance scale must be a finite number, not {self.scale}")
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1]:
            raise ValueError(f"a guidance interval goes from a lower sigma to a higher one, not {self.interval}")
        if self.perp_neg is not None and not math.isfinite(self.perp_neg):
            raise ValueError(f"the weight of the perpendicular negative must be a finite number, not {self.perp_neg}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance is rescaled by 0 to 1, not {self.rescale}")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"the threshold is a percentile above 0 and up to 1, not {self.threshold}")
        if self.threshold_reach is not None and not self.threshold_reach > 0:
            raise ValueError(f"the reach of the threshold must be above 0, not {self.threshold_reach}")

    @property
    def steers(self) -> bool:
        """Whether there is guidance away from the unconditional answer."""
        return self.scale != 1.0 or self.cfg_pp

    def acts(self, level: float) -> bool:
        """Whether sigma is in the interval."""
        return self.interval is None or self.interval[0] < level <= self.interval[1]


UNGUIDED = Guidance()


@dataclass(frozen=True)
class Beside:
    """Guidance away from another denoiser's answer, added beside the rest: + scale (c - other).

    With a perturbed network it is perturbed attention guidance (Ahn et al. 2024); with a weaker model told the same,
    autoguidance (Karras et al. 2024) beside classifier-free guidance.
    """

    other: Denoise
    scale: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"the scale of further guidance must be a finite number, not {self.scale}")


def classifier_free(denoiser: Denoiser[S], cond: S, uncond: S, scale: float) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): u + scale * (c - u), on x0.

    On x0 it is the same formula as on eps or v: at a given x and sigma these are affine in each other.
    cond, uncond: each with the batch of x; the network sees both at once, [uncond, cond]. At scale 1.0
    uncond does not count, and is not computed. Raises ValueError when scale is not finite.
    """
    return guided(denoiser, [Branch(always(cond))], always(uncond), Guidance(scale))


def guided(
    denoiser: Denoiser[S],
    branches: Sequence[Branch[S]],
    uncond: Said[S] | None = None,
    guidance: Guidance = UNGUIDED,
    *,
    empty: Said[S] | None = None,
    levels: Tensor | None = None,
    weaker: Denoise | None = None,
    beside: Sequence[Beside] = (),
    attention: SelfAttention | None = None,
) -> Denoise:
    """The denoiser told of the branches, under guidance.

    Nothing is asked that does not count: without guidance, and outside its interval, only the branches are (and
    uncond, where their weights do not add up to 1). Each call of `guided` makes a run of its own: what remembers (the
    momentum) begins anew.

    In the order of what happens: the branches' answers are joined to c; guidance goes from u to c (or from `empty` to
    what `perp_neg` makes of c); `beside` and `attention` are added; rescaled; thresholded.

    Args:
        branches: what pictures are told, at least one.
        uncond: what guidance goes away from: nothing, or the negative prompt. None: there is none to be asked.
        empty: for `perp_neg`: what says nothing, while uncond is the negative prompt.
        levels: for `cfg_pp`: the sampler's sigmas (n + 1,).
        weaker: autoguidance (Karras et al. 2024): a weaker denoiser's answer in the place of u in guidance.
        beside: further guidance; scale 0 is none.
        attention: self-attention guidance. It degrades the answer to uncond; without one the answer to the only branch.

    Raises:
        ValueError: something is asked for without what it needs, or together with what excludes it.
    """
    joining = Joining(branches)
    attention = None if attention is None or attention.scale == 0.0 else attention
    run = _Run(
        denoiser=denoiser,
        guidance=guidance,
        joining=joining,
        plan=_plan(joining, branches, uncond, guidance, empty, weaker, attention),
        ask=Asking(denoiser, guidance.batched),
        strength=_strength(guidance, levels),
        project=None if guidance.apg is None else guidance.apg.begin(),
        weaker=weaker,
        beside=tuple(other for other in beside if other.scale != 0.0),
        attention=attention,
    )
    nothing_more = guidance == UNGUIDED and run.beside == () and run.attention is None
    return run.unguided if nothing_more else run


class _Told(NamedTuple):
    """Answers (B, C, h, w): to the branches together, to what says nothing, to what is to be avoided."""

    cond: Tensor
    base: Tensor | None
    negative: Tensor | None


@dataclass(frozen=True)
class _Questions(Generic[S]):
    """What is asked in one go, in this order: what says nothing, what is to be avoided, the branches."""

    base: Said[S] | None
    negative: Said[S] | None
    branches: tuple[Said[S], ...]

    def conds(self) -> list[S]:
        """What all of them say now."""
        return [say() for say in (self.base, self.negative, *self.branches) if say is not None]

    def read(self, answers: Sequence[Tensor], joining: Joining) -> _Told:
        """The answers, in the order of `conds`, by what they are."""
        rest = list(answers)
        base = None if self.base is None else rest.pop(0)
        negative = None if self.negative is None else rest.pop(0)
        return _Told(joining(rest, base), base, negative)


class _Plan(NamedTuple, Generic[S]):
    """What is asked where guidance acts, and elsewhere."""

    guided: _Questions[S]
    unguided: _Questions[S]


@dataclass(frozen=True)
class _Run(Generic[S]):
    """What `guided` makes: a `Denoise`."""

    denoiser: Denoiser[S]
    guidance: Guidance
    joining: Joining
    plan: _Plan[S]
    ask: Asking[S]
    strength: Callable[[Tensor], float | Tensor]
    project: Projecting | None
    weaker: Denoise | None
    beside: tuple[Beside, ...]
    attention: SelfAttention | None

    def unguided(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The branches' answers joined, as it is without guidance and outside the interval."""
        return self.plan.unguided.read(self.ask(x, sigma, self.plan.unguided.conds()), self.joining).cond

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x (B, C, h, w), sigma () or (B,) -> x0 (B, C, h, w)."""
        acting = self._acting(sigma)
        if not any(acting):
            cond = self.unguided(x, sigma)
            return _clipped(cond, cond, self.guidance)
        rows = None if all(acting) else sent(torch.tensor(acting), x.device).view(-1, 1, 1, 1)
        conds, attention, seen = self.plan.guided.conds(), self.attention, None
        if attention is None:
            answers = self.ask(x, sigma, conds)
        else:
            answers, seen = self.ask.watched(x, sigma, conds, attention.watch)
        told = self.plan.guided.read(answers, self.joining)
        y = self._steered(told, x, sigma, rows) if self.guidance.steers else told.cond
        for further in self.beside:
            y = y + (told.cond - further.other(x, sigma)) * further.scale
        if attention is not None and seen is not None:
            y = y + attention.added(self.denoiser, x, sigma, conds[0], answers[0], seen)
        if self.guidance.rescale != 0.0 and y is not told.cond:
            y = rescaled_x0(y, told.cond, self.guidance.rescale, x, sigma, self.denoiser.prediction)
        if rows is not None:
            y = torch.where(rows, y, told.cond)
        return _clipped(y, told.cond, self.guidance)

    def _acting(self, sigma: Tensor) -> list[bool]:
        """For each picture, or for all as one, whether sigma is in the interval."""
        if self.guidance.interval is None:
            return [True]
        return [self.guidance.acts(level) for level in sigma.view(-1).tolist()]

    def _steered(self, told: _Told, x: Tensor, sigma: Tensor, rows: Tensor | None) -> Tensor:
        """From what says nothing towards the condition, and beyond."""
        base = told.base if self.weaker is None else self.weaker(x, sigma)
        assert base is not None, "the plan asks for what guidance needs"
        aim, strength = told.cond, self.strength(sigma)
        if isinstance(strength, Tensor):
            strength = sent(strength, x.device, x.dtype)
        if told.negative is not None and self.guidance.perp_neg is not None:
            aim = from_negative(told.cond, base, told.negative, self.guidance.perp_neg)
        if self.project is None:
            return torch.lerp(base, aim, strength)
        return aim + self.project(aim - base, told.cond, rows) * (strength - 1)


def _plan(
    joining: Joining,
    branches: Sequence[Branch[S]],
    uncond: Said[S] | None,
    guidance: Guidance,
    empty: Said[S] | None,
    weaker: Denoise | None,
    attention: SelfAttention | None,
) -> _Plan[S]:
    """No more than is needed. Raises ValueError when something is missing or does not go together."""
    says = tuple(branch.say for branch in branches)
    avoids = guidance.perp_neg is not None and guidance.steers
    if avoids and (uncond is None or empty is None):
        raise ValueError("a perpendicular negative needs a negative and what says nothing")
    if avoids and weaker is not None:
        raise ValueError("a weaker model in place of the unconditional answer leaves nothing to be perpendicular to")
    nothing = uncond if guidance.perp_neg is None else empty
    steers_from_nothing = guidance.steers and weaker is None
    wanted = not joining.whole or steers_from_nothing or (attention is not None and len(says) > 1)
    if wanted and nothing is None:
        raise ValueError("guidance and weights that do not add up to 1 need an unconditional condition")
    return _Plan(
        _Questions(nothing if wanted else None, uncond if avoids else None, says),
        _Questions(None if joining.whole else nothing, None, says),
    )


def _strength(guidance: Guidance, levels: Tensor | None) -> Callable[[Tensor], float | Tensor]:
    """The scale at sigma () or (B,): a number or (B, 1, 1, 1)."""
    if not guidance.cfg_pp:
        return lambda sigma: guidance.scale
    if levels is None:
        raise ValueError("CFG++ depends on the steps: give their levels")
    omega = plus_plus(levels, guidance.scale)

    def strength(sigma: Tensor) -> float | Tensor:
        if sigma.ndim == 0:
            return omega(float(sigma))
        return torch.tensor([omega(level) for level in sigma.tolist()]).view(-1, 1, 1, 1)

    return strength


def _clipped(x0: Tensor, cond: Tensor, guidance: Guidance) -> Tensor:
    if guidance.threshold is None:
        return x0
    if guidance.threshold_reach is None:
        return thresholded_like(x0, cond, guidance.threshold)
    return thresholded(x0, guidance.threshold, guidance.threshold_reach)
