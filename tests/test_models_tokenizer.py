"""The tokenizer against OpenAI's recorded ids, and against transformers on a vocabulary of our own.

CLIP's vocabulary is not in the repository. Where every word of a recorded text is one token, the ids of those
tokens are all of it that the text needs: a vocabulary is made of them, with the words as a person splits them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer as TheirBertTokenizer
from transformers import CLIPTokenizer

from golden_cases import zipped
from safelight.checkpoints import wordpieces
from safelight.checkpoints.vocabulary import read_tokenizer, write_tokenizer
from safelight.checkpoints.wordpieces import cached_pieces, read_pieces, write_pieces
from safelight.errors import ModelFileError
from safelight.models.bert import BertConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.tokenizer import (
    END,
    END_OF_WORD,
    FIRST,
    MASK,
    PAD,
    SEPARATOR,
    START,
    UNKNOWN,
    BertTokenizer,
    ClipTokenizer,
    _byte_alphabet,
)

RECORDED = {case["text"]: case for case in zipped("clip_tokenizer/cases.json")["cases"]}
START_ID, END_ID = 49406, 49407
E_ACUTE = "Ã©"  # its two bytes, as the vocabulary writes them

SPLIT = {
    "": "",
    "a": "a",
    "A photo of a cat": "a photo of a cat",
    "a photograph of an astronaut riding a horse": "a photograph of an astronaut riding a horse",
    "  leading  and   double spaces ": "leading and double spaces",
    "ALL CAPS TEXT": "all caps text",
    "don't can't it's we've I'll I'd you're": "don 't can 't it 's we 've i 'll i 'd you 're",
    "numbers 1234567890 3.14 1,000": "numbers 1 2 3 4 5 6 7 8 9 0 3 . 1 4 1 , 0 0 0",
    "combining e\u0301 vs é": f"combining {E_ACUTE} vs {E_ACUTE}",
    "word " * 100: " ".join(["word"] * 100),
    "C++ & C# / D\\E": "c ++ & c # / d \\ e",
    "100% 50$ #hashtag @user": "1 0 0 % 5 0 $ # hashtag @ user",
    "trailing space ": "trailing space",
}
WHOLE = {text: split.split() for text, split in SPLIT.items()}


def recorded_vocabulary(pad: int) -> ClipTokenizer:
    """The recorded ids of the words above, all other ids empty. A word is joined from its end."""
    alphabet = _byte_alphabet()
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + END_OF_WORD for a in alphabet)])}
    vocab |= {START: START_ID, END: END_ID}
    known = {
        word: i
        for text, words in WHOLE.items()
        for word, i in zip(words, RECORDED[text]["ids_no_special"], strict=True)
    }
    merges: list[tuple[str, str]] = []
    for word, i in known.items():
        for k in range(len(word) - 2, -1, -1):
            merges.append((word[k], word[k + 1 :] + END_OF_WORD))
            vocab.setdefault(word[k:] + END_OF_WORD, END_ID + 1 + len(vocab))
        vocab[word + END_OF_WORD] = i
    return ClipTokenizer(vocab, list(dict.fromkeys(merges)), pad_token=pad)


def test_the_cases_are_the_recorded_ones() -> None:
    assert WHOLE.keys() <= RECORDED.keys()
    assert len(WHOLE) == 13


@pytest.mark.parametrize("text", WHOLE)
def test_recorded_ids(text: str) -> None:
    case = RECORDED[text]
    tokenizer = recorded_vocabulary(END_ID)
    assert tokenizer.words(text) == case["ids_no_special"]
    assert tokenizer([text]).tolist() == [case["hf_sd1_pad_eos"]]
    assert recorded_vocabulary(0)([text]).tolist() == [case["hf_sd2_pad_0"]]
    assert tokenizer.padded_with(0)([text]).tolist() == [case["hf_sd2_pad_0"]]


def test_single_characters_have_clips_ids() -> None:
    """Without any merge, a vocabulary of ours numbers the bytes as CLIP's does: visible Latin-1 first."""
    tokenizer = ClipTokenizer.train([], 514)
    singles = {
        word: i
        for text, words in WHOLE.items()
        for word, i in zip(words, RECORDED[text]["ids_no_special"], strict=True)
        if len(word) == 1
    }
    assert len(singles) >= 20
    assert {word: tokenizer.words(word) for word in singles} == {word: [i] for word, i in singles.items()}


TEXTS = ["a red apple on a blue background", "two small dogs, left of 3 cars!", "ünïcödé naïve café", "don't"]


@pytest.fixture(scope="module")
def trained() -> ClipTokenizer:
    return ClipTokenizer.train(TEXTS * 4, 700)


@pytest.fixture(scope="module")
def theirs(trained: ClipTokenizer, tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, trained)
    found: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return found


@pytest.mark.parametrize("text", [*RECORDED, *TEXTS, "\x00\x1f", "ΣΑΣ İ ß ǅ", "x" * 500, "\U0001f469‍\U0001f680"])
def test_ids_are_those_of_transformers(trained: ClipTokenizer, theirs: CLIPTokenizer, text: str) -> None:
    expected = theirs([text], padding="max_length", truncation=True, max_length=77).input_ids
    assert trained([text]).tolist() == expected


def test_a_batch_is_its_texts(trained: ClipTokenizer) -> None:
    ids = trained(TEXTS)
    assert (ids.dtype, ids.shape) == (torch.int64, (len(TEXTS), 77))
    assert torch.equal(ids, torch.cat([trained([text]) for text in TEXTS]))
    assert trained([]).shape == (0, 77)


