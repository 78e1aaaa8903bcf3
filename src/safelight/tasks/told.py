"""From a request to the doors: what the network is told, and what guidance steers away from.

A member's preset lists what it is told by; every such condition is answered here from the request's fields.
Shapes: B batch, h w latent size, H W picture size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from PIL import Image
from torch import Tensor, nn

from safelight.conditioning import augmentation, depth, labels, sizes
from safelight.conditioning import pictures as seen
from safelight.conditioning.joining import beside
from safelight.conditioning.text import encode_prompts, repeat, unsaid
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


@dataclass(frozen=True)
class Told:
    """Both sides of guidance, each with the batch of the request."""

    cond: Conditioning
    uncond: Conditioning | None
    """None where the request asks for no guidance."""


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
    prompts: Sequence[str]
    """One for all pictures, or one for each."""
    canvas: tuple[Image.Image, Image.Image] | None = None
    """The picture and the hole that inpainting draws on."""

    def tell(self, device: torch.device, dtype: torch.dtype) -> Told:
        """Ask every condition for both sides, and join the answers.

        Raises:
            RequestError: the request lacks what the member must be told.
        """
        guided = needed(self.request.guidance) != 1.0
        sides: list[Sides] = [self._sides(condition, guided) for condition in self.preset.conditions]

        def join(parts: Sequence[Conditioning]) -> Conditioning:
            whole = beside([self._for_batch(part) for part in parts])
            return whole.map(lambda door: door.to(device, dtype if door.is_floating_point() else None))

        cond = join([yes for yes, _ in sides])
        return Told(cond, join([yes if no is None else no for yes, no in sides]) if guided else None)

    def _for_batch(self, cond: Conditioning) -> Conditioning:
        """Doors of one picture for all of the batch."""
        doors = [door for door in (cond.context, cond.vector, cond.concat) if door is not None]
        return repeat(cond, self.request.batch) if doors and len(doors[0]) == 1 else cond

    def _sides(self, condition: told_by.Condition, guided: bool) -> Sides:
        sides: Sides
        match condition:
            case told_by.Words():
                sides = self._words(condition, guided)
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

    def _words(self, words: told_by.Words, guided: bool) -> Sides:
        request = _as(Prompted, self.request, "a prompt", "txt2img")
        tower = cast("ClipText | Bert", self.networks[words.part])

        def say(prompts: Sequence[str]) -> Conditioning:
            tokenizer = self.tokenizers[words.part]
            return encode_prompts(tokenizer, tower, prompts, states=words.states, pooled=words.pooled)

        cond = say(self.prompts)
        if not guided:
            return cond, None
        uncond = say([request.negative_prompt])
        return cond, unsaid(uncond) if words.zeros and request.negative_prompt == "" else uncond

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
