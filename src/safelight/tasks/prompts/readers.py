"""How the text towers of a model read prompts."""

from __future__ import annotations

from collections.abc import Mapping

from safelight.conditioning.prompts.chunks import BACKTRACK
from safelight.conditioning.prompts.emphasis import Emphasis
from safelight.conditioning.text import Reader
from safelight.models.bert import BertConfig
from safelight.models.tokenizer import Tokenizing
from safelight.presets import Preset


def readers(
    preset: Preset,
    tokenizers: Mapping[str, Tokenizing],
    emphasis: Emphasis = "original",
    backtrack: int = BACKTRACK,
) -> dict[str, Reader]:
    """How the text towers of a model read, by part and in their order."""
    return {
        words.part: Reader(tokenizers[words.part], emphasis, backtrack, single=isinstance(words.tower, BertConfig))
        for words in preset.words
    }
