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
