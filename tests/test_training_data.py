"""A folder of pictures with captions, and which pictures are in which batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.errors import DataError
from safelight.training.data import ImageFolder, batch_indices, permutation


def picture(path: Path, size: tuple[int, int] = (8, 8), colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def captioned(folder: Path, *names: str) -> Path:
    for name in names:
        picture(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"a {name}\n", "utf-8")
    return folder


# Order


def test_each_epoch_has_every_picture_once_in_an_order_of_its_own() -> None:
    count, size = 10, 4
    row = [i for index in range(15) for i in batch_indices(index, size, count, seed=3)]
    epochs = [row[start : start + count] for start in range(0, 60, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6, "two epochs have the same order"


def test_the_order_follows_from_the_seed_and_is_the_same_on_every_machine() -> None:
    assert batch_indices(5, 4, 100, seed=0) == batch_indices(5, 4, 100, seed=0)
    assert batch_indices(5, 4, 100, seed=0) != batch_indices(5, 4, 100, seed=1)
    # Frozen: a run that is resumed with a later version depends on it.
    assert permutation(0, 0, 8).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_halves_of_a_batch_are_the_batches_of_half_the_size() -> None:
    for index in range(7):
        whole = batch_indices(index, 6, 11, seed=2)
        assert whole == batch_indices(2 * index, 3, 11, seed=2) + batch_indices(2 * index + 1, 3, 11, seed=2)


def test_a_batch_may_be_larger_than_the_data_is() -> None:
    assert sorted(batch_indices(0, 9, 3, seed=0)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(DataError, match="at least one"):
        batch_indices(0, 1, 0, seed=0)


# Reading


def test_pictures_come_in_the_order_of_their_names_with_their_captions(tmp_path: Path) -> None:
    captioned(tmp_path, "b.png", "a.jpg", "sub/c.webp", "d.bmp", "E.JPEG")
    picture(tmp_path / ".hidden" / "x.png")
    (tmp_path / "notes.md").write_text("no picture")
    folder = ImageFolder(tmp_path, 4)
    assert [folder.caption(i) for i in range(len(folder))] == [
        "a E.JPEG",
        "a a.jpg",
        "a b.png",
        "a d.bmp",
        "a sub/c.webp",
    ]
    pixels, words = folder[2]
    assert (pixels.shape, pixels.dtype, words) == ((3, 4, 4), torch.uint8, "a b.png")
    assert pixels.is_contiguous()
    assert pixels.reshape(3, -1).T.tolist() == [[255, 0, 0]] * 16


def test_metadata_gives_the_captions(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png"):
        picture(tmp_path / name)
    lines = [{"file_name": "sub/b.png", "text": "second"}, {"file_name": "./a.png", "text": "first", "n": 1}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(x) for x in lines) + "\n\n")
    folder = ImageFolder(tmp_path, 4)
    assert [folder.caption(i) for i in range(2)] == ["first", "second"]


def test_a_dot_caption_file_and_an_empty_caption_are_captions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("")
    assert ImageFolder(tmp_path, 4)[0][1] == ""


def test_it_scales_to_cover_and_crops_to_the_centre(tmp_path: Path) -> None:
    wide = Image.new("RGB", (40, 10), "blue")
    wide.paste("green", (9, 0, 31, 10))  # Lanczos looks 6 pixels beyond the square
    wide.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    pixels, _ = ImageFolder(tmp_path, 5)[0]
    assert pixels.reshape(3, -1).unique(dim=1).tolist() == [[0], [128], [0]], "only the green centre is left"


def test_transparency_falls_on_white_and_sixteen_bits_become_eight(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16)).save(tmp_path / "b.png")
    indexed = Image.new("P", (4, 4), 0)
    indexed.putpalette([9, 9, 9])
    indexed.save(tmp_path / "c.png", transparency=0)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    folder = ImageFolder(tmp_path, 4)
    assert [folder[i][0].unique().tolist() for i in range(3)] == [[255], [100], [255]]


def test_a_photograph_stands_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))  # the upper half
    exif = image.getexif()
    exif[0x0112] = 3  # "turn me by 180 degrees"
    image.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("x")
    pixels, _ = ImageFolder(tmp_path, 8)[0]
    assert (pixels[0, 0, 0], pixels[0, 7, 0]) == (0, 255)


def test_identity_changes_with_bytes_captions_and_size(tmp_path: Path) -> None:
    folder = captioned(tmp_path, "a.png")
    first = ImageFolder(folder, 4).identity
    assert ImageFolder(folder, 4).identity == first
    assert ImageFolder(folder, 8).identity != first
    (folder / "a.txt").write_text("other words")
    second = ImageFolder(folder, 4).identity
    picture(folder / "a.png", colour="blue")
    assert len({first, second, ImageFolder(folder, 4).identity}) == 3


# Mistakes


def test_no_folder_and_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        ImageFolder(tmp_path / "nowhere", 4)
    with pytest.raises(DataError, match=r"has no pictures: put .*\.png"):
        ImageFolder(tmp_path, 4)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_an_unreadable_picture_is_named_before_the_first_step(tmp_path: Path, damage: str) -> None:
    captioned(tmp_path, "good.png", "bad.png")
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "bad.png")
    data = (tmp_path / "bad.png").read_bytes()
    (tmp_path / "bad.png").write_bytes({"truncated": data[: len(data) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"bad\.png is not a whole picture: replace it"):
        ImageFolder(tmp_path, 4)


def test_a_missing_caption_is_named(tmp_path: Path) -> None:
    captioned(tmp_path, "a.png")
    picture(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png has no caption: write one to .*b\.txt"):
        ImageFolder(tmp_path, 4)


def test_two_captions_are_not_guessed_between(tmp_path: Path) -> None:
    captioned(tmp_path, "a.png")
    (tmp_path / "a.caption").write_text("another")
    with pytest.raises(DataError, match=r"two captions, a\.txt and a\.caption"):
        ImageFolder(tmp_path, 4)


def test_a_caption_that_is_no_text_is_named(tmp_path: Path) -> None:
    captioned(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text"):
        ImageFolder(tmp_path, 4)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 needs a file_name and a text"),
        ('{"file_name": "a.png"}', "line 2 needs a file_name and a text"),
        ('{"file_name": "a.png", "text": 3}', "line 2 needs a file_name and a text"),
        ('{"file_name": "a.png", "text": "x"}', r"names a\.png a second time"),
        ('{"file_name": "z.png", "text": "x"}', r"names z\.png, which is no picture in"),
        ('{"file_name": "../a.png", "text": "x"}', r"names \.\./a\.png, which is no picture in"),
        ("", r"b\.png has no caption: write a line for it"),
    ],
)
def test_mistakes_in_metadata_are_named(tmp_path: Path, line: str, said: str) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + line)
    with pytest.raises(DataError, match=said) as caught:
        ImageFolder(tmp_path, 4)
    assert "\n" not in str(caught.value)
