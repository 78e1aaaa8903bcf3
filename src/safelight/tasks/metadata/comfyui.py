"""Reads ComfyUI's graph (`prompt`): the first walk of the picture, from an empty latent or another picture.

What is found: KSampler and its kin, the texts that they were told, the model with its LoRAs, the size. A graph can
do anything; nodes on the way that a request cannot say are listed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import JsonValue

from safelight.errors import RequestError
from safelight.tasks.metadata.bounded import number, parse, text, whole
from safelight.tasks.metadata.containers import Embedded
from safelight.tasks.metadata.graph import Graph, Link, Node
from safelight.tasks.metadata.labels import COMFY
from safelight.tasks.metadata.names import GRAPH, WORKFLOW
from safelight.tasks.metadata.recovered import Findings, ModelHint, Recovered

TOOL = "ComfyUI"
_LATENT = ("latent_image", "samples", "latent", "latents", "pixels", "image", "images")
_CUSTOM = ("SamplerCustom", "SamplerCustomAdvanced")
_MASKS = ("SetLatentNoiseMask", "VAEEncodeForInpaint", "InpaintModelConditioning")
_CONDITIONING = ("conditioning", "conditioning_to", "conditioning_1", "positive", "negative", "cond")
_PLAIN = ("CLIPTextEncode", "CLIPSetLastLayer", "ConditioningZeroOut", "InpaintModelConditioning", "Reroute")
_ON_THE_MODEL = {
    "RescaleCFG": ("guidance_rescale", ("multiplier",)),
    "PerturbedAttentionGuidance": ("pag", ("scale",)),
    "SelfAttentionGuidance": ("sag", ("scale",)),
    "FreeU": ("freeu", ("b1", "b2", "s1", "s2")),
    "TomePatchModel": ("merge_tokens", ("ratio",)),
}
"""Nodes that change what a model does by numbers: our field, their inputs."""
_SAVES = ("Save", "Preview")
_MAX_SAMPLERS = 64


def read(picture: Embedded) -> Recovered | None:
    """What the graph says; None if there is none.

    Raises:
        RequestError: it is damaged, or no sampler is found in it.
    """
    if GRAPH not in picture.texts:
        if WORKFLOW in picture.texts:
            raise RequestError(
                "it carries ComfyUI's workflow, but not the graph that ran, and the workflow does not name its "
                "values: save the picture with ComfyUI's own SaveImage"
            )
        return None
    graph = Graph(parse(picture.texts[GRAPH], "the graph of ComfyUI"))
    found = Findings(TOOL)
    passes = _passes(graph, found)
    if not passes:
        raise RequestError("the graph of ComfyUI has no sampler with steps in it: nothing can be recovered")
    base = passes[-1]
    _begin(graph, base, found)
    _settings(graph, base, found)
    guider = graph.node(base.link("guider"))
    told = base if guider is None else guider
    _words(graph, told, found)
    _model(graph, told, found)
    for later in reversed(passes[:-1]):
        steps, denoise = whole(graph.value(later, "steps")), number(graph.value(later, "denoise"))
        found.leave(f"{later.kind} {later.id}, a further pass", f"steps {steps}, denoise {denoise}")
    return found.recovered()


def _is_sampler(node: Node) -> bool:
    return node.kind in _CUSTOM or ("sampler_name" in node.inputs and "steps" in node.inputs)


def _passes(graph: Graph, found: Findings) -> list[Node]:
    """The samplers that made the picture, the last first."""
    ends = [node for node in graph.nodes.values() if any(word in node.kind for word in _SAVES)]
    reached = set[str]().union(*(graph.above(end) for end in ends[:_MAX_SAMPLERS])) if ends else set(graph.nodes)
    samplers = [node for id_, node in graph.nodes.items() if id_ in reached and _is_sampler(node)]
    if len(samplers) > _MAX_SAMPLERS:
        raise RequestError(
            f"the graph of ComfyUI has more than {_MAX_SAMPLERS} samplers: no one picture is found in it"
        )
    under = {node.id: graph.above(node) - {node.id} for node in samplers}
    last = [node for node in samplers if not any(node.id in below for below in under.values())]
    if not last:
        return samplers[:1]
    if len(last) > 1:
        found.note(f"the graph makes {len(last)} pictures: this is how the one of node {last[0].id} was made")
    return [last[0], *(node for node in graph.back(last[0], _LATENT) if _is_sampler(node))]


def _begin(graph: Graph, base: Node, found: Findings) -> None:
    """What the walk starts from: the size, or a picture."""
    for node in graph.back(base, _LATENT):
        if node.kind in _MASKS:
            found.task = "inpaint"
        if "batch_size" in node.inputs and "width" in node.inputs:
            found.set("width", whole(graph.value(node, "width")))
            found.set("height", whole(graph.value(node, "height")))
            if (batch := whole(graph.value(node, "batch_size"))) not in (None, 1):
                found.note(f"drawn in a batch of {batch} from one seed: only the first of them can be made again")
        elif node.kind.startswith("LoadImage"):
            found.task = "img2img" if found.task == "txt2img" else found.task
            found.note(
                f"the picture that it was drawn over is not in the metadata: give it ({node.inputs.get('image')})"
            )


def _settings(graph: Graph, base: Node, found: Findings) -> None:
    noise, sigmas = graph.node(base.link("noise")), graph.node(base.link("sigmas"))
    chosen, guider = graph.node(base.link("sampler")), graph.node(base.link("guider"))
    scheduler = base if sigmas is None else sigmas
    found.set("seed", whole(graph.value(base if noise is None else noise, "seed", "noise_seed")))
    found.set("guidance", number(graph.value(base if guider is None else guider, "cfg")))
    name = text(graph.value(base if chosen is None else chosen, "sampler_name"))
    if found.sampler(name, COMFY) is not None and name == "uni_pc":
        found.note("uni_pc is UniPC with B1 there, with B2 here: the picture will differ a little")
    if "scheduler" in scheduler.inputs:
        found.spacing(text(graph.value(scheduler, "scheduler")), COMFY)
    elif sigmas is not None:
        found.spacing(sigmas.kind, COMFY)
    steps, denoise = whole(graph.value(scheduler, "steps")), number(graph.value(scheduler, "denoise"))
    if found.task != "txt2img" and denoise is not None and 0 < denoise <= 1:
        found.set("strength", denoise)
        # There all steps are walked in the part of the noise that denoise leaves; here that part of the steps.
        if steps is not None and denoise < 1:
            asked = math.ceil(steps / denoise - 1e-9)
            found.note(f"steps {asked} here are the {steps} that ComfyUI walks at denoise {denoise:g}")
            steps = asked
    elif denoise not in (None, 1.0):
        found.leave("denoise", denoise)
    found.set("steps", steps)
    start, end = whole(base.inputs.get("start_at_step")), whole(base.inputs.get("end_at_step"))
    if start not in (None, 0):
        found.leave("start_at_step", start)
    if end is not None and steps is not None and end < steps:
        found.leave("end_at_step", end)


# -- words


def _words(graph: Graph, told: Node, found: Findings) -> None:
    for role, field in (("positive", "prompt"), ("negative", "negative_prompt")):
        link = told.link(role)
        if link is None and role == "positive":
            link = told.link("conditioning")  # BasicGuider
        encoders = _encoders(graph, link, found)
        texts = [said for node in encoders if (said := text(graph.value(node, "text", "text_l", "text_g"))) is not None]
        words = " BREAK ".join(dict.fromkeys(texts))
        if texts and (words != "" or role == "positive"):
            found.set(field, words)
        if any(mark in words for mark in "[]") and role == "positive":
            found.note("ComfyUI takes [ and ] as they stand; here they weaken or change words: write \\[ and \\]")
        if encoders:
            _of_encoder(graph, encoders[0], role, field, found)


def _of_encoder(graph: Graph, node: Node, role: str, field: str, found: Findings) -> None:
    """What SDXL's encoders are told beside the words, and how deep the tower is read."""
    first, second = text(graph.value(node, "text_l")), text(graph.value(node, "text_g"))
    if second is not None and second != first:
        found.set(f"{field}_2", second)
    prefix = "" if role == "positive" else "negative_"
    for name, parts in (("original_size", ("width", "height")), ("crop", ("crop_w", "crop_h"))):
        _pair(graph, node, f"{prefix}{name}", parts, found)
    _pair(graph, node, f"{prefix}target_size", ("target_width", "target_height"), found)
    found.set(f"{prefix}aesthetic", number(graph.value(node, "ascore")))
    for at in graph.back(node, ("clip",)):
        layer = whole(graph.value(at, "stop_at_clip_layer")) if at.kind == "CLIPSetLastLayer" else None
        if layer is not None and layer < -1 and role == "positive":
            found.set("clip_skip", -layer)


