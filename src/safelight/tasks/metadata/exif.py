"""EXIF and XMP: where JPEG and WebP keep what PNG keeps in text chunks.

The text for other tools stands in EXIF's UserComment, as piexif writes it: `UNICODE`, a zero, UTF-16 big-endian.
The lossless record stands in an XMP packet, as one attribute. Never in a JPEG comment: readers take one for Fooocus.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from xml.sax.saxutils import escape, unescape

from safelight.tasks.metadata.names import GRAPH, RECORD_CHUNK, SOFTWARE, TEXT_CHUNK, WORKFLOW

EXIF_HEAD = b"Exif\0\0"
XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_EXIF_IFD, _USER_COMMENT, _SOFTWARE = 0x8769, 0x9286, 0x0131
_UNICODE = b"UNICODE\0"
_NAMESPACE = "urn:safelight:metadata:1"
_BYTE, _ASCII, _LONG, _UNDEFINED = 1, 2, 4, 7
_MAX_ENTRIES = 512
_COMFY = re.compile(r"\s*(prompt|workflow)\s*:\s*(?=\{)", re.IGNORECASE)


class UnreadableError(Exception):
    """The words say what is wrong with the block."""


# -- writing


def write(text: str) -> bytes:
    """An EXIF block whose UserComment says the text.

    Two directories of one entry each. Pillow's own writer makes the comment one of BYTEs, over which piexif, and with
    it A1111, stumbles: the standard has it UNDEFINED.
    """
    comment = _UNICODE + text.encode("utf-16-be")
    entry, head = struct.Struct(">HHHIII"), b"MM\0*" + struct.pack(">I", 8)
    inner = len(head) + entry.size
    first = entry.pack(1, _EXIF_IFD, _LONG, 1, inner, 0)
    second = entry.pack(1, _USER_COMMENT, _UNDEFINED, len(comment), inner + entry.size, 0)
    return EXIF_HEAD + head + first + second + comment


def write_packet(record: str) -> bytes:
    """An XMP packet with our record (ASCII) as an attribute."""
    attribute = escape(record, {"'": "&apos;"})
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f"<rdf:Description rdf:about='' xmlns:safelight='{_NAMESPACE}' safelight:record='{attribute}'/>"
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


# -- reading


def read_packet(packet: bytes) -> Mapping[str, str]:
    """Our record, as an attribute or as the element that another program made of it; no XML parser is needed."""
    text = packet.decode("utf-8", "replace")
    if _NAMESPACE not in text:
        return {}
    for start, end in (('safelight:record="', '"'), ("safelight:record='", "'"), ("<safelight:record>", "<")):
        begin = text.find(start)
        if begin >= 0:
            inner, closed, _ = text[begin + len(start) :].partition(end)
            if closed:
                return {RECORD_CHUNK: unescape(inner, {"&quot;": '"', "&apos;": "'"})}
    return {}


def read(block: bytes) -> Mapping[str, str]:
    """The texts of an EXIF block, by the names of PNG's chunks.

    Raises:
        UnreadableError: the block is not one, or points beyond its end.
    """
    tiff = block.removeprefix(EXIF_HEAD)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        raise UnreadableError("does not begin as EXIF does")
    found: dict[str, str] = {}
    for tag, kind, value in _entries(tiff, struct.unpack_from(f"{order}I", tiff, 4)[0], order):
        if tag == _EXIF_IFD and len(value) == 4:
            inner = _entries(tiff, struct.unpack(f"{order}I", value)[0], order)
            comment = next((value for tag, _, value in inner if tag == _USER_COMMENT), None)
            if comment is not None:
                found[TEXT_CHUNK] = user_comment(comment)
        elif kind == _ASCII:
            text = _plain(value)
            comfy = _COMFY.match(text)
            if comfy is not None:
                found[GRAPH if comfy[1].lower() == GRAPH else WORKFLOW] = text[comfy.end() :]
            elif tag == _SOFTWARE:
                found[SOFTWARE] = text
    return found


def user_comment(value: bytes) -> str:
    """EXIF 2.3, section 4.6.5: eight bytes that name the character code, then the text.

    UNICODE is big-endian in pictures by AUTOMATIC1111, little-endian in others: Latin letters tell which.
    """
    code, text = value[:8], value[8:]
    if code == _UNICODE:
        if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return text.decode("utf-16", "replace").rstrip("\0")
        little = text[1::2].count(0) > text[::2].count(0)
        return text.decode("utf-16-le" if little else "utf-16-be", "replace").rstrip("\0")
    return _plain(text if code in (b"ASCII\0\0\0", bytes(8)) else value)


def _plain(value: bytes) -> str:
    """ASCII as the standard wants it; UTF-8 as many write it."""
    try:
        return value.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        return value.rstrip(b"\0").decode("latin-1")


def _entries(tiff: bytes, at: int, order: str) -> Iterator[tuple[int, int, bytes]]:
    """(tag, kind, value) of the texts and pointers in a directory of the TIFF format.

    A value may be anywhere in the block, and many may be the same place: what they take together is bounded by it.
    """
    try:
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        room = 2 * len(tiff)
        for k in range(min(count, _MAX_ENTRIES)):
            tag, kind, length, place = struct.unpack_from(f"{order}HHII", tiff, at + 2 + 12 * k)
            inline = tiff[at + 2 + 12 * k + 8 : at + 2 + 12 * k + 12]
            if tag == _EXIF_IFD:
                yield tag, kind, inline
            if kind not in (_BYTE, _ASCII, _UNDEFINED):
                continue
            value = inline[:length] if length <= 4 else tiff[place : place + length]
            room -= len(value)
            if len(value) < length or room < 0:
                raise UnreadableError("points beyond its end")
            yield tag, kind, value
    except struct.error as error:
        raise UnreadableError("is cut off") from error
