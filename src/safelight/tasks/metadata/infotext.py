"""The `parameters` text of AUTOMATIC1111's web UI, which most galleries and tools read: what is written, in what order.

Prompt, `Negative prompt: ` if there is one, and one last line of `Key: value` pairs that begins with Steps. A key is
a line in `KEYS`; the reader (`a1111`) goes by the same table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from safelight import __version__
from safelight.conditioning.prompts.emphasis import EMPHASES, EMPHASIS_LABELS
from safelight.tasks.metadata.bounded import number, whole
from safelight.tasks.metadata.labels import AUTOMATIC, BY_TIMESTEPS, SAMPLER_LABELS, SPACING_LABELS
from safelight.tasks.metadata.record import ModelIdentity
from safelight.tasks.request import Request
from safelight.tasks.requests import Prompted

NEGATIVE = "Negative prompt:"
VERSION = "safelight "
"""Begins the value of Version in our texts."""
_HASH_OF_NOTHING = hashlib.sha256().hexdigest()
"""Forge once wrote it for every LoRA; then every LoRA seemed to be the same one."""


def _plain(value: object) -> str | None:
    if isinstance(value, bool):
        return "True" if value else None
    if isinstance(value, float):
        return str(int(value)) if value == int(value) else repr(value)
    if isinstance(value, tuple | list):
        return ", ".join(str(part) for part in value) if value else None
    return None if value is None or value == "" else str(value)


def _above_one(value: object) -> str | None:
    return str(value) if isinstance(value, int) and value > 1 else None


def _not(usual: object) -> Callable[[object], str | None]:
    """Say a value only where it is not the one that readers assume."""
    return lambda value: None if value == usual else _plain(value)


def _emphasis_label(value: object) -> str | None:
    """A1111 does not say the usual one."""
    return next((EMPHASIS_LABELS[name] for name in EMPHASES if name == value and name != "original"), None)


def _emphasis(value: JsonValue) -> JsonValue:
    return next((name for name in EMPHASES if EMPHASIS_LABELS[name].lower() == str(value).lower()), None)


@dataclass(frozen=True)
class Key:
    """A pair of the last line that follows from a field of the request; absent or None, it is left out."""

    label: str
    field: str
    write: Callable[[object], str | None] = _plain
    read: Callable[[JsonValue], JsonValue] | None = number
    """None: it cannot be read by itself."""
    also: tuple[str, ...] = ()
    """Other labels that mean the same, in lower case."""


FIRST = (
    Key("Steps", "steps", read=whole),
    Key("Sampler", "sampler", lambda value: SAMPLER_LABELS.get(str(value), str(value)), read=None),
    Key("Schedule type", "spacing", lambda value: SPACING_LABELS.get(str(value), str(value)), read=None),
    Key("CFG scale", "guidance"),
    Key("Seed", "seed", read=whole),
)
"""Before size and model."""
THEN = (
    Key("Denoising strength", "strength"),
    Key("Clip skip", "clip_skip", _above_one, whole),
)
"""After them; then RNG."""
EXTRAS = (
    Key("Mask blur", "blur", read=whole),
    Key("Inpaint area", "padding", lambda value: "Only masked", read=None),
    Key("Masked area padding", "padding", read=whole),
    Key("Eta", "eta", also=("eta ddim",)),
    Key("Sigma churn", "s_churn", _not(0.0)),
    Key("Sigma tmin", "s_tmin", _not(0.0)),
    Key("Sigma tmax", "s_tmax"),
    Key("Sigma noise", "s_noise", _not(1.0)),
    Key("CFG Rescale", "guidance_rescale", _not(0.0), also=("cfg rescale φ", "cfg rescale phi", "rescale cfg")),
    Key("Emphasis", "emphasis", _emphasis_label, _emphasis),
    Key("Token merging ratio", "merge_tokens", _not(0.0)),
)
"""In the order in which they were thought of, as A1111 has it; then the refiner."""
LAST = (Key("Refiner switch at", "switch", read=None),)
KEYS = (*FIRST, *THEN, *EXTRAS, *LAST)


@dataclass(frozen=True)
class Worn:
    """An adapter that a picture was drawn with, as other tools know it."""

    sort: Literal["lora", "hypernetwork", "embedding"]
    name: str
    """What prompts call it."""
    sha256: str | None
    """Of a LoRA the hash of its tensors, of an embedding that of its file; None: it has none that says anything."""
    tag: str | None = None
    """What to write behind the prompt, where nothing in it asks for the adapter."""


def infotext(
    request: Request, model: ModelIdentity, refiner: ModelIdentity | None = None, worn: Sequence[Worn] = ()
) -> str:
    """The `parameters` text of one picture's resolved request.

    Args:
        worn: its adapters. Other tools know them by tags of the prompt, which are written behind it.
    """
    size = None if request.width is None or request.height is None else f"{request.width}x{request.height}"
    pairs = [
        *(_said(key, request) for key in FIRST),
        ("Size", size),
        ("Model hash", _short_hash(model)),
        ("Model", model.name),
        *(_said(key, request) for key in THEN),
        ("RNG", "CPU"),
        *(_said(key, request) for key in EXTRAS),
        ("Lora hashes", _hashes(one for one in worn if one.sort == "lora")),
        ("TI hashes", _hashes(one for one in worn if one.sort == "embedding" and _mentioned(one.name, request))),
        ("Refiner", None if refiner is None else f"{refiner.name} [{_short_hash(refiner)}]"),
        *(_said(key, request) for key in LAST),
        ("Version", f"{VERSION}{__version__}"),
    ]
    lines = []
    if isinstance(request, Prompted):
        lines.append(request.prompt + "".join(one.tag for one in worn if one.tag is not None))
        if request.negative_prompt != "":
            lines.append(f"{NEGATIVE} {request.negative_prompt}")
    lines.append(", ".join(f"{label}: {_quoted(value)}" for label, value in pairs if value is not None))
    return "\n".join(lines).strip()


def _hashes(worn: Iterable[Worn]) -> str | None:
    """`name: 0123456789ab, other: ...`"""
    found = {one.name: one.sha256[:12] for one in worn if one.sha256 is not None and one.sha256 != _HASH_OF_NOTHING}
    return ", ".join(f"{name}: {digits}" for name, digits in found.items()) if found else None


def _mentioned(word: str, request: Request) -> bool:
    """Whether a prompt has a word; A1111 says no other embeddings."""
    said = (request.prompt, request.negative_prompt) if isinstance(request, Prompted) else ()
    second = (request.prompt_2, request.negative_prompt_2) if isinstance(request, Prompted) else ()
    return any(word.lower() in text.lower() for text in (*said, *second) if text is not None)


def _short_hash(model: ModelIdentity) -> str | None:
    return None if model.sha256 in ("", _HASH_OF_NOTHING) else model.sha256[:10]


def _said(key: Key, request: Request) -> tuple[str, str | None]:
    """The label and what stands behind it; A1111 calls two things otherwise for DDIM."""
    value: object = getattr(request, key.field, None)  # not every task has every field
    if key.field == "spacing" and value == "leading" and request.sampler in BY_TIMESTEPS:
        return key.label, AUTOMATIC
    label = "Eta DDIM" if key.field == "eta" and request.sampler == "ddim" else key.label
    return label, None if value is None else key.write(value)


def _quoted(value: str) -> str:
    """A comma, colon or newline would end the value early in every reader; quotes keep it whole.

    So would, for readers that go by Python's lines, the other ends of lines; these are said as escapes.
    """
    if len(value.splitlines()) > 1 or value != value.rstrip("\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029"):
        return json.dumps(value)
    return json.dumps(value, ensure_ascii=False) if any(c in value for c in ",:\n") or value[:1] == '"' else value
