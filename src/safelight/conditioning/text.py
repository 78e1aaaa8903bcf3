"""Words to the context door: a text tower's states (Rombach et al. 2022, sec. 3.3; Podell et al. 2023, sec. 2.1).

Shapes: B batch, L tokens that a tower reads at once, D its width, P the width of its summary, n chunks of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from safelight.conditioning.prompts import emphasis
from safelight.conditioning.prompts.chunks import BACKTRACK, Chunk, fill
from safelight.conditioning.prompts.emphasis import Block, Emphasis
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
    taught: Tensor | None = None,
) -> Conditioning:
    """Encode B texts to the letter, each always padded and cut to the tokenizer's length L: captions, in training.

    The towers of one model stand beside each other: `beside([encode_prompts(...), encode_prompts(...)])`. What users
    write, with weights and of any length, is for `Encoder`.

    Args:
        states: which states of a CLIP the network attends to.
        pooled: give the tower's projected summary to the vector door, too (SDXL's second tower).
        skip: take states of so many layers earlier than those ("clip skip").
        taught: (n, D), the vectors of the tokens behind the tower's own vocabulary; gradients reach them.

    Returns:
        `context` (B, L, D) and, if asked for, `vector` (B, P), in the tower's own dtype and on its device.

    Raises:
        RequestError: the tower has not so many layers to skip.
    """
    ids = tokenizer(list(prompts))  # (B, L)
    return _encoded(text, ids, states=states, pooled=pooled, skip=skip, taught=taught)


def _encoded(
    text: ClipText | Bert, ids: Tensor, *, states: States, pooled: bool, skip: int, taught: Tensor | None
) -> Conditioning:
    """As `encode_prompts`, of ids (B, L)."""
    ids = ids.to(next(text.parameters()).device)
    if isinstance(text, Bert):
        if skip != 0:
            raise RequestError("clip skip is for models whose text tower is a CLIP: leave it out")
        return Conditioning(context=text(ids, taught))
    said = text(ids, taught)
    if pooled and said.embedding is None:
        raise ValueError("the pooled state is asked of a text tower without its projection")
    return Conditioning(context=text.attended(said, states, skip), vector=said.embedding if pooled else None)


@dataclass(frozen=True)
class Reader:
    """How one text tower's tokens are made of what is said at a step: text without edits, with its brackets."""

    tokenizer: Tokenizing
    emphasis: Emphasis = "original"
    backtrack: int = BACKTRACK
    """As `chunks.fill`; 0: a chunk is always filled up."""
    single: bool = False
    """The tower reads one chunk, and what is beyond it is lost: latent diffusion's BERT. BREAK is nothing then."""
    together: Mapping[int, int] | None = None
    """As `chunks.fill`."""

    @property
    def room(self) -> int:
        """The tokens of a chunk, without the marks at its ends."""
        return self.tokenizer.length - 2

    def chunks(self, text: str) -> tuple[Chunk, ...]:
        """What the tower reads, one chunk or more.

        Raises:
            RequestError: as `chunks.fill`.
        """
        if not self.single:
            return self._filled(emphasis.read(text, self.emphasis), self.room)
        chunk = self._whole(text)
        return (Chunk(chunk.ids[: self.room], chunk.weights[: self.room]),)

    def unread(self, text: str) -> Chunk:
        """The tokens at the end of a text that the tower does not read."""
        if not self.single:
            return Chunk()
        chunk = self._whole(text)
        return Chunk(chunk.ids[self.room :], chunk.weights[self.room :])

    def _whole(self, text: str) -> Chunk:
        """All of it in one chunk, however long."""
        blocks = emphasis.read(text, self.emphasis)
        [chunk] = self._filled([tuple(segment for block in blocks for segment in block)], 1 << 30)
        return chunk

    def _filled(self, blocks: Sequence[Block], room: int) -> tuple[Chunk, ...]:
        tokenizer = self.tokenizer
        return fill(
            blocks, tokenizer.words, room, comma=tokenizer.comma, backtrack=self.backtrack, together=self.together
        )


