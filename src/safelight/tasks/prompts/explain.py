"""What a model makes of a prompt: tokens with their weights, chunks, tags, and what is used at which step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from safelight.conditioning.prompts import prompt as prompts
from safelight.conditioning.prompts.chunks import Chunk
from safelight.conditioning.prompts.edits import Steps
from safelight.conditioning.prompts.emphasis import Emphasis
from safelight.conditioning.text import Reader
from safelight.errors import RequestError
from safelight.presets.conditions import TEXT_2

_CARD = ConfigDict(frozen=True)


class TokenCard(BaseModel):
    """One token."""

    model_config = _CARD

    id: int
    text: str
    weight: float


class ReadingCard(BaseModel):
    """What one tower reads of a text, or several that read the same."""

    model_config = _CARD

    towers: list[str]
    room: int
    """Tokens of a chunk."""
    chunks: list[list[TokenCard]]
    unread: list[TokenCard]
    """What is too much for a tower that reads one chunk."""


class SayingCard(BaseModel):
    """One of the texts that are joined by AND."""

    model_config = _CARD

    weight: float
    readings: list[ReadingCard]


class PhaseCard(BaseModel):
    """What is told at some steps."""

    model_config = _CARD

    steps: list[tuple[int, int]]
    """First and last of each run of them; the first of all is 1."""
    sayings: list[SayingCard]


class TagCard(BaseModel):
    """A tag, which is no word."""

    model_config = _CARD

    kind: str
    arguments: list[str]


class Explained(BaseModel):
    """A prompt, as a model is told it."""

    model_config = _CARD

    field: str
    """"prompt" or "negative_prompt"."""
    prompt: str
    """As it was understood: without comments."""
    steps: int
    emphasis: Emphasis
    tags: list[TagCard]
    phases: list[PhaseCard]

    def text(self) -> str:
        """For people."""
        lines = [f"{self.field}: {' '.join(self.prompt.split())}"]
        lines += [f"  tag {tag.kind}: {', '.join(tag.arguments)}" for tag in self.tags]
        for phase in self.phases:
            runs = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in phase.steps)
            lines.append(f"  {'step' if runs.isdigit() else 'steps'} {runs} of {self.steps}")
            for place, saying in enumerate(phase.sayings):
                if len(phase.sayings) > 1 or saying.weight != 1.0:
                    lines.append(f"    {'and' if place else 'say'}, weight {saying.weight:g}")
                lines += [f"      {line}" for reading in saying.readings for line in _lines(reading)]
        return "\n".join(lines)


def _lines(reading: ReadingCard) -> list[str]:
    towers = f"{' and '.join(reading.towers)}, "
    found = []
    for number, tokens in enumerate(reading.chunks, 1):
        found.append(f"{towers}chunk {number}, {len(tokens)} of {reading.room} tokens: {_spelled(tokens)}".rstrip(": "))
    if reading.unread:
        found.append(f"{towers}not read, {len(reading.unread)} tokens: {_spelled(reading.unread)}")
    return found


def _spelled(tokens: Sequence[TokenCard]) -> str:
    """Tokens with spaces between, each with its weight where that is not 1."""
    return " ".join(f"{token.text}({token.weight:.4g})" if token.weight != 1.0 else token.text for token in tokens)


def explain(
    text: str,
    readers: Mapping[str, Reader],
    steps: int,
    *,
    second: str | None = None,
    negative: bool = False,
) -> Explained:
    """Say what a model with these towers makes of a prompt.

    Args:
        text: the prompt.
        readers: of the towers, by part (`readers`).
        steps: of the walk, at least 1.
        second: the prompt of SDXL's second tower, if it is told another.
        negative: whether it is the negative prompt.

    Raises:
        RequestError: the model is not told words, or as `prompts.phases`.
    """
    if not readers:
        raise RequestError("this model is not told words: there is no prompt to explain")
    if steps < 1:
        raise RequestError(f"steps cannot be {steps}: give a whole number from 1")
    prompt = prompts.read(text, negative=negative)
    other = None if second is None else prompts.read(second, negative=negative)
    runs: dict[tuple[prompts.Saying, ...], list[tuple[int, int]]] = {}
    first = 1
    for phase in prompts.phases(prompt, Steps(steps), other):
        runs.setdefault(phase.sayings, []).append((first, phase.until))
        first = phase.until + 1
    tags = prompt.tags + (() if other is None else other.tags)
    return Explained(
        field="negative_prompt" if negative else "prompt",
        prompt=str(prompt),
        steps=steps,
        emphasis=next(iter(readers.values())).emphasis,
        tags=[TagCard(kind=tag.kind, arguments=list(tag.arguments)) for tag in tags],
        phases=[
            PhaseCard(steps=when, sayings=[_saying(saying, readers) for saying in sayings])
            for sayings, when in runs.items()
        ],
    )


def _saying(saying: prompts.Saying, readers: Mapping[str, Reader]) -> SayingCard:
    cards: list[ReadingCard] = []
    for part, reader in readers.items():
        text = saying.second if part == TEXT_2 and len(readers) > 1 else saying.text
        card = ReadingCard(
            towers=[part],
            room=reader.room,
            chunks=[_tokens(chunk, reader) for chunk in reader.chunks(text)],
            unread=_tokens(reader.unread(text), reader),
        )
        if cards and cards[-1].model_copy(update={"towers": card.towers}) == card:
            cards[-1] = card.model_copy(update={"towers": [*cards[-1].towers, part]})
        else:
            cards.append(card)
    return SayingCard(weight=saying.weight, readings=cards)


def _tokens(chunk: Chunk, reader: Reader) -> list[TokenCard]:
    return [
        TokenCard(id=token, text=reader.tokenizer.spelled(token), weight=weight)
        for token, weight in zip(chunk.ids, chunk.weights, strict=True)
    ]


def unread(
    text: str, readers: Mapping[str, Reader], steps: int, *, second: str | None = None, negative: bool = False
) -> int:
    """How many tokens at the end of a prompt some tower does not read, at the step where they are most."""
    found = explain(text, readers, steps, second=second, negative=negative)
    return max(len(card.unread) for phase in found.phases for saying in phase.sayings for card in saying.readings)
