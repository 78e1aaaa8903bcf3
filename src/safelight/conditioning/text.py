"""Words to the context door: a text tower's states (Rombach et al. 2022, sec. 3.3; Podell et al. 2023, sec. 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safelight.doors import Conditioning
from safelight.errors import RequestError
from safelight.models.bert import Bert
from safelight.models.clip import ClipText, States
from safelight.models.tokenizer import Tokenizing


def encode_prompts(
    tokenizer: Tokenizing,
    text: ClipText | Bert,
    prompts: Sequence[str],
    *,
    states: States = "last",
    pooled: bool = False,
    skip: int = 0,
) -> Conditioning:
    """Encode B prompts, each always padded and cut to the tokenizer's length L.

    The towers of one model stand beside each other: `beside([encode_prompts(...), encode_prompts(...)])`.

    Args:
        states: which states of a CLIP the network attends to.
        pooled: give the tower's projected summary to the vector door, too (SDXL's second tower).
        skip: take states of so many layers earlier than those ("clip skip").

    Returns:
        `context` (B, L, D) and, if asked for, `vector` (B, P), in the tower's own dtype and on its device.

    Raises:
        RequestError: the tower has not so many layers to skip.
    """
    device = next(text.parameters()).device
    ids = tokenizer(list(prompts)).to(device)  # (B, L)
    if isinstance(text, Bert):
        if skip != 0:
            raise RequestError("clip skip is for models whose text tower is a CLIP: leave it out")
        return Conditioning(context=text(ids))
    said = text(ids)
    if pooled and said.embedding is None:
        raise ValueError("the pooled state is asked of a text tower without its projection")
    return Conditioning(context=text.attended(said, states, skip), vector=said.embedding if pooled else None)


def unsaid(cond: Conditioning) -> Conditioning:
    """Zeros in place of what was said: how SDXL base was taught an empty prompt (its refiner was not)."""
    return cond.map(torch.zeros_like)


def repeat(cond: Conditioning, batch: int) -> Conditioning:
    """The conditions of one picture for each of `batch`, without a copy: doors (1, ...) -> (batch, ...)."""
    return cond.map(lambda door: door.expand(batch, *door.shape[1:]))
