"""One door for every source: a folder, a single file, a hub id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safelight.checkpoints import hub
from safelight.checkpoints.checkpoint import Checkpoint
from safelight.checkpoints.detect import detect
from safelight.checkpoints.files import read_tensors
from safelight.checkpoints.folder import read_folder
from safelight.checkpoints.layouts import ldm, original
from safelight.checkpoints.vocabulary import cached_tokenizer, read_tokenizer
from safelight.checkpoints.wordpieces import cached_pieces, read_pieces
from safelight.errors import ModelFileError
from safelight.models.bert import BertConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.tokenizer import Tokenizing
from safelight.presets import Preset

FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def read(
    source: str | Path,
    *,
    preset: Preset | None = None,
    ema: bool = False,
    revision: str = "main",
    tokenizer: Path | None = None,
) -> Checkpoint:
    """Read a model; its tensors are views of the mapped files and take no memory until they are used.

    Args:
        source: a folder in diffusers' layout, a single file in the original one (.safetensors, .ckpt, .pt),
            or a hub id "owner/name".
        preset: which member it is; None: told by exact keys and shapes, or by the folder's own configs.
        ema: take the running average that original training checkpoints carry beside the weights.
        revision: of a hub repository: branch, tag or commit.
        tokenizer: a folder with vocab.json and merges.txt, for files that have none; it goes before the
            source's own.

    Raises:
        ModelFileError: there is no such source, or it is damaged, incomplete, of no known family, or tries
            to run code.
    """
    path = Path(source)
    if path.is_file():
        return _read_file(path, preset, ema, tokenizer)
    if path.is_dir():
        folder = path
    elif hub.is_hub_id(str(source)) and path.suffix not in FILE_ENDINGS:
        folder = hub.download(str(source), revision)
    elif path.suffix in FILE_ENDINGS:
        raise ModelFileError(f"{source} is missing; check the path")
    else:
        raise ModelFileError(
            f"{source} does not exist; give a model's folder, a .safetensors or .ckpt file, or a hub id (owner/name)"
        )
    if ema:
        raise ModelFileError(f"{source} is a folder, which holds one set of weights; leave out --ema")
    return read_folder(folder, preset, tokenizer)


def _tokenizer(tower: ClipTextConfig | BertConfig, folder: Path | None) -> Tokenizing | None:
    """In the folder given, or the released towers' own where it is in the local hub cache."""
    if isinstance(tower, BertConfig):
        return cached_pieces(tower) if folder is None else read_pieces(folder, tower)
    found = cached_tokenizer(tower) if folder is None else read_tokenizer(folder, tower)
    return None if found is None else found.padded_with(tower.pad_token)


def _read_file(path: Path, preset: Preset | None, ema: bool, tokenizer: Path | None) -> Checkpoint:
    """A single file in the original layout."""
    tensors = read_tensors(path)
    if ema and not any(key.startswith(ldm.EMA) for key in tensors):
        raise ModelFileError(f"{path} has no running average ({ldm.EMA}*); leave out --ema")
    chosen = detect(tensors, str(path), ema=ema) if preset is None else preset
    parts, dropped = original.layout(chosen, tensors, ema=ema).load(tensors, str(path))
    if (scale := tensors.get(original.SCALE)) is not None:  # measured by the training run, and not in any config
        chosen = replace(chosen, latent_scale=float(scale))
    tokenizers = {}
    for words in chosen.words:
        found = _tokenizer(words.tower, tokenizer)
        if found is not None:
            tokenizers[words.part] = found
    return Checkpoint(chosen, parts, tokenizers, path, tuple(dropped))
