"""CLIP's byte-pair tokenizer and BERT's of word pieces, on the `tokenizers` library, with the vocabulary files that
model folders carry."""

from __future__ import annotations

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
PAD, UNKNOWN, FIRST, SEPARATOR, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
PIECES_FILE = "vocab.txt"

# Radford et al. 2021, released code: contractions, words, single digits, runs of anything else.
WORDS = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


class Tokenizing(Protocol):
    """What every text tower needs of its tokenizer."""

    length: int
    """L, ids per prompt."""

    @property
    def comma(self) -> int | None:
        """The id of a comma that stands for itself, if there is one."""
        ...

    def words(self, text: str) -> list[int]:
        """All ids of a text, without marks, of any number."""
        ...

    def spelled(self, token: int) -> str:
        """What an id stands for, to be shown."""
        ...

    def rows(self, words: Sequence[Sequence[int]]) -> Tensor:
        """Ids of B texts as `words` gives them -> (B, L) int64: cut, marked at both ends, filled up."""
        ...

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, L) int64."""
        ...


class _Vocabulary(ABC):
    """What is the same whatever the words are made of."""

    vocab: dict[str, int]
    length: int
    start_token: int
    end_token: int
    pad_token: int

    @abstractmethod
    def _made(self) -> Tokenizer:
        """The library's."""

    @cached_property
    def _engine(self) -> Tokenizer:
        return self._made()

    @cached_property
    def _spelling(self) -> dict[int, str]:
        return {token: word for word, token in self.vocab.items()}

    def words(self, text: str) -> list[int]:
        """All ids of a text, without marks, of any number."""
        ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        return ids

    def rows(self, words: Sequence[Sequence[int]]) -> Tensor:
        """Ids of B texts as `words` gives them -> (B, L) int64: cut, marked at both ends, filled up."""
        marked = [[self.start_token, *ids[: self.length - 2], self.end_token] for ids in words]
        filled = [ids + [self.pad_token] * (self.length - len(ids)) for ids in marked]
        return torch.tensor(filled, dtype=torch.int64).reshape(len(filled), self.length)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, L) int64. A text too long loses its tail; the end is always marked."""
        return self.rows([self.words(text) for text in texts])


class ClipTokenizer(_Vocabulary):
    """Prompt to ids: lower-cased, split into words, byte-pair encoded, marked at both ends, padded and truncated.

    Args:
        vocab: token -> id; the end of a word is written `</w>`.
        merges: pairs to join, most frequent first.
        length: L, ids per prompt.
        pad_token: id to fill up with; None fills with the end token, as SD 1.x does.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Sequence[tuple[str, str]],
        length: int = 77,
        pad_token: int | None = None,
    ) -> None:
        self.vocab, self.merges, self.length = vocab, [(a, b) for a, b in merges], length
        self.start_token, self.end_token = vocab[START], vocab[END]
        self.pad_token = self.end_token if pad_token is None else pad_token

    def _made(self) -> Tokenizer:
        engine = _engine(self.vocab, self.merges)
        # Typed literally, the two marks are themselves, not words to be split.
        engine.add_special_tokens([START, END])
        return engine

    @property
    def comma(self) -> int | None:
        """The id of a comma that is a word by itself."""
        return self.vocab.get("," + END_OF_WORD)

    def spelled(self, token: int) -> str:
        """The letters of an id, without the mark of a word's end; a part of a letter is a replacement character."""
        word = self._spelling[token]
        if word in (START, END):
            return word
        spelling = bytes(_BYTES[letter] for letter in word.removesuffix(END_OF_WORD) if letter in _BYTES)
        return spelling.decode("utf-8", "replace")

    def padded_with(self, pad_token: int) -> ClipTokenizer:
        """The same words, filled up with another token: the towers of one model may differ in nothing else."""
        return ClipTokenizer(self.vocab, self.merges, self.length, pad_token)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, length: int = 77) -> ClipTokenizer:
        """Learn a vocabulary of at most `vocab_size` tokens from texts: 512 bytes, merges, two marks."""
        alphabet = _byte_alphabet()
        engine = _engine({}, [])
        trainer = trainers.BpeTrainer(
            vocab_size=max(vocab_size, 2 * len(alphabet)),
            initial_alphabet=alphabet,
            end_of_word_suffix=END_OF_WORD,
            show_progress=False,
        )
        engine.train_from_iterator(texts, trainer)
        learned = json.loads(engine.to_str())["model"]["merges"]
        # CLIP's order: bytes, bytes that end a word, merges, marks.
        tokens = alphabet + [a + END_OF_WORD for a in alphabet]
        room = max(vocab_size - len(tokens) - 2, 0)
        merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned[:room]]
        known = set(tokens)
        for a, b in merges:
            if a + b not in known:
                known.add(a + b)
                tokens.append(a + b)
        vocab = {token: i for i, token in enumerate([*tokens, START, END])}
        return cls(vocab, merges, length)

    @classmethod
    def read(cls, folder: Path, length: int = 77, pad_token: int | None = None) -> ClipTokenizer:
        """From `vocab.json` and `merges.txt` of a model folder's `tokenizer`."""
        vocab = json.loads((folder / VOCAB_FILE).read_text("utf-8"))
        lines = (folder / MERGES_FILE).read_text("utf-8").splitlines()
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        return cls(vocab, [(a, b) for a, b in pairs], length, pad_token)

    def write(self, folder: Path) -> None:
        """Both vocabulary files, as `read` and other tools read them."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / VOCAB_FILE).write_text(json.dumps(self.vocab, ensure_ascii=False), "utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
        (folder / MERGES_FILE).write_text("\n".join(lines) + "\n", "utf-8")


class BertTokenizer(_Vocabulary):
    """Prompt to ids of bert-base-uncased's kind: lower-cased, without accents, split at spaces and punctuation, then
    into the longest pieces that the vocabulary has (Devlin et al. 2019), marked at both ends, padded and truncated.

    Args:
        vocab: piece -> id, the marks included; a piece that goes on a word begins with `##`.
        length: L, ids per prompt.
    """

    def __init__(self, vocab: dict[str, int], length: int = 77) -> None:
        self.vocab, self.length = vocab, length
        self.pad_token, self.start_token, self.end_token = vocab[PAD], vocab[FIRST], vocab[SEPARATOR]

    def _made(self) -> Tokenizer:
        engine = Tokenizer(models.WordPiece(vocab=self.vocab, unk_token=UNKNOWN, max_input_chars_per_word=100))
        engine.normalizer = normalizers.BertNormalizer(lowercase=True)
        engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        engine.add_special_tokens([mark for mark in (PAD, UNKNOWN, FIRST, SEPARATOR, MASK) if mark in self.vocab])
        return engine

    @property
    def comma(self) -> int | None:
        """The id of a comma."""
        return self.vocab.get(",")

    def spelled(self, token: int) -> str:
        """The piece of an id; one that goes on a word begins with `##`."""
        return self._spelling[token]

    def write(self, folder: Path) -> None:
        """`vocab.txt`, one piece a line in the order of their ids, as other tools read it."""
        folder.mkdir(parents=True, exist_ok=True)
        pieces = sorted(self.vocab, key=self.vocab.__getitem__)
        (folder / PIECES_FILE).write_text("".join(f"{piece}\n" for piece in pieces), "utf-8", newline="\n")


def _engine(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    engine = Tokenizer(
        models.BPE(
            vocab=vocab, merges=merges, end_of_word_suffix=END_OF_WORD, unk_token=END, continuing_subword_prefix=""
        )
    )
    engine.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return engine


def _byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for bytes, in CLIP's order: visible Latin-1 first, then the rest."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [256 + i for i in range(256 - len(visible))]
    assert all(unicodedata.category(chr(c)) != "Cc" for c in visible)
    return [chr(c) for c in visible + others]


_BYTES = {letter: ord(letter) for letter in _byte_alphabet() if ord(letter) < 256}
_BYTES |= {chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(_BYTES.values())))}
"""Which byte each character of a token stands for."""
