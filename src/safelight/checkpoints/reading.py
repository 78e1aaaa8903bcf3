"""One door for every source: a folder, a single file, a hub id."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from safelight.checkpoints import hub
from safelight.checkpoints.alone import read_normalizer
from safelight.checkpoints.checkpoint import Checkpoint
from safelight.checkpoints.detect import detect, refuse_other_sorts
from safelight.checkpoints.files import FILE_ENDINGS, read_tensors
from safelight.checkpoints.folder import read_folder
from safelight.checkpoints.layouts import ldm, original
from safelight.checkpoints.vocabulary import cached_tokenizer, read_tokenizer
from safelight.checkpoints.wordpieces import cached_pieces, read_pieces
from safelight.errors import ModelFileError
from safelight.models.bert import BertConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.normalizer import Normalizer
from safelight.models.tokenizer import Tokenizing
from safelight.presets import Preset
from safelight.presets.conditions import NORMALIZER, SeenPicture

STATISTICS = Path("karlo_models", "ViT-L-14_stats.th")
"""Beside a Stable unCLIP file: where the original code keeps the mean and deviation of ViT-L/14's embeddings."""


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
    elif hub.is_hub_id(str(source)):
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
    refuse_other_sorts(tensors, str(path))
    chosen = detect(tensors, str(path), ema=ema) if preset is None else preset
    parts, dropped = original.layout(chosen, tensors, ema=ema).load(tensors, str(path))
    if original.SCALE in tensors:
        chosen = replace(chosen, latent_scale=_scale(path, tensors[original.SCALE]))
    if NORMALIZER in chosen.networks and NORMALIZER not in parts:
        parts |= _statistics(path, chosen)
    tokenizers = {}
    for words in chosen.words:
        found = _tokenizer(words.tower, tokenizer)
        if found is not None:
            tokenizers[words.part] = found
    return Checkpoint(chosen, parts, tokenizers, path, tuple(dropped))


def _scale(path: Path, measured: Tensor) -> float:
    """The latent scale, where the training run measured it: it is in no config then."""
    scale = float(measured) if measured.numel() == 1 else math.nan
    if not 0 < scale < math.inf:
        found = scale if measured.numel() == 1 else f"of shape {tuple(measured.shape)}"
        raise ModelFileError(f"{path}: {original.SCALE} is {found}, expected a number above 0; download it again")
    return scale


def _statistics(path: Path, preset: Preset) -> dict[str, dict[str, Tensor]]:
    """The statistics of CLIP's embeddings for a file that lacks them, as the original code's configs say.

    OpenCLIP's embeddings come under noise as they are. For OpenAI's, the file stands where the original code looks for
    it; without, the part stays absent.
    """
    [seen] = [condition for condition in preset.conditions if isinstance(condition, SeenPicture)]
    if seen.tower.activation == "gelu":  # as all of OpenCLIP's
        return {
            NORMALIZER: {name: tensor.detach() for name, tensor in Normalizer(seen.normalizer).state_dict().items()}
        }
    beside = path.parent / STATISTICS
    return {NORMALIZER: read_normalizer(beside, seen.normalizer)} if beside.is_file() else {}
