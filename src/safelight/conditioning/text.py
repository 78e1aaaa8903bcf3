"""Words to the context door: a CLIP text tower's last hidden states (Rombach et al. 2022, sec. 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from safelight.doors import Conditioning
from safelight.models.clip import ClipText
from safelight.models.tokenizer import ClipTokenizer


def encode_prompts(tokenizer: ClipTokenizer, text: ClipText, prompts: Sequence[str]) -> Conditioning:
    """Encode B prompts, each always padded and cut to the tokenizer's length L.

    Returns:
        `context` (B, L, D) after the final layer norm, in the tower's own dtype and on its device.
    """
    device = next(text.parameters()).device
    ids = tokenizer(list(prompts)).to(device)  # (B, L)
    return Conditioning(context=text(ids).last)


def repeat(cond: Conditioning, batch: int) -> Conditioning:
    """The conditions of one picture for each of `batch`, without a copy: doors (1, ...) -> (batch, ...)."""
    return cond.map(lambda door: door.expand(batch, *door.shape[1:]))
