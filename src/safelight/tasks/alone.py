"""Each picture of a batch by itself: what it is told, and the request that makes it again alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from safelight.errors import RequestError
from safelight.tasks.prompts.wording import Wording
from safelight.tasks.request import Request
from safelight.tasks.requests import Prompted
from safelight.tasks.resolve import needed, wording_of


def wordings_of(request: Request, prompts: Sequence[str] | None) -> list[Wording]:
    """The words of each picture of a resolved request, without files.

    Raises:
        RequestError: a file of words cannot be read, or there are not as many prompts as pictures.
    """
    if prompts is not None and len(prompts) != request.batch:
        raise RequestError(f"{len(prompts)} prompts for a batch of {request.batch}: give one per picture")
    if not isinstance(request, Prompted):
        return [Wording("")] * request.batch
    asked = [wording_of(request)] * request.batch
    if prompts is not None:
        asked = [replace(wording, prompt=prompt) for wording, prompt in zip(asked, prompts, strict=True)]
    return [wording.resolved(needed(request.seed) + k) for k, wording in enumerate(asked)]


def differing(wordings: Sequence[Wording]) -> Sequence[Wording]:
    """One for all pictures, where all are told the same."""
    return wordings[:1] if len(set(wordings)) == 1 else wordings


def single(request: Request, k: int, wording: Wording) -> Request:
    """The request of picture k of a batch, told these words."""
    changes: dict[str, object] = {"seed": needed(request.seed) + k, "batch": 1}
    if isinstance(request, Prompted):
        changes |= {"prompt": wording.prompt, "negative_prompt": wording.negative_prompt}
        changes |= {"prompt_2": wording.prompt_2, "negative_prompt_2": wording.negative_prompt_2}
        changes |= {"style": (), "styles": None, "wildcards": None}
    return request.changed(**changes)
