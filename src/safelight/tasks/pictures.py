"""Pixels <-> pictures <-> files. A file is whole or it is not there.

Shapes: B batch, H W size in pixels; pixels are float32 in [-1, 1], as the autoencoder has them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from safelight.checkpoints.writing import atomic
from safelight.errors import OutputError, RequestError
from safelight.tasks.metadata import RECORD_CHUNK, TEXT_CHUNK
from safelight.tasks.metadata.formats import Format, blocks, format_of, require_room

_DATA_URI = "data:"
_JPEG_QUALITY = 95


def to_images(pixels: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] -> B pictures of 8 bits; what lies outside is clamped.

    Raises:
        RequestError: a pixel is not a finite number. It would be saved as black and nobody would know why.
    """
    require_finite(pixels, "decoding")
    scaled = (pixels.float() / 2 + 0.5).clamp(0, 1) * 255
    bytes_ = scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3)
    return [Image.fromarray(picture) for picture in bytes_]


def to_pixels(image: Image.Image) -> Tensor:
    """A picture -> (1, 3, H, W) float32 in [-1, 1]."""
    array = np.asarray(image.convert("RGB"), dtype=np.float32)  # (H, W, 3)
    return torch.from_numpy(array / 127.5 - 1.0).permute(2, 0, 1)[None].contiguous()


def require_finite(x: Tensor, where: str) -> None:
    """Stop before numbers that are none become a black picture.

    Raises:
        RequestError: x has an infinite or undefined value.
    """
    if not bool(torch.isfinite(x).all()):
        raise RequestError(
            f"the picture came out of {where} with values that are not finite numbers: "
            "use --dtype float32, or less guidance; if that does not help, the weights are damaged"
        )


