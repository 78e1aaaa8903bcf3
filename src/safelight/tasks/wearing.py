"""The adapters that a request names, read from their files and put on a member for as long as it draws.

LoRAs and hypernetworks change networks reversibly (`Networks.worn`); embeddings teach the text towers new words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import nn

from safelight.adapters.embedding_files import read_embedding
from safelight.adapters.embeddings import Embedding, Taught, teach
from safelight.adapters.hypernetwork_files import read_hypernetwork
from safelight.adapters.hypernetworks import Hypernetwork, bent, require_fits
from safelight.adapters.lora import Adapter, Strength, changes, read_lora
from safelight.adapters.patching import patched
from safelight.checkpoints.files import is_plain_name
from safelight.conditioning.prompts import tags
from safelight.conditioning.prompts.prompt import read
from safelight.errors import RequestError
from safelight.presets import Preset
from safelight.presets.preset import UNET
from safelight.tasks.member import Member
from safelight.tasks.request import Request
from safelight.tasks.requests import Prompted

ENDINGS = (".safetensors", ".pt", ".ckpt", ".bin")
_KEPT = 8
"""Files that stay read from one drawing to the next: their tensors are views of the mapped file."""


@dataclass(frozen=True)
class Named:
    """A file as a request names it: `FILE:NUMBER:NUMBER`."""

    path: Path
    numbers: tuple[float, ...]

    @classmethod
    def of(cls, text: str, most: int) -> Named:
        """Take up to so many numbers off the end.

        Raises:
            RequestError: nothing is left.
        """
        numbers: list[float] = []
        while len(numbers) < most:
            rest, colon, number = text.rpartition(":")
            try:
                numbers.insert(0, float(number) if colon else float("no number"))
            except ValueError:
                break
            text = rest
        if text == "":
            raise RequestError("an adapter has no file: write FILE, or FILE:0.8")
        return cls(Path(text), tuple(numbers))


@dataclass(frozen=True)
class Outfit:
    """What a drawing wears."""

    loras: tuple[tuple[Adapter, Strength], ...] = ()
    hypernetworks: tuple[tuple[Hypernetwork, float], ...] = ()
    embeddings: tuple[Embedding, ...] = ()

    def taught(self, member: Member) -> dict[str, Taught]:
        """What the text towers of a member are taught, by part.

        Raises:
            ModelFileError: an embedding is of another family.
            RequestError: two have one name.
        """
        if not self.embeddings:
            return {}
        towers = {words.part: words.tower for words in member.preset.words}
        return teach(self.embeddings, towers, member.tokenizers, member.preset.name)

    @contextmanager
    def on(self, member: Member) -> Iterator[None]:
        """Within it the member's networks are changed; afterwards they have the very tensors of before.

        Raises:
            ModelFileError: a hypernetwork is of another family.
        """
        if not self.loras and not self.hypernetworks:
            yield
            return
        for one, _ in self.hypernetworks:
            require_fits(one, member.unet, member.preset.name)
            one.to(member.device)  # it computes in float32, and answers in what it is asked in

        def wear(part: str, network: nn.Module) -> AbstractContextManager[object]:
            stack = ExitStack()
            stack.enter_context(patched(network, changes(self.loras, part)))
            if part == UNET and self.hypernetworks:
                stack.enter_context(bent(network, self.hypernetworks))
            return stack

        with member.networks.worn(wear):
            yield


NAKED = Outfit()


def outfit(request: Request, prompt: str, preset: Preset) -> Outfit:
    """Read what a request and the tags of its prompt name.

    Args:
        prompt: of the first picture, without files of words: its tags count for all of the batch.

    Raises:
        ModelFileError: a file is missing, damaged, no adapter, or one for another family.
        RequestError: a tag names what is not in the folder of adapters, or has a number that is none.
    """
    if not isinstance(request, Prompted):
        return NAKED
    loras, hypernetworks = [], []
    for named in (Named.of(text, 2) for text in request.lora):
        text = named.numbers[0] if named.numbers else 1.0
        loras.append((named.path, Strength(text, named.numbers[-1] if named.numbers else 1.0)))
    for named in (Named.of(text, 1) for text in request.hypernetwork):
        hypernetworks.append((named.path, named.numbers[0] if named.numbers else 1.0))
    for tag in read(prompt).tags:
        if tag.kind == "lora":
            asked = tags.lora(tag)
            if asked.rank is not None:
                raise RequestError(f"{tag}: dyn is for files of DyLoRA that are cut; leave it out")
            loras.append((_in_folder(request.adapters, asked.name, tag), Strength(asked.text, asked.unet)))
        elif tag.kind == "hypernet":
            wanted = tags.hypernetwork(tag)
            hypernetworks.append((_in_folder(request.adapters, wanted.name, tag), wanted.strength))
    return Outfit(
        tuple((_lora(path, _changed(path), preset.name, preset), strength) for path, strength in loras),
        tuple((_hypernetwork(path, _changed(path)), strength) for path, strength in hypernetworks),
        tuple(read_embedding(Path(text)) for text in request.embedding),
    )


def unknown_tags(prompt: str) -> list[str]:
    """Tags of kinds that nobody knows, which do nothing."""
    return [str(tag) for tag in read(prompt).tags if tag.kind not in ("lora", "hypernet")]


def hashes(request: Request, prompt: str) -> tuple[str, ...]:
    """SHA-256 of every file of adapters, in the order in which they are named: which they were is recorded."""
    if not isinstance(request, Prompted):
        return ()
    paths = [Named.of(text, 2).path for text in request.lora]
    paths += [Named.of(text, 1).path for text in request.hypernetwork]
    paths += [Path(text) for text in request.embedding]
    for tag in read(prompt).tags:
        if tag.kind in ("lora", "hypernet"):
            name = tags.lora(tag).name if tag.kind == "lora" else tags.hypernetwork(tag).name
            paths.append(_in_folder(request.adapters, name, tag))
    return tuple(_sha256(path, _changed(path)) for path in paths)


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


def _changed(path: Path) -> tuple[int, int]:
    """Size and time of change, so that a file that was replaced is read again."""
    try:
        found = path.stat()
    except OSError as error:
        raise RequestError(f"there is no adapter {str(path)!r} ({error.strerror}): check the path") from error
    return found.st_size, found.st_mtime_ns


@lru_cache(_KEPT)
def _lora(path: Path, changed: tuple[int, int], name: str, preset: Preset) -> Adapter:
    return read_lora(path, preset)


@lru_cache(_KEPT)
def _hypernetwork(path: Path, changed: tuple[int, int]) -> Hypernetwork:
    return read_hypernetwork(path)


@lru_cache(4 * _KEPT)
def _sha256(path: Path, changed: tuple[int, int]) -> str:
    if path.is_dir():
        return hashlib.sha256(b"".join(sorted(p.read_bytes() for p in path.iterdir() if p.is_file()))).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
