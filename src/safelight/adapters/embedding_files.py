"""Files of textual inversion: what AUTOMATIC1111's web UI, diffusers, kohya's scripts and the original code write.

| file | holds |
|---|---|
| `.pt` of the web UI, or a picture's text | `string_to_param` -> `*` -> (n, D), with `name`, `step`, `sd_checkpoint` |
| `.pt` of the original code | the same in a `ParameterDict`, and nothing beside it |
| `.bin` and `.safetensors` of diffusers | the word -> (D,) or (n, D) |
| `.safetensors` of kohya's scripts, and ours | `emb_params` -> (n, D) |
| the same of SDXL | `clip_l` -> (n, 768) and `clip_g` -> (n, 1280) |
| a LoRA that comes with its words | any of these, below `bundle_emb.` and the word |
"""

from __future__ import annotations

import base64
import binascii
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from safelight.adapters.embeddings import ONLY, PARTS, Embedding
from safelight.adapters.origin import MODEL, MODEL_HASH, STEP, Origin, named, require_no_other
from safelight.checkpoints.files import Contents, printable, read_contents, unreadable
from safelight.checkpoints.sorts import EMBEDDING
from safelight.checkpoints.writing import write_tensors
from safelight.errors import ModelFileError

UNNAMED = "emb_params"
_NO_WORDS = (UNNAMED, "*")
_PARAMETERS = "string_to_param"
_STANDARD = (_PARAMETERS, "string_to_token", "name", STEP, MODEL, MODEL_HASH)
"""All that a file of the web UI holds."""
_TRAINED: Mapping[str, str] = {
    "name": "ss_output_name",
    STEP: "ss_steps",
    MODEL: "ss_sd_model_name",
    MODEL_HASH: "ss_sd_model_hash",
}
"""The same in the metadata that kohya's scripts write."""
MOST_VECTORS = 1000
"""A chunk of a prompt has room for 75."""
WIDEST = 1 << 14
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_CHUNK = "sd-ti-embedding"
MAX_TEXT = 4 << 20
"""Of a picture's text: 150 vectors of SD 1 have as many letters."""


def read_embedding(path: Path, name: str | None = None) -> Embedding:
    """Read any of these files. None runs code.

    Args:
        name: what it is to be called in prompts; None: the file's name without its ending, and the word in a file of
            diffusers'; of a picture, the name in its text.

    Raises:
        ModelFileError: the file is missing, damaged, tries to run code, or holds something else.
    """
    try:
        with path.open("rb") as file:
            picture = file.read(len(PNG_MAGIC)) == PNG_MAGIC
    except OSError as error:
        raise unreadable(path, error) from error
    contents = Contents(_in_picture(path), {}, _listed) if picture else read_contents(path)
    values = contents.values
    if not isinstance(values, dict):
        raise ModelFileError(f"{path} is no embedding: it holds no names; give a file of textual inversion")
    require_no_other(path, values, EMBEDDING, "an embedding")
    vectors, word = _vectors(path, values, contents.tensor)
    origin = Origin.of({field: contents.metadata.get(key, values.get(field)) for field, key in _TRAINED.items()})
    words: tuple[str, ...]
    if name is not None:
        words = (name,)
    elif picture and origin.name is not None:
        words = (origin.name,)
    else:
        words = (path.stem,) if word is None or word == path.stem else (path.stem, word)
    return Embedding(words, vectors, origin, path)


def bundled_embedding(lora: Path | None, word: str, tensors: Mapping[str, Tensor]) -> Embedding:
    """A word that comes with a LoRA, and is taught as long as that is used.

    Args:
        lora: the file that it is in.
        tensors: by the ends of their keys, behind `bundle_emb.WORD.`.

    Raises:
        ModelFileError: they are no embedding.
    """
    values: dict[object, object] = {}
    for ending, tensor in tensors.items():
        outer, dot, inner = ending.partition(".")
        if dot and outer == _PARAMETERS:
            held = values.setdefault(_PARAMETERS, {})
            assert isinstance(held, dict)
            held[inner] = tensor
        else:
            values[ending] = tensor
    called = f"the word {printable(word)!r} in {'a LoRA' if lora is None else lora}"
    vectors, _ = _vectors(called, values, lambda value: value if isinstance(value, Tensor) else None)
    return Embedding((word,), vectors, Origin(), lora)


def _vectors(
    path: Path | str, values: Mapping[object, object], tensor: Callable[[object], Tensor | None]
) -> tuple[dict[str, Tensor], str | None]:
    """By part, and the word if the file has one."""
    if _PARAMETERS in values:
        _require_only(path, [key for key in values if key not in _STANDARD and _heavy(values[key], tensor)])
        held = values[_PARAMETERS]
        inner = held.get("_parameters") if isinstance(held, dict) else None
        parameters = inner if isinstance(inner, dict) else held
        if not isinstance(parameters, dict) or not parameters:
            raise _no_embedding(path, "it names no vectors")
        key, value = next(iter(parameters.items()))
        _require_only(path, [other for other in parameters if other != key])
        return {ONLY: _checked(path, key, tensor(value))}, None
    if any(key in values for key in PARTS):
        _require_only(path, [key for key in values if key not in PARTS])
        found = {part: _checked(path, key, tensor(values[key])) for key, part in PARTS.items() if key in values}
        counts = {len(vectors) for vectors in found.values()}
        if len(counts) > 1:
            raise _no_embedding(path, f"clip_l and clip_g have unequal numbers of vectors, {sorted(counts)}")
        return found, None
    if not values:
        raise _no_embedding(path, "it is empty")
    key, value = next(iter(values.items()))
    vectors = _checked(path, key, tensor(value))
    _require_only(path, [other for other in values if other != key])
    return {ONLY: vectors}, key if isinstance(key, str) and key.strip() and key not in _NO_WORDS else None