def read_picture_bytes(source: str) -> bytes:
    """The bytes behind a path or a base64 data: URI.

    Raises:
        RequestError: it cannot be read.
    """
    if source.startswith(_DATA_URI):
        try:
            return base64.b64decode(source.partition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError("image is a data: URI that is not valid base64: encode the file's bytes anew") from error
    try:
        return Path(source).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RequestError(f"image {source!r} cannot be read ({reason}): check the path") from error


def decode_picture(data: bytes, name: str) -> Image.Image:
    """Bytes of any format that Pillow reads -> an upright RGB picture; transparency falls on white.

    Raises:
        RequestError: not a picture, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return upright.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        shown = "of the data: URI" if name.startswith(_DATA_URI) else repr(name)
        raise RequestError(f"image {shown} is not a whole picture: give a PNG, JPEG or WebP file") from error


def decode_grey(data: bytes, name: str) -> Image.Image:
    """Bytes of a picture -> one channel: 8 bits as they are, more bits (depths) as 32-bit numbers.

    Colours become their brightness; a picture with a palette gives its indices, as maps of classes are often kept.

    Raises:
        RequestError: not a picture, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode == "P":
                return Image.fromarray(np.asarray(image))
            return image.convert("F" if image.mode in ("I", "I;16", "I;16B", "F") else "L")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        shown = "of the data: URI" if name.startswith(_DATA_URI) else repr(name)
        raise RequestError(f"image {shown} is not a whole picture: give a PNG, JPEG or WebP file") from error


def to_data_uri(image: Image.Image) -> str:
    """A picture in memory as text, so that a request can carry it."""
    return f"data:image/png;base64,{base64.b64encode(_png(image.convert('RGB'))).decode()}"


def sha256(data: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _png(image: Image.Image) -> bytes:
    """PNG bytes with the texts of `image.info`; the same picture gives the same bytes."""
    return encode(image, "PNG")


def encode(image: Image.Image, format_: Format, quality: int | None = None) -> bytes:
    """The bytes of a file, with the texts of `image.info` and nothing else of it.

    PNG has them in text chunks; JPEG and WebP in EXIF and XMP. The same picture gives the same bytes.

    Args:
        image: as `Model.draw` gives it.
        format_: see `format_of`.
        quality: 1 to 100, of JPEG (default 95, colours at full size) and WebP (default: lossless).

    Raises:
        OutputError: see `require_room`.
        RequestError: the quality is out of range, or of a PNG.
    """
    if quality is not None and (format_ == "PNG" or not 1 <= quality <= 100):
        raise RequestError(f"quality cannot be {quality}: give 1 to 100, and a .jpg or .webp")
    said = {name: image.info[name] for name in (TEXT_CHUNK, RECORD_CHUNK) if name in image.info}
    require_room(format_, image.size, said)
    bare = image.copy()
    bare.info = {}  # else Pillow writes what another file said: its colour profile, its comment
    buffer = io.BytesIO()
    if format_ == "PNG":
        texts = PngImagePlugin.PngInfo()
        for name, text in said.items():
            texts.add_text(name, text)
        bare.save(buffer, format="PNG", pnginfo=texts)
        return buffer.getvalue()
    block, packet = blocks(said)
    if format_ == "JPEG":
        level = _JPEG_QUALITY if quality is None else quality
        bare.save(buffer, format="JPEG", quality=level, subsampling="4:4:4", exif=block, xmp=packet)
    elif quality is None:
        bare.save(buffer, format="WEBP", lossless=True, exif=block, xmp=packet)
    else:
        bare.save(buffer, format="WEBP", quality=quality, exif=block, xmp=packet)
    return buffer.getvalue()


def save_picture(image: Image.Image, path: str | Path, *, overwrite: bool = True, quality: int | None = None) -> None:
    """Write a PNG, JPEG or WebP with its metadata, atomically: whole under its name, or not at all.

    Args:
        image: as `Model.txt2img` gives it; its `info` texts are written.
        path: ends in .png, .jpg, .jpeg or .webp.
        overwrite: whether a file of that name may be replaced.
        quality: 1 to 100, of JPEG (default 95) and WebP (default: lossless).

    Raises:
        RequestError: the path ends in something else, or the quality is out of range.
        OutputError: it could not be written (a full disk, no such folder), exists and may not be replaced, or has no
            room for the metadata (`require_room`).
            Nothing is left then, and what was there before is as it was.
    """
    path = Path(path)
    data = encode(image, format_of(path), quality)
    reserved = False
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(data)
            if not overwrite:
                path.open("xb").close()  # takes the name, or fails if it is taken
                reserved = True
    except OutputError:
        if reserved:
            path.unlink(missing_ok=True)
        raise


def save_numbered(images: Sequence[Image.Image], path: Path, *, quality: int | None = None) -> list[Path]:
    """Save one picture as `path`, or n as NAME-0.png ... NAME-(n-1).png beside it; returns where.

    Raises:
        OutputError: as `save_picture`.
    """
    paths = numbered(path, len(images))
    for image, where in zip(images, paths, strict=True):
        save_picture(image, where, quality=quality)
    return paths


def numbered(path: Path, count: int) -> list[Path]:
    """The names of `count` pictures asked for under one name."""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{k}") for k in range(count)]


def save_under_next_number(images: Sequence[Image.Image], folder: Path, stem: str) -> list[Path]:
    """Save pictures as STEM-0001.png and so on, after the highest number there is; nothing is ever replaced.

    Raises:
        OutputError: as `save_picture`.
    """
    taken = [re.fullmatch(rf"{re.escape(stem)}-(\d+)\.png", path.name) for path in folder.glob(f"{stem}-*.png")]
    number = max((int(match[1]) for match in taken if match is not None), default=0)
    paths = []
    for image in images:
        while True:
            number += 1
            path = folder / f"{stem}-{number:04d}.png"
            if not path.exists():  # if another process takes the name after this, save_picture refuses
                break
        save_picture(image, path, overwrite=False)
        paths.append(path)
    return paths
