"""Pictures with metadata as other tools write it, made by hand from the formats; and readers that are not ours."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from PIL import Image, PngImagePlugin

from safelight.diffusion.names import SAMPLER_NAMES, SPACING_NAMES
from safelight.tasks.metadata import ModelIdentity
from safelight.tasks.requests import ImageToImage, Prompted, TextToImage

MODEL = ModelIdentity(name="tiny", local=False, preset="tiny", sha256="ab12" * 16, dtype="float32")
FORMATS = ("png", "jpg", "webp")
_PIECES = (
    *("a red apple", " ", ", ", ": ", "\n", '"', "'", "\\", "\\n", "<lora:x:0.5>", "(word:1.2)", "[a:b:0.5]", "BREAK"),
    *("Negative prompt:", "\nNegative prompt: not this", "Steps: 3", "\nSteps: 3, Sampler: x, CFG scale: 1, Seed: 2"),
    *(
        "é",
        "漢字",
        "\N{RED APPLE}",
        "\U0001d518",
        "\u2028",
        "\x85",
        "\t",
        "&quot;",
        "<b>",
        "]]>",
        "{",
        "}",
        "--",
        "$(x)",
    ),
    *("\ufeff", "\u202e", "\r\n", "%s", "safelight:record='"),
)


def png(path: Path, texts: dict[str, str]) -> Path:
    """A PNG with text chunks, as every tool writes it."""
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def with_exif(path: Path, tags: dict[int, str], comment: bytes | None = None) -> Path:
    """A JPEG or WebP with EXIF."""
    exif = Image.Exif()
    for tag, text in tags.items():
        exif[tag] = text
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path


def words(chance: random.Random, most: int = 12) -> str:
    """A prompt that somebody might write to break a reader."""
    return "".join(chance.choice(_PIECES) for _ in range(chance.randrange(most)))


def request(seed: int) -> Prompted:
    """A resolved request, any that there can be."""
    chance = random.Random(seed)
    kind = chance.choice([TextToImage, ImageToImage])
    more: dict[str, object] = {} if kind is TextToImage else {"image": "photo.png", "strength": chance.random() or 1.0}
    return kind(
        prompt=words(chance),
        negative_prompt=chance.choice(["", words(chance)]),
        seed=chance.choice([0, 1, 2**32, 2**64 - 1, chance.randrange(2**64)]),
        steps=chance.randrange(1, 1001),
        sampler=chance.choice(SAMPLER_NAMES),
        spacing=chance.choice(SPACING_NAMES),
        eta=chance.choice([None, None, 0.0, 0.5]),
        s_churn=chance.choice([None, 1e-05, 12.5]),
        s_noise=chance.choice([None, 1.003]),
        guidance=chance.choice([0.0, 1.0, 7.5, chance.random() * 100]),
        width=chance.randrange(1, 8192),
        height=chance.randrange(1, 8192),
        **more,
    )


def a1111_reading(text: str) -> tuple[str, str, dict[str, str]]:
    """How the web UI reads: the last line holds the keys; before it stand prompt and negative, each line stripped."""
    *lines, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    assert len(pairs) >= 3, "fewer would be taken for prompt"
    prompt, negative, at = [], [], "prompt"
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("Negative prompt:"):
            at, stripped = "negative", stripped[16:].strip()
        (prompt if at == "prompt" else negative).append(stripped)
    values = {key: json.loads(value) if value[:1] == '"' else value for key, value in pairs}
    return "\n".join(prompt), "\n".join(negative), values


def prompt_reader_reading(text: str) -> dict[str, str]:
    """How sd-prompt-reader reads the settings: from the first line that begins with Steps, each key's first value."""
    start = text.find("\nSteps:")
    settings = text[start + 1 :] if start >= 0 else text
    found: dict[str, str] = {}
    for key, value in re.findall(r"\s*([^:,]+):\s*([^,]+)", settings):
        found.setdefault(key, value)
    return found
