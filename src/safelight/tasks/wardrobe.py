"""Which files of adapters a request names, by its fields and by the tags of its prompt; and what they are called."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from safelight.adapters.card import shown_hash
from safelight.adapters.lora import weights_of
from safelight.checkpoints.files import is_plain_name
from safelight.conditioning.prompts import tags
from safelight.conditioning.prompts.prompt import read
from safelight.errors import RequestError
from safelight.tasks.metadata.infotext import Worn
from safelight.tasks.request import Request
from safelight.tasks.requests import Prompted

ENDINGS = (".safetensors", ".pt", ".ckpt", ".bin")
_KEPT = 32
"""Hashes of files that are remembered."""
_NO_NAME = str.maketrans("", "", ":,<>\n\r")
"""What would end a name in the text for other tools, which leave these out, too."""

Changed = tuple[int, int]
"""Size and time of change of a file: one that was replaced is read again."""
Sort = Literal["lora", "hypernetwork", "embedding"]
R = TypeVar("R", bound=Request)


@dataclass(frozen=True)
class Named:
    """A file as a request names it: `FILE:NUMBER:NUMBER`."""

    path: Path
    numbers: tuple[float, ...]

    @classmethod
    def of(cls, text: str, most: int) -> Named:
        """Take up to so many numbers off the end.

        Raises:
            RequestError: nothing is left, or a number is not finite.
        """
        whole, numbers = text, list[float]()
        while len(numbers) < most:
            rest, colon, number = text.rpartition(":")
            try:
                numbers.insert(0, float(number) if colon else float("no number"))
            except ValueError:
                break
            text = rest
        if text == "":
            raise RequestError("an adapter has no file: write FILE, or FILE:0.8")
        if not all(map(math.isfinite, numbers)):
            raise RequestError(f"{whole!r} has a strength that is no number: write {text}:0.8")
        return cls(Path(text), tuple(numbers))


@dataclass(frozen=True)
class Item:
    """One adapter that is asked for."""

    sort: Sort
    path: Path
    name: str
    """What prompts call it."""
    text: float = 1.0
    """How strongly it acts on the text towers; of a hypernetwork, how strongly it acts."""
    unet: float = 1.0
    tagged: bool = False
    """Whether a tag of the prompt asks for it."""
    renamed: bool = False
    """Of an embedding, whether the request gives it another name than its file's."""

    @property
    def changed(self) -> Changed:
        """Of its file.

        Raises:
            RequestError: there is none.
        """
        try:
            found = self.path.stat()
        except OSError as error:
            raise RequestError(f"there is no adapter {str(self.path)!r} ({error.strerror}): check the path") from error
        return found.st_size, found.st_mtime_ns


def items(request: Request, prompt: str) -> tuple[Item, ...]:
    """All that a request and the tags of a prompt name, in their order; no file is read.

    Raises:
        RequestError: a tag names what is not in the folder of adapters, or has a number that is none; an embedding's
            name is none.
    """
    if not isinstance(request, Prompted):
        return ()
    found: list[Item] = []
    for named in (Named.of(text, 2) for text in request.lora):
        text, unet = (named.numbers[0], named.numbers[-1]) if named.numbers else (1.0, 1.0)
        found.append(Item("lora", named.path, named.path.stem, text, unet))
    for named in (Named.of(text, 1) for text in request.hypernetwork):
        strength = named.numbers[0] if named.numbers else 1.0
        found.append(Item("hypernetwork", named.path, named.path.stem, strength, strength))
    found += map(_embedding, request.embedding)
    return (*found, *_tagged(prompt, request.adapters))


def _embedding(text: str) -> Item:
    """`FILE`, or `FILE=NAME`. A file that has = in its name is that file."""
    rest, mark, name = text.rpartition("=")
    if not mark or Path(text).is_file():
        return Item("embedding", Path(text), Path(text).stem)
    if rest == "" or name.strip() == "":
        raise RequestError(f"the embedding {text!r} lacks a file or a name: write FILE, or FILE=NAME")
    return Item("embedding", Path(rest), name.strip(), renamed=True)