class Encoder:
    """One text tower, reading the texts of one request: no chunk is encoded twice, whatever steps and pictures it is
    for, and each alone, so that no picture of a batch depends on the prompts of the others.
    """

    def __init__(
        self,
        reader: Reader,
        tower: ClipText | Bert,
        *,
        states: States = "last",
        pooled: bool = False,
        clip_skip: int = 1,
        taught: Tensor | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            states: which states of a CLIP the network attends to.
            pooled: give the tower's projected summary to the vector door, too (SDXL's second tower).
            clip_skip: attend to the states of the last but so many layers, as users count: 1 is the last layer. A
                network that attends to the last but one anyway (SDXL) does so at 1 and 2.
            taught: (n, D), the vectors of the tokens behind the tower's own vocabulary, which the reader's tokenizer
                gives (textual inversion).

        Raises:
            RequestError: the tower has not so many layers to skip.
        """
        early = int(states in ("penultimate", "penultimate_normed"))
        if isinstance(tower, Bert):
            if clip_skip != 1:
                raise RequestError("clip_skip is for models whose text tower is a CLIP: leave it out")
        elif not 1 <= clip_skip <= tower.config.layers:
            raise RequestError(
                f"clip_skip cannot be {clip_skip}: the text tower has {tower.config.layers} layers, "
                f"give 1 to {tower.config.layers}"
            )
        self.reader, self.tower, self.states, self.pooled = reader, tower, states, pooled
        self.taught = taught
        self.skip = max(clip_skip - 1, early) - early
        self._chunks: dict[str, tuple[Chunk, ...]] = {}
        self._rows: dict[tuple[int, ...], Conditioning] = {}
        self._texts: dict[tuple[str, int], Conditioning] = {}

    def count(self, text: str) -> int:
        """How many chunks a text has."""
        return len(self._read(text))

    def __call__(self, text: str, chunks: int = 1) -> Conditioning:
        """Encode a text without edits: the very same object for the same text.

        Args:
            chunks: how many it is to have at least; further ones are encoded empty.

        Returns:
            `context` (1, n L, D): each chunk encoded apart, one behind the other, and weighted. `vector` (1, P), if
            asked for, of the first chunk and without weights. In the tower's own dtype and on its device.

        Raises:
            RequestError: as `chunks.fill`.
        """
        found = self._texts.get((text, chunks))
        if found is None:
            read = self._read(text)
            read += (Chunk(),) * (chunks - len(read))
            rows = [self._row(chunk.ids) for chunk in read]
            contexts = [
                row.context if self.states == "embedding" else weighted(row.context, chunk, self.reader.emphasis)
                for row, chunk in zip(rows, read, strict=True)
                if row.context is not None
            ]
            context = contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=1)
            found = self._texts[text, chunks] = replace(rows[0], context=context)
        return found

    def _read(self, text: str) -> tuple[Chunk, ...]:
        if text not in self._chunks:
            self._chunks[text] = self.reader.chunks(text)
        return self._chunks[text]

    def _row(self, ids: tuple[int, ...]) -> Conditioning:
        if ids not in self._rows:
            row = self.reader.tokenizer.rows([ids])  # (1, L)
            self._rows[ids] = _encoded(
                self.tower, row, states=self.states, pooled=self.pooled, skip=self.skip, taught=self.taught
            )
        return self._rows[ids]


def weighted(states: Tensor, chunk: Chunk, mode: Emphasis) -> Tensor:
    """The states (1, L, D) of a chunk times the weights of its tokens; "original" gives the whole its mean again.

    Marks and padding weigh 1. A chunk in which all weighs 1 is returned as it is.
    """
    if not chunk.weighted:
        return states
    weights = torch.ones(states.shape[1])
    weights[1 : 1 + len(chunk.weights)] = torch.tensor(chunk.weights)
    before = states.float()
    after = before * weights.to(before.device)[None, :, None]
    if mode == "original":
        after = after * (before.mean() / after.mean())
    return after.to(states.dtype)


def unsaid(cond: Conditioning) -> Conditioning:
    """Zeros in place of what was said: how SDXL base was taught an empty prompt (its refiner was not)."""
    return cond.map(torch.zeros_like)


def repeat(cond: Conditioning, batch: int) -> Conditioning:
    """The conditions of one picture for each of `batch`, without a copy: doors (1, ...) -> (batch, ...)."""
    return cond.map(lambda door: door.expand(batch, *door.shape[1:]))
