"""Where captions stand, what is repeated, and which pictures are in which bucket and batch."""

from __future__ import annotations

import hashlib
import json
import math
import tarfile
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.errors import DataError
from safelight.training.buckets import BucketedPictures, Buckets, Place, Rows, flips
from safelight.training.data import ImageFolder, batch_indices
from safelight.training.folders import Entry, read_entries


def picture(path: Path, size: tuple[int, int] = (8, 8), colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def told(entries: list[Entry]) -> dict[str, tuple[str, int]]:
    return {entry.name: (entry.caption, entry.repeats) for entry in entries}


# Conventions


def test_numbered_folders_repeat_and_a_caption_beside_a_picture_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("10_jojo cat/a.png", "10_jojo cat/b.png", "3_a_b/c.png", "notes/d.png", "e.png"):
        picture(tmp_path / name)
    (tmp_path / "10_jojo cat" / "b.caption").write_text("jojo cat on a chair\n", "utf-8")
    assert told(read_entries(tmp_path)) == {
        "10_jojo cat/a.png": ("jojo cat", 10),
        "10_jojo cat/b.png": ("jojo cat on a chair", 10),
        "3_a_b/c.png": ("a_b", 3),
    }
    assert "pictures elsewhere in it are left out (e.png, notes)" in capsys.readouterr().err
    assert len(ImageFolder(tmp_path, 8)) == 23


def test_a_folder_of_no_repeats_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "0_cat" / "a.png")
    with pytest.raises(DataError, match="0_cat asks for 0 repeats: rename it"):
        read_entries(tmp_path)


def test_a_caption_for_all_that_have_none(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "b.txt").write_text("its own")
    assert told(read_entries(tmp_path, "a jojo cat")) == {"a.png": ("a jojo cat", 1), "b.png": ("its own", 1)}
    with pytest.raises(DataError, match=r"a\.png has no caption: write one to .*a\.txt"):
        read_entries(tmp_path)


