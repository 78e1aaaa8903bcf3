"""BERT's vocabulary files: in a model's folder, in one given, or BERT's own in the local hub cache."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from safelight.checkpoints.files import read_json, unreadable
from safelight.checkpoints.vocabulary import ONE_FILE, SETTINGS, SPECIAL
from safelight.checkpoints.writing import write_json
from safelight.errors import ModelFileError
from safelight.models.bert import BertConfig
from safelight.models.tokenizer import FIRST, MASK, PAD, PIECES_FILE, SEPARATOR, UNKNOWN, BertTokenizer

BERT_ON_THE_HUB = ("google-bert/bert-base-uncased", "bert-base-uncased")
"""The model whose vocabulary latent diffusion's text models use, by its name now and before."""
FILES = (PIECES_FILE, ONE_FILE, SETTINGS, SPECIAL)
MARKS = (PAD, UNKNOWN, FIRST, SEPARATOR)


def read_pieces(folder: Path, config: BertConfig) -> BertTokenizer:
    """The tokenizer in a folder: `vocab.txt`, or newer transformers' `tokenizer.json`.

    Raises:
        ModelFileError: the file is missing or damaged, or has another number of pieces than the transformer.
    """
    if (folder / PIECES_FILE).is_file() or not (folder / ONE_FILE).is_file():
        path = folder / PIECES_FILE
        vocab = _lines(path)
    else:
        path = folder / ONE_FILE
        vocab = _one_file(path)
    if len(vocab) != config.vocab_size or sorted(vocab.values()) != list(range(config.vocab_size)):
        raise ModelFileError(
            f"{path} has {len(vocab)} pieces, the transformer {config.vocab_size}; give the vocabulary of this model"
        )
    if absent := [mark for mark in MARKS if mark not in vocab]:
        raise ModelFileError(f"{path} lacks {absent[0]}; give a vocabulary of BERT's kind")
    return BertTokenizer(vocab, config.context_length)


def cached_pieces(config: BertConfig) -> BertTokenizer | None:
    """BERT's own, if it is in the local hub cache and is that of this transformer. Asks no network."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (half a second, rarely needed)

    if config.vocab_size != BertConfig().vocab_size:
        return None
    for repository in BERT_ON_THE_HUB:
        found = try_to_load_from_cache(repository, PIECES_FILE)
        if isinstance(found, str):
            return read_pieces(Path(found).parent, config)
    return None


def write_pieces(folder: Path, tokenizer: BertTokenizer) -> None:
    """The three files that transformers' BertTokenizer reads."""
    tokenizer.write(folder)
    special = {"pad_token": PAD, "unk_token": UNKNOWN, "cls_token": FIRST, "sep_token": SEPARATOR}
    if MASK in tokenizer.vocab:
        special["mask_token"] = MASK
    write_json(folder / SPECIAL, special)
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": tokenizer.length, "do_lower_case": True}
    write_json(folder / SETTINGS, {**settings, **special})


def _lines(path: Path) -> dict[str, int]:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is corrupted ({error}); download or copy it again") from error
    # Not splitlines: pieces may be characters that it takes for ends of lines.
    pieces = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    twice = [piece for piece, times in Counter(pieces).items() if times > 1]
    if twice:
        raise ModelFileError(f"{path} is corrupted: {ascii(twice[0])[:80]} is there twice; download or copy it again")
    return {piece: i for i, piece in enumerate(pieces)}


def _one_file(path: Path) -> dict[str, int]:
    model = read_json(path).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()):
        raise ModelFileError(f"{path} holds no vocabulary of pieces; give a folder with {PIECES_FILE}")
    return vocab