def _tagged(prompt: str, folder: str | None) -> Iterator[Item]:
    for tag in read(prompt).tags:
        if tag.kind == "lora":
            asked = tags.lora(tag)
            if asked.rank is not None:
                raise RequestError(f"{tag}: dyn is for files of DyLoRA that are cut; leave it out")
            yield Item("lora", _in_folder(folder, asked.name, tag), asked.name, asked.text, asked.unet, tagged=True)
        elif tag.kind == "hypernet":
            wanted = tags.hypernetwork(tag)
            path = _in_folder(folder, wanted.name, tag)
            yield Item("hypernetwork", path, wanted.name, wanted.strength, wanted.strength, tagged=True)


def _in_folder(folder: str | None, name: str, tag: tags.Tag) -> Path:
    """The file of a tag, which never leaves its folder."""
    if folder is None:
        raise RequestError(f"the prompt has {tag}: say in which folder that is by --adapters")
    if not is_plain_name(name):
        raise RequestError(f"{tag} is refused: {name!r} is not the name of a file in {folder}")
    found = next((path for end in ENDINGS if (path := Path(folder) / f"{name}{end}").is_file()), None)
    if found is None:
        raise RequestError(f"{tag}: there is no {name}{ENDINGS[0]} in {folder!r}: put it there, or correct the name")
    return found


def unknown_tags(prompt: str) -> list[str]:
    """Tags of kinds that nobody knows, which do nothing."""
    return [str(tag) for tag in read(prompt).tags if tag.kind not in ("lora", "hypernet")]


# Hashes


def hashes(request: Request, prompt: str) -> tuple[str, ...]:
    """SHA-256 of every file of adapters, in the order in which they are named: which they were is recorded.

    Raises:
        RequestError: as `items`, or there is no such file.
    """
    return tuple(_sha256(item.path, item.changed) for item in items(request, prompt))


def with_hashes(request: R) -> R:
    """The request with the hashes of the adapters that it names.

    Raises:
        RequestError: an adapter cannot be read, or is no longer that of the request.
    """
    if not isinstance(request, Prompted):
        return request
    found = hashes(request, request.prompt)
    if request.adapter_sha256 not in (None, found):
        raise RequestError("the files of the adapters are no longer those of this request: name them anew")
    return request.changed(adapter_sha256=found if found else None)


def worn_by(request: Request) -> tuple[Worn, ...]:
    """What a picture's text for other tools says of its adapters.

    Args:
        request: of one picture, its prompt without files of words.

    Raises:
        RequestError: as `hashes`.
    """
    prompt = request.prompt if isinstance(request, Prompted) else ""
    return tuple(map(_worn, items(request, prompt)))


def _worn(item: Item) -> Worn:
    name = " ".join(item.name.translate(_NO_NAME).split())
    if item.sort == "embedding":
        return Worn("embedding", name, _sha256(item.path, item.changed))
    if item.sort == "hypernetwork":
        return Worn("hypernetwork", name, None, None if item.tagged else f"<hypernet:{name}:{item.unet:g}>")
    numbers = f"{item.text:g}" if item.text == item.unet else f"{item.text:g}:{item.unet:g}"
    digest = _shown_hash(item.path, item.changed)
    return Worn("lora", item.name if item.tagged else name, digest, None if item.tagged else f"<lora:{name}:{numbers}>")


@lru_cache(_KEPT)
def _sha256(path: Path, changed: Changed) -> str:
    if path.is_dir():
        return hashlib.sha256(b"".join(sorted(p.read_bytes() for p in path.iterdir() if p.is_file()))).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(_KEPT)
def _shown_hash(path: Path, changed: Changed) -> str | None:
    return shown_hash(weights_of(path))
