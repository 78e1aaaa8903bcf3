"""What inpainting draws on: the part of a picture that is drawn anew, and the way back into the whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from safelight.errors import RequestError

Region = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, right and bottom outside."""


@dataclass(frozen=True)
class Canvas:
    """A picture, what of it is new, and the region of it that is drawn."""

    whole: Image.Image
    """RGB; where it was extended, its edges go on."""
    mask: Image.Image
    """Of the same size, one channel: 255 where new, 0 where old."""
    region: Region
    size: tuple[int, int]
    """Width and height in which the region is drawn."""

    def picture(self) -> Image.Image:
        """The region in the size in which it is drawn."""
        return self.whole.crop(self.region).resize(self.size, Image.Resampling.LANCZOS)

    def hole(self) -> Image.Image:
        """Its mask, hard, in the same size."""
        part = self.mask.crop(self.region).resize(self.size, Image.Resampling.BILINEAR)
        return part.point(lambda value: 255 if value > 0 else 0)

    def paste(self, drawn: Image.Image, blur: int) -> Image.Image:
        """The whole picture with the region drawn anew; the old stays as it was, but for `blur` pixels at the edge."""
        left, top, right, bottom = self.region
        new = self.whole.copy()
        new.paste(drawn.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
        soft = self.mask
        if blur > 0:  # towards the outside only: what was asked to be new is all new
            soft = ImageChops.lighter(soft, self.mask.filter(ImageFilter.GaussianBlur(blur / 2)))
        return Image.composite(new, self.whole, soft)


def extended_size(width: int, height: int, extend: Region | None) -> tuple[int, int]:
    """Width and height of a picture with more drawn around it.

    Raises:
        RequestError: less than nothing is to be drawn.
    """
    if extend is None:
        return width, height
    if min(extend) < 0:
        raise RequestError(f"extend cannot be {extend}: give four numbers of pixels, 0 where nothing is added")
    left, top, right, bottom = extend
    return width + left + right, height + top + bottom


def canvas(
    image: Image.Image,
    mask: Image.Image | None,
    extend: Region | None,
    padding: int | None,
    size: tuple[int, int],
) -> Canvas:
    """Lay out what is to be drawn.

    Args:
        image: RGB, W x H.
        mask: one channel, of any size: light is new. None: nothing of the picture itself.
        extend: pixels beyond each edge, all new.
        padding: draw only the new part, with so many pixels around it; None: draw all.
        size: width and height to draw in.

    Raises:
        RequestError: nothing is new.
    """
    hole = Image.new("L", image.size, 0) if mask is None else mask.resize(image.size, Image.Resampling.BILINEAR)
    hole = hole.point(lambda value: 255 if value >= 128 else 0)
    if extend is not None:
        extended_size(*image.size, extend)
        left, top, right, bottom = extend
        sides = ((top, bottom), (left, right))
        image = Image.fromarray(np.pad(np.asarray(image), (*sides, (0, 0)), mode="edge"))
        hole = Image.fromarray(np.pad(np.asarray(hole), sides, constant_values=255))
    box = hole.getbbox()
    if box is None:
        raise RequestError("nothing is to be drawn anew: the mask has no white, and nothing is added by --extend")
    region = (0, 0, *image.size)
    if padding is not None:
        region = _around(box, padding, image.size, size[0] / size[1])
    return Canvas(image, hole, region, size)


def _around(box: Region, padding: int, within: tuple[int, int], ratio: float) -> Region:
    """The box with padding, grown to the ratio of width to height where the picture has room for it."""
    left, top, right, bottom = box[0] - padding, box[1] - padding, box[2] + padding, box[3] + padding
    width, height = right - left, bottom - top
    wanted = (max(width, round(height * ratio)), max(height, round(width / ratio)))
    spans = []
    for first, length, grown, most in zip((left, top), (width, height), wanted, within, strict=True):
        span = min(grown, most)
        start = min(max(first - (span - length) // 2, 0), most - span)
        spans.append((start, start + span))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom
