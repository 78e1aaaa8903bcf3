"""Captions of tags, and the TOML files by which kohya's tools are told of data sets."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from safelight.cli import main
from safelight.errors import DataError, TrainingError
from safelight.training.data import ImageFolder
from safelight.training.folders import identity_of, read_entries
from safelight.training.kohya import Sizes, read_dataset
from safelight.training.recipes.arranging import arranged
from safelight.training.recipes.dreambooth import DreamBooth
from safelight.training.recipes.lora import LoraRecipe
from safelight.training.recipes.tuning_settings import DreamBoothSettings, LoraSettings, TuningData, TuningLoop
from safelight.training.tags import Tags
from tuning_cases import data, loop, pictures, require_exact_resume, toy_model

CAPTION = "jojo, cat, red, big, on a chair"
SEEN = 4000


# -- tags


def test_without_chance_a_caption_stays_to_the_letter() -> None:
    for odd in (" a , b,,c ", "", ",", "one"):
        assert Tags().said(odd, 0, 0) == odd
        assert Tags(keep=2).said(odd, 0, 0) == odd


def test_tags_are_shuffled_evenly_and_the_first_stay() -> None:
    told = [Tags(shuffle=True, keep=2).said(CAPTION, 0, position).split(", ") for position in range(SEEN)]
    assert all(one[:2] == ["jojo", "cat"] and sorted(one) == sorted(CAPTION.split(", ")) for one in told)
    orders = Counter(tuple(one[2:]) for one in told)
    assert len(orders) == 6
    assert max(abs(count - SEEN / 6) for count in orders.values()) < 5 * (SEEN / 6) ** 0.5
    assert Tags(shuffle=True, keep=9).said(CAPTION, 0, 1) == CAPTION


def test_tags_and_captions_are_left_out_as_often_as_asked() -> None:
    told = [Tags(keep=1, dropout=0.25).said(CAPTION, 7, position).split(", ") for position in range(SEEN)]
    counts = Counter(tag for one in told for tag in one)
    assert counts["jojo"] == SEEN
    assert all(abs(counts[tag] - 0.75 * SEEN) < 5 * (SEEN * 0.25 * 0.75) ** 0.5 for tag in ("cat", "red", "on a chair"))
    order = CAPTION.split(", ")
    assert all(one == [tag for tag in order if tag in one] for one in told), "the order changed"
    silent = sum(Tags(silence=0.1).said(CAPTION, 0, position) == "" for position in range(SEEN))
    assert abs(silent - 0.1 * SEEN) < 5 * (SEEN * 0.09) ** 0.5
    assert Tags(dropout=1.0).said(CAPTION, 0, 0) == ""


def test_a_caption_depends_on_seed_and_place_alone() -> None:
    tags = Tags(shuffle=True, dropout=0.3)
    first = [tags.said(CAPTION, 3, position) for position in range(50)]
    assert first == [tags.said(CAPTION, 3, position) for position in range(50)]
    assert first != [tags.said(CAPTION, 4, position) for position in range(50)]
    assert len(set(first)) > 20


def test_a_run_tells_shuffled_tags_and_goes_on_bit_by_bit(tmp_path: Path) -> None:
    model = toy_model(tmp_path / "model")
    folder = pictures(tmp_path / "in", ("jojo, a, b, c", "jojo, d, e, f"))
    made = data(folder, square=True, shuffle_tags=True, keep_tags=1, tag_dropout=0.2)
    told = LoraSettings(model=str(model), rank=2)
    recipe = LoraRecipe(told, made, loop(tmp_path / "run"))
    whole = [recipe.batch(k, 2).captions for k in range(20)]
    halves = [recipe.batch(2 * k, 1).captions + recipe.batch(2 * k + 1, 1).captions for k in range(20)]
    assert whole == halves, "two processes would tell something else than one"
    said = {caption for captions in whole for caption in captions}
    assert len(said) > 10
    assert all(caption.split(", ")[0] == "jojo" for caption in said)
    require_exact_resume(lambda config: LoraRecipe(told, made, config), tmp_path, (5,))
    with safe_open(tmp_path / "whole" / "run" / "run.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_shuffle_caption"], metadata["ss_keep_tokens"]) == ("True", "1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep-tags", "-1", "--shuffle-tags"], "--keep-tags is -1"),
        (["--tag-dropout", "1.5"], "--tag-dropout is 1.5: give a share between 0 and 1"),
        (["--keep-tags", "2"], "--keep-tags keeps tags from --shuffle-tags and --tag-dropout"),
    ],
)
def test_bad_options_are_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "lora", "--data", "x", "--output", "y", *options]) == 2
    assert words in capsys.readouterr().err


# -- kohya's TOML

WHOLE = """
[general]
shuffle_caption = true
keep_tokens = 1
caption_extension = ".cap"
color_aug = false