def _pair(graph: Graph, node: Node, field: str, parts: tuple[str, str], found: Findings) -> None:
    one, two = (whole(graph.value(node, part)) for part in parts)
    if one is not None and two is not None:
        found.set(field, [one, two])


def _encoders(graph: Graph, link: Link | None, found: Findings) -> list[Node]:
    """The nodes that say the words of a conditioning, in the order in which they are joined."""
    encoders: list[Node] = []
    seen, waiting = set[str](), [link]
    while waiting:
        link = waiting.pop(0)
        node = graph.node(link)
        if link is None or node is None or node.id in seen:
            continue
        seen.add(node.id)
        if any(name in node.inputs for name in ("text", "text_l", "text_g")):
            encoders.append(node)
            continue
        if node.kind not in (*_PLAIN, "ConditioningConcat"):
            found.leave("node", f"{node.kind} {node.id}")
        if node.kind == "ConditioningConcat":
            waiting += [node.link("conditioning_to"), node.link("conditioning_from")]
        elif node.kind != "ConditioningZeroOut":
            waiting.append(_through(node, link))
    return encoders


def _through(node: Node, link: Link) -> Link | None:
    """Which input an output is made of: nodes with both roles give the positive first."""
    both = [node.link("positive"), node.link("negative")]
    if all(role is not None for role in both):
        return both[min(link.output, 1)] if link.output >= 0 else None
    return next((found for name in _CONDITIONING if (found := node.link(name)) is not None), None)


