"""Captioned pictures on disk, by every convention that people keep them by; all of it validated before the first step.

- a caption beside each picture, of the same stem: `.txt` or `.caption`
- folders `N_words` in the folder (kohya's): N repeats, and the words are the caption of a picture without one
- `metadata.jsonl`, `.csv` or `.parquet` in the folder, with `file_name` and `text` (Hugging Face's)
- `.tar` shards in the folder, and no pictures (WebDataset's, see `shards`)
- a JSON file in place of the folder, {name: {"caption": ..., "tags": ...}} (kohya's fine-tuning)
- a TOML file in its place, that names folders and what is done with their captions (kohya's, see `kohya`)
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from io import BytesIO, StringIO
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from safelight.errors import DataError
from safelight.training.kohya import read_dataset
from safelight.training.shards import ENDING, Sample, read_shard
from safelight.training.tags import Tags

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
CAPTIONS = (".txt", ".caption")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TOML = ".toml"
REPEATED = re.compile(r"(\d+)_(.+)")
"""The name of a folder whose pictures count so many times."""
MOST_REPEATS = 1_000_000

Size = tuple[int, int]
"""Width, height, in pixels."""


@dataclass(frozen=True)
class Entry:
    """One picture, as it was when the folder was read."""

    path: Path
    name: str
    """Its path in the folder, with `/`."""
    caption: str
    repeats: int = 1
    """How often it comes in an epoch."""
    size: Size = (0, 0)
    """Of the upright picture."""
    digest: str = ""
    """SHA-256 of the file."""
    tags: Tags | None = None
    """What becomes of the caption each time; None: what is said for all."""
    flip: bool = False
    """Mirrored every other time, by chance."""
    prior: bool = False
    """Of the class of what is taught."""
    span: tuple[int, int] | None = None
    """Where in the file its bytes begin, and how many there are; None: it has the file for itself."""

    def picture(self) -> Image.Image:
        """Upright, RGB; transparency falls on white, 16 bits become 8.

        Raises:
            DataError: it is not whole.
        """
        return _decode(self.path if self.span is None else self.name, _bytes_of(self.path, self.span))


def read_entries(source: Path, caption: str | None = None) -> list[Entry]:
    """Find every picture with its caption, in the order of their names, and decode each once.

    Folders that kohya's tools would leave out are named on stderr.

    Args:
        source: a folder, a JSON file of captions in the folder of its pictures, or a TOML file of folders.
        caption: of pictures that have none; None: such a picture is a mistake.

    Raises:
        DataError: there is no picture; one is damaged, or has no caption, or two; a name leaves its folder.
    """
    source = Path(source)
    try:
        if source.suffix.lower() == TOML:
            entries = _in_subsets(source, caption)
        else:
            entries = _listed(source, caption) if source.is_file() else _in_folder(source, caption)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): check it") from error
    if not entries:
        endings = ", ".join(sorted(PICTURES))
        raise DataError(f"{source} has no pictures: put {endings} files with captions there")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_verified, entries))


def identity_of(entries: Sequence[Entry], *settings: object) -> str:
    """Equal for equal names, bytes, captions, repeats and settings."""
    digest = hashlib.sha256(":".join(map(str, settings)).encode())
    for entry in entries:
        repeats = () if entry.repeats == 1 else (entry.repeats,)
        told = () if entry.tags is None else (*astuple(entry.tags), entry.flip, entry.prior)
        digest.update(json.dumps([entry.name, entry.digest, entry.caption, *repeats, *told]).encode())
    return f"folder-{digest.hexdigest()}"


# Where the captions are


def _in_folder(folder: Path, caption: str | None) -> list[Entry]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give one with pictures and captions")
    files = [folder / name for name in METADATA if (folder / name).exists()]
    if len(files) > 1:
        raise DataError(f"{folder} has both {files[0].name} and {files[1].name}: delete one")
    if files:
        return _named(files[0], _metadata(files[0]), caption)
    shards = sorted(folder.glob(f"*{ENDING}"))
    if shards and not find_pictures(folder):
        return [
            _sampled(shard, sample, text, caption) for shard in shards for sample, text in read_shard(shard, PICTURES)
        ]
    folders = sorted((p for p in folder.iterdir() if p.is_dir()), key=lambda p: p.name)
    repeated = {p: named for p in folders if (named := REPEATED.fullmatch(p.name))}
    if not repeated:
        return [_beside(folder, path, caption) for path in find_pictures(folder)]
    _say_left_out(folder, list(repeated))
    found: list[Entry] = []
    for inner, named in repeated.items():
        number, words = named.groups()
        if not 0 < int(number) <= MOST_REPEATS:
            raise DataError(f"{inner} asks for {number} repeats: rename it to a number from 1 to {MOST_REPEATS}")
        found += [replace(_beside(folder, p, words.strip()), repeats=int(number)) for p in find_pictures(inner)]
    return found


def _say_left_out(folder: Path, taken: Sequence[Path]) -> None:
    """Name what the convention of numbered folders leaves out: what is not trained on is not left unsaid."""
    others = {p.relative_to(folder).parts[0] for p in find_pictures(folder)} - {p.name for p in taken}
    if others:
        line = f"{folder} has numbered folders: pictures elsewhere in it are left out ({', '.join(sorted(others))})"
        print(line, file=sys.stderr, flush=True)


def _in_subsets(file: Path, caption: str | None) -> list[Entry]:
    """The pictures of all folders that a TOML file names; those of folders within them are others'."""
    found: list[Entry] = []
    for subset in read_dataset(file).subsets:
        if not subset.folder.is_dir():
            raise DataError(f"{file}: image_dir {str(subset.folder)!r} is not a folder: give one with pictures")
        endings = CAPTIONS if subset.extension is None else (subset.extension,)
        default = caption if subset.class_tokens is None else subset.class_tokens
        paths = [path for path in find_pictures(subset.folder) if path.parent == subset.folder]
        if not paths:
            raise DataError(f"{file}: image_dir {str(subset.folder)!r} has no pictures: put some there")
        for path in paths:
            entry = _beside(subset.folder, path, default, endings)
            found.append(
                replace(
                    entry,
                    name=path.as_posix(),
                    caption=subset.caption(entry.caption),
                    repeats=subset.repeats,
                    tags=subset.tags,
                    flip=subset.flip,
                    prior=subset.prior,
                )
            )
    return found


