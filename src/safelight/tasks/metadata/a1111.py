"""Reads the `parameters` text of AUTOMATIC1111, of its many heirs, and of what their extensions made of it.

The conventions of four readers disagree about texts that are not as they should be; here the settings begin at the
last line that begins with Steps and has two more of their keys, so that neither a prompt that talks of steps nor an
extension that writes line breaks into the settings is taken for the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from pydantic import JsonValue

from safelight.conditioning.prompts import tags
from safelight.errors import RequestError
from safelight.tasks.metadata.bounded import mapping, readable
from safelight.tasks.metadata.containers import Embedded
from safelight.tasks.metadata.infotext import KEYS, NEGATIVE, VERSION
from safelight.tasks.metadata.labels import A1111, A1111_CHOOSES, A1111_OWN, AUTOMATIC, BY_TIMESTEPS
from safelight.tasks.metadata.names import TEXT_CHUNK
from safelight.tasks.metadata.recovered import SAFELIGHT, Findings, ModelHint, Recovered, shown

TOOL = "AUTOMATIC1111"
MAX_LENGTH = 2**20
"""Characters; prompts of 32,000 and all that extensions add are far less."""
_CORE = frozenset({"steps", "sampler", "cfg scale", "seed", "size", "schedule type", "ensd"})
_KEY = re.compile(r"\s*(\w[\w \-/+.()φ]*):\s*")
_QUOTED = re.compile(r'"(?:\\.|[^\\"])*"', re.DOTALL)
_ONE_LINE = re.compile(r"(?:^|\s)(?=Steps:\s*\d+\s*,)")
_SIZE = re.compile(r"(\d{1,6})\s*x\s*(\d{1,6})")
_SILENT = frozenset(
    {
        *("version", "model", "model hash", "size", "rng", "hashes", "lora hashes", "ti hashes", "vae hash", "user"),
        *("app", "created date", "batch size", "batch pos", "sampler", "schedule type", "denoising strength"),
        *("backend", "hypernet", "hypernet strength", "inpaint area", "masked content", "mask mode"),
    }
)
"""Keys that have been looked at, or that change no picture."""
_INPAINTING = ("mask blur", "inpaint area", "masked content", "mask mode", "masked area padding")
_MOST_WORN = 20
"""Adapters of a sort that are named."""
_ONLY_MASKED_PADDING = 32
"""Of A1111, which does not say it then."""


@dataclass(frozen=True)
class Parsed:
    """The three parts of the text."""

    prompt: str
    negative: str
    settings: Mapping[str, str]
    """Labels in lower case -> values without quotes; of two with one label the first."""


def read(picture: Embedded) -> Recovered | None:
    """What the text says; None if there is none, or if it is no text of this kind.

    Raises:
        RequestError: it is too long.
    """
    text = picture.texts.get(TEXT_CHUNK)
    parsed = None if text is None else parse(text)
    return None if parsed is None else _recovered(parsed)


def parse(text: str) -> Parsed | None:
    """Take the text apart; None if no settings are found in it.

    Raises:
        RequestError: it is too long.
    """
    if len(text) > MAX_LENGTH:
        raise RequestError(f"the parameters text has more than {MAX_LENGTH} characters: it is damaged")
    lines = readable(text).strip().replace("\r\n", "\n").split("\n")
    counts = [_core_keys(line) for line in lines]
    starts = [i for i, line in enumerate(lines) if counts[i] >= 3 and line.lstrip().startswith("Steps:")]
    if not starts:
        starts = [i for i, line in enumerate(lines) if counts[i] >= 3 and _begins_with_key(line)]
    if not starts:
        return _parse_one_line(" ".join(lines))
    start = starts[-1]
    prompt, negative = lines[:start], list[str]()
    for i, line in enumerate(prompt):
        if line.lstrip().startswith(NEGATIVE):
            negative = [line.lstrip().removeprefix(NEGATIVE).removeprefix(" "), *prompt[i + 1 :]]
            prompt = prompt[:i]
            break
    return Parsed("\n".join(prompt), "\n".join(negative), _settings("\n".join(lines[start:])))


def _parse_one_line(text: str) -> Parsed | None:
    """Where a program lost the line breaks."""
    places = list(_ONE_LINE.finditer(text))
    if not places or _core_keys(text[places[-1].end() :]) < 3:
        return None
    body, settings = text[: places[-1].start()], text[places[-1].end() :]
    prompt, _, negative = body.partition(NEGATIVE)
    return Parsed(prompt.strip(), negative.strip(), _settings(settings))


def _core_keys(line: str) -> int:
    return len(_CORE & _settings(line).keys()) if line.count(":") >= 3 else 0


def _begins_with_key(line: str) -> bool:
    key = _KEY.match(line)
    return key is not None and key[1].strip().lower() in _CORE


def _settings(line: str) -> dict[str, str]:
    """`Key: value, Key: "value, with comma", Key: [JSON]` -> {key in lower case: value}."""
    found: dict[str, str] = {}
    at = 0
    while at < len(line):
        key = _KEY.match(line, at)
        if key is None:  # the rest of a value with commas and without quotes
            comma = line.find(",", at)
            at = len(line) if comma < 0 else comma + 1
            continue
        value, at = _value(line, key.end())
        found.setdefault(key[1].strip().lower(), value)
    return found


def _value(line: str, at: int) -> tuple[str, int]:
    """(value, where the next pair begins)."""
    if line[at : at + 1] in ("[", "{"):  # Civitai writes lists without quotes
        try:
            _, end = json.JSONDecoder().raw_decode(line, at)
        except (ValueError, RecursionError):
            end = at
        if end > at and line[end : end + 1] in ("", ","):
            return line[at:end], end + 1
    quoted = _QUOTED.match(line, at) if line[at : at + 1] == '"' else None
    if quoted is not None and line[quoted.end() : quoted.end() + 1] in ("", ","):
        try:
            return str(json.JSONDecoder(strict=False).decode(quoted[0])), quoted.end() + 1
        except ValueError:
            return quoted[0].strip('"'), quoted.end() + 1
    comma = line.find(",", at)
    end = len(line) if comma < 0 else comma
    return line[at:end].strip(), end + 1


def _recovered(parsed: Parsed) -> Recovered:
    settings = parsed.settings
    version = settings.get("version", "")
    ours = version.startswith(VERSION)
    tool = SAFELIGHT if ours else TOOL
    found = Findings(f"{tool} {version.removeprefix(VERSION)}".strip(), task=_task(settings))
    found.model = ModelHint(settings.get("model"), settings.get("model hash", _hash_of_hashes(settings)))
    if ours:
        found.note("its lossless record is lost: this is from the text for other tools")
    found.set("prompt", _with_hypernetwork(parsed.prompt, settings))
    found.set("negative_prompt", parsed.negative if parsed.negative != "" else None)
    _say_worn(found, parsed)
    _sampling(found, settings)
    size = _SIZE.fullmatch(settings.get("size", ""))
    if size is not None:
        found.set("width", int(size[1]))
        found.set("height", int(size[2]))
    used = _from_table(found, settings)
    if "steps" not in found.fields:
        found.note("how many steps is not said")
    if settings.get("rng", "GPU") != "CPU" and "seed" in found.fields:
        found.note("its noise was not drawn by the CPU: the same seed gives another picture here")
    for label, value in settings.items():
        if label not in _SILENT | used:
            found.leave(label, value)
    return found.recovered()


def _say_worn(found: Findings, parsed: Parsed) -> None:
    """Name the adapters: a text has no more of them than names and hashes."""
    tagged = [tag.unnamed[0] for tag in tags.take(parsed.prompt)[1] if tag.kind == "lora" and tag.unnamed]
    loras = dict.fromkeys(tagged, "") | _hashes(parsed.settings, "lora")
    for name, digits in islice(loras.items(), _MOST_WORN):
        where = "the folder that it is in by --adapters" if name in tagged else "its file by --lora"
        found.note(f"it was drawn with the LoRA {_named(name, digits)}: give {where}")
    for name, digits in islice(_hashes(parsed.settings, "embed").items(), _MOST_WORN):
        found.note(f"its word {_named(name, digits)} is of an embedding: give the file by --embedding")


def _named(name: str, digits: str) -> str:
    return f"{shown(name)} (hash {shown(digits)})" if digits != "" else shown(name)


def _hashes(settings: Mapping[str, str], sort: str) -> dict[str, str]:
    """name -> the first digits of its hash: of A1111's own key, and of the one that Civitai's extension writes."""
    key = {"lora": "lora hashes", "embed": "ti hashes"}[sort]
    pairs = (pair.rpartition(":") for pair in settings.get(key, "").split(",") if ":" in pair)
    found = {name.strip(): digits.strip() for name, _, digits in pairs}
    for name, digits in _all_hashes(settings).items():
        if isinstance(name, str) and isinstance(digits, str) and name.startswith(f"{sort}:"):
            found.setdefault(name.partition(":")[2], digits)
    return found


def _task(settings: Mapping[str, str]) -> str:
    """Not said in so many words. The denoising strength is also that of a second, larger pass."""
    if "denoising strength" not in settings or any(label.startswith("hires ") for label in settings):
        return "txt2img"
    return "inpaint" if any(label in settings for label in _INPAINTING) else "img2img"


def _from_table(found: Findings, settings: Mapping[str, str]) -> set[str]:
    """Set what the table of the writer knows to read; the labels of it."""
    used = set()
    for key in KEYS:
        for label in (key.label.lower(), *key.also):
            if label not in settings or key.read is None:
                continue
            used.add(label)
            if label == "denoising strength" and found.task == "txt2img":
                found.leave("Denoising strength of the larger pass", settings[label])
            elif not (label == "clip skip" and settings[label] == "1"):
                value = key.read(settings[label])
                if value is None:
                    found.note(f"{key.label} {settings[label][:40]!r} is not understood: left out")
                found.set(key.field, value)
    if settings.get("inpaint area", "").lower() == "only masked" and "padding" not in found.fields:
        found.set("padding", _ONLY_MASKED_PADDING)
    if found.task in ("img2img", "inpaint"):
        what = "picture that it was drawn over" if found.task == "img2img" else "picture and the mask"
        found.note(f"the {what} is not in the metadata: give it")
    return used


def _sampling(found: Findings, settings: Mapping[str, str]) -> None:
    """The sampler, and the spacing that it got: named, in the sampler's name (before 1.9), or chosen by the tool."""
    name, schedule = settings.get("sampler"), settings.get("schedule type")
    if name is None:
        return
    if schedule is None and A1111.sampler(name) is None:
        front, _, last = name.rpartition(" ")
        if A1111.sampler(front) is not None and A1111.spacing(last) is not None:
            name, schedule = front, last
    sampler = found.sampler(name, A1111)
    if schedule is not None and schedule.lower() != AUTOMATIC.lower() and sampler not in BY_TIMESTEPS:
        found.spacing(schedule, A1111)
    elif sampler in BY_TIMESTEPS:
        own = schedule is None or schedule.lower() == AUTOMATIC.lower() or A1111.spacing(schedule) is None
        found.set("spacing", "leading" if own or schedule is None else A1111.spacing(schedule))
    elif sampler is not None and sampler not in A1111_CHOOSES:
        found.set("spacing", "linspace" if schedule is None else A1111_OWN.get(sampler, "linspace"))


def _with_hypernetwork(prompt: str, settings: Mapping[str, str]) -> str:
    """As A1111 does with texts older than the tags."""
    name = settings.get("hypernet", "").partition("(")[0].strip()
    return f"{prompt}<hypernet:{name}:{settings.get('hypernet strength', '1.0')}>" if name != "" else prompt


def _hash_of_hashes(settings: Mapping[str, str]) -> str | None:
    found = _all_hashes(settings).get("model")
    return found if isinstance(found, str) else None


def _all_hashes(settings: Mapping[str, str]) -> Mapping[str, JsonValue]:
    """What Civitai's extension writes: the sort of a file and its name, or "model" -> digits of its hash."""
    try:
        return mapping(json.loads(settings.get("hashes", "{}")))
    except (ValueError, RecursionError):
        return {}