def test_metadata_as_csv(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png"):
        picture(tmp_path / name)
    (tmp_path / "metadata.csv").write_text('file_name,text\nsub/b.png,"one, two"\na.png,three\n', "utf-8")
    assert told(read_entries(tmp_path)) == {"a.png": ("three", 1), "sub/b.png": ("one, two", 1)}
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png\n", "utf-8")
    with pytest.raises(DataError, match="line 2 needs a file_name and a text"):
        read_entries(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(DataError, match=r"both metadata\.jsonl and metadata\.csv: delete one"):
        read_entries(tmp_path)


def test_a_json_file_of_captions_and_tags(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.jpg", "c.webp"):
        picture(tmp_path / name)
    file = tmp_path / "meta.json"
    content = {
        "a": {"caption": "a cat", "tags": "cat, red"},
        "sub/b.jpg": {"tags": "dog", "train_resolution": [512, 512]},
        str(tmp_path.resolve() / "c.webp"): {"caption": "whole"},
    }
    file.write_text(json.dumps(content))
    assert told(read_entries(file)) == {
        "a.png": ("a cat, cat, red", 1),
        "c.webp": ("whole", 1),
        "sub/b.jpg": ("dog", 1),
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "is no object of pictures"),
        ('{"a": {"caption": 3}}', "a needs a caption or tags, which are strings"),
        ('{"a": "x"}', "a needs a caption or tags"),
        ('{"z": {"caption": "x"}}', "names z, which is no picture in"),
        ('{"../a.png": {"caption": "x"}}', r"names \.\./a\.png, .* it leaves the folder"),
        ('{"/etc/a.png": {"caption": "x"}}', r"names /etc/a\.png, .* it leaves the folder"),
        ('{"..\\\\a.png": {"caption": "x"}}', "it leaves the folder"),
        ('{"a": {"caption": "x"}, "a.png": {"caption": "y"}}', r"names a\.png a second time"),
        ("{}", r"a\.png has no caption: write a line for it into"),
    ],
)
def test_mistakes_in_a_json_file_are_named(tmp_path: Path, content: str, said: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        read_entries(tmp_path / "meta.json")
    assert "\n" not in str(caught.value)


def test_a_name_of_two_pictures_needs_its_ending(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a.jpg")
    (tmp_path / "meta.json").write_text('{"a": {"caption": "x"}}')
    with pytest.raises(DataError, match=r"names a, which is a\.jpg and a\.png: write the ending"):
        read_entries(tmp_path / "meta.json")


def test_a_name_in_metadata_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    picture(tmp_path / "data" / "a.png")
    lines = '{"file_name": "a.png", "text": "x"}\n{"file_name": "../secret.png", "text": "y"}\n'
    (tmp_path / "data" / "metadata.jsonl").write_text(lines)
    with pytest.raises(DataError, match=r"names \.\./secret\.png, .*it leaves the folder; mend the name"):
        read_entries(tmp_path / "data")


def test_a_broken_picture_among_a_thousand_is_named(tmp_path: Path) -> None:
    whole = picture(tmp_path / "0000.png").read_bytes()
    for k in range(1000):
        (tmp_path / f"{k:04}.png").write_bytes(whole[: len(whole) // 2] if k == 731 else whole)
    with pytest.raises(DataError, match=r"0731\.png is not a whole picture: replace it or take it out") as caught:
        read_entries(tmp_path, "x")
    assert "\n" not in str(caught.value)


# Buckets


def test_the_buckets_of_512_and_768() -> None:
    # kohya's resolutions by its published rule, computed by hand for one width: 512^2 / 320 = 819 -> 768.
    sizes = Buckets(512, 256, 1024, 64).sizes
    assert (512, 512) in sizes and (320, 768) in sizes and (768, 320) in sizes and (256, 1024) in sizes
    assert (448, 576) in sizes and (384, 640) in sizes
    for width, height in sizes:
        assert width % 64 == height % 64 == 0
        assert min(width, height) >= 256 and max(width, height) <= 1024
        assert width * height <= 512**2
        larger = (width, height + 64), (width + 64, height)
        assert any(w * h > 512**2 or max(w, h) > 1024 for w, h in larger), "a larger one would fit"
    assert sizes == tuple(sorted((h, w) for w, h in sizes)), "they are not the same lying and standing"


def test_a_picture_goes_to_the_nearest_shape_and_is_cut_little() -> None:
    buckets = Buckets(512, 256, 1024, 64)
    assert buckets.of((3000, 3000)) == (512, 512)
    assert buckets.of((100, 100)) == (512, 512)
    assert buckets.of((1920, 1080)) == (640, 384)  # 1.778: nearest of 1.667 and 2.2
    assert buckets.of((10, 1000)) == (256, 1024)
    place = Place.of((1920, 1080), (640, 384))
    assert place.scaled == (683, 384)
    assert place.corner == (0, 21)


def test_without_enlarging_a_small_picture_keeps_its_size() -> None:
    buckets = Buckets(512, 256, 1024, 64, enlarge=False)
    assert buckets.of((200, 300)) == (192, 256)
    assert Place.of((200, 300), (192, 256)).scaled[0] <= 200
    assert buckets.of((30, 90)) == (64, 64)
    for size in ((1920, 1080), (1000, 999), (4000, 700)):
        width, height = buckets.of(size)
        assert width % 64 == height % 64 == 0 and width * height <= 512**2
        assert abs(math.log(width / height / (size[0] / size[1]))) < 0.25


def test_impossible_buckets_are_refused() -> None:
    with pytest.raises(DataError, match="500 pixels have no buckets in steps of 64"):
        Buckets(500, 256, 1024, 64)
    with pytest.raises(DataError, match="leave out the square of 512"):
        Buckets(512, 640, 1024, 64)


def mixed(tmp_path: Path) -> BucketedPictures:
    sizes = {"a": (64, 64), "b": (64, 64), "c": (96, 40), "d": (40, 96), "e": (90, 40)}
    for name, size in sizes.items():
        picture(tmp_path / "in" / f"{name}.png", size)
    return BucketedPictures([read_entries(tmp_path / "in", "x")], Buckets(64, 32, 128, 8))


def test_a_batch_is_of_one_bucket_and_every_picture_is_seen_as_often(tmp_path: Path) -> None:
    pictures = mixed(tmp_path)
    rows = pictures.rows(seed=3)
    seen: Counter[int] = Counter()
    for index in range(10 * len(pictures)):
        batch = rows(index, 4)
        assert len(batch) == 4
        assert len({pictures.places[i].bucket for i in batch}) == 1
        assert batch == pictures.rows(seed=3)(index, 4), "it depends on what was asked before"
        shapes = {tuple(pictures.picture(i).shape) for i in set(batch)}
        assert shapes == {(3, *reversed(pictures.places[batch[0]].bucket))}
        seen.update(batch)
    assert set(seen.values()) == {40}
    assert [rows(i, 4) for i in range(9)] != [pictures.rows(seed=4)(i, 4) for i in range(9)]


def test_one_bucket_is_the_plain_order() -> None:
    rows = Rows([list(range(10, 17))], seed=5)
    assert [rows(i, 3) for i in range(9)] == [[10 + k for k in batch_indices(i, 3, 7, 5)] for i in range(9)]


def test_repeats_and_class_pictures_are_balanced(tmp_path: Path) -> None:
    for k in range(2):
        picture(tmp_path / "mine" / "5_jojo cat" / f"{k}.png")
    for k in range(30):
        picture(tmp_path / "class" / f"{k}.png")
    groups = [read_entries(tmp_path / "mine"), read_entries(tmp_path / "class", "a cat")]
    pictures = BucketedPictures(groups, Buckets.square(8))
    rows = pictures.rows(0)
    counts = Counter(pictures.groups[i] for index in range(60) for i in rows(index, 1))
    assert counts == {0: 30, 1: 30}


def test_the_picture_is_scaled_to_cover_and_its_centre_is_kept(tmp_path: Path) -> None:
    image = Image.new("RGB", (160, 64), "blue")
    image.paste("green", (40, 0, 120, 64))
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "a.png")
    pictures = BucketedPictures([read_entries(tmp_path / "in", "x")], Buckets.square(32))
    assert pictures.places[0].corner == (0, 24)
    assert pictures.picture(0).reshape(3, -1).unique(dim=1).tolist() == [[0], [128], [0]]


def test_identity_changes_with_buckets_and_repeats(tmp_path: Path) -> None:
    first = mixed(tmp_path)
    entries = first.entries
    assert BucketedPictures([entries], Buckets(64, 32, 128, 8)).identity == first.identity
    assert BucketedPictures([entries], Buckets(64, 32, 128, 16)).identity != first.identity
    with pytest.raises(DataError, match="no pictures to train on"):
        BucketedPictures([entries, []], Buckets.square(64))


def test_flips_depend_on_the_batch_alone_and_are_half() -> None:
    assert torch.equal(flips(7, 5, 1), flips(7, 5, 1))
    share = np.mean([flips(index, 8, 0).float().mean().item() for index in range(400)])
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(3200)


# WebDataset's shards, and Hugging Face's tables


def _shard(path: Path, members: Mapping[str, bytes]) -> Path:
    """A shard as Python's own tar writes it."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path


def _png(colour: str) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (6, 4), colour).save(stream, "PNG")
    return stream.getvalue()


def test_shards_are_read_where_they_are(tmp_path: Path) -> None:
    red, blue, grey = map(_png, ("red", "blue", "grey"))
    first = {"a/1.png": red, "a/1.txt": b"a red thing", "a/1.json": b'{"caption": "not this"}', "a/note.md": b"no"}
    _shard(tmp_path / "00000.tar", first)
    _shard(tmp_path / "00001.tar", {"2.json": b'{"caption": " a blue one "}', "2.PNG": blue, "3.png": grey})
    entries = read_entries(tmp_path, "something")
    assert [(entry.name, entry.caption, entry.size) for entry in entries] == [
        ("00000.tar/a/1.png", "a red thing", (6, 4)),
        ("00001.tar/2.png", "a blue one", (6, 4)),
        ("00001.tar/3.png", "something", (6, 4)),
    ]
    assert [entry.picture().getpixel((0, 0)) for entry in entries] == [(255, 0, 0), (0, 0, 255), (128, 128, 128)]
    assert [entry.digest for entry in entries] == [hashlib.sha256(data).hexdigest() for data in (red, blue, grey)]
    with pytest.raises(DataError, match=r"00001\.tar: 3 has no caption"):
        read_entries(tmp_path)


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"1.png": b"no picture", "1.txt": b"a"}, r"0\.tar/1\.png is not a whole picture"),
        ({"1.png": _png("red"), "1.jpg": _png("red")}, "two pictures called 1"),
        ({"1.png": _png("red"), "1.txt": b"a", "1.caption": b"b"}, "two captions of 1"),
        ({"1.png": _png("red"), "1.txt": b"\xff\xfe\xfd"}, "not UTF-8"),
        ({"1.png": _png("red"), "1.json": b"{"}, "is none"),
        ({"1.txt": b"a"}, "no pictures"),
    ],
)
def test_what_is_wrong_with_a_shard_is_said(members: dict[str, bytes], match: str, tmp_path: Path) -> None:
    _shard(tmp_path / "0.tar", members)
    with pytest.raises(DataError, match=match):
        read_entries(tmp_path)


def test_a_shard_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    whole = _shard(tmp_path / "0.tar", {"1.png": _png("red") + bytes(4000), "1.txt": b"a", "2.png": _png("blue")})
    whole.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"0\.tar"):
        read_entries(tmp_path)


def test_a_table_names_pictures_and_captions(tmp_path: Path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(_png("red"))
    rows = {"file_name": ["b.png", "a.png"], "text": ["second", "first"], "other": [1, 2]}
    parquet.write_table(arrow.table(rows), tmp_path / "metadata.parquet")
    assert [(entry.name, entry.caption) for entry in read_entries(tmp_path)] == [
        ("a.png", "first"),
        ("b.png", "second"),
    ]
    parquet.write_table(arrow.table({"file_name": ["b.png", "a.png"]}), tmp_path / "metadata.parquet")
    with pytest.raises(DataError, match="columns file_name and text"):
        read_entries(tmp_path)
    (tmp_path / "metadata.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="is no table"):
        read_entries(tmp_path)
