"""The TOML files by which kohya's tools are told of data sets: every key is used, or refused by name.

`[general]`, `[[datasets]]` and `[[datasets.subsets]]`: what is said further in goes before what is said further out.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safelight.errors import DataError
from safelight.training.tags import Tags

T = TypeVar("T")
Fields = Mapping[str, object]

_INSIDE = frozenset({"datasets", "subsets"})
_OF_SETS = frozenset(
    {
        *("resolution", "batch_size", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps"),
        "bucket_no_upscale",
    }
)
_ANYWHERE = frozenset(
    {
        *("num_repeats", "caption_extension", "shuffle_caption", "keep_tokens", "flip_aug", "caption_prefix"),
        *("caption_suffix", "caption_dropout_rate", "caption_tag_dropout_rate"),
    }
)
_OF_SUBSETS = frozenset({"image_dir", "class_tokens", "is_reg"})
_NOT_HERE = frozenset(
    {
        *("color_aug", "face_crop_aug_range", "random_crop", "keep_tokens_separator", "secondary_separator"),
        *("enable_wildcard", "alpha_mask", "token_warmup_min", "token_warmup_step", "custom_attributes"),
        *("caption_dropout_every_n_epochs", "metadata_file", "cache_info", "validation_split", "validation_seed"),
        *("network_multiplier", "resize_interpolation", "conditioning_data_dir", "skip_image_resolution"),
    }
)
"""Keys that there are, and that do nothing here: they may only be there to say no."""
_NO: tuple[object, ...] = (False, 0, "", None, {})


@dataclass(frozen=True)
class Subset:
    """The pictures of one folder."""

    folder: Path
    repeats: int
    class_tokens: str | None
    """The caption of pictures that have none."""
    extension: str | None
    """Of the files of captions; None: any that is known."""
    prefix: str
    suffix: str
    prior: bool
    """Whether these are pictures of the class of what is taught ("regularisation")."""
    flip: bool
    tags: Tags

    def caption(self, text: str) -> str:
        """What the file or the class says, with what belongs before and behind it."""
        return " ".join(part for part in (self.prefix, text, self.suffix) if part)


@dataclass(frozen=True)
class Sizes:
    """What a file says of the sizes of pictures in training, and of how many at once. What it does not say is None."""

    size: int | None
    batch: int | None
    square: bool
    """kohya's tools have buckets only where they are asked for."""
    step: int | None
    smallest: int | None
    largest: int | None
    no_enlarge: bool | None


@dataclass(frozen=True)
class Dataset:
    """All that a file says."""

    subsets: tuple[Subset, ...]
    sizes: Sizes