[[datasets]]
resolution = [64, 64]
batch_size = 2
enable_bucket = true
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 8
bucket_no_upscale = true

  [[datasets.subsets]]
  image_dir = 'IN/mine'
  class_tokens = 'jojo cat'
  num_repeats = 5
  flip_aug = true
  caption_prefix = 'photo of'
  caption_tag_dropout_rate = 0.1

  [[datasets.subsets]]
  image_dir = 'IN/class'
  is_reg = true
  class_tokens = 'cat'
  shuffle_caption = false
  keep_tokens = 0
  caption_extension = ".txt"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for name in ("mine/a.png", "mine/b.png", "mine/inner/c.png", "class/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 64), "red").save(tmp_path / name)
    (tmp_path / "mine" / "b.cap").write_text("jojo, on a chair")
    (tmp_path / "mine" / "a.txt").write_text("not read: another extension")
    (tmp_path / "class" / "d.txt").write_text("a cat")
    path = tmp_path / "dataset.toml"
    path.write_text(WHOLE.replace("IN", str(tmp_path)))
    return path


def test_all_that_a_file_says_is_read(file: Path) -> None:
    assert read_dataset(file).sizes == Sizes(64, 2, False, 8, 32, 128, True)
    found = {Path(entry.name).name: entry for entry in read_entries(file)}
    assert found.keys() == {"a.png", "b.png", "d.png"}, "a folder in a folder is another's"
    assert [found[name].caption for name in ("a.png", "b.png", "d.png")] == [
        "photo of jojo cat",
        "photo of jojo, on a chair",
        "a cat",
    ]
    tags = Tags(shuffle=True, keep=1, dropout=0.1)
    assert [(found[n].repeats, found[n].flip, found[n].prior, found[n].tags) for n in ("a.png", "d.png")] == [
        (5, True, False, tags),
        (1, False, True, Tags()),
    ]
    mine, told = arranged(TuningLoop(Path("x")), TuningData(file))
    assert mine.batch == 2
    assert (told.size, told.bucket_step, told.bucket_smallest, told.bucket_largest) == (64, 8, 32, 128)
    assert (told.square, told.no_enlarge) == (False, True)


def test_what_is_not_said_is_as_usual(tmp_path: Path, file: Path) -> None:
    file.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{tmp_path / 'class'}'\n")
    mine, told = arranged(TuningLoop(Path("x"), batch=3), TuningData(file, size=96))
    assert (mine.batch, told) == (3, TuningData(file, size=96, square=True)), "kohya's tools have no buckets unasked"
    [entry] = read_entries(file)
    assert (entry.caption, entry.repeats, entry.tags, entry.prior) == ("a cat", 1, Tags(), False)


def test_other_words_about_the_same_pictures_are_other_data(file: Path) -> None:
    before = identity_of(read_entries(file))
    file.write_text(file.read_text().replace("flip_aug = true", "flip_aug = false"))
    assert identity_of(read_entries(file)) != before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[general]", "[general", "is no TOML"),
        ("[general]", "[other]", "has 'other' outside of [general] and [[datasets]]"),
        ("color_aug = false", "color_aug = true", "color_aug = True cannot be done here: take it out"),
        ("color_aug = false", "colour_aug = false", "nobody here knows 'colour_aug'"),
        ("color_aug = false", "is_reg = true", "is_reg is of [[datasets.subsets]], and stands elsewhere"),
        ("num_repeats = 5", "batch_size = 5", "batch_size is of [[datasets]], and stands elsewhere"),
        ("num_repeats = 5", "num_repeats = 0", "num_repeats cannot be '0'"),
        ("num_repeats = 5", "num_repeats = true", "num_repeats cannot be 'True'"),
        ("num_repeats = 5", "metadata_file = 'x.json'", "metadata_file = x.json cannot be done here"),
        ("[64, 64]", "[64, 96]", "resolution [64, 96] is no square"),
        ("[64, 64]", "'large'", "resolution cannot be 'large'"),
        ('".cap"', '"../x"', "caption_extension cannot be '../x'"),
        ("/mine'", "/gone'", "/gone' is not a folder"),
        ("image_dir = 'IN/class'", "", "has a subset without image_dir"),
        ("rate = 0.1", "rate = 2", "caption_tag_dropout_rate cannot be '2'"),
        ("[general]", "[[datasets]]\nresolution = 32\n[general]", "has no [[datasets.subsets]]"),
    ],
)
def test_every_key_is_used_or_refused_by_name(old: str, new: str, words: str, file: Path, tmp_path: Path) -> None:
    old = old.replace("IN", str(tmp_path))
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError) as caught:
        read_dataset(file)
        read_entries(file)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sets_that_differ_are_refused(file: Path, tmp_path: Path) -> None:
    other = f"[[datasets]]\nresolution = 96\n[[datasets.subsets]]\nimage_dir = '{tmp_path / 'class'}'\n"
    file.write_text(file.read_text() + other)
    with pytest.raises(DataError, match="different resolutions, batch sizes or buckets: train each by itself"):
        read_dataset(file)


