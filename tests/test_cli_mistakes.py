"""Every mistake of a user is one line on stderr, exit code 2, and nothing written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from safelight.cli import main
from safelight.presets import PRESETS
from safelight.tasks.requests import TASKS
from toy import toy_folder

DRAW = ["txt2img", "a dog", "--model", "MODEL", "--output", "out.png"]

DIFFUSION = ["train", "diffusion", "--output", "run", "--text-encoder", "nope", "--autoencoder", "nope"]

MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown command": (
        ["draw"],
        f"there is no command 'draw': the commands are {', '.join(TASKS)}, "
        "grid, prompt, metadata, models, convert, train, evaluate\n",
    ),
    "mistyped command": (["trian"], "did you mean train?"),
    "help of an unknown command": (["help", "draw"], "there is no command 'draw'"),
    "unknown option": (
        [*DRAW, "--stepz", "3"],
        "there is no option --stepz: did you mean --steps? see `safelight txt2img --help`\n",
    ),
    "unknown short option": ([*DRAW, "-x"], "there is no option -x: see"),
    "no prompt": (["txt2img"], 'the prompt is missing: txt2img needs one, like "a red apple"\n'),
    "prompt without quotes": (
        ["txt2img", "a", "red", "apple"],
        "'red apple' is too much: put the prompt in quotes, like \"a red apple\"\n",
    ),
    "steps not a number": ([*DRAW, "--steps", "many"], "--steps cannot be 'many': give a whole number\n"),
    "option without value": ([*DRAW, "--steps"], "--steps needs a value"),
    "option twice": ([*DRAW, "--steps", "1", "--steps", "2"], "--steps is given more than once"),
    "flag with value": ([*DRAW, "--json=3"], "--json cannot be '3': give it without a value"),
    "steps 0": ([*DRAW, "--steps", "0"], "steps cannot be 0: give a whole number from 1 to 1000"),
    "nan guidance": ([*DRAW, "--guidance", "nan"], "guidance cannot be nan"),
    "inf guidance": ([*DRAW, "--guidance", "inf"], "guidance cannot be inf"),
    "batch 0": ([*DRAW, "--batch", "0"], "batch cannot be 0"),
    "negative seed": ([*DRAW, "--seed", "-1"], "seed cannot be -1"),
    "unknown sampler": (
        [*DRAW, "--sampler", "magic"],
        "the samplers are ddim, ddpm, deis, dpm_2",
    ),
    "unknown schedule": ([*DRAW, "--schedule", "magic"], "the schedules are align_your_steps, beta"),
    "size off the grid": (
        [*DRAW, "--width", "721", "--height", "408"],
        "the nearest that work are 720 or 728",
    ),
    "unknown dtype": ([*DRAW, "--dtype", "int4"], "--dtype cannot be 'int4': choose float32, bfloat16,"),
    "unknown device": ([*DRAW, "--device", "abacus"], "no device 'abacus'"),
    "no such model": (["txt2img", "x", "--model", "nothing.safetensors"], "nothing.safetensors"),
    "preset without weights": (["txt2img", "x", "--model", "sd1"], "not shipped"),
    "no picture's name": (["txt2img", "x", "--output", "out.gif"], "must end in .png, .jpg, .jpeg, .webp"),
    "output folder missing": (["txt2img", "x", "--output", "no/out.png"], "no folder 'no'"),
    "from nowhere": (["txt2img", "--from", "gone.png"], "there is no picture 'gone.png'"),
    "from a stranger": (["txt2img", "--from", "stranger.png"], "carries no Safelight record"),
    "img2img without image": (["img2img", "x"], "the image is missing: img2img needs one, like --image photo.png\n"),
    "img2img of no picture": (
        ["img2img", "x", "--image", "text.png", "--model", "MODEL"],
        "not a whole picture",
    ),
    "img2img without strength": (["img2img", "x", "--image", "stranger.png", "--strength", "0"], "strength"),
    "loop out of range": (["train", "clip", "--output", "run", "--lr", "0"], "--lr is 0.0"),
    "loop option of two words": (["train", "clip", "--output", "run", "--final-lr", "2"], "--final-lr is 2.0"),
    "setting of two words": ([*DIFFUSION, "--caption-dropout", "2"], "--caption-dropout is 2.0"),
    "clip of a size": (["train", "clip", "--output", "run", "--size", "128"], "give --size 64"),
    "autoencoder of a size": (
        ["train", "autoencoder", "--output", "run", "--size", "65"],
        "the nearest that work are 64 and 68",
    ),
    "perceptual of nothing": (
        ["train", "autoencoder", "--output", "run", "--perceptual", "nope"],
        "--perceptual 'nope' holds no trained clip: give a folder from `safelight train clip`, or a file",
    ),
    "text encoder of nothing": (DIFFUSION, "--text-encoder 'nope' holds no trained clip: give a folder from"),
    "run into a file": (["train", "clip", "--output", "text.png"], "--output 'text.png' is no folder"),
    "data for the judge": (["train", "judge", "--output", "run", "--data", "precious"], "there is no option --data"),
    "nothing to train on": (["train", "clip", "--output", "run", "--data", "precious"], "precious"),
    "no output for a run": (
        ["train", "clip"],
        "--output is missing: the usage is `safelight train clip --output PATH [OPTIONS]`\n",
    ),
    "no folder to convert into": (
        ["convert", "MODEL"],
        "OUTPUT is missing: the usage is `safelight convert SOURCE OUTPUT [OPTIONS]`\n",
    ),
    "too much to convert": (["convert", "a", "b", "c"], "'c' is too much: see `safelight convert --help`"),
    "no such preset": ([*DRAW, "--preset", "magic"], f"the presets are {', '.join(PRESETS)}\n"),
    "show nothing": (["models", "show", "nothing"], "nothing"),
    "convert over something": (["convert", "MODEL", "precious"], "precious"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toy_folder(tmp_path_factory.mktemp("models") / "toy"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("stranger.png")
    Path("text.png").write_text("no picture")
    Path("precious").mkdir()
    Path("precious/letter.txt").write_text("dear")


def content() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_exit_code_two_and_nothing_written(name: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = MISTAKES[name]
    before = content()
    code = main([model if a == "MODEL" else a for a in arguments])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert words in printed.err
    assert content() == before


@pytest.mark.parametrize("name", ["unknown sampler", "steps 0", "nan guidance", "size off the grid", "unknown option"])
def test_the_real_command_prints_the_same_one_line(name: str, model: str) -> None:
    arguments, words = MISTAKES[name]
    command = [sys.executable, "-m", "safelight", *(model if a == "MODEL" else a for a in arguments)]
    before = content()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
    assert content() == before


def test_damaged_weights_name_the_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = toy_folder(tmp_path / "damaged")
    weights = next((copy / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(["txt2img", "x", "--model", str(copy), "--output", "out.png"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert weights.name in error
    assert not Path("out.png").exists()


def test_a_full_disk_leaves_nothing(model: str) -> None:
    code = (
        "import resource, sys; from safelight.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"  # as a full disk does
        "sys.exit(main(sys.argv[1:]))"
    )
    size = ["--width", "32", "--height", "32", "--steps", "1"]
    command = [sys.executable, "-c", code, "txt2img", "a dog", "--model", model, *size, "--output", "out.png"]
    before = content()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "out.png" in done.stderr
    assert content() == before


def test_an_interrupt_is_quiet_and_leaves_nothing(model: str) -> None:
    many = [
        "--steps",
        "1000",
        "--sampler",
        "euler",
        "--schedule",
        "karras",
        "--width",
        "256",
        "--height",
        "256",
    ]
    command = [sys.executable, "-m", "safelight", "txt2img", "x", "--model", model, *many]
    before = content()
    process = subprocess.Popen(
        [*command, "--save-steps", "steps"],
        stderr=subprocess.PIPE,
        text=True,
        # Tests in the background inherit that interrupts are ignored; a user's shell does not do that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  (no threads here)
    )
    deadline = time.monotonic() + 120
    while not Path("steps/step-001.png").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "")
    assert {k: v for k, v in content().items() if not k.startswith("steps/step-")} == before


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("safelight.tasks.files.known_models", broken)
    with pytest.raises(ZeroDivisionError):
        main(["models", "list"])
