"""The tokenizer's files: in a model's folder, in one given, or CLIP's own in the local hub cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safelight.checkpoints.files import read_json, unreadable
from safelight.checkpoints.writing import write_json
from safelight.errors import ModelFileError
from safelight.models.clip import ClipTextConfig
from safelight.models.tokenizer import END, MERGES_FILE, START, VOCAB_FILE, ClipTokenizer

CLIP_ON_THE_HUB = "openai/clip-vit-large-patch14"
"""The model whose vocabulary all SD 1.x checkpoints use and none of their single files carries."""
ONE_FILE, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
FILES = (VOCAB_FILE, MERGES_FILE, ONE_FILE, SETTINGS, SPECIAL)


def read_tokenizer(folder: Path, config: ClipTextConfig, *, marks: Path | None = None) -> ClipTokenizer:
    """The tokenizer in a folder: `vocab.json` and `merges.txt`, or newer transformers' `tokenizer.json`.

    marks: a folder that is asked first for the word that prompts are filled up with: the model's own.

    Raises:
        ModelFileError: a file is missing or damaged, or has another number of words than the text tower.
    """
    if (folder / VOCAB_FILE).is_file() or not (folder / ONE_FILE).is_file():
        path = folder / VOCAB_FILE
        vocab, merges = dict(read_json(path)), _merges(folder / MERGES_FILE)
    else:
        path = folder / ONE_FILE
        vocab, merges = _one_file(path)
    ids = {word: i for word, i in vocab.items() if isinstance(i, int) and 0 <= i < config.vocab_size}
    if not len(vocab) == len(ids) == len(set(ids.values())) == config.vocab_size:
        raise ModelFileError(
            f"{path} has {len(vocab)} words, the text tower {config.vocab_size}; give the vocabulary of this model"
        )
    if START not in ids or END not in ids:
        raise ModelFileError(f"{path} lacks {START} or {END}; give a vocabulary of CLIP's kind")
    own = None if marks is None or marks == folder else _pad_word(marks)
    if own is not None and own[1] in ids:
        return ClipTokenizer(ids, merges, config.context_length, ids[own[1]])
    return ClipTokenizer(ids, merges, config.context_length, _pad_token(folder, ids))


def settled(config: ClipTextConfig, tokenizer: ClipTokenizer) -> ClipTextConfig:
    """The config with the marks' ids of the tokenizer, which are the true ones."""
    return replace(
        config,
        start_token=tokenizer.start_token,
        end_token=tokenizer.end_token,
        pad_token=tokenizer.pad_token,
    )


def cached_tokenizer(config: ClipTextConfig) -> ClipTokenizer | None:
    """CLIP's own, if it is in the local hub cache and is that of this text tower. Asks no network."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (half a second, rarely needed)

    found = [try_to_load_from_cache(CLIP_ON_THE_HUB, name) for name in (VOCAB_FILE, MERGES_FILE)]
    if not all(isinstance(path, str) for path in found) or config.vocab_size != ClipTextConfig().vocab_size:
        return None
    return read_tokenizer(Path(str(found[0])).parent, config)


def write_tokenizer(folder: Path, tokenizer: ClipTokenizer) -> None:
    """The four files that transformers' CLIPTokenizer reads."""
    tokenizer.write(folder)
    pad = next(word for word, i in tokenizer.vocab.items() if i == tokenizer.pad_token)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    write_json(folder / SPECIAL, special)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.length,
        "do_lower_case": True,
    }
    write_json(folder / SETTINGS, {**settings, "add_prefix_space": False, "errors": "replace", **special})


def _merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is corrupted ({error}); download or copy it again") from error
    return _pairs(path, [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")])


def _one_file(path: Path) -> tuple[dict[str, object], list[tuple[str, str]]]:
    model = read_json(path).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or "merges" not in model:
        raise ModelFileError(f"{path} holds no byte-pair vocabulary; give a folder with {VOCAB_FILE} and {MERGES_FILE}")
    return model["vocab"], _pairs(path, model["merges"])


def _pairs(path: Path, merges: object) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for merge in merges if isinstance(merges, list) else []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(half, str) for half in pair):
            raise ModelFileError(f"{path} is corrupted: {ascii(merge)[:80]} is no pair; download or copy it again")
        pairs.append((pair[0], pair[1]))
    return pairs


def _pad_token(folder: Path, vocab: dict[str, int]) -> int:
    """The id of the word to fill up with, where the folder names one; CLIP fills with its end."""
    found = _pad_word(folder)
    if found is None:
        return vocab[END]
    path, word = found
    if word not in vocab:
        raise ModelFileError(f"{path}: the pad_token {ascii(word)[:80]} is not in the vocabulary")
    return vocab[word]


def _pad_word(folder: Path) -> tuple[Path, str] | None:
    """The word to fill up with, and the file that names it."""
    for name in (SPECIAL, SETTINGS):
        if (folder / name).is_file():
            pad = read_json(folder / name).get("pad_token")
            word = pad.get("content") if isinstance(pad, dict) else pad
            if isinstance(word, str):
                return folder / name, word
    return None
