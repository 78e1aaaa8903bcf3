"""Metadata hidden in the lowest bit of the alpha channel, as NovelAI has it: it survives sites that drop the chunks.

Column by column: fifteen bytes of a signature, four of a length in bits, then gzip or plain UTF-8.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path

from PIL import Image

from safelight.tasks.metadata.bounded import mapping, parse, text
from safelight.tasks.metadata.containers import Embedded
from safelight.tasks.metadata.names import READ, TEXT_CHUNK

_PACKED, _PLAIN = b"stealth_pngcomp", b"stealth_pnginfo"
_HEAD = len(_PACKED) + 4
_MAX_PIXELS = 2**26
_MAX_LENGTH = 2**22
_GZIP = 31
"""The window bits with which zlib reads gzip."""


def hidden(picture: str | Path | bytes) -> Embedded | None:
    """What is hidden in a PNG or WebP with an alpha channel; None if nothing is. This decodes the pixels.

    Raises:
        RequestError: it is hidden JSON, and damaged.
    """
    try:
        with Image.open(
            io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=("PNG", "WEBP")
        ) as image:
            if image.mode != "RGBA" or image.width * image.height > _MAX_PIXELS:
                return None
            alpha, size = image.getchannel("A"), image.size
        data = _hidden_bytes(alpha)
    except (OSError, ValueError, SyntaxError, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    if data is None:
        return None
    said = data.decode("utf-8", "replace")
    if not said.lstrip().startswith("{"):
        return Embedded("alpha", {TEXT_CHUNK: said})
    entries = mapping(parse(said, "what is hidden in the alpha channel"))
    texts = {name: words for name, value in entries.items() if name in READ and (words := text(value)) is not None}
    return Embedded("alpha", texts, size)


def _hidden_bytes(alpha: Image.Image) -> bytes | None:
    import numpy as np  # noqa: PLC0415  (only for the few pictures that may have it)

    flat = np.asarray(alpha).T.reshape(-1)  # (W * H,)

    def taken(start: int, length: int) -> bytes:
        return np.packbits(flat[8 * start : 8 * (start + length)] & 1).tobytes()

    head = taken(0, _HEAD)
    signature, length = head[: len(_PACKED)], int.from_bytes(head[len(_PACKED) :], "big") // 8
    if signature not in (_PACKED, _PLAIN) or length > len(flat) // 8 - _HEAD:
        return None
    data = taken(_HEAD, length)
    if signature == _PLAIN:
        return data
    worker = zlib.decompressobj(_GZIP)
    data = worker.decompress(data, _MAX_LENGTH)
    return data if worker.eof else None
