"""Reads the metadata of NovelAI: `Comment` as JSON beside Software=NovelAI, in text chunks or hidden in the alpha."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from safelight.tasks.metadata.bounded import mapping, number, parse, sequence, text, whole
from safelight.tasks.metadata.containers import Embedded
from safelight.tasks.metadata.labels import NOVELAI
from safelight.tasks.metadata.names import COMMENT, DESCRIPTION, SOFTWARE, SOURCE
from safelight.tasks.metadata.recovered import Findings, ModelHint, Recovered

TOOL = "NovelAI"
_TASKS = {"Img2ImgRequest": "img2img", "Image2ImageRequest": "img2img", "NativeInfillingRequest": "inpaint"}
_LEFT = {
    "sm": False,
    "sm_dyn": False,
    "dynamic_thresholding": False,
    "uncond_scale": 1.0,
    "extra_noise_seed": None,
    "skip_cfg_above_sigma": None,
    "skip_cfg_below_sigma": 0.0,
    "controlnet_model": None,
    "noise": 0.0,
}
"""What changes the picture, and the value with which it does not."""


def read(picture: Embedded) -> Recovered | None:
    """What the comment says; None if there is none.

    Raises:
        RequestError: it is no JSON object.
    """
    texts = picture.texts
    if texts.get(SOFTWARE) != TOOL or COMMENT not in texts:
        return None
    comment = mapping(parse(texts[COMMENT], "the comment of NovelAI"))
    found = Findings(TOOL, task=_task(comment), model=ModelHint(texts.get(SOURCE)))
    prompt, negative = _prompts(comment, texts)
    found.set("prompt", prompt)
    found.set("negative_prompt", negative)
    found.set("seed", whole(comment.get("seed")))
    found.set("steps", whole(comment.get("steps")))
    found.set("guidance", number(comment.get("scale")))
    found.set("guidance_rescale", number(comment.get("cfg_rescale")) if comment.get("cfg_rescale") else None)
    width, height = picture.size if picture.size is not None else (None, None)  # the oldest did not say it
    found.set("width", whole(comment.get("width", width)))
    found.set("height", whole(comment.get("height", height)))
    found.sampler(text(comment.get("sampler")), NOVELAI)
    found.spacing(text(comment.get("noise_schedule")), NOVELAI)
    if found.task != "txt2img":
        found.set("strength", number(comment.get("strength")))
        found.note("the picture that it was drawn over is not in the metadata: give it")
    for name, usual in _LEFT.items():
        if comment.get(name) not in (usual, None):
            found.leave(name, comment.get(name))
    characters = sequence(mapping(mapping(comment.get("v4_prompt")).get("caption")).get("char_captions"))
    for character in characters:
        found.leave("character prompt", mapping(character).get("char_caption"))
    if any(mark in f"{prompt}{negative}" for mark in "{}[]"):
        found.note("NovelAI's {} and [] weigh words by 1.05; here [] weighs by 1.1, and {} does not")
    found.note("NovelAI draws its noise and weighs its words otherwise: the picture will differ")
    return found.recovered()


def _task(comment: Mapping[str, JsonValue]) -> str:
    kind = text(comment.get("request_type"))
    if kind is not None:
        return _TASKS.get(kind, "txt2img")
    return "img2img" if "strength" in comment and "noise" in comment else "txt2img"


def _prompts(comment: Mapping[str, JsonValue], texts: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Positive and negative, of the newest kind that there is."""

    def caption(name: str) -> str | None:
        return text(mapping(mapping(comment.get(name)).get("caption")).get("base_caption"))

    told = [caption("v4_prompt"), text(comment.get("prompt")), texts.get(DESCRIPTION)]
    avoided = [caption("v4_negative_prompt"), text(comment.get("uc"))]
    return next((t for t in told if t), None), next((t for t in avoided if t), None)