# -- the model


def _model(graph: Graph, told: Node, found: Findings) -> None:
    tags = []
    for node in graph.back(told, ("model", "unet")):
        checkpoint = text(graph.value(node, "ckpt_name", "unet_name", "model_name"))
        lora = text(graph.value(node, "lora_name"))
        if lora is not None:
            tags.append(_tag(lora, graph, node))
        elif checkpoint is not None:
            found.model = ModelHint(checkpoint)
        elif node.kind in _ON_THE_MODEL:
            field, names = _ON_THE_MODEL[node.kind]
            values: list[JsonValue] = [number(graph.value(node, name)) for name in names]
            found.set(field, values if len(values) > 1 else values[0])
        elif node.kind != "Reroute":
            found.leave("node", f"{node.kind} {node.id}")
    prompt = found.fields.get("prompt")
    if tags and isinstance(prompt, str):
        found.set("prompt", " ".join([prompt, *reversed(tags)]))


def _tag(lora: str, graph: Graph, node: Node) -> str:
    """`<lora:name:text:unet>`, which is how a request names it."""
    name = _stem(lora)
    unet, words = number(graph.value(node, "strength_model")), number(graph.value(node, "strength_clip"))
    unet = 1.0 if unet is None else unet
    words = (0.0 if node.kind.endswith("ModelOnly") else unet) if words is None else words
    return f"<lora:{name}:{unet:g}>" if words == unet else f"<lora:{name}:{words:g}:{unet:g}>"


def _stem(path: str) -> str:
    file: Sequence[str] = path.replace("\\", "/").rpartition("/")[2].rpartition(".")
    return file[0] if file[0] != "" else file[2]
