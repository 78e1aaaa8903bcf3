"""Damaged and malicious metadata: one line, in bounded time and memory, never a traceback."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from metadata_cases import FORMATS, MODEL, png, request, with_exif
from safelight.errors import RequestError
from safelight.tasks import pictures
from safelight.tasks.metadata import RECORD_CHUNK, TEXT_CHUNK, Record, infotext, recover
from safelight.tasks.metadata.formats import format_of

CHUNKS = ("parameters", "safelight", "prompt", "invokeai_metadata", "sd-metadata", "Dream", "Comment")


def raw_png(*chunks: tuple[bytes, bytes], crc: int = 0) -> bytes:
    """A PNG of one black pixel with chunks of any content."""
    pixels = zlib.compress(b"\0\0\0\0")
    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), *chunks, (b"IDAT", pixels), (b"IEND", b"")):
        check = zlib.crc32(kind + data) ^ (crc if (kind, data) in chunks else 0)
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)
    return out


def refused(data: bytes, words: str = "") -> None:
    with pytest.raises(RequestError, match=r"^[^\n]*$") as caught:
        recover(data)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[" + "{}," * 600_000 + "{}]", "too large"),
        ("[" + "1," * 600_000 + "1]", "too large"),
        ('{"seed": ' + "9" * 5000 + "}", "cannot be read"),
        ("nonsense", "cannot be read"),
        ('{"a": 1, "a": 2}', "says 'a' twice"),
        ('"\\ud800"', ""),
        ("null", ""),
    ],
)
@pytest.mark.parametrize("chunk", ["safelight", "prompt", "invokeai_metadata", "sd-metadata", "Comment"])
def test_json_that_is_made_to_harm(chunk: str, text: str, words: str, tmp_path: Path) -> None:
    texts = {chunk: text, "Software": "NovelAI"} if chunk == "Comment" else {chunk: text}
    try:
        recover(png(tmp_path / "a.png", texts))
    except RequestError as error:
        assert words in str(error)
        assert "\n" not in str(error)
    else:
        assert text in ("null", '"\\ud800"')


def test_texts_that_unpack_to_too_much_or_are_cut_off() -> None:
    bomb = zlib.compress(bytes(80 * 2**20))
    refused(raw_png((b"zTXt", b"parameters\0\0" + bomb)), "unpacks to more than metadata has")
    refused(raw_png((b"iTXt", b"parameters\0\1\0\0\0" + bomb)), "unpacks to more than metadata has")
    refused(raw_png((b"zTXt", b"parameters\0\0" + bomb[:50])), "cut off")
    refused(raw_png((b"zTXt", b"parameters\0\0nonsense")), "does not unpack")
    refused(raw_png((b"iTXt", b"parameters\0\0\0\0\0\xff\xfe")), "parameters is not UTF-8")
    refused(raw_png((b"tEXt", b"parameters\0x"), crc=1), "checksum")
    refused(raw_png((b"tEXt", b"parameters")), "no metadata")
    assert (
        recover(  # what says nothing to us may be as it likes
            raw_png(
                (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff"), (b"tEXt", b"parameters\0x\nSteps: 1, Seed: 1, Size: 8x8")
            )
        ).fields["steps"]
        == 1
    )


def test_files_that_lie_of_their_length() -> None:
    good = raw_png((b"tEXt", b"parameters\0x\nSteps: 1, Seed: 1, Size: 8x8"))
    at = good.index(b"tEXt") - 4
    for length in (2**31, 2**31 - 1, 2**32 - 1, 70 * 2**20):
        refused(good[:at] + struct.pack(">I", length) + good[at + 4 :])
    refused(b"\xff\xd8\xff\xe1\x00\x00", "shorter than its head")
    refused(b"\xff\xd8" + b"\xff\xfe\x00\x02" * 300_000, "more than")
    refused(b"\xff\xd8" + b"\xff" * 100)
    refused(b"RIFF\0\0\0\0WEBPEXIF\xff\xff\xff\xff", "more than")
    refused(b"RIFF\0\0\0\0WEBPEXIF\x10\0\0\0x", "cut off")
    refused(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0abCD\0\0\0\0" * 300_000, "more than")


def exif_block(entries: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    """A WebP with one directory of (tag, kind, count, place)."""
    block = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + tail
    chunk = b"EXIF" + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2)
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def test_exif_that_points_anywhere() -> None:
    refused(exif_block([(0x0110, 2, 1000, 8)]), "points beyond its end")
    refused(exif_block([(0x8769, 4, 1, 2**31)]), "cut off")
    refused(exif_block([(0x8769, 4, 1, 8)]))  # a ring
    refused(exif_block([(tag, 2, 100_000, 8) for tag in range(400)], bytes(200_000)), "points beyond its end")
    refused(exif_block([])[:-3])
    refused(b"RIFF\0\0\0\0WEBPEXIF\x04\0\0\0abcd", "does not begin as EXIF")


def test_exif_that_is_of_a_camera_is_not_taken_for_metadata(tmp_path: Path) -> None:
    path = with_exif(
        tmp_path / "a.jpg", {0x010F: "Prompt: a cat", 0x0110: "workflow", 0x0131: "NovelAI"}, b"ASCII\0\0\0hello"
    )
    with pytest.raises(RequestError, match="no metadata of"):
        recover(path)


def whole(end: str, seed: int) -> bytes:
    asked = request(seed)
    image = Image.new("RGB", (8, 8))
    image.info = {TEXT_CHUNK: infotext(asked, MODEL), RECORD_CHUNK: Record.of(asked, MODEL).to_json()}
    if seed % 2:
        del image.info[RECORD_CHUNK]
    return pictures.encode(image, format_of(f"a.{end}"))


@pytest.mark.parametrize("end", FORMATS)
def test_mutated_files_are_read_or_refused(end: str) -> None:
    chance = random.Random(5)
    for case in range(1500):
        data = bytearray(whole(end, case % 7))
        for _ in range(chance.randrange(1, 6)):
            kind = chance.randrange(3)
            at = chance.randrange(len(data))
            if kind == 0:
                data[at] = chance.randrange(256)
            elif kind == 1:
                del data[at : at + chance.randrange(1, 40)]
            else:
                data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 20)))
            data = data if data else bytearray(b"x")
        try:
            recover(bytes(data))
        except RequestError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_mutated_texts_are_read_or_refused(chunk: str, tmp_path: Path) -> None:
    """Values of every type in every place of metadata that was good."""
    chance = random.Random(6)
    good: dict[str, object] = {
        "safelight": Record.of(request(0), MODEL).model_dump(mode="json"),
        "prompt": {"3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 2, "sampler_name": "euler"}}},
        "invokeai_metadata": {"seed": 1, "steps": 3, "model": {"name": "x", "hash": "y"}, "positive_prompt": "a"},
        "sd-metadata": {"image": {"prompt": [{"prompt": "a"}], "seed": 1}, "model_hash": "x"},
        "Comment": {"prompt": "a", "seed": 1, "v4_prompt": {"caption": {"base_caption": "x", "char_captions": [1]}}},
    }
    values = (None, True, -1, 1e400, 2**70, "", "x\0y", "\ud800", [], [[]], {}, {"a": [1]}, [1, 2], ["3", 0], "\x1b[2J")

    def mutated(value: object) -> object:
        if chance.random() < 0.15:
            return chance.choice(values)
        if isinstance(value, dict):
            return {key: mutated(item) for key, item in value.items()}
        return [mutated(item) for item in value] if isinstance(value, list) else value

    for _ in range(300):
        if chunk in good:
            text = json.dumps(mutated(good[chunk]))
        else:
            text = "".join(
                chance.choice(['"', "-s", " ", "5", "Steps: ", ",", "\n", "Seed: ", ": ", "[", "{", "x"])
                for _ in range(60)
            )
        try:
            found = recover(png(tmp_path / "a.png", {chunk: text, "Software": "NovelAI"}))
        except RequestError as error:
            assert "\n" not in str(error)
        else:
            said = (
                "".join(found.notes) + str(dict(found.fields) if chunk != "safelight" else "") + found.command("a.png")
            )
            assert chunk == "safelight" or "\x1b" not in said
            said.encode()  # can be printed


MEMORY = """
import resource, sys
from safelight.tasks.metadata import recover
from safelight.errors import RequestError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    recover(sys.argv[1])
except RequestError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["pixels", "text", "values", "alpha"])
def test_memory_is_bounded(kind: str, tmp_path: Path) -> None:
    """A picture that unpacks to gigabytes, a text that does, JSON of many values: at most 200 MB."""
    if kind == "pixels":
        data = raw_png((b"tEXt", b"parameters\0x\nSteps: 1, Seed: 1, Size: 8x8"))
        huge = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
        data = (
            data[:8]
            + struct.pack(">I", 13)
            + b"IHDR"
            + huge
            + struct.pack(">I", zlib.crc32(b"IHDR" + huge))
            + data[33:]
        )
    elif kind == "text":
        data = raw_png((b"zTXt", b"safelight\0\0" + zlib.compress(bytes(2**27))))
    elif kind == "values":
        data = raw_png((b"zTXt", b"prompt\0\0" + zlib.compress(b"[" + b"[]," * 10_000_000 + b"1]")))
    else:
        head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 6, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))
            for k, d in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(2**20))), (b"IEND", b""))
        )
    (tmp_path / "a.png").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "a.png")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.splitlines()[-1]) <= 200, done.stdout
