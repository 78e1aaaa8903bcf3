"""WebDataset shards: `.tar` files in which what belongs together has one name, `00007.jpg`, `00007.txt`, `00007.json`.

Nothing is unpacked: a picture is read from its place in the shard.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from safelight.errors import DataError

ENDING = ".tar"
CAPTION = "caption"
"""What a sample's `.json` calls its caption, where there is no `.txt` (img2dataset's)."""
_TEXTS = (".txt", ".caption", ".json")
_LARGEST_TEXT = 1 << 20


@dataclass
class Sample:
    """What of one name is in a shard."""

    name: str
    """With its folders, without an ending."""
    picture: str | None = None
    """Its ending."""
    span: tuple[int, int] = (0, 0)
    """Where the picture's bytes begin in the shard, and how many there are."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """By ending."""


def read_shard(shard: Path, pictures: frozenset[str]) -> Iterator[tuple[Sample, str | None]]:
    """The samples that have a picture, with their captions, in the order of the shard.

    Args:
        pictures: endings, with a dot and in small letters.

    Raises:
        DataError: the shard is damaged, a sample has two pictures or two captions, or its `.json` is none.
    """
    samples: dict[str, Sample] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, last = member.name.rpartition("/")
                stem, _, ending = last.partition(".")  # the name ends at the first dot, as in the format's own tools
                ending = f".{ending.lower()}"
                if not member.isfile() or stem == "" or ending not in pictures | set(_TEXTS):
                    continue
                name = f"{folder}/{stem}" if folder else stem
                sample = samples.setdefault(name, Sample(name))
                if ending in pictures:
                    if sample.picture is not None:
                        raise DataError(f"{shard} has two pictures called {name}: take one out")
                    sample.picture, sample.span = ending, (member.offset_data, member.size)
                elif ending in sample.texts or member.size > _LARGEST_TEXT:
                    raise DataError(f"{shard}: {member.name} is there twice, or too large for a caption: take it out")
                else:
                    file = tar.extractfile(member)
                    assert file is not None  # it is a file
                    sample.texts[ending] = file.read()
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard} is not a whole .tar file (compressed ones are not read): make it anew") from error
    for sample in samples.values():
        if sample.picture is not None:
            yield sample, _caption(shard, sample)


def _caption(shard: Path, sample: Sample) -> str | None:
    try:
        texts = {ending: text.decode("utf-8-sig") for ending, text in sample.texts.items()}
        fields = json.loads(texts[".json"]) if ".json" in texts else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shard}: the texts of {sample.name} are not UTF-8, or its .json is none: mend it") from error
    plain = [texts[ending].strip() for ending in (".txt", ".caption") if ending in texts]
    if len(plain) > 1:
        raise DataError(f"{shard} has two captions of {sample.name}, .txt and .caption: take one out")
    said = fields.get(CAPTION) if isinstance(fields, dict) else None
    return plain[0] if plain else said.strip() if isinstance(said, str) else None
