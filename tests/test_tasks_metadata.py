"""What a picture says of itself, in words that other tools read and in lossless JSON."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from safelight.errors import RequestError
from safelight.tasks.metadata import RECORD_CHUNK, ModelIdentity, Record, infotext, read_record
from safelight.tasks.requests import ImageToImage, TextToImage

MODEL = ModelIdentity(name="tiny", local=False, preset="tiny", sha256="ab12" * 16, dtype="float32")
RESOLVED = TextToImage(
    prompt="a red apple,\non blue",
    negative_prompt="blur: any",
    seed=7,
    steps=20,
    sampler="dpmpp_2m",
    spacing="karras",
    guidance=7.0,
    width=64,
    height=128,
)


def a1111_reading(text: str) -> tuple[str, str, dict[str, str]]:
    """How the web UI reads: the last line holds the keys; before it stand prompt and negative."""
    *lines, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    assert len(pairs) >= 3, "fewer would be taken for prompt"
    body = "\n".join(lines)
    prompt, _, negative = body.partition("\nNegative prompt: ")
    return prompt, negative, {key: value.strip() for key, value in pairs}


def test_the_parameters_text_is_exactly_this() -> None:
    assert infotext(RESOLVED, MODEL) == (
        "a red apple,\non blue\nNegative prompt: blur: any\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 7, Size: 64x128, "
        "Model hash: ab12ab12ab, Model: tiny, Version: safelight 0.1.0"
    )


def test_the_parameters_text_reads_back_as_other_tools_read_it() -> None:
    prompt, negative, keys = a1111_reading(infotext(RESOLVED, MODEL))
    assert (prompt, negative) == (RESOLVED.prompt, RESOLVED.negative_prompt)
    assert keys["Steps"] == "20"
    assert keys["Size"] == "64x128"


def test_without_a_negative_prompt_there_is_no_line_for_it_and_steps_come_first() -> None:
    text = infotext(RESOLVED.changed(negative_prompt="", guidance=7.5), MODEL)
    assert "Negative prompt" not in text
    assert text.split("\n")[-1].startswith("Steps: 20, Sampler: ")
    assert "CFG scale: 7.5," in text


def test_img2img_says_its_strength_and_awkward_values_are_quoted() -> None:
    request = ImageToImage(**RESOLVED.model_dump(), image="a.png", strength=0.6)
    text = infotext(request, MODEL.model_copy(update={"name": 'odd, "name": x'}))
    assert "Denoising strength: 0.6" in text
    assert r'Model: "odd, \"name\": x"' in text
    assert a1111_reading(text)[2]["Version"] == "safelight 0.1.0"


def png(path: Path, text: str | None) -> Path:
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_text(RECORD_CHUNK, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_the_record_survives_a_file_without_loss(tmp_path: Path) -> None:
    request = RESOLVED.changed(prompt="Ünïcödé 🍎 \t\n \\ \" '", seed=2**64 - 1, guidance=0.1)
    record = Record.of(request, MODEL)
    read = read_record(png(tmp_path / "a.png", record.to_json()))
    assert read == record
    assert read.asked() == request
    assert read.to_json() == record.to_json()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "carries no Safelight record"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (
            Record.of(RESOLVED, MODEL).to_json().replace('"schema_version":1', '"schema_version":2'),
            "newer version",
        ),
    ],
)
def test_a_picture_without_a_good_record_is_refused_in_one_line(tmp_path: Path, text: str | None, words: str) -> None:
    with pytest.raises(RequestError, match=r"^[^\n]*$") as caught:
        read_record(png(tmp_path / "a.png", text))
    assert words in str(caught.value)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no picture"):
        read_record(tmp_path / "missing.png")
    with pytest.raises(RequestError, match="cannot be read as a picture"):
        read_record(tmp_path)
    whole = png(tmp_path / "a.png", Record.of(RESOLVED, MODEL).to_json()).read_bytes()
    for cut in (0, 5, 40, len(whole) // 2):
        (tmp_path / "cut.png").write_bytes(whole[:cut])
        with pytest.raises(RequestError):
            read_record(tmp_path / "cut.png")


def test_a_record_of_an_unknown_task_or_with_bad_fields_is_refused() -> None:
    record = Record.of(RESOLVED, MODEL)
    with pytest.raises(RequestError, match="does not know: it knows txt2img, img2img"):
        record.model_copy(update={"task": "telepathy"}).asked()
    with pytest.raises(RequestError, match="steps cannot be 0"):
        record.model_copy(update={"request": {"prompt": "x", "steps": 0}}).asked()
