"""How the text towers of a model read prompts."""

from __future__ import annotations

from collections.abc import Mapping

from safelight.adapters.embeddings import Taught
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
    taught: Mapping[str, Taught] | None = None,
) -> dict[str, Reader]:
    """How the text towers of a model read, by part and in their order.

    Args:
        taught: words beyond their own, by part.
    """
    found = {}
    for words in preset.words:
        more = None if taught is None else taught.get(words.part)
        found[words.part] = Reader(
            tokenizers[words.part] if more is None else more.tokenizer,
            emphasis,
            backtrack,
            single=isinstance(words.tower, BertConfig) or words.states == "embedding",
            together=None if more is None else more.tokenizer.together,
        )
    return found
