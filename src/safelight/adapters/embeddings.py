"""Textual inversion: words that were taught to a model by vectors of its text towers (Gal et al. 2023).

Nothing in a tower is changed. A tokenizer that knows more words gives ids behind the tower's own vocabulary, and the
tower takes the vectors of those from elsewhere (`models.layers.look_up`).

Shapes: n vectors, D width of a text tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from safelight.adapters.origin import TOWERS, Origin
from safelight.errors import ModelFileError, RequestError
from safelight.models.bert import BertConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.tokenizer import UNKNOWN, BertTokenizer, Tokenizing

TowerConfig = ClipTextConfig | BertConfig

ONLY = ""
"""In place of a part: the one text tower that the model has. Most files do not name it."""
PARTS: Mapping[str, str] = {"clip_l": "text", "clip_g": "text_2"}
"""What files call SDXL's towers, and the parts that they are of a model."""
SECOND = PARTS["clip_g"]


@dataclass(frozen=True, eq=False)
class Embedding:
    """Vectors that a word in a prompt stands for, one or more in a row."""

    words: tuple[str, ...]
    """What it is called in prompts, the first one mostly."""
    vectors: Mapping[str, Tensor]
    """Part -> (n, D) float32, as many for each; or `ONLY` -> (n, D)."""
    origin: Origin = field(default_factory=Origin)
    file: Path | None = None
    """That it was read from."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.words[0]

    @property
    def count(self) -> int:
        """n, tokens of a prompt that it takes."""
        return len(next(iter(self.vectors.values())))

    @property
    def family(self) -> str:
        """Of which family it is, as far as the widths tell."""
        widths = tuple(vectors.shape[1] for _, vectors in sorted(self.vectors.items()))
        if ONLY not in self.vectors and len(widths) == 1:
            return TOWERS[768, 1280]
        return TOWERS.get(widths, "an unknown family")

    def for_towers(self, towers: Mapping[str, TowerConfig], model: str) -> dict[str, Tensor]:
        """Its vectors (n, D) by the parts of a model that have some.

        Args:
            towers: the text towers of the model, by part.
            model: what the model is called, for the message.

        Raises:
            ModelFileError: it is of another family.
        """
        if ONLY in self.vectors:
            found = dict.fromkeys(towers, self.vectors[ONLY]) if len(towers) == 1 else {}
        elif SECOND in self.vectors and SECOND not in towers:
            found = {}  # the half of it that would fit SD 1 says little without the other
        else:  # of SDXL's refiner, which has the second tower alone, the other half is for the base
            found = {part: vectors for part, vectors in self.vectors.items() if part in towers}
        if not found or any(vectors.shape[1] != towers[part].width for part, vectors in found.items()):
            mine = " and ".join(str(vectors.shape[1]) for _, vectors in sorted(self.vectors.items()))
            theirs = " and ".join(str(tower.width) for tower in towers.values())
            raise ModelFileError(
                f"the embedding {self.file if self.file is not None else self.name} is of {self.family}: its vectors "
                f"are {mine} wide, and those of {model} {theirs if theirs else 'nothing, it reads no words'}; "
                "use one that was made for this model"
            )
        return found


@dataclass(frozen=True, eq=False)
class Taught:
    """What a text tower is taught: the tokenizer to read with, and the vectors of its new ids."""

    tokenizer: TaughtTokenizer
    rows: Tensor
    """(n, D) float32, of all embeddings together: `taught` of `Encoder` and of the towers."""


def teach(
    embeddings: Sequence[Embedding],
    towers: Mapping[str, TowerConfig],
    tokenizers: Mapping[str, Tokenizing],
    model: str,
) -> dict[str, Taught]:
    """Make the words of embeddings known to the text towers of a model.

    Args:
        embeddings: no two of one name.
        towers: the text towers, by part.
        tokenizers: theirs, by part.
        model: what it is called, for messages.

    Returns:
        For each part that has vectors of any. A tower that lacks those of an embedding reads its word as letters.

    Raises:
        ModelFileError: an embedding is of another family.
        RequestError: two have one name, or a name has no letters.
    """
    fitted = [(embedding, embedding.for_towers(towers, model)) for embedding in embeddings]
    found: dict[str, Taught] = {}
    for part, tower in towers.items():
        mine = [(embedding.words, vectors[part]) for embedding, vectors in fitted if part in vectors]
        if mine:
            counts = [(words, len(vectors)) for words, vectors in mine]
            found[part] = Taught(
                TaughtTokenizer(tokenizers[part], tower.vocab_size, counts), torch.cat([vectors for _, vectors in mine])
            )
    return found


@dataclass(frozen=True)
class _Word:
    """How the tokenizer spells a word that was taught, and the ids that it has instead."""

    spelling: tuple[int, ...]
    ids: range
    name: str


class TaughtTokenizer:
    """A tokenizer that knows more words, each of one id or more behind the vocabulary.

    A word is found by its tokens, as AUTOMATIC1111's web UI finds it: in any case of its letters, where a word of the
    prompt begins, and the longest one where several begin. A word that is known already gets the new meaning.
    """

    def __init__(self, known: Tokenizing, first: int, taught: Sequence[tuple[Sequence[str], int]]) -> None:
        """Learn words.

        Args:
            known: what spells all other words.
            first: the first new id, the size of the tower's vocabulary.
            taught: of each embedding the words that it is called, and how many ids it has; they follow each other.

        Raises:
            RequestError: a word has no letters, or two embeddings share one.
        """
        self.length = known.length
        self.together: dict[int, int] = {}
        """Of each first id, how many belong together: what `Reader` must not split."""
        self._known, self._first = known, first
        self._spelled: list[str] = []
        self._words: dict[int, list[_Word]] = {}
        for words, count in taught:
            ids = range(first + len(self._spelled), first + len(self._spelled) + count)
            self.together[ids.start] = count
            self._spelled += [words[0]] if count == 1 else [f"{words[0]}[{k}/{count}]" for k in range(1, count + 1)]
            for word in words:
                self._learn(word, ids, words[0])
        for candidates in self._words.values():
            candidates.sort(key=lambda word: -len(word.spelling))

    def _learn(self, word: str, ids: range, name: str) -> None:
        spelling = tuple(self._known.words(word))
        unknown = self._known.vocab.get(UNKNOWN) if isinstance(self._known, BertTokenizer) else None
        if not spelling or unknown in spelling:
            raise RequestError(f"the embedding {word[:80]!r} has no name that this model can read: give it another")
        others = self._words.setdefault(spelling[0], [])
        for other in others:
            if other.spelling == spelling and other.ids != ids:
                raise RequestError(f"two embeddings are called {word[:80]!r}: give one of them another name")
        others.append(_Word(spelling, ids, name))

    @property
    def comma(self) -> int | None:
        """As the tokenizer that spells."""
        return self._known.comma

    def words(self, text: str) -> list[int]:
        """All ids of a text, without marks, of any number."""
        ids, place = self._known.words(text), 0
        found: list[int] = []
        while place < len(ids):
            word = self._at(ids, place)
            found += [ids[place]] if word is None else word.ids
            place += 1 if word is None else len(word.spelling)
        return found

    def mentioned(self, text: str) -> tuple[str, ...]:
        """The names of the embeddings whose words are in a text, without edits and weights, in their order."""
        ids, place = self._known.words(text), 0
        names: dict[str, None] = {}
        while place < len(ids):
            word = self._at(ids, place)
            if word is not None:
                names[word.name] = None
            place += 1 if word is None else len(word.spelling)
        return tuple(names)

    def _at(self, ids: Sequence[int], place: int) -> _Word | None:
        for word in self._words.get(ids[place], ()):
            if tuple(ids[place : place + len(word.spelling)]) == word.spelling:
                return word
        return None

    def spelled(self, token: int) -> str:
        """What an id stands for, to be shown: `name`, or `name[2/3]` where there are several."""
        return self._known.spelled(token) if token < self._first else self._spelled[token - self._first]

    def rows(self, words: Sequence[Sequence[int]]) -> Tensor:
        """Ids of B texts as `words` gives them -> (B, L) int64: cut, marked at both ends, filled up."""
        return self._known.rows(words)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, L) int64. A text too long loses its tail; the end is always marked."""
        return self.rows([self.words(text) for text in texts])
