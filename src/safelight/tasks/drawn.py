"""How large a picture is drawn that begins with another, and what inpainting draws on."""

from __future__ import annotations

from typing import TypeVar

from safelight.errors import RequestError
from safelight.presets import Preset
from safelight.tasks import inputs
from safelight.tasks.canvas import Canvas, canvas, extended_size
from safelight.tasks.request import Request
from safelight.tasks.requests import FromPicture, Inpaint, Upscale, Variations
from safelight.tasks.resolve import needed

R = TypeVar("R", bound=Request)


def sized(request: R, preset: Preset) -> R:
    """The request with the width and height that follow from the picture it begins with.

    Raises:
        RequestError: the picture cannot be read.
    """
    if not isinstance(request, FromPicture) or isinstance(request, Variations):
        return request
    if isinstance(request, Inpaint) and request.padding is not None:
        return request  # a part is drawn at the model's own size
    if request.width is not None and request.height is not None:
        return request
    width, height = inputs.picture(request, "image").size
    if isinstance(request, Inpaint):
        width, height = extended_size(width, height, request.extend)
    if isinstance(request, Upscale):  # the small picture is stacked under the latent
        return request.changed(width=width * preset.factor, height=height * preset.factor)
    return request.changed(
        width=_on_grid(width, preset.factor) if request.width is None else request.width,
        height=_on_grid(height, preset.factor) if request.height is None else request.height,
    )


def drawn_on(request: Inpaint) -> Canvas:
    """What a resolved request draws on.

    Raises:
        RequestError: nothing is to be drawn anew, or a picture cannot be read.
    """
    if request.mask is None and request.extend is None:
        raise RequestError("what is to be drawn anew? give --mask, a picture that is white there, or --extend")
    mask = None if request.mask is None else inputs.grey(request, "mask").convert("L")
    size = (needed(request.width), needed(request.height))
    return canvas(inputs.picture(request, "image"), mask, request.extend, request.padding, size)


def _on_grid(size: int, factor: int) -> int:
    """The largest multiple of the factor that is not above the size, but at least one."""
    return max(size // factor, 1) * factor