def _beside(folder: Path, path: Path, default: str | None, endings: Sequence[str] = CAPTIONS) -> Entry:
    """A picture with the caption beside it, or the default."""
    beside = [path.with_suffix(suffix) for suffix in endings if path.with_suffix(suffix).is_file()]
    if len(beside) > 1:
        raise DataError(f"{path} has two captions, {beside[0].name} and {beside[1].name}: delete one")
    if not beside and default is None:
        raise DataError(f"{path} has no caption: write one to {path.with_suffix(endings[0])}")
    caption = default if not beside else text_of(beside[0]).strip()
    assert caption is not None
    return Entry(path, path.relative_to(folder).as_posix(), caption)


def _sampled(shard: Path, sample: Sample, text: str | None, default: str | None) -> Entry:
    """A picture in a shard."""
    caption = default if text is None else text
    if caption is None:
        raise DataError(f"{shard}: {sample.name} has no caption: put a {sample.name}.txt into it, or say --caption")
    return Entry(shard, f"{shard.name}/{sample.name}{sample.picture}", caption, span=sample.span)


def _named(file: Path, captions: Mapping[str, str], default: str | None) -> list[Entry]:
    """The pictures of the file's folder, in their order, with the captions that it names them by."""
    folder = file.parent
    paths = {path.relative_to(folder).as_posix(): path for path in find_pictures(folder)}
    for name in captions:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(
                f"{file} names {name}, which is no picture in {folder}: it leaves the folder; mend the name"
            )
        if name not in paths:
            raise DataError(f"{file} names {name}, which is no picture in {folder}: mend the name or the line")
    found: list[Entry] = []
    for name, path in paths.items():
        caption = captions.get(name, default)
        if caption is None:
            raise DataError(f"{path} has no caption: write a line for it into {file}")
        found.append(Entry(path, name, caption))
    return found


