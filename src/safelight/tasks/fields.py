"""Fields that every request has: what its sampler and its guidance may be asked beyond what is usual.

All are off, or the sampler's own, unless given. This module does not import torch.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from safelight.tasks.marks import Group

_SAMPLER, _GUIDANCE, _SHORTCUT = Group("Sampler"), Group("Guidance"), Group("Shortcuts")
Part = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A part of a whole."""


class SamplerFields(BaseModel):
    """What a sampler may be asked; not every sampler has a use for each."""

    eta: Annotated[
        float | None,
        _SAMPLER,
        Field(
            description="How much noise is exchanged in every step: 0 is none. Default: the sampler's.",
            ge=0,
            le=10,
            allow_inf_nan=False,
        ),
    ] = None
    s_churn: Annotated[
        float | None,
        _SAMPLER,
        Field(description="Noise added before steps, over all of them. Default: none.", ge=0, allow_inf_nan=False),
    ] = None
    s_tmin: Annotated[
        float | None,
        _SAMPLER,
        Field(description="The noise level below which none is added. Default: 0.", ge=0, allow_inf_nan=False),
    ] = None
    s_tmax: Annotated[
        float | None,
        _SAMPLER,
        Field(description="The noise level above which none is added. Default: no limit.", ge=0, allow_inf_nan=False),
    ] = None
    s_noise: Annotated[
        float | None,
        _SAMPLER,
        Field(description="Multiplies all noise that is added. Default: 1.", ge=0, le=10, allow_inf_nan=False),
    ] = None


class GuidanceFields(BaseModel):
    """What may be done to guidance, each by a paper of its own."""

    guidance_rescale: Annotated[
        float | None,
        _GUIDANCE,
        Field(
            description="How much of the contrast that guidance adds is taken back, 0 to 1 (Lin et al. 2023).",
            ge=0,
            le=1,
            allow_inf_nan=False,
        ),
    ] = None
    guidance_interval: Annotated[
        tuple[Part, Part] | None,
        _GUIDANCE,
        Field(
            description="Between which parts of the steps guidance acts; the others take half the time (Kynkaanniemi "
            "et al. 2024). 0 0.8 computes 1.1 times less, and tiny's pictures are 31 dB from those without it."
        ),
    ] = None
    threshold: Annotated[
        float | None,
        _GUIDANCE,
        Field(
            description="Clip what is beyond this part of the values, like 0.995 (dynamic thresholding, Saharia et al. "
            "2022).",
            gt=0,
            le=1,
            allow_inf_nan=False,
        ),
    ] = None
    perp_neg: Annotated[
        float | None,
        _GUIDANCE,
        Field(
            description="How much of the negative prompt that is not in the prompt is avoided, like 1 (Armandpour et "
            "al. 2023).",
            ge=0,
            le=100,
            allow_inf_nan=False,
        ),
    ] = None
    apg: Annotated[
        tuple[float, float, float] | None,
        _GUIDANCE,
        Field(
            description="Adaptive projected guidance: eta, norm (0: no limit) and momentum, like 0 10 -0.5 (Sadat et "
            "al. 2024)."
        ),
    ] = None
    cfg_pp: Annotated[
        bool,
        _GUIDANCE,
        Field(
            description="Guidance is a part, 0 to 1, of the way to the prompt at every step (CFG++, Chung et al. 2024)."
        ),
    ] = False
    pag: Annotated[
        float | None,
        _GUIDANCE,
        Field(
            description="Perturbed-attention guidance, like 3: a third call of the network (Ahn et al. 2024).",
            ge=0,
            le=100,
            allow_inf_nan=False,
        ),
    ] = None
    sag: Annotated[
        float | None,
        _GUIDANCE,
        Field(
            description="Self-attention guidance, like 0.75: a third call of the network (Hong et al. 2023).",
            ge=0,
            le=100,
            allow_inf_nan=False,
        ),
    ] = None
    pag_layers: Annotated[
        tuple[str, ...] | None,
        _GUIDANCE,
        Field(description="The layers whose attention is perturbed, like down_blocks.2. Default: mid_block."),
    ] = None
    autoguidance: Annotated[
        float | None,
        _GUIDANCE,
        Field(
            description="How far to lead away from what the weaker model of --guide says (Karras et al. 2024). "
            "Default: 1, if there is one.",
            ge=-10,
            le=10,
            allow_inf_nan=False,
        ),
    ] = None
    freeu: Annotated[
        tuple[float, float, float, float] | None,
        _GUIDANCE,
        Field(description="FreeU: b1 b2 s1 s2, like 1.5 1.6 0.9 0.2 for SD 1 (Si et al. 2023)."),
    ] = None
    window: Annotated[
        int | None,
        _GUIDANCE,
        Field(
            description="Draw by overlapping windows of so many pixels, for pictures larger than the model knows "
            "(MultiDiffusion, Bar-Tal et al. 2023).",
            ge=8,
        ),
    ] = None
    one_by_one: Annotated[
        bool,
        _GUIDANCE,
        Field(description="Ask the network of prompt and negative prompt one after the other: less memory."),
    ] = False


class ShortcutFields(BaseModel):
    """Less work for a picture that is not quite the same. What each gains and costs: `docs/shortcuts.md`."""

    deep_every: Annotated[
        int | None,
        _SHORTCUT,
        Field(
            description="Ask the deep part of the network once in so many steps, and reuse its answer between "
            "(DeepCache, Ma et al. 2024). 3 computes 2.5 times less in SD 1.5, and tiny's pictures are 35 dB from "
            "those without it.",
            ge=1,
            le=1000,
        ),
    ] = None
    deep_below: Annotated[
        int | None,
        _SHORTCUT,
        Field(
            description="How many of the finest joins of the network are not deep: more are slower, and nearer to the "
            "whole. Default: 1.",
            ge=1,
            le=100,
        ),
    ] = None
    merge_tokens: Annotated[
        float | None,
        _SHORTCUT,
        Field(
            description="The part of the positions that the finest attentions take together with others like them "
            "(ToMe, Bolya & Hoffman 2023). 0.5 computes 1.1 times less in SD 1.5 at 512x512, more in larger pictures; "
            "tiny's are 39 dB from those without it.",
            ge=0,
            le=0.75,
            allow_inf_nan=False,
        ),
    ] = None