def test_an_option_that_says_something_else_is_refused(file: Path) -> None:
    for mine, told, words in (
        (TuningLoop(Path("x"), batch=3), TuningData(file), r"--batch 3 is not what .* says \(batch_size, 2\)"),
        (TuningLoop(Path("x")), TuningData(file, size=96), r"--size 96 is not what .* says \(resolution, 64\)"),
        (TuningLoop(Path("x")), TuningData(file, square=True), "--square True is not what"),
        (TuningLoop(Path("x")), TuningData(file, shuffle_tags=True), "write shuffle_caption into"),
    ):
        with pytest.raises(TrainingError, match=words):
            arranged(mine, told)
    assert arranged(TuningLoop(Path("x"), batch=2), TuningData(file, size=64))[0].batch == 2
    with pytest.raises(DataError, match="says how to fine-tune"):
        ImageFolder(file, 64)


def test_a_run_by_such_a_file(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = toy_model(tmp_path / "model")
    run = ["train", "lora", "--data", str(file), "--model", str(model), "--rank", "2", "--device", "cpu"]
    assert main([*run, "--output", str(tmp_path / "run"), "--images", "4", "--workers", "0"]) == 0
    told = json.loads((tmp_path / "run" / "logs" / "settings.json").read_text())
    assert (told["loop"]["batch"], told["data"]["size"]) == (2, 64)
    assert main([*run, "--output", str(tmp_path / "other"), "--class-prompt", "a cat"]) == 2
    assert "(is_reg): leave out --class-" in capsys.readouterr().err

    mine, some = arranged(loop(tmp_path / "batches"), TuningData(file))
    recipe = DreamBooth(DreamBoothSettings(model=str(model), prior_weight=0.5), some, mine)
    seen = Counter(
        (weight, caption.startswith("photo of"))
        for k in range(200)
        for weight, caption in zip(recipe.batch(k, 2).weights.tolist(), recipe.batch(k, 2).captions, strict=True)
    )
    assert seen.keys() == {(1.0, True), (0.5, False)}
    assert seen[1.0, True] == seen[0.5, False], "as much is seen of the class as of what is learned"
    turned = {torch.equal(recipe._latents(0), recipe._latents(0, mirrored=True))}
    assert turned == {True}, "plain red is its own mirror image"