def _heavy(value: object, tensor: Callable[[object], Tensor | None]) -> bool:
    """Whether it may hold weights."""
    return isinstance(value, dict | list | tuple) or tensor(value) is not None


def _require_only(path: Path | str, others: list[object]) -> None:
    if others:
        raise _no_embedding(path, f"it has {named(others[0])} too, so that it is not clear what the word stands for")


def _checked(path: Path | str, key: object, vectors: Tensor | None) -> Tensor:
    """(n, D) float32."""
    if vectors is None:
        raise _no_embedding(path, f"{named(key)} is no tensor")
    shape = tuple(vectors.shape)
    if not (len(shape) in (1, 2) and 0 < shape[-1] <= WIDEST and (len(shape) == 1 or 0 < shape[0] <= MOST_VECTORS)):
        raise _no_embedding(path, f"{named(key)} has the shape {list(shape)}, where vectors have [count, width]")
    if not vectors.is_floating_point():
        raise _no_embedding(path, f"{named(key)} is of whole numbers")
    vectors = vectors.reshape(-1, shape[-1]).to(torch.float32, copy=True)
    if not bool(torch.isfinite(vectors).all()):
        raise ModelFileError(
            f"{path} is of no use: {named(key)} has numbers that are not finite; download it again, or train it again"
        )
    return vectors


def _no_embedding(path: Path | str, why: str) -> ModelFileError:
    return ModelFileError(f"{path} is no embedding: {why}; give a file of textual inversion")


# In a picture


def _in_picture(path: Path) -> object:
    """The fields in the text of a PNG, with lists of lists for tensors (`_listed`)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path, formats=("PNG",)) as image:
                text = image.info.get(PNG_CHUNK)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
        raise ModelFileError(f"{path} is no picture that can be read: download or copy it again") from error
    if not isinstance(text, str):
        raise _no_embedding(path, f"the picture has no text {PNG_CHUNK!r}, which the web UI writes into its previews")
    if len(text) > MAX_TEXT:
        raise ModelFileError(f"{path} is refused: an embedding of {len(text):,} letters; ask for a .safetensors file")
    try:
        found: object = json.loads(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path} is corrupted: the embedding in it is no JSON; download or copy it again"
        ) from error
    return found


def _listed(value: object) -> Tensor | None:
    """A tensor as the web UI writes it in JSON: lists of numbers."""
    rows = value.get("TORCHTENSOR") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not rows:
        return None
    lines = rows if isinstance(rows[0], list) else [rows]
    width = len(lines[0])
    for line in lines:
        if not isinstance(line, list) or len(line) != width or not all(type(x) in (int, float) for x in line):
            return None
    try:
        return torch.tensor([[float(x) for x in line] for line in lines], dtype=torch.float64)
    except OverflowError:  # a whole number of hundreds of digits
        return None


# Writing


def write_embedding(path: Path, embedding: Embedding, metadata: Mapping[str, str] | None = None) -> None:
    """A `.safetensors` file that the web UIs read: `emb_params`, or `clip_l` and `clip_g`. Atomically.

    Args:
        metadata: beside what the origin says.

    Raises:
        OutputError: it could not be written.
    """
    names = {part: key for key, part in PARTS.items()} | {ONLY: UNNAMED}
    tensors = {names[part]: vectors for part, vectors in embedding.vectors.items()}
    write_tensors(path, tensors, _metadata(embedding) | dict({} if metadata is None else metadata))


def write_diffusers_embedding(path: Path, embedding: Embedding, part: str | None = None) -> None:
    """A `.safetensors` file for diffusers' `load_textual_inversion`: the word -> (n, D). Atomically.

    Args:
        part: which text tower's, where the embedding has more than one: each is read from its own file.

    Raises:
        ValueError: the embedding has several parts and none is named, or lacks the one that is.
        OutputError: it could not be written.
    """
    parts = tuple(embedding.vectors)
    if part is None and len(parts) > 1:
        raise ValueError(f"the embedding has vectors for {parts}: name one")
    if part is not None and part not in parts:
        raise ValueError(f"the embedding has vectors for {parts}, not for {part!r}")
    vectors = embedding.vectors[parts[0] if part is None else part]
    write_tensors(path, {embedding.name: vectors}, _metadata(embedding))


def _metadata(embedding: Embedding) -> dict[str, str]:
    fields = embedding.origin.fields()
    return {_TRAINED[field]: str(value) for field, value in fields.items() if value is not None}
