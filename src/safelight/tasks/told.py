"""From a request to the doors: what the network is told, and what guidance steers away from.

A member's preset lists what it is told by; every such condition is answered here from the request's fields.
Shapes: B batch, h w latent size, H W picture size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from PIL import Image
from torch import Tensor, nn

from safelight.adapters.embeddings import Taught
from safelight.conditioning import augmentation, depth, labels, sizes
from safelight.conditioning import pictures as seen
from safelight.conditioning.joining import beside
from safelight.conditioning.prompts.edits import Steps
from safelight.conditioning.prompts.prompt import phases, read
from safelight.conditioning.spoken import Spoken, Voice, speak
from safelight.conditioning.text import Encoder, repeat, unsaid
from safelight.diffusion.guidance import Branch, Said, always
from safelight.diffusion.noise import Noise
from safelight.diffusion.schedule import Schedule
from safelight.doors import Conditioning
from safelight.errors import RequestError
from safelight.models.bert import Bert
from safelight.models.boxes import BoxTokenizer
from safelight.models.clip import ClipText, ClipVision
from safelight.models.depth import Depth
from safelight.models.labels import Labels
from safelight.models.normalizer import Normalizer
from safelight.models.rescaler import Rescaler
from safelight.models.tokenizer import Tokenizing
from safelight.presets import Preset
from safelight.presets import conditions as told_by
from safelight.tasks import inputs
from safelight.tasks.pictures import to_pixels
from safelight.tasks.prompts.readers import readers
from safelight.tasks.prompts.wording import Wording
from safelight.tasks.request import Request
from safelight.tasks.requests import (
    ClassToImage,
    DepthToImage,
    LayoutToImage,
    Pair,
    Prompted,
    SemanticToImage,
    Upscale,
    Variations,
)
from safelight.tasks.resolve import needed

N = TypeVar("N", bound=nn.Module)
Encode = Callable[[Tensor], Tensor]
"""Pixels (1, 3, H, W) in [-1, 1] -> their scaled latent (1, C, h, w), float32."""


Sides = tuple[Conditioning, Conditioning | None]
"""What a condition says, and what guidance steers away from; None: the same."""


@dataclass
class Clock:
    """At which step a walk is: what is said may change from one to the next."""

    step: int = 1


@dataclass(frozen=True)
class Told:
    """Both sides of guidance, each with the batch of the request."""

    branches: tuple[Branch[Conditioning], ...]
    """What acts together: one, or the parts of a prompt."""
    uncond: Said[Conditioning] | None
    """None where the request asks for no guidance."""
    empty: Said[Conditioning] | None = None
    """What says nothing, where a negative prompt is kept apart from it."""


@dataclass(frozen=True)
class Teller:
    """Answers every condition of a member from one resolved request."""

    preset: Preset
    networks: Mapping[str, nn.Module]
    tokenizers: Mapping[str, Tokenizing]
    encode: Encode
    request: Request
    noise: Noise
    """Conditions under noise take it from the pictures' own generators, after the first draw."""
    wordings: Sequence[Wording]
    """Resolved: one for all pictures, or one for each."""
    steps: int
    """Of the walk: what prompts that change count."""
    clock: Clock
    canvas: tuple[Image.Image, Image.Image] | None = None
    """The picture and the hole that inpainting draws on."""
    taught: Mapping[str, Taught] = field(default_factory=dict)
    """The words that text towers were taught beyond their own, by part."""

    def tell(self, device: torch.device, dtype: torch.dtype) -> Told:
        """Ask every condition for both sides, and join the answers.

        Raises:
            RequestError: the request lacks what the member must be told.
        """
        guided = needed(self.request.guidance) != 1.0 or self.request.cfg_pp
        voices = self._voices()
        branches = self._spoken(voices, negative=False) if voices else (Spoken(1.0, ()),)
        guided = guided or len(branches) > 1 or branches[0].weight != 1.0
        sides = [self._sides(c, guided) for c in self.preset.conditions if not isinstance(c, told_by.Words)]

        def place(part: Conditioning) -> Conditioning:
            whole = self._for_batch(part)
            return whole.map(lambda door: door.to(device, dtype if door.is_floating_point() else None))

        def join(words: Conditioning | None, others: Sequence[Conditioning]) -> Conditioning:
            return beside([*([] if words is None else [place(words)]), *others])

        yes = [place(side) for side, _ in sides]
        no = [ours if other is None else place(other) for ours, (_, other) in zip(yes, sides, strict=True)]

        def said(spoken: Spoken, others: Sequence[Conditioning]) -> Said[Conditioning]:
            if not spoken.conds:
                return always(join(None, others))
            made = {id(words): join(words, others) for _, words in spoken.conds}
            return lambda: made[id(spoken.at(min(self.clock.step, self.steps)))]

        def alone(negative: Sequence[Wording] | None) -> Said[Conditioning]:
            [spoken] = self._spoken(voices, negative=True, wordings=negative) if voices else [Spoken(1.0, ())]
            return said(spoken, no)

        masks = self._regions(len(branches), device)
        return Told(
            tuple(Branch(said(b, yes), b.weight, mask) for b, mask in zip(branches, masks, strict=True)),
            alone(None) if guided else None,
            alone([Wording("")]) if guided and self.request.perp_neg is not None else None,
        )

    def _regions(self, branches: int, device: torch.device) -> list[Tensor | None]:
        """Where each branch acts, (1, 1, h, w)."""
        regions = self.request.regions if isinstance(self.request, Prompted) else None
        if regions is None:
            return [None] * branches
        if len(regions) != branches:
            raise RequestError(
                f"{len(regions)} regions for {branches} parts of the prompt: give one for each part that AND joins"
            )
        factor = self.preset.factor
        size = (needed(self.request.height) // factor, needed(self.request.width) // factor)
        masks = [inputs.region(text, size) for text in regions]
        return [None if mask is None else mask.to(device) for mask in masks]

    def _for_batch(self, cond: Conditioning) -> Conditioning:
        """Doors of one picture for all of the batch."""
        doors = [door for door in (cond.context, cond.vector, cond.concat) if door is not None]
        return repeat(cond, self.request.batch) if doors and len(doors[0]) == 1 else cond

    def _voices(self) -> list[Voice]:
        """The text towers, each encoding no text twice."""
        if not self.preset.words:
            return []
        request = _as(Prompted, self.request, "a prompt", "txt2img")
        reading = readers(self.preset, self.tokenizers, request.emphasis, taught=self.taught)
        return [
            Voice(
                Encoder(
                    reading[words.part],
                    cast("ClipText | Bert", self.networks[words.part]),
                    states=words.states,
                    pooled=words.pooled,
                    clip_skip=1 if request.clip_skip is None else request.clip_skip,
                    taught=self.taught[words.part].rows if words.part in self.taught else None,
                ),
                second=words.part == told_by.TEXT_2 and len(self.preset.words) > 1,
                zeros=words.zeros,
            )
            for words in self.preset.words
        ]

    def _spoken(
        self, voices: Sequence[Voice], *, negative: bool, wordings: Sequence[Wording] | None = None
    ) -> tuple[Spoken, ...]:
        """What the prompts say at every step."""
        steps = Steps(self.steps)
        found = []
        for wording in self.wordings if wordings is None else wordings:
            first, second = (
                (wording.negative_prompt, wording.negative_prompt_2) if negative else (wording.prompt, wording.prompt_2)
            )
            other = None if second is None else read(second, negative=negative)
            found.append(phases(read(first, negative=negative), steps, other))
        return speak(found, voices, negative=negative)

    def _sides(self, condition: told_by.Condition, guided: bool) -> Sides:
        sides: Sides
        match condition:
            case told_by.Numbers():
                sides = self._numbers(condition)
            case told_by.Label():
                sides = self._label(condition, guided)
            case told_by.Boxes():
                sides = self._boxes(condition, guided)
            case told_by.LabelMap():
                sides = self._map(), None
            case told_by.SmallPicture():
                sides = self._small(condition), None
            case told_by.HiddenPicture():
                sides = self._hidden(condition), None
            case told_by.DepthMap():
                sides = self._depth(), None
            case told_by.SeenPicture():
                sides = self._seen(condition)
        return sides

    def _network(self, part: str, kind: type[N]) -> N:
        return cast(N, self.networks[part])

    def _numbers(self, numbers: told_by.Numbers) -> Sides:
        request = _as(Prompted, self.request, "sizes", "txt2img")
        width = needed(self.preset.unet.size_width)

        def side(original: Pair, crop: Pair, target: Pair, score: float) -> Conditioning:
            first, corner, last = original[::-1], crop[::-1], target[::-1]  # theirs are height before width
            if numbers.aesthetic:
                return sizes.numbers_door([sizes.refiner_numbers(first, corner, score)], width)
            return sizes.numbers_door([sizes.base_numbers(first, last, corner)], width)

        size = (needed(request.width), needed(request.height))
        original, crop = needed(request.original_size), needed(request.crop)
        target = size if request.target_size is None else request.target_size
        negative = (
            original if request.negative_original_size is None else request.negative_original_size,
            crop if request.negative_crop is None else request.negative_crop,
            target if request.negative_target_size is None else request.negative_target_size,
        )
        liked = sizes.AESTHETIC if request.aesthetic is None else request.aesthetic
        disliked = sizes.NEGATIVE_AESTHETIC if request.negative_aesthetic is None else request.negative_aesthetic
        return side(original, crop, target, liked), side(*negative, disliked)

    def _label(self, label: told_by.Label, guided: bool) -> Sides:
        request = _as(ClassToImage, self.request, "a class", "class2img")
        network = self._network(told_by.LABELS, Labels)
        cond = labels.encode_labels(network, [request.label])
        if not guided:
            return cond, None
        if label.empty is None:
            raise RequestError(f"{self.preset.name} knows no class for none, which guidance needs: use --guidance 1")
        return cond, labels.encode_labels(network, [label.empty])

    def _boxes(self, boxes: told_by.Boxes, guided: bool) -> Sides:
        request = _as(LayoutToImage, self.request, "boxes", "layout2img")
        tokenizer, tower = BoxTokenizer(boxes.boxes), self._network(told_by.BOXES, Bert)
        asked = labels.encode_boxes(tokenizer, tower, [inputs.boxes(request.boxes)])
        return asked, labels.encode_boxes(tokenizer, tower, [[]]) if guided else None

    def _map(self) -> Conditioning:
        request = _as(SemanticToImage, self.request, "a map of classes", "semantic2img")
        size = (needed(request.width), needed(request.height))
        image = inputs.grey(request, "map").resize(size, Image.Resampling.NEAREST)
        return labels.encode_maps(self._network(told_by.RESCALER, Rescaler), inputs.numbers(image)[:, 0].long())

    def _small(self, small: told_by.SmallPicture) -> Conditioning:
        request = _as(Upscale, self.request, "a picture to enlarge", "upscale")
        pixels = to_pixels(inputs.picture(request, "image"))
        if small.schedule is None:
            return Conditioning(concat=pixels)
        noise = self.noise.draw(pixels.shape[1:])
        levels = torch.full((len(noise),), needed(request.noise_level))
        table = Schedule(small.schedule).alphas_cumprod
        return augmentation.upscaler_door(pixels.expand_as(noise), noise, levels, table)

    def _hidden(self, hidden: told_by.HiddenPicture) -> Conditioning:
        if self.canvas is None:
            raise RequestError(f"{self.preset.name} draws parts of pictures anew: use `safelight inpaint`")
        picture, hole = self.canvas
        hiding = seen.HIDINGS[hidden.style]
        mask = inputs.numbers(hole) / 255
        latent = self.encode(seen.hide(to_pixels(picture), mask, hiding))
        return seen.inpainting_door(mask, latent.cpu(), hiding)

    def _depth(self) -> Conditioning:
        request = _as(DepthToImage, self.request, "a picture's depth", "depth2img")
        factor = self.preset.factor
        size = (needed(request.height) // factor, needed(request.width) // factor)
        if request.depth is not None:
            return depth.map_depth_door(inputs.numbers(inputs.grey(request, "depth")), size)
        network = self._network(told_by.DEPTH, Depth)
        device = next(network.parameters()).device
        return depth.picture_depth_door(network, to_pixels(inputs.picture(request, "image")).to(device), size)

    def _seen(self, picture: told_by.SeenPicture) -> Sides:
        request = _as(Variations, self.request, "a picture to vary", "variations")
        tower = self._network(told_by.VISION, ClipVision)
        device = next(tower.parameters()).device
        embedding = seen.embed_pictures(tower, to_pixels(inputs.picture(request, "image")).to(device))
        if request.other is not None:
            other = seen.embed_pictures(tower, to_pixels(inputs.picture(request, "other")).to(device))
            embedding = torch.lerp(embedding.float(), other.float(), request.mix)
        noise = self.noise.draw(embedding.shape[1:]).to(device)
        levels = torch.full((len(noise),), needed(request.noise_level))
        cond = augmentation.unclip_door(
            embedding.expand_as(noise),
            noise,
            levels,
            Schedule(picture.schedule).alphas_cumprod,
            self._network(told_by.NORMALIZER, Normalizer),
        )
        return cond, unsaid(cond)


R = TypeVar("R", bound=Request)


def _as(kind: type[R], request: Request, what: str, task: str) -> R:
    if not isinstance(request, kind):
        raise RequestError(f"this model must be told {what}: use `safelight {task}`, not {request.task}")
    return request
