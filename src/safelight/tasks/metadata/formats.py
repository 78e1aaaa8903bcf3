"""In which formats pictures are written, and what of a request each can hold. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from safelight.errors import OutputError, RequestError
from safelight.tasks.metadata import exif
from safelight.tasks.metadata.names import RECORD_CHUNK, TEXT_CHUNK

Format = Literal["PNG", "JPEG", "WEBP"]
FORMATS: Mapping[str, Format] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""By the end of the name."""
_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
"""Pixels; libjpeg's and WebP's own limits."""
_MAX_SEGMENT = 65_533
"""Bytes of data in a segment of JPEG."""


def format_of(path: str | Path) -> Format:
    """Which format a name asks for.

    Raises:
        RequestError: none that holds metadata.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise RequestError(f"--output {str(path)!r} must end in {', '.join(FORMATS)}: these hold the request")
    return FORMATS[suffix]


def require_room(format_: Format, size: tuple[int, int], texts: Mapping[str, object]) -> None:
    """Say so, before the drawing, if a format could not hold a picture with what it is to say of itself.

    Args:
        format_: see `format_of`.
        size: width and height in pixels.
        texts: by the names of PNG's text chunks, as in `Image.info`.

    Raises:
        OutputError: it could not. PNG holds all.
    """
    if format_ == "PNG":
        return
    if max(size) > _LONGEST_SIDE[format_]:
        raise OutputError(
            f"a picture of {size[0]}x{size[1]} is too large for {format_}, whose sides are at most "
            f"{_LONGEST_SIDE[format_]}: name a .png"
        )
    block, packet = blocks(texts)
    if format_ == "JPEG" and (len(block) > _MAX_SEGMENT or len(exif.XMP_HEAD) + len(packet) > _MAX_SEGMENT):
        raise OutputError("the request is too long for a JPEG, which holds 64 KiB of it: name a .png or a .webp")


def blocks(texts: Mapping[str, object]) -> tuple[bytes, bytes]:
    """EXIF and XMP; empty where there is nothing to say."""
    text, record = texts.get(TEXT_CHUNK), texts.get(RECORD_CHUNK)
    return (
        exif.write(text) if isinstance(text, str) else b"",
        exif.write_packet(record) if isinstance(record, str) else b"",
    )
