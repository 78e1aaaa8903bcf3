"""The adapters that a request names, read from their files and put on a member for as long as it draws.

LoRAs and hypernetworks change networks reversibly (`Networks.worn`); embeddings teach the text towers new words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from safelight.adapters.embedding_files import bundled_embedding, read_embedding
from safelight.adapters.embeddings import Embedding, Taught, teach
from safelight.adapters.hypernetwork_files import read_hypernetwork
from safelight.adapters.hypernetworks import Hypernetwork, bent, require_fits
from safelight.adapters.lora import Adapter, Strength, changes, read_lora
from safelight.adapters.patching import patched
from safelight.checkpoints.files import printable
from safelight.presets import Preset
from safelight.presets.preset import UNET
from safelight.tasks.member import Member
from safelight.tasks.request import Request
from safelight.tasks.requests import Prompted
from safelight.tasks.wardrobe import Changed, items, unknown_tags

_KEPT = 8
"""Files that stay read from one drawing to the next: their tensors are views of the mapped file."""


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
        RequestError: as `items`.
    """
    asked = items(request, prompt)
    loras = [
        (_lora(item.path, item.changed, preset.name, preset), Strength(item.text, item.unet))
        for item in asked
        if item.sort == "lora"
    ]
    hypernetworks = [
        (_hypernetwork(item.path, item.changed), item.unet) for item in asked if item.sort == "hypernetwork"
    ]
    embeddings = [
        read_embedding(item.path, item.name if item.renamed else None) for item in asked if item.sort == "embedding"
    ]
    return Outfit(tuple(loras), tuple(hypernetworks), (*embeddings, *_bundled(loras)))


def _bundled(loras: Sequence[tuple[Adapter, Strength]]) -> list[Embedding]:
    """The words that LoRAs come with, unless one acts on nothing; what two have in common counts once."""
    found: list[Embedding] = []
    for adapter, strength in loras:
        if strength == Strength(0.0, 0.0):
            continue
        for word, tensors in adapter.embeddings.items():
            one = bundled_embedding(adapter.source, word, tensors)
            if not any(one.words == other.words and _equal(one, other) for other in found):
                found.append(one)
    return found


def _equal(one: Embedding, other: Embedding) -> bool:
    return one.vectors.keys() == other.vectors.keys() and all(
        torch.equal(vectors, other.vectors[part]) for part, vectors in one.vectors.items()
    )


def notes(request: Request, member: Member) -> list[str]:
    """What of a request's adapters and tags does nothing with a member, a line each, to be shown.

    Raises:
        As `outfit`, and a hypernetwork is of another family.
    """
    if not isinstance(request, Prompted):
        return []
    found = [f"nobody here knows what {tag} means: it does nothing" for tag in unknown_tags(request.prompt)]
    worn = outfit(request, request.prompt, member.preset)
    for adapter, _ in worn.loras:
        if adapter.dropped:
            (key, why), more = adapter.dropped[0], len(adapter.dropped) - 1
            others = f" and {more} more" if more else ""
            found.append(f"{adapter.source}: not used: {printable(key)}{others} ({why})")
    for hypernetwork, _ in worn.hypernetworks:  # of which only the network itself knows what it has no use for
        strange = require_fits(hypernetwork, member.unet, member.preset.name)
        if strange:
            widths = " and ".join(map(str, strange))
            found.append(f"{hypernetwork.file}: not used: what it has for the width {widths}, which this model lacks")
    if worn.hypernetworks:
        member.networks.free()
    return found


@lru_cache(_KEPT)
def _lora(path: Path, changed: Changed, name: str, preset: Preset) -> Adapter:
    return read_lora(path, preset)


@lru_cache(_KEPT)
def _hypernetwork(path: Path, changed: Changed) -> Hypernetwork:
    return read_hypernetwork(path)