def test_what_is_written_comes_back(trained: ClipTokenizer, tmp_path: Path) -> None:
    trained.write(tmp_path)
    config = ClipTextConfig(vocab_size=len(trained.vocab))
    for back in (ClipTokenizer.read(tmp_path), read_tokenizer(tmp_path, config)):
        assert (back.vocab, back.merges) == (trained.vocab, trained.merges)
        assert torch.equal(back(TEXTS), trained(TEXTS))


def test_training_gives_a_vocabulary_in_clips_order(trained: ClipTokenizer) -> None:
    tokens = sorted(trained.vocab, key=trained.vocab.__getitem__)
    assert sorted(trained.vocab.values()) == list(range(len(tokens)))
    assert len(tokens) <= 700
    assert tokens[-2:] == [START, END]
    assert tokens[:3] == ["!", '"', "#"]
    assert tokens[256:258] == [f"!{END_OF_WORD}", f'"{END_OF_WORD}']
    assert tokens[512:-2] == list(dict.fromkeys(a + b for a, b in trained.merges))
    assert len(trained.words("apple")) == 1, "a word that is there four times is one token"


# BERT's word pieces. Its vocabulary is not in the repository either: one of our own, for both sides.

PIECES = [
    *(PAD, UNKNOWN, FIRST, SEPARATOR, MASK),
    *("a", "red", "apple", "on", "the", "un", "##known", "##s", "naive", "cafe", "don", "'", "t", "!", ",", "3"),
    *("##0", "##red", "kitchen", "\u65e5", "\u672c", "sos", "\u0130", "##\u0307", "i"),
]
VOCABULARY = {piece: i for i, piece in enumerate(PIECES)}
WORDS = BertConfig(vocab_size=len(PIECES))
SAID = [
    "A red apple on the kitchen",
    "unknowns, UNKNOWN! unred 300 3000",
    "  Na\u00efve CAF\u00c9\tdon't\n\u65e5\u672c",
    "",
    "strangers [SEP] [MASK] red",
    "red " * 200,
    "x" * 101 + " a" * 3,
    "\x00\ufffd\u200ba\u0301",
    "\u0130 \u03a3\u039f\u03a3 red_apple",
]


@pytest.fixture(scope="module")
def pieces_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    write_pieces(folder, BertTokenizer(VOCABULARY))
    return folder


@pytest.mark.parametrize("text", SAID)
def test_pieces_are_those_of_transformers(pieces_folder: Path, text: str) -> None:
    theirs = TheirBertTokenizer.from_pretrained(pieces_folder)
    expected = theirs([text], padding="max_length", truncation=True, max_length=77).input_ids
    assert BertTokenizer(VOCABULARY)([text]).tolist() == expected


def test_pieces_by_hand() -> None:
    ids = BertTokenizer(VOCABULARY, length=8)(["Unknowns RED 30"])
    expected = [FIRST, "un", "##known", "##s", "red", "3", "##0", SEPARATOR]
    assert ids.tolist() == [[VOCABULARY[piece] for piece in expected]]
    assert BertTokenizer(VOCABULARY, length=4)([""]).tolist() == [[2, 3, 0, 0]]


def test_pieces_that_are_written_come_back(pieces_folder: Path) -> None:
    back = read_pieces(pieces_folder, WORDS)
    assert (back.vocab, back.length) == (VOCABULARY, 77)
    assert torch.equal(back(SAID), BertTokenizer(VOCABULARY)(SAID))


def test_a_piece_may_be_what_python_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    odd = {**VOCABULARY, "\u2028": len(PIECES), "\x85": len(PIECES) + 1}
    write_pieces(tmp_path, BertTokenizer(odd))
    assert read_pieces(tmp_path, BertConfig(vocab_size=len(odd))).vocab == odd


def test_pieces_of_newer_transformers_are_read(pieces_folder: Path, tmp_path: Path) -> None:
    TheirBertTokenizer.from_pretrained(pieces_folder).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").unlink(missing_ok=True)
    assert (tmp_path / "tokenizer.json").is_file()
    assert read_pieces(tmp_path, WORDS).vocab == VOCABULARY


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "missing"),
        ("\n".join(PIECES[:-1]), "has 29 pieces, the transformer 30"),
        ("\n".join([*PIECES[:-1], "red"]), "'red' is there twice"),
        ("\n".join([*PIECES[1:], "more"]), r"lacks \[PAD\]"),
    ],
)
def test_pieces_that_are_damaged_are_named(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "vocab.txt").write_text(text, "utf-8")
    with pytest.raises(ModelFileError, match=said):
        read_pieces(tmp_path, WORDS)


def test_pieces_are_found_in_the_local_cache(
    pieces_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BertConfig(vocab_size=BertConfig().vocab_size)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert cached_pieces(config) is None
    commit = "0" * 40
    repository = tmp_path / ("models--" + wordpieces.BERT_ON_THE_HUB[1])
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    many = [*PIECES, *(f"word{i}" for i in range(config.vocab_size - len(PIECES)))]
    (snapshot / "vocab.txt").write_text("\n".join(many) + "\n", "utf-8")
    found = cached_pieces(config)
    assert found is not None
    assert found.words("red apple") == [VOCABULARY["red"], VOCABULARY["apple"]]
    assert cached_pieces(WORDS) is None, "another vocabulary than BERT's"
