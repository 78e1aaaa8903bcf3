"""The pictures that a request names: read once, checked against what was recorded, as pixels for the networks."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from safelight.errors import RequestError
from safelight.models.boxes import Box
from safelight.tasks import pictures
from safelight.tasks.request import Request

R = TypeVar("R", bound=Request)
HASH = "_sha256"


def recorded(request: R) -> R:
    """The request with the hash of every picture that it names.

    Raises:
        RequestError: a picture cannot be read, or is no longer that of the request.
    """
    hashes = {}
    for name in _named(request):
        if getattr(request, name) is not None:
            hashes[name + HASH] = pictures.sha256(read(request, name))
    return request.changed(**hashes) if hashes else request


def read(request: Request, name: str) -> bytes:
    """The bytes of the picture in that field.

    Raises:
        RequestError: it cannot be read, or is no longer that of the request.
    """
    source = str(getattr(request, name))
    data = pictures.read_picture_bytes(source)
    if getattr(request, name + HASH) not in (None, pictures.sha256(data)):
        raise RequestError(f"{name} {source!r} is no longer the picture of this request: name it anew")
    return data


def picture(request: Request, name: str) -> Image.Image:
    """The picture in that field, upright, RGB.

    Raises:
        RequestError: as `read`, or it is no picture.
    """
    return pictures.decode_picture(read(request, name), str(getattr(request, name)))


def grey(request: Request, name: str) -> Image.Image:
    """The picture in that field, in one channel of whole numbers: depths keep all their bits.

    Raises:
        RequestError: as `picture`.
    """
    return pictures.decode_grey(read(request, name), str(getattr(request, name)))


def numbers(image: Image.Image) -> Tensor:
    """A grey picture -> (1, 1, H, W) float32, its values as they are."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32).copy())[None, None]


def boxes(text: str) -> list[Box]:
    """`CLASS:LEFT,TOP,WIDTH,HEIGHT` with spaces between, the four in parts of the picture.

    Raises:
        RequestError: one is written otherwise.
    """
    found = []
    for word in text.split():
        category, _, place = word.partition(":")
        try:
            left, top, width, height = (float(part) for part in place.split(","))
            found.append(Box(int(category), (left, top, width, height)))
        except ValueError as error:
            raise RequestError(f"box {word[:40]!r} is not understood: write 12:0.1,0.2,0.5,0.6") from error
    return found


EVERYWHERE = "-"


def region_kept(text: str) -> str:
    """A region as it is recorded: a picture by all its bytes, so that it is there when the picture is made again.

    Raises:
        RequestError: there is no such picture.
    """
    if text == EVERYWHERE or _box(text) is not None or text.startswith("data:"):
        return text
    return pictures.to_data_uri(pictures.decode_grey(pictures.read_picture_bytes(text), text))


def region(text: str, size: tuple[int, int]) -> Tensor | None:
    """Where a part of a prompt acts, (1, 1, h, w) from 0 to 1; None: everywhere.

    Args:
        text: `LEFT,TOP,WIDTH,HEIGHT` in parts of the picture, a picture that is white there, or `-`.
        size: (h, w) of the latent.

    Raises:
        RequestError: it is none of these, or its box lies outside.
    """
    if text == EVERYWHERE:
        return None
    box = _box(text)
    if box is None:
        image = pictures.decode_grey(pictures.read_picture_bytes(text), text).convert("L")
        return F.adaptive_avg_pool2d(numbers(image), size) / 255
    left, top, width, height = box
    if not (0 <= left < left + width <= 1.0001 and 0 <= top < top + height <= 1.0001):
        raise RequestError(f"region {text!r} is not within the picture: write parts of it, like 0,0,0.5,1")
    mask = torch.zeros(1, 1, *size)
    h, w = size
    mask[..., round(top * h) : max(round((top + height) * h), round(top * h) + 1), :][
        ..., round(left * w) : max(round((left + width) * w), round(left * w) + 1)
    ] = 1
    return mask


def _box(text: str) -> tuple[float, float, float, float] | None:
    try:
        left, top, width, height = (float(part) for part in text.split(","))
    except ValueError:
        return None
    return left, top, width, height


def _named(request: Request) -> list[str]:
    """The fields that name pictures."""
    fields = type(request).model_fields
    return [name for name in fields if name + HASH in fields]
