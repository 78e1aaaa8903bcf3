"""The texts that stand in a picture file beside the pixels, which are never decoded here.

PNG: chunks tEXt, zTXt, iTXt, before and behind the pixels (PNG specification, third edition, section 11.3.3). JPEG:
segments APP1. WebP: chunks EXIF and XMP. Time and memory are bounded, whatever the file says of itself.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from safelight.errors import RequestError
from safelight.tasks.metadata import exif
from safelight.tasks.metadata.bounded import MAX_TEXT
from safelight.tasks.metadata.names import READ, TEXT_CHUNK

_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 2**18
_MAX_SIDECAR = 2**20


class DamagedError(Exception):
    """The file breaks the rules of its format; the words say where."""


@dataclass
class Embedded:
    """What a picture says of itself."""

    kind: str
    """PNG, JPEG, WebP, or text."""
    texts: dict[str, str] = field(default_factory=dict)
    """By the names of PNG's text chunks, wherever they stood; of two with one name the last, as Pillow has it."""
    size: tuple[int, int] | None = None
    """Width and height in pixels, of a PNG."""


def embedded(picture: str | Path | bytes) -> Embedded:
    """Look for metadata in a PNG, JPEG or WebP file, or in the .txt beside one.

    Args:
        picture: its path, or all its bytes.

    Raises:
        RequestError: no such file, another format, or one that is cut off or damaged.
    """
    name = named(picture)
    try:
        with io.BytesIO(picture) if isinstance(picture, bytes) else Path(picture).open("rb") as file:
            return _scan(file, isinstance(picture, str | Path) and Path(picture).suffix.lower() == ".txt")
    except FileNotFoundError as error:
        raise RequestError(f"there is no picture {name}: check the path") from error
    except (OSError, ValueError, DamagedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror is not None else str(error)
        raise RequestError(f"{name} cannot be read as a picture ({reason}): give a PNG, JPEG or WebP file") from error


def named(picture: str | Path | bytes) -> str:
    """What to call a picture in a message."""
    return "the picture" if isinstance(picture, bytes) else repr(str(picture))


def _scan(file: BinaryIO, is_text: bool) -> Embedded:
    start = file.read(12)
    if start.startswith(_PNG):
        file.seek(len(_PNG))
        return _png(file)
    if start.startswith(b"\xff\xd8"):
        file.seek(2)
        return _from_blocks("JPEG", _jpeg_blocks(file))
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return _from_blocks("WebP", _webp_blocks(file))
    if not is_text:
        raise DamagedError("not a PNG, JPEG or WebP file")
    file.seek(0)
    data = file.read(_MAX_SIDECAR + 1)
    if len(data) > _MAX_SIDECAR:
        raise DamagedError("more text than metadata has")
    return Embedded("text", {TEXT_CHUNK: _decode(data, "utf-8-sig", "the text")})


# -- PNG


def _png(file: BinaryIO) -> Embedded:
    found, room = Embedded("PNG"), MAX_TEXT
    for kind, length in _png_chunks(file):
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"IHDR", b"eXIf") and length <= room:
            data = _whole(file, length)
            if zlib.crc32(kind + data) != int.from_bytes(_whole(file, 4), "big"):
                raise DamagedError(f"the checksum of its chunk {kind.decode()} is wrong")
            if kind == b"IHDR" and length == 13:
                found.size = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
            elif kind == b"eXIf":
                found.texts = {**_exif(data), **found.texts}
            else:
                found.texts |= _png_text(kind, data, room)
            room = MAX_TEXT - sum(len(text) for text in found.texts.values())
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            raise DamagedError(f"more than {MAX_TEXT} bytes of text")
        else:
            file.seek(length + 4, io.SEEK_CUR)
    return found


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(kind, bytes of data) of each chunk; the reader takes, or leaps over, the data and four bytes of checksum."""
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if head == b"":  # without an end, but what it had to say may have been before
            return
        if len(head) < 8:
            raise DamagedError("it is cut off")
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if length >= 2**31 or not kind.isalpha():
            raise DamagedError("what should be a chunk is none")
        if kind == b"IEND":
            return
        yield kind, length
    raise DamagedError(f"more than {_MAX_CHUNKS} chunks")


def _png_text(kind: bytes, data: bytes, room: int) -> Mapping[str, str]:
    """{keyword: text}; empty for keywords that say nothing to us."""
    keyword, _, rest = data.partition(b"\0")
    name = keyword.decode("latin-1")
    if name not in READ:
        return {}
    if kind == b"tEXt":
        return {name: rest.decode("latin-1")}
    if kind == b"zTXt":
        return {name: _inflate(rest[1:], room).decode("latin-1")}
    compressed, rest = rest[:1] == b"\1", rest[2:]
    text = rest.split(b"\0", 2)[-1]  # behind the language and the translated keyword
    return {name: _decode(_inflate(text, room) if compressed else text, "utf-8", name)}


def _inflate(data: bytes, room: int) -> bytes:
    worker = zlib.decompressobj()
    try:
        out = worker.decompress(data, max(room, 1))  # 0 would be no bound
    except zlib.error as error:
        raise DamagedError("compressed text that does not unpack") from error
    if not worker.eof:
        raise DamagedError("compressed text that is cut off, or unpacks to more than metadata has")
    return out


# -- JPEG and WebP


def _from_blocks(kind: str, blocks: Iterator[tuple[str, bytes]]) -> Embedded:
    found = Embedded(kind)
    for name, data in blocks:
        found.texts |= _exif(data) if name == "exif" else exif.read_packet(data)
    return found


def _exif(data: bytes) -> Mapping[str, str]:
    try:
        return exif.read(data)
    except exif.UnreadableError as error:
        raise DamagedError(f"its EXIF {error}") from error


def _jpeg_blocks(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """EXIF and XMP, up to where the pixels begin."""
    for _ in range(_MAX_CHUNKS):
        marker = _whole(file, 2)
        while marker == b"\xff\xff":  # fill bytes
            marker = b"\xff" + _whole(file, 1)
        if marker[0] != 0xFF:
            raise DamagedError("what should be a segment is none")
        if marker[1] in (0xDA, 0xD9):
            return
        length = int.from_bytes(_whole(file, 2), "big") - 2
        if length < 0:
            raise DamagedError("a segment shorter than its head")
        data = _whole(file, length)
        if marker[1] == 0xE1 and data.startswith(exif.EXIF_HEAD):
            yield "exif", data
        elif marker[1] == 0xE1 and data.startswith(exif.XMP_HEAD):
            yield "xmp", data[len(exif.XMP_HEAD) :]
    raise DamagedError(f"more than {_MAX_CHUNKS} segments")


def _webp_blocks(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if head == b"":
            return
        if len(head) < 8:
            raise DamagedError("it is cut off")
        length = int.from_bytes(head[4:], "little")
        padded = length + length % 2
        if head[:4] not in (b"EXIF", b"XMP "):
            file.seek(padded, io.SEEK_CUR)
            continue
        if length > MAX_TEXT:
            raise DamagedError(f"more than {MAX_TEXT} bytes of text")
        yield head[:4].decode().strip().lower(), _whole(file, length)
        file.seek(padded - length, io.SEEK_CUR)
    raise DamagedError(f"more than {_MAX_CHUNKS} chunks")


def _whole(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise DamagedError("it is cut off")
    return data


def _decode(data: bytes, encoding: str, name: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DamagedError(f"{name} is not UTF-8") from error