def _metadata(file: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    for number, said, text in _rows(file):
        if not isinstance(said, str) or not isinstance(text, str):
            raise DataError(f"{file} line {number} needs a file_name and a text: both are strings")
        name = PurePosixPath(said).as_posix()
        if name in captions:
            raise DataError(f"{file} line {number} names {name} a second time: delete one")
        captions[name] = text.strip()
    return captions


def _rows(file: Path) -> Iterator[tuple[int, object, object]]:
    """(line, file_name, text) of every line that is not empty."""
    if file.suffix == ".parquet":
        yield from _columns(file)
        return
    content = text_of(file)
    if file.suffix == ".csv":
        reader = csv.DictReader(StringIO(content, newline=""))
        for row in reader:
            yield reader.line_num, row.get("file_name"), row.get("text")
        return
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file} line {number} is not JSON: write one object per line") from error
        fields = entry if isinstance(entry, dict) else {}
        yield number, fields.get("file_name"), fields.get("text")


def _columns(file: Path) -> Iterator[tuple[int, object, object]]:
    """(row, file_name, text) of a table."""
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415  (only who has such a file needs it)
    except ImportError as error:
        raise DataError(f"to read {file}, install pyarrow: pip install pyarrow") from error
    try:
        rows = parquet.read_table(file, columns=["file_name", "text"]).to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} is no table with the columns file_name and text: make it anew") from error
    for number, row in enumerate(rows, start=1):
        yield number, row.get("file_name"), row.get("text")


def _listed(file: Path, default: str | None) -> list[Entry]:
    """The pictures that a JSON file names: with or without their ending, in its folder or by a whole path into it."""
    if file.suffix.lower() != ".json":
        raise DataError(f"{file} is not a folder: give one with pictures and captions, or a .json file of captions")
    try:
        content = json.loads(text_of(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: mend it") from error
    if not isinstance(content, dict):
        raise DataError(f'{file} is no object of pictures: write {{"NAME": {{"caption": "..."}}, ...}}')
    folder = file.parent
    stems: dict[str, list[str]] = {}
    for path in find_pictures(folder):
        inside = path.relative_to(folder)
        stems.setdefault(inside.with_suffix("").as_posix(), []).append(inside.as_posix())
    captions: dict[str, str] = {}
    for key, value in content.items():
        name = PurePosixPath(key.replace("\\", "/"))
        if name.is_absolute() and name.is_relative_to(folder.resolve().as_posix()):
            name = name.relative_to(folder.resolve().as_posix())
        there = stems.get(name.as_posix(), [])
        if len(there) > 1:
            raise DataError(f"{file} names {key}, which is {' and '.join(there)}: write the ending, too")
        whole = there[0] if there else name.as_posix()
        if whole in captions:
            raise DataError(f"{file} names {whole} a second time: delete one")
        captions[whole] = _words(file, key, value)
    return _named(file, captions, default)


def _words(file: Path, key: str, value: object) -> str:
    """Caption and tags of one picture, one behind the other."""
    fields = value if isinstance(value, dict) else {}
    words = [fields.get("caption"), fields.get("tags")]
    given = [word.strip() for word in words if isinstance(word, str)]
    if not given or any(word is not None and not isinstance(word, str) for word in words):
        raise DataError(f"{file}: {key} needs a caption or tags, which are strings")
    return ", ".join(word for word in given if word)


# Files


def find_pictures(folder: Path) -> list[Path]:
    """In the order of their names, which must not depend on the file system. Hidden ones are left out."""
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES
        and path.is_file()
        and not any(name.startswith(".") for name in path.relative_to(folder).parts)
    ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def text_of(path: Path) -> str:
    """A UTF-8 file, without its mark.

    Raises:
        DataError: it is none.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as that") from error


def _verified(entry: Entry) -> Entry:
    """With the size and the hash of the picture, the whole of which was decoded."""
    data = _bytes_of(entry.path, entry.span)
    where = entry.path if entry.span is None else entry.name
    return replace(entry, size=_decode(where, data).size, digest=hashlib.sha256(data).hexdigest())


def _bytes_of(path: Path, span: tuple[int, int] | None) -> bytes:
    try:
        if span is None:
            return path.read_bytes()
        with path.open("rb") as file:
            file.seek(span[0])
            return file.read(span[1])
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check it") from error


def _decode(path: Path | str, data: bytes) -> Image.Image:
    try:
        with Image.open(BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits of grey, which convert() would clip
                grey = np.asarray(upright, dtype=np.float64) / 257
                upright = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a whole picture: replace it or take it out") from error
