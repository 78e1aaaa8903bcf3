"""`safelight grid`, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import toy_family
from safelight.cli import main
from safelight.cli.drawing import Drawing
from safelight.presets import PRESETS
from safelight.tasks.grid.record import read_grid
from safelight.tasks.metadata import read_record
from safelight.tasks.request import asked, flag
from safelight.tasks.requests import TASKS
from toy import toy_folder, toy_model

SMALL = ["--steps", "2", "--seed", "5", "--width", "32", "--height", "32"]
AXES = ["--x", "sampler=euler,heun,ddim", "--y", "guidance=1,7.5"]
APPLE = "a red apple on a blue ground"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toy_folder(tmp_path_factory.mktemp("models") / "toy"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def content() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}


def drawn(printed: str) -> list[bool]:
    return [cell["drawn"] for cell in json.loads(printed)["cells"]]


def test_a_sheet_and_its_cells(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("grid", APPLE, *AXES, "--model", folder, *SMALL, "--output", "grid.png")
    assert capsys.readouterr().out == "grid.png\n"
    cells = sorted(path.name for path in Path("grid-cells").glob("*.png"))
    assert len(cells) == 6
    assert "sampler-heun_guidance-7.5.png" in cells
    request = read_record("grid-cells/sampler-heun_guidance-7.5.png").asked()
    run("txt2img", APPLE, "--sampler", "heun", "--guidance", "7.5", "--model", folder, *SMALL, "--output", "alone.png")
    assert Path("alone.png").read_bytes() == Path("grid-cells/sampler-heun_guidance-7.5.png").read_bytes()
    assert (request.sampler, request.guidance, request.seed) == ("heun", 7.5, 5)
    run("txt2img", "--from", "grid-cells/sampler-heun_guidance-7.5.png", "--model", folder, "--output", "again.png")
    assert Path("again.png").read_bytes() == Path("alone.png").read_bytes()


def test_the_same_command_draws_only_what_is_missing(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["grid", APPLE, *AXES, "--model", folder, "--width", "32", "--height", "32", "--steps", "1", "--json"]
    run(*command)
    first = json.loads(capsys.readouterr().out)
    assert all(cell["drawn"] for cell in first["cells"])
    assert first["cells"][3]["values"] == {"sampler": "heun", "guidance": 7.5}
    assert first["sheet"].startswith("safelight-grid-")
    before = content()
    assert set(before) > {first["sheet"], *(path for cell in first["cells"] for path in cell["pictures"])}
    run(*command)
    assert drawn(capsys.readouterr().out) == [False] * 6, "with the seed that was drawn the first time"
    Path(first["cells"][2]["pictures"][0]).unlink()
    run(*command)
    assert drawn(capsys.readouterr().out) == [False, False, True, False, False, False]
    assert content() == before
    run(*command, "--negative", "ugly")
    assert drawn(capsys.readouterr().out) == [True] * 6
    assert content().items() > before.items(), "another grid has another name"


def test_from_a_picture_and_from_a_sheet(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("txt2img", APPLE, "--model", folder, *SMALL, "--negative", "ugly", "--output", "a.png")
    run("grid", "--from", "a.png", "--x", "steps=1..2", "--model", folder, "--output", "grid.png")
    assert Path("grid-cells/steps-2.png").read_bytes() == Path("a.png").read_bytes()
    run("grid", "--from", "grid.png", "--model", folder, "--output", "b.png")
    assert Path("b.png").read_bytes() == Path("grid.png").read_bytes()
    run("grid", "--from", "grid.png", "--y", "seed=5,6", "--negative", "", "--model", folder, "--output", "c.png")
    record = read_grid("c.png")
    assert record is not None
    base, axes = record.asked()
    assert [(axis.field, axis.values) for axis in axes] == [("steps", (1, 2)), ("seed", (5, 6))]
    assert base.negative_prompt == ""  # type: ignore[attr-defined]
    capsys.readouterr()
    assert main(["grid", "--from", "grid.png", "--task", "img2img", "--model", folder]) == 2
    assert "was made by txt2img: leave out --task img2img" in capsys.readouterr().err


def test_another_task_a_model_axis_and_a_batch(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    toy_model(seed=1).save("other")
    Image.effect_noise((32, 32), 60).convert("RGB").save("in.png")
    run(
        *("grid", APPLE, "--task", "img2img", "--image", "in.png", "--seed", "1", "--steps", "4", "--batch", "2"),
        *("--x", "strength=0.5..1:0.25", "--y", f"model={folder},other", "--z", "prompt:apple=apple,pear", "--json"),
    )
    result = json.loads(capsys.readouterr().out)
    assert len(result["cells"]) == 12
    assert all(len(cell["pictures"]) == 2 for cell in result["cells"])
    first, last = (read_record(result["cells"][k]["pictures"][1]) for k in (0, -1))
    assert (first.task, first.model.name, first.request["strength"]) == ("img2img", "toy", 0.5)
    assert (last.model.name, last.request["prompt"]) == ("other", "a red pear on a blue ground")
    assert (last.request["seed"], last.request["batch"]) == (2, 1)


def test_the_picture_of_every_step(folder: str) -> None:
    run("grid", APPLE, "--x", "seed=1,2", "--model", folder, *SMALL[:2], *SMALL[4:], "--save-steps", "deep/steps")
    names = sorted(str(path) for path in Path("deep/steps").rglob("*.png"))
    assert names == [f"deep/steps/seed-{seed}/step-00{step}.png" for seed in (1, 2) for step in (1, 2)]


def test_what_is_not_read_and_what_is_not_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_family.toy_model(PRESETS["ldm-text"]).save(tmp_path / "bert")
    folder = str(tmp_path / "bert")
    run("grid", "--x", f"prompt={'x ' * 80},苹果", "--y", "seed=1,2", "--model", folder, *SMALL[:2], *SMALL[4:])
    lines = capsys.readouterr().err.splitlines()
    notes = [line[line.index("note: ") :] for line in lines if "note: " in line]
    assert notes == [
        "note: the last 5 tokens of the prompt are not read",
        "note: the labels' font has no 苹果: give one that has by --font",
    ]


def test_every_option_of_every_drawing_command_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    run("grid", "--help")
    words = capsys.readouterr().out.split()
    wanted = {f"--{flag(name, field)}" for task in TASKS.values() for name, field in asked(task).items()}
    wanted |= {f"--{name.strip('_').replace('_', '-')}" for name in Drawing.__dataclass_fields__}
    wanted |= {"--x", "--y", "--z", "--task", "--cell-size", "--font", "--preset", "--vae"}
    assert wanted <= set(words)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no axis": ([APPLE], "nothing is varied: give --x, like --x sampler=euler,heun, and --y"),
    "y without x": ([APPLE, "--y", "steps=1,2"], "give --x, then --y, then --z"),
    "no prompt": (["--x", "steps=1,2"], "the prompt is missing"),
    "no values": ([APPLE, "--x", "steps"], "the axis 'steps' gives no values"),
    "no such field": ([APPLE, "--x", "stepz=1,2"], "txt2img has no 'stepz' to vary: did you mean steps?"),
    "no such field of the task": ([APPLE, "--x", "strength=0.1"], "txt2img has no 'strength' to vary"),
    "an option of another task": (
        [APPLE, "--x", "steps=1,2", "--strength", "0.5"],
        "a txt2img request has no field 'strength'",
    ),
    "out of range": ([APPLE, "--x", "steps=1,0"], "x steps=0: steps cannot be '0': give a whole number from 1 to 1000"),
    "unknown sampler": (
        [APPLE, "--x", "sampler=euler,magic", "--y", "steps=1,2"],
        "x sampler=magic: there is no sampler",
    ),
    "given and varied": ([APPLE, "--x", "steps=1,2", "--steps", "3"], "--steps is given, and varied by an axis"),
    "a model given and varied": ([APPLE, "--x", "model=tiny,other", "--model", "tiny"], "--model is given, and varied"),
    "no such model": (
        [APPLE, "--x", "model=tiny,nothing", "--y", "steps=1,2"],
        "x model=nothing: nothing does not exist",
    ),
    "no such task": ([APPLE, "--x", "steps=1,2", "--task", "paint"], "there is no task 'paint': the tasks are txt2img"),
    "no such part": ([APPLE, "--x", "prompt:pear=a,b"], "x prompt:pear: 'pear' is not in the prompt"),
    "no such font": ([APPLE, "--x", "steps=1,2", "--font", "gone.ttf"], "--font 'gone.ttf' is no font"),
    "cells of no size": ([APPLE, "--x", "steps=1,2", "--cell-size", "0"], "--cell-size cannot be 0"),
    "not a png": ([APPLE, "--x", "steps=1,2", "--output", "out.jpg"], "must end in .png"),
    "from nowhere": (["--from", "gone.png", "--x", "steps=1,2"], "there is no picture 'gone.png'"),
    "from a stranger": (["--from", "stranger.png", "--x", "steps=1,2"], "no Safelight record"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (32, 32)).save("stranger.png")
    arguments, words = MISTAKES[name]
    before = content()
    code = main(["grid", *arguments])
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.count("\n") == 1, printed.err
    assert words in printed.err
    assert content() == before
    assert not list(Path().glob("*-cells"))


def test_the_axes_are_read_before_torch_is() -> None:
    check = (
        "import sys\nfrom safelight.cli import main\n"
        "for axis in ('steps=1,0', 'stepz=1', 'prompt:pear=a,b'):\n"
        "    assert main(['grid', 'an apple', '--x', axis]) == 2\n"
        "assert main(['grid', '--help']) == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Watched from within, so that it cannot be done before anybody looks, however busy the machine is; and heard, also
# where a shell started the tests in the background, which has its children deaf to this signal.
INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path

def watch():
    while len(list(Path().glob("g-cells/*.png"))) < 2:
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=watch, daemon=True).start()
from safelight.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_a_grid_that_is_interrupted_leaves_whole_files_and_goes_on(folder: str) -> None:
    arguments = [
        "grid",
        APPLE,
        "--x",
        "seed=1..6",
        "--steps",
        "100",
        "--model",
        folder,
        *SMALL[4:],
        "--output",
        "g.png",
    ]
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments], stderr=subprocess.PIPE, text=True, timeout=240, check=False
    )
    error = process.stderr
    assert process.returncode == 130, error
    assert "Traceback" not in error
    cells = content()
    assert 2 <= len(cells) - 1 < 6
    assert "g.png" not in cells
    assert all(name.endswith((".png", "grid.json")) for name in cells), "nothing is half-written"
    for name in cells:
        if name.endswith(".png"):
            read_record(name)
    times = {name: Path(name).stat().st_mtime_ns for name in cells if name.endswith(".png")}
    run(*arguments)
    assert len(content()) == 6 + 2
    assert times == {name: Path(name).stat().st_mtime_ns for name in times}, "what was there was kept"


def test_the_shipped_model_draws_a_grid(capsys: pytest.CaptureFixture[str]) -> None:
    run("grid", "a red apple on a blue background", "--x", "prompt:red=red,green", "--y", "seed=1,2", "--steps", "3")
    [sheet] = Path().glob("safelight-grid-*.png")
    assert capsys.readouterr().out == f"{sheet}\n"
    with Image.open(sheet) as image:
        assert image.width > 2 * 128
        assert image.height > 2 * 128
