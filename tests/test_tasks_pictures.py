"""Pixels to files: exact values, and whole files or none."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from safelight.errors import OutputError, RequestError
from safelight.tasks import pictures


def test_pixels_become_bytes_and_back() -> None:
    values = torch.tensor([-1.0, 1.0, 0.0, -3.0, 3.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    (image,) = pictures.to_images(values)
    assert [image.getpixel((i, 0)) for i in range(5)] == [(v,) * 3 for v in (0, 255, 128, 0, 255)]
    every = Image.frombytes("RGB", (256, 1), bytes(v for v in range(256) for _ in range(3)))
    (again,) = pictures.to_images(pictures.to_pixels(every))
    assert again.tobytes() == every.tobytes()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_no_number_is_never_a_black_picture(bad: float) -> None:
    pixels = torch.zeros(1, 3, 2, 2)
    pixels[0, 1, 0, 1] = bad
    with pytest.raises(RequestError, match="not finite"):
        pictures.to_images(pixels)


def test_saving_is_reproducible_and_replaces(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), "red")
    image.info |= {"parameters": "Ünïcödé 🍎", "safelight": "{}", "icc_profile": b"of another file"}
    pictures.save_picture(image, tmp_path / "a.png")
    first = (tmp_path / "a.png").read_bytes()
    pictures.save_picture(image, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with Image.open(tmp_path / "a.png") as read:
        read.load()
        assert read.info["parameters"] == "Ünïcödé 🍎"
        assert read.info["safelight"] == "{}"


def test_what_may_not_be_replaced_is_not(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError):
        pictures.save_picture(Image.new("RGB", (4, 4)), target, overwrite=False)
    assert target.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


# -- JPEG and WebP


NOISE = Image.effect_noise((48, 32), 90).convert("RGB")


@pytest.mark.parametrize(
    ("name", "format_"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP")]
)
def test_the_name_says_the_format_and_the_same_picture_gives_the_same_bytes(
    name: str, format_: str, tmp_path: Path
) -> None:
    image = NOISE.copy()
    image.info |= {"parameters": "Ünïcödé", "safelight": "{}", "comment": b"of another", "icc_profile": b"file"}
    pictures.save_picture(image, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    pictures.save_picture(image, tmp_path / name)
    assert (tmp_path / name).read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with Image.open(tmp_path / name) as read:
        read.load()
        assert read.format == format_
        assert "comment" not in read.info
        assert "icc_profile" not in read.info
        if format_ != "JPEG":
            assert read.tobytes() == image.tobytes(), "PNG and WebP lose nothing unless asked to"
        else:
            assert read.getbands() == ("R", "G", "B")
            assert {component[1:3] for component in read.layer} == {(1, 1)}, "colours at full size"
    assert image.info["comment"] == b"of another", "the picture in memory stays as it is"


def test_quality_makes_files_smaller() -> None:
    sizes = [len(pictures.encode(NOISE, "JPEG", quality)) for quality in (30, None, 100)]
    assert sizes == sorted(sizes)
    assert len(pictures.encode(NOISE, "WEBP", 50)) < len(pictures.encode(NOISE, "WEBP"))
    for format_, quality in (("PNG", 90), ("JPEG", 0), ("WEBP", 101)):
        with pytest.raises(RequestError, match=f"quality cannot be {quality}"):
            pictures.encode(NOISE, format_, quality)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a", "a.gif", "a.tiff", "a.png.bak"])
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"must end in \.png, \.jpg, \.jpeg, \.webp"):
        pictures.save_picture(NOISE, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "width"), [("a.webp", 16_384), ("a.jpg", 65_501)])
def test_what_a_format_cannot_hold_is_said_before_it_is_tried(name: str, width: int, tmp_path: Path) -> None:
    wide = Image.new("L", (width, 1))
    with pytest.raises(OutputError, match=r"too large for .*: name a \.png$"):
        pictures.save_picture(wide, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    pictures.save_picture(wide.crop((0, 0, width - 1, 1)), tmp_path / name)  # one less is not too much
    pictures.save_picture(wide, tmp_path / "a.png")


def test_a_request_that_is_too_long_for_jpeg_leaves_no_file(tmp_path: Path) -> None:
    image = NOISE.copy()
    image.info |= {"parameters": "x" * 32_725, "safelight": "x" * 65_000}
    pictures.save_picture(image, tmp_path / "a.jpg")
    for name, more in (("parameters", "x" * 32_800), ("safelight", "x" * 66_000)):
        longer = image.copy()
        longer.info[name] = more
        with pytest.raises(OutputError, match="too long for a JPEG"):
            pictures.save_picture(longer, tmp_path / "b.jpg")
        pictures.save_picture(longer, tmp_path / "b.webp")
    assert {p.name for p in tmp_path.iterdir()} == {"a.jpg", "b.webp"}


def test_a_batch_in_another_format(tmp_path: Path) -> None:
    paths = pictures.save_numbered([NOISE] * 2, tmp_path / "a.jpg", quality=80)
    assert [p.name for p in paths] == ["a-0.jpg", "a-1.jpg"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from PIL import Image
from safelight.errors import OutputError
from safelight.tasks.pictures import save_picture
image = Image.effect_noise((64, 64), 90).convert("RGB")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a full disk does
try:
    save_picture(image, Path(sys.argv[1]) / "a.png", overwrite=sys.argv[2] == "replace")
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("mode", ["replace", "new"])
def test_when_the_disk_is_full_nothing_half_written_is_left(tmp_path: Path, mode: str) -> None:
    if mode == "replace":
        (tmp_path / "a.png").write_bytes(b"earlier")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "a.png" in done.stdout
    assert done.stdout.count("\n") == 1
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == ({"a.png": b"earlier"} if mode == "replace" else {})


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^[^\n]*$"):
        pictures.save_picture(Image.new("RGB", (4, 4)), tmp_path / "nowhere" / "a.png")


def test_a_batch_is_numbered_from_zero(tmp_path: Path) -> None:
    two = [Image.new("RGB", (4, 4))] * 2
    assert [p.name for p in pictures.save_numbered(two, tmp_path / "a.b.png")] == ["a.b-0.png", "a.b-1.png"]
    assert [p.name for p in pictures.save_numbered(two[:1], tmp_path / "a.png")] == ["a.png"]


def test_the_next_number_follows_the_highest_and_replaces_nothing(tmp_path: Path) -> None:
    for name in ("s-0002.png", "s-0007.png", "s-x.png", "other-0099.png"):
        (tmp_path / name).write_bytes(b"precious")
    paths = pictures.save_under_next_number([Image.new("RGB", (4, 4))] * 2, tmp_path, "s")
    assert [p.name for p in paths] == ["s-0008.png", "s-0009.png"]
    assert (tmp_path / "s-0007.png").read_bytes() == b"precious"


def test_pictures_are_read_upright_and_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    buffer = io.BytesIO()
    clear.save(buffer, format="PNG", exif=exif)
    image = pictures.decode_picture(buffer.getvalue(), "x.png")
    assert (image.mode, image.size) == ("RGB", (1, 2))
    assert [image.getpixel((0, y)) for y in range(2)] == [(255, 0, 0), (255, 255, 255)]


def test_a_picture_in_memory_travels_as_text() -> None:
    image = Image.effect_noise((8, 8), 90).convert("RGB")
    uri = pictures.to_data_uri(image)
    assert pictures.decode_picture(pictures.read_picture_bytes(uri), uri).tobytes() == image.tobytes()


@pytest.mark.parametrize("source", ["missing.png", ".", "data:image/png;base64,!!", "data:", "a\0b"])
def test_what_cannot_be_read_is_one_line(source: str) -> None:
    with pytest.raises(RequestError, match=r"^[^\n]*$"):
        pictures.decode_picture(pictures.read_picture_bytes(source), source)
