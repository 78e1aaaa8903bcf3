"""Reads the metadata of InvokeAI: `invokeai_metadata` since version 3, `sd-metadata` of 2, `Dream` of 1."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from safelight.errors import RequestError
from safelight.tasks.metadata.bounded import mapping, number, parse, readable, sequence, text, whole
from safelight.tasks.metadata.containers import Embedded
from safelight.tasks.metadata.labels import INVOKE, INVOKE_OLD
from safelight.tasks.metadata.names import INVOKE as CHUNKS
from safelight.tasks.metadata.recovered import Findings, ModelHint, Recovered, shown

TOOL = "InvokeAI"
_MODERN, _SD_METADATA, _DREAM = CHUNKS
_LEFT = ("vae", "controlnets", "ipAdapters", "t2iAdapters", "seamless_x", "seamless_y", "hrf_enabled", "hrf_strength")
_REFINER = ("refiner_model", "refiner_start", "refiner_steps", "refiner_scheduler", "refiner_cfg_scale")
_TEXTS = {
    "negative_prompt": "negative_prompt",
    "prompt_2": "positive_style_prompt",
    "negative_prompt_2": "negative_style_prompt",
}
_MAX_DREAM = 2**17
_NEGATIVE = re.compile(r"\[([^\[\]]*)\]")
_WEIGHTS = re.compile(r"[\w)][+-]{1,9}(?=[\s,.)]|$)|\)\d|\.(?:blend|and|swap)\(")


def read(picture: Embedded) -> Recovered | None:
    """What the newest of the three says; None if there is none.

    Raises:
        RequestError: it is damaged.
    """
    texts = picture.texts
    if _MODERN in texts:
        return _modern(mapping(parse(texts[_MODERN], "invokeai_metadata")))
    if _SD_METADATA in texts:
        return _of_two(mapping(parse(texts[_SD_METADATA], "sd-metadata")))
    return _dream(texts[_DREAM]) if _DREAM in texts else None


def _modern(data: Mapping[str, JsonValue]) -> Recovered:
    found = Findings(_with_version(data))
    mode = _words(data, "generation_mode", "txt2img")
    found.task = {"img2img": "img2img", "inpaint": "inpaint", "outpaint": "inpaint"}.get(
        mode.rpartition("_")[2], "txt2img"
    )
    if mode.rpartition("_")[0] not in ("", "sdxl"):
        found.note(f"it was drawn by a model of another family ({mode.rpartition('_')[0][:40]})")
    model = mapping(data.get("model"))
    hash_ = text(model.get("hash", model.get("model_hash")))  # with its kind, like blake3:
    found.model = ModelHint(text(model.get("name", model.get("model_name"))), hash_)
    found.set("prompt", _with_loras(text(data.get("positive_prompt")), sequence(data.get("loras"))))
    for name, theirs in _TEXTS.items():
        if _words(data, theirs) != "":
            found.set(name, _words(data, theirs))
    _common(found, data, "cfg_scale")
    if data.get("cfg_rescale_multiplier") != 0:
        found.set("guidance_rescale", number(data.get("cfg_rescale_multiplier")))
    skipped = whole(data.get("clip_skip"))
    found.set("clip_skip", skipped + 1 if skipped else None)  # theirs counts what is skipped
    scheduler = text(data.get("scheduler"))
    found.sampler(scheduler, INVOKE)
    if scheduler is not None and scheduler.endswith("_k"):
        found.spacing("_k", INVOKE)
    if found.task != "txt2img":
        found.set("strength", number(data.get("strength")))
        found.note("the picture that it was drawn over is not in the metadata: give it")
    for name in (*_LEFT, *_REFINER):
        value = data.get(name)
        found.leave(name, value if not isinstance(value, dict | list) or not value else _name(value))
    _note_weights(found)
    return found.recovered()


def _of_two(data: Mapping[str, JsonValue]) -> Recovered:
    image = mapping(data.get("image"))
    found = Findings(_with_version(data))
    found.task = "img2img" if image.get("type") == "img2img" else "txt2img"
    found.model = ModelHint(text(data.get("model_weights")), text(data.get("model_hash")))
    prompt = image.get("prompt")
    parts = [mapping(part) for part in sequence(prompt)]
    if len(parts) > 1:
        found.note(f"only the first of {len(parts)} weighted prompts is carried over")
    _prompt(found, text(prompt) if isinstance(prompt, str) else text(parts[0].get("prompt")) if parts else None)
    _common(found, image, "cfg_scale")
    found.sampler(text(image.get("sampler")), INVOKE_OLD)
    if found.task == "img2img":
        found.set("strength", number(image.get("strength")))
        found.note("the picture that it was drawn over is not in the metadata: give it")
    for name in ("threshold", "perlin", "seamless", "hires_fix", "postprocessing", "variations"):
        value = image.get(name)
        found.leave(name, None if value in (0, [], "") else value)
    return found.recovered()


def _dream(line: str) -> Recovered:
    """`"a prompt [without this]" -s 50 -S 42 -W 512 -H 512 -C 7.5 -A k_lms`, as it was typed."""
    if len(line) > _MAX_DREAM:
        raise RequestError("the Dream text of InvokeAI is too long: it is damaged")
    quoted = re.match(r'\s*"((?:[^"\\]|\\.)*)"(.*)', line, re.DOTALL)
    try:
        words = shlex.split(quoted[2] if quoted is not None else line)
    except ValueError:
        words = (quoted[2] if quoted is not None else line).split()
    options: dict[str, str] = {}
    loose = []
    for word in words:
        if re.match(r"-[A-Za-z]", word):
            options[word[1]] = word[2:]
            last = word[1]
        elif options and options[last] == "":
            options[last] = word
        else:
            loose.append(word)
    found = Findings(TOOL, task="img2img" if "I" in options else "txt2img")
    _prompt(found, readable(quoted[1] if quoted is not None else " ".join(loose)))
    _common(found, {"steps": options.get("s"), "seed": options.get("S"), "cfg_scale": options.get("C")}, "cfg_scale")
    found.set("width", whole(options.get("W")))
    found.set("height", whole(options.get("H")))
    found.sampler(options.get("A"), INVOKE_OLD)
    if found.task == "img2img":
        found.set("strength", number(options.get("f")))
        found.note("the picture that it was drawn over is not in the metadata: give it")
    for letter in sorted(options.keys() - set("sSCWHAfIn")):
        found.leave(f"-{letter}", options[letter])
    return found.recovered()


def _with_version(data: Mapping[str, JsonValue]) -> str:
    return f"{TOOL} {shown(_words(data, 'app_version'))}".strip()


def _words(data: Mapping[str, JsonValue], name: str, default: str = "") -> str:
    found = text(data.get(name))
    return default if found is None else found


def _common(found: Findings, data: Mapping[str, JsonValue], guidance: str) -> None:
    for name in ("seed", "steps", "width", "height"):
        found.set(name, whole(data.get(name)))
    found.set("guidance", number(data.get(guidance)))


def _prompt(found: Findings, prompt: str | None) -> None:
    """Before version 3 what stands in [ ] is the negative prompt."""
    if prompt is None:
        return
    avoided = " ".join(_NEGATIVE.findall(prompt)).strip()
    found.set("prompt", _NEGATIVE.sub("", prompt).strip())
    found.set("negative_prompt", avoided if avoided != "" else None)
    _note_weights(found)


def _note_weights(found: Findings) -> None:
    if _WEIGHTS.search(f"{found.fields.get('prompt', '')} {found.fields.get('negative_prompt', '')}"):
        found.note("InvokeAI weighs words by ++ and -- behind them: here these are plain characters")


def _with_loras(prompt: str | None, loras: Sequence[JsonValue]) -> str | None:
    """The prompt with a tag for each LoRA, which is how a request names them."""
    if prompt is None:
        return None
    tags = []
    for entry in loras:
        lora = mapping(entry)
        model = mapping(lora.get("model", lora.get("lora")))
        name, weight = text(model.get("name", model.get("model_name"))), number(lora.get("weight"))
        if name is not None:
            tags.append(f"<lora:{name}:{1.0 if weight is None else weight:g}>")
    return " ".join([prompt, *tags])


def _name(value: JsonValue) -> str:
    """What to call something of many parts."""
    if isinstance(value, list):
        return f"{len(value)} of them"
    name = text(mapping(value).get("name", mapping(value).get("model_name")))
    return "something" if name is None else name
