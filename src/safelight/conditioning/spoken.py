"""What pictures are told in words, at every step: phases of prompts -> conditions that guidance joins.

Shapes: B pictures, L tokens, D width.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from safelight.conditioning.joining import beside
from safelight.conditioning.prompts.prompt import Phase, Saying
from safelight.conditioning.text import Encoder, unsaid
from safelight.doors import Conditioning
from safelight.errors import RequestError

MOST = 64
"""Chunks that prompts of unequal length may be repeated to, so that they can be in one batch."""


@dataclass(frozen=True)
class Voice:
    """One of the text towers that speak to a network."""

    encoder: Encoder
    second: bool = False
    """Whether it reads the second prompt."""
    zeros: bool = False
    """Whether a negative prompt that is empty is told by zeros (SDXL base)."""


@dataclass(frozen=True)
class Spoken:
    """One of the conditions that act together, over all steps."""

    weight: float
    """As guidance joins them: u + sum of weight (c - u)."""
    conds: tuple[tuple[int, Conditioning], ...]
    """(last step, what is told until then): doors of one picture, which are for all, or of every picture."""

    def at(self, step: int) -> Conditioning:
        """What is told at a step, which counts from 1: the very same object while nothing changes."""
        return self.conds[bisect_left(self.conds, step, key=lambda entry: entry[0])][1]


def speak(
    pictures: Sequence[Sequence[Phase]], voices: Sequence[Voice], *, negative: bool = False
) -> tuple[Spoken, ...]:
    """Encode what is said to one picture, or to each of several.

    Towers stand beside each other: each text has as many chunks for all of them. Conditions of one picture that are
    shorter than others have their last token repeated, as AUTOMATIC1111's web UI has it. Pictures of a batch whose
    prompts are of unequal length have them repeated whole until they are as long, which changes nothing that is
    attended to: each picture is what it is alone.

    Args:
        pictures: the phases of one prompt for all pictures, or of one for each.
        voices: the towers of the network, in their order.
        negative: whether this is what guidance goes away from.

    Returns:
        One for each part of the prompt.

    Raises:
        RequestError: pictures of one batch have different parts or weights, or prompts too unequal in length.
    """
    weights = {tuple(saying.weight for saying in phase.sayings) for phases in pictures for phase in phases}
    if len(weights) > 1:
        raise RequestError("the prompts of one batch differ in their parts joined by AND: draw them one by one")
    speaking = _Speaking(voices, negative)
    conds: list[list[tuple[int, Conditioning]]] = [[] for _ in pictures[0][0].sayings]
    for stop in sorted({phase.until for phases in pictures for phase in phases}):
        for part, cond in enumerate(speaking([_during(phases, stop) for phases in pictures])):
            if conds[part] and conds[part][-1][1] is cond:
                conds[part].pop()
            conds[part].append((stop, cond))
    [of] = weights
    return tuple(Spoken(weight, tuple(part)) for weight, part in zip(of, conds, strict=True))


def _during(phases: Sequence[Phase], step: int) -> tuple[Saying, ...]:
    return phases[bisect_left(phases, step, key=lambda phase: phase.until)].sayings


class _Speaking:
    """Texts of one step to conditions: the very same object for the same texts."""

    def __init__(self, voices: Sequence[Voice], negative: bool) -> None:
        self._voices, self._negative = voices, negative
        self._told: dict[Saying, Conditioning] = {}
        self._joined: dict[tuple[tuple[Saying, int], ...], Conditioning] = {}

    def __call__(self, pictures: Sequence[tuple[Saying, ...]]) -> list[Conditioning]:
        """The parts of each picture, as many of each -> those of all pictures."""
        rows = [max(length(self._one(saying)) for saying in sayings) for sayings in pictures]
        whole = math.lcm(*rows)
        if len(set(rows)) > 1 and whole > MOST * self._voices[0].encoder.reader.tokenizer.length:
            raise RequestError("the prompts of one batch are too unequal in length: draw them one by one")
        return [self._all(part, rows, whole) for part in zip(*pictures, strict=True)]

    def _all(self, sayings: Sequence[Saying], rows: Sequence[int], whole: int) -> Conditioning:
        """One part of every picture, which is to be so many rows long, and then repeated to the whole."""
        key = (*zip(sayings, rows, strict=True), (sayings[0], whole))
        if key not in self._joined:
            conds = [_as_long(self._one(saying), n) for saying, n in zip(sayings, rows, strict=True)]
            self._joined[key] = (
                conds[0] if len(conds) == 1 else Conditioning.stack([_repeated(cond, whole) for cond in conds])
            )
        return self._joined[key]

    def _one(self, saying: Saying) -> Conditioning:
        """One text through all towers: doors of one picture."""
        if saying not in self._told:
            texts = [saying.second if voice.second else saying.text for voice in self._voices]
            chunks = max(voice.encoder.count(text) for voice, text in zip(self._voices, texts, strict=True))
            silent = self._negative and not any(texts)
            parts = []
            for voice, text in zip(self._voices, texts, strict=True):
                cond = voice.encoder(text, chunks)
                parts.append(unsaid(cond) if silent and voice.zeros else cond)
            self._told[saying] = parts[0] if len(parts) == 1 else beside(parts)
        return self._told[saying]


def length(cond: Conditioning) -> int:
    """L, the tokens of a context."""
    return 0 if cond.context is None else cond.context.shape[1]


def _as_long(cond: Conditioning, rows: int) -> Conditioning:
    """A context (1, L, D) with its last token repeated until it has so many rows."""
    context = cond.context
    if context is None or context.shape[1] == rows:
        return cond
    tail = context[:, -1:].expand(-1, rows - context.shape[1], -1)
    return replace(cond, context=torch.cat([context, tail], dim=1))


def _repeated(cond: Conditioning, rows: int) -> Conditioning:
    """A context (1, L, D) repeated whole to so many rows: attention is an average, and stays what it was."""
    if cond.context is None:
        return cond
    return replace(cond, context=cond.context.repeat(1, rows // cond.context.shape[1], 1))