def read_dataset(path: Path) -> Dataset:
    """Read a file.

    Raises:
        DataError: it is no such file, says something that cannot be done here, or says two things at once.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check it") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no TOML ({' '.join(str(error).split())[:100]}): mend it") from error
    for key in content.keys() - {"general", "datasets"}:
        raise DataError(f"{path} has {key[:80]!r} outside of [general] and [[datasets]]: put it into one of them")
    general = _table(path, "general", content.get("general", {}))
    sets = _tables(path, "datasets", content.get("datasets"))
    subsets: list[Subset] = []
    sizes: list[Sizes] = []
    around = _known(path, general, _OF_SETS | _ANYWHERE)
    for one in sets:
        outer = {**around, **_known(path, one, _OF_SETS | _ANYWHERE)}
        sizes.append(_sizes(path, outer))
        for inner in _tables(path, "subsets", one.get("subsets")):
            subsets.append(_subset(path, {**outer, **_known(path, inner, _ANYWHERE | _OF_SUBSETS)}))
    if any(other != sizes[0] for other in sizes):
        raise DataError(f"{path} has data sets of different resolutions, batch sizes or buckets: train each by itself")
    return Dataset(tuple(subsets), sizes[0])


def _sizes(path: Path, fields: Fields) -> Sizes:
    size = fields.get("resolution")
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if isinstance(size, list | tuple):
        raise DataError(f"{path}: resolution {list(size)} is no square: give one number, and enable_bucket for shapes")
    whole = _whole(1)
    bucketed = _of(path, fields, "enable_bucket", _flag)
    return Sizes(
        _of(path, {**fields, "resolution": size}, "resolution", whole),
        _of(path, fields, "batch_size", whole),
        not bucketed,
        _of(path, fields, "bucket_reso_steps", whole) if bucketed else None,
        _of(path, fields, "min_bucket_reso", whole) if bucketed else None,
        _of(path, fields, "max_bucket_reso", whole) if bucketed else None,
        _of(path, fields, "bucket_no_upscale", _flag) if bucketed else None,
    )


def _subset(path: Path, fields: Fields) -> Subset:
    def share(value: object) -> float | None:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
        return float(value) if fits and isinstance(value, int | float) else None

    folder = _of(path, fields, "image_dir", _words)
    if folder is None:
        raise DataError(f"{path} has a subset without image_dir: say in which folder its pictures are")
    repeats = _of(path, fields, "num_repeats", _whole(1))
    keep = _of(path, fields, "keep_tokens", _whole(0))
    dropout = _of(path, fields, "caption_tag_dropout_rate", share)
    silence = _of(path, fields, "caption_dropout_rate", share)
    prefix, suffix = (_of(path, fields, name, _words) for name in ("caption_prefix", "caption_suffix"))
    return Subset(
        Path(folder),
        1 if repeats is None else repeats,
        _of(path, fields, "class_tokens", _words),
        _of(path, fields, "caption_extension", _ending),
        "" if prefix is None else prefix,
        "" if suffix is None else suffix,
        _of(path, fields, "is_reg", _flag) is True,
        _of(path, fields, "flip_aug", _flag) is True,
        Tags(
            _of(path, fields, "shuffle_caption", _flag) is True,
            0 if keep is None else keep,
            0.0 if dropout is None else dropout,
            0.0 if silence is None else silence,
        ),
    )


def _known(path: Path, fields: Fields, known: frozenset[str]) -> Fields:
    """The fields of a level, all of which are used."""
    for key, value in fields.items():
        if key in known | _INSIDE or (key in _NOT_HERE and value in _NO):
            continue
        if key in _NOT_HERE:
            raise DataError(f"{path}: {key} = {str(value)[:40]} cannot be done here: take it out")
        if key in _OF_SETS | _OF_SUBSETS:
            where = "datasets" if key in _OF_SETS else "datasets.subsets"
            raise DataError(f"{path}: {key} is of [[{where}]], and stands elsewhere: put it there")
        raise DataError(f"{path}: nobody here knows {key[:80]!r}: take it out, or correct it")
    return {key: value for key, value in fields.items() if key in known}


def _of(path: Path, fields: Fields, name: str, read: Callable[[object], T | None]) -> T | None:
    value = fields.get(name)
    found = None if value is None else read(value)
    if value is not None and found is None:
        raise DataError(f"{path}: {name} cannot be {str(value)[:40]!r}: correct it")
    return found


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _whole(least: int) -> Callable[[object], int | None]:
    def read(value: object) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 31 else None

    return read


def _words(value: object) -> str | None:
    return value if isinstance(value, str) and "\0" not in value else None


def _ending(value: object) -> str | None:
    ending = value if isinstance(value, str) else ""
    return ending if ending.startswith(".") and len(ending) > 1 and not set(ending[1:]) & set("./\\\0") else None


def _table(path: Path, name: str, value: object) -> Fields:
    if not isinstance(value, dict):
        raise DataError(f"{path}: {name} is no table: write [{name}]")
    return value


def _tables(path: Path, name: str, value: object) -> list[Fields]:
    where = name if name == "datasets" else "datasets.subsets"
    if not isinstance(value, list) or not value:
        raise DataError(f"{path} has no [[{where}]]: write at least one")
    return [_table(path, f"[{where}]", one) for one in value]
