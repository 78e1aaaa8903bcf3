"""A prompt of any length in chunks that a text tower can read, after the rules of AUTOMATIC1111's web UI.

A chunk takes as many tokens as the tower does without its two marks, 75 of CLIP. BREAK fills one up. Where a chunk is
full and its last comma is not far back, what stands behind the comma goes to the next chunk, so that what belongs
together is read together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from safelight.conditioning.prompts.emphasis import Block
from safelight.errors import RequestError

BACKTRACK = 20
"""How many tokens back a comma may be."""


@dataclass(frozen=True)
class Chunk:
    """Tokens without marks and padding, and what each weighs."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def weighted(self) -> bool:
        """Whether any of them weighs another than 1."""
        return any(weight != 1.0 for weight in self.weights)


@dataclass
class _Filling:
    """Chunks as they fill."""

    room: int
    backtrack: int
    done: list[Chunk] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    comma: int | None = None
    """Where in the chunk the last comma stands."""

    def close(self) -> None:
        """Begin the next chunk."""
        self.done.append(Chunk(tuple(self.ids), tuple(self.weights)))
        self.ids, self.weights, self.comma = [], [], None

    def move_tail(self) -> None:
        """If the chunk is full and a comma is near its end, what stands behind it goes to the next chunk."""
        full, comma = len(self.ids) == self.room, self.comma
        if not full or comma is None or len(self.ids) - comma > self.backtrack:
            return
        ids, weights = self.ids[comma + 1 :], self.weights[comma + 1 :]
        del self.ids[comma + 1 :], self.weights[comma + 1 :]
        self.close()
        self.ids, self.weights = ids, weights

    def add(self, ids: Sequence[int], weight: float) -> None:
        """Put in tokens that stay together."""
        if len(self.ids) + len(ids) > self.room:
            self.close()
        self.ids += ids
        self.weights += [weight] * len(ids)


def fill(
    blocks: Sequence[Block],
    words: Callable[[str], Sequence[int]],
    room: int,
    *,
    comma: int | None = None,
    backtrack: int = BACKTRACK,
    together: Mapping[int, int] | None = None,
) -> tuple[Chunk, ...]:
    """Put what was read by `emphasis.read` into chunks.

    Args:
        words: a text's tokens, without marks.
        room: the most tokens of a chunk.
        comma: the token of a comma; None: there is none.
        backtrack: 0 leaves the tails where they are.
        together: of a token that begins an embedding of several, how many they are: they stay in one chunk.

    Returns:
        One chunk or more, each with at most `room` tokens.

    Raises:
        RequestError: an embedding has more tokens than a chunk.
    """
    filling = _Filling(room, backtrack)
    for k, block in enumerate(blocks):
        if k > 0:
            filling.close()
        for segment in block:
            ids, place = words(segment.text), 0
            while place < len(ids):
                size = 1 if together is None else together.get(ids[place], 1)
                if size > room:
                    raise RequestError(f"an embedding of {size} tokens is in the prompt, where a chunk has {room}")
                if ids[place] == comma:
                    filling.comma = len(filling.ids)
                else:
                    filling.move_tail()
                # A comma that finds its chunk full begins the next one, and is none to go back to.
                filling.add(ids[place : place + size], segment.weight)
                place += size
    if filling.ids or not filling.done:
        filling.close()
    return tuple(filling.done)
