"""The drawing commands, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

import toy_family
from safelight.cli import main
from safelight.diffusion.names import SAMPLER_NAMES, SPACING_NAMES
from safelight.diffusion.samplers import SAMPLERS
from safelight.diffusion.sigmas import SPACINGS
from safelight.presets import PRESETS
from safelight.tasks.metadata import read_record
from safelight.tasks.request import asked, flag
from safelight.tasks.requests import TASKS
from safelight.training.config import LoopConfig
from toy import toy_folder, toy_model

BASIC = ["--steps", "2", "--sampler", "euler", "--seed", "5", "--width", "32", "--height", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toy_folder(tmp_path_factory.mktemp("models") / "toy"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def test_from_makes_the_same_bytes_again(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("txt2img", "a red apple", "--model", folder, *BASIC, "--negative", "ugly", "--output", "a.png")
    assert capsys.readouterr().out == "a.png\n"
    run("txt2img", "--from", "a.png", "--model", folder, "--output", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    run("txt2img", "--from", "a.png", "--model", folder, "--output", "c.png", "--seed", "6")
    changed, first = read_record("c.png").asked(), read_record("a.png").asked()
    assert changed == first.changed(seed=6)


def test_img2img_from_makes_the_same_bytes_again(folder: str) -> None:
    Image.effect_noise((32, 32), 60).convert("RGB").save("in.png")
    draw = ["img2img", "a red apple", "--image", "in.png", "--strength", "0.5", "--model", folder, *BASIC]
    run(*draw, "--output", "a.png")
    run("img2img", "--from", "a.png", "--model", folder, "--output", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_each_picture_of_a_batch_can_be_made_again_alone(folder: str) -> None:
    run("txt2img", "a dog", "--model", folder, *BASIC, "--batch", "2", "--output", "a.png")
    assert sorted(p.name for p in Path().iterdir()) == ["a-0.png", "a-1.png"]
    run("txt2img", "--from", "a-1.png", "--model", folder, "--output", "b.png")
    assert read_record("b.png") == read_record("a-1.png")
    with Image.open("a-1.png") as first, Image.open("b.png") as second:
        difference = max(abs(x - y) for x, y in zip(first.tobytes(), second.tobytes(), strict=True))
    assert difference <= 1


def test_save_steps_writes_one_picture_a_step(folder: str) -> None:
    run("txt2img", "a dog", "--model", folder, *BASIC, "--output", "a.png", "--save-steps", "deep/steps")
    assert sorted(p.name for p in Path("deep/steps").iterdir()) == ["step-001.png", "step-002.png"]
    with Image.open("deep/steps/step-001.png") as early, Image.open("deep/steps/step-002.png") as late:
        assert early.size == (32, 32)
        assert early.tobytes() != late.tobytes()
        with Image.open("a.png") as final:
            assert late.tobytes() == final.tobytes(), "at the last step the belief is the picture"


def test_without_output_the_next_number_is_taken(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("safelight-0004.png").write_bytes(b"precious")
    run("txt2img", "a dog", "--model", folder, *BASIC)
    run("txt2img", "a dog", "--model", folder, *BASIC, "--batch", "2")
    assert capsys.readouterr().out.split() == [f"safelight-000{k}.png" for k in (5, 6, 7)]
    assert Path("safelight-0004.png").read_bytes() == b"precious"


def test_json_is_one_object_with_the_resolved_request(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("txt2img", "a dog", "--model", folder, "--steps", "1", "--width", "32", "--height", "32", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["pictures"] == ["safelight-0001.png"]
    assert result["request"]["seed"] is not None
    assert result["model"]["name"] == "toy"


def test_what_the_model_cannot_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_family.toy_model(PRESETS["ldm-text"]).save(tmp_path / "bert")
    run("txt2img", "x " * 80, "--model", str(tmp_path / "bert"), "--seed", "1")
    assert capsys.readouterr().err.startswith("note: the last 5 tokens of the prompt are not read")


def test_a_list_of_prompts_is_drawn_one_after_the_other(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.txt").write_text("# fruit\na red apple\n\na green pear\n")
    run("txt2img", "--prompts", "list.txt", "--model", folder, *BASIC, "--output", "out.png")
    assert capsys.readouterr().out.split() == ["out-0.png", "out-1.png"]
    run("txt2img", "a green pear", "--model", folder, *BASIC, "--output", "alone.png")
    assert Path("alone.png").read_bytes() == Path("out-1.png").read_bytes()
    assert main(["txt2img", "a dog", "--prompts", "list.txt", "--model", folder]) == 2
    assert "give a prompt or --prompts, not both" in capsys.readouterr().err
    assert main(["unconditional", "--prompts", "list.txt"]) == 2
    assert "unconditional is told no prompt" in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS)
def test_every_field_of_a_request_is_an_option(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(task, "--help")
    words = capsys.readouterr().out.split()
    for name, field in asked(TASKS[task]).items():
        assert f"--{flag(name, field)}" in words
    promised = "model steps sampler schedule guidance seed batch output save-steps from json"
    assert {f"--{name}" for name in promised.split()} <= set(words)


@pytest.mark.parametrize(("option", "names"), [("--sampler", SAMPLERS), ("--schedule", SPACINGS)])
def test_help_names_every_sampler_and_schedule(
    option: str, names: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    run("txt2img", "--help")
    lines = capsys.readouterr().out.replace("│", "").split(option, 1)[1].split("Default:")[0]
    assert set(lines.partition(":")[2].strip(" .\n").replace("\n", " ").replace(",", " ").split()) == set(names)


def test_the_names_are_those_of_the_registries() -> None:
    assert tuple(sorted(SAMPLERS)) == SAMPLER_NAMES
    assert tuple(sorted(SPACINGS)) == SPACING_NAMES


def test_help_is_a_command_and_lists_drawing_first(capsys: pytest.CaptureFixture[str]) -> None:
    run("--help")
    top = capsys.readouterr().out
    run("help")
    assert capsys.readouterr().out == top
    listed = [line.split()[1] for line in top.splitlines() if line.startswith("│ ") and line[2] != " "]
    assert listed[: len(TASKS) + 4] == [*TASKS, "grid", "prompt", "metadata", "models"]
    assert top.splitlines()[-1].startswith("safelight COMMAND --help")
    run("help", "convert")
    help_ = capsys.readouterr().out
    run("convert", "--help")
    assert capsys.readouterr().out == help_
    assert "COMMAND" not in help_


def test_help_of_training_begins_with_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "diffusion", "--help")
    printed = capsys.readouterr().out
    options = [line[1:].split() for line in printed.splitlines() if "--" in line[:12]]
    assert options[0][:2] == ["*", "--output"]
    assert all(words[0] != "*" for words in options[1:])
    assert "False" not in printed, "a switch that is off needs no default"


@pytest.mark.parametrize("recipe", ["clip", "autoencoder", "diffusion", "judge"])
def test_every_recipe_has_the_options_of_the_loop(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("train", recipe, "--help")
    words = capsys.readouterr().out.split()
    assert {f"--{f.name.replace('_', '-')}" for f in fields(LoopConfig)} <= set(words)


def test_results_are_on_stdout_and_nothing_else(folder: str) -> None:
    command = [
        sys.executable,
        "-m",
        "safelight",
        "txt2img",
        "a dog",
        "--model",
        folder,
        *BASIC,
        "--output",
        "a.png",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "a.png\n"


def test_models_list_and_show(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("models", "list")
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == set(PRESETS)
    assert len({line.index(line.split()[1]) for line in lines}) == 1
    assert len({line.index(PRESETS[line.split()[0]].title) for line in lines}) == 1
    assert len({line.rindex("  ") for line in lines}) == 1, "the columns stand below each other"
    run("models", "show", folder, "--json")
    card = json.loads(capsys.readouterr().out)
    assert {part["name"] for part in card["parts"]} == {"unet", "autoencoder", "text"}
    assert all(part["parameters"] > 0 for part in card["parts"])
    run("models", "show", folder)
    assert "native size 64x64" in capsys.readouterr().out


def test_convert_gives_a_model_that_draws_the_same(folder: str) -> None:
    run("convert", folder, "copy")
    run("txt2img", "a dog", "--model", folder, *BASIC, "--output", "a.png")
    run("txt2img", "a dog", "--model", "copy", *BASIC, "--output", "b.png")
    with Image.open("a.png") as a, Image.open("b.png") as b:
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_convert_writes_the_dtype_asked_for(folder: str, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("convert", folder, "copy", "--dtype", dtype)
    capsys.readouterr()
    run("models", "show", "copy", "--json")
    assert [part["dtypes"] for part in json.loads(capsys.readouterr().out)["parts"]] == [[dtype]] * 3


def test_convert_does_not_write_infinities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = toy_model()
    with torch.no_grad():
        model.unet.conv_in.weight[0] = 1e5
    model.save("large")
    assert main(["convert", "large", "copy", "--dtype", "float16"]) == 2
    assert "beyond the range of float16: use bfloat16" in capsys.readouterr().err
    assert not Path("copy").exists()


def test_other_weights_are_pointed_out(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    toy_model(seed=1).save("other")
    run("txt2img", "a dog", "--model", folder, *BASIC, "--output", "a.png")
    capsys.readouterr()
    run("txt2img", "--from", "a.png", "--model", "other", "--output", "b.png")
    assert capsys.readouterr().err.startswith("note: other weights")
