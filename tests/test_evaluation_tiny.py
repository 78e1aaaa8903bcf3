"""`safelight evaluate tiny` as a user types it, with random weights of the real classes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from safelight.checkpoints.components import read_judge, write_judge
from safelight.cli import main
from safelight.errors import RequestError, TrainingError
from safelight.evaluation.measuring import Measuring, Plan, runs
from safelight.evaluation.report import CURVE
from safelight.evaluation.sheet import contact_sheet
from safelight.evaluation.tiny import parse_scales
from safelight.models.judge import Judge, JudgeConfig
from safelight.tasks.metadata import Record
from safelight.tasks.requests import TextToImage
from safelight.training.recipes.judge import JudgeRecipe
from safelight.training.scenes import GROUNDS, LAYOUTS, NAMES, Scenes
from toy import toy_folder, toy_model

MODEL = toy_model()


def toy_judge() -> Judge:
    torch.manual_seed(0)
    config = JudgeConfig(len(NAMES), len(GROUNDS), len(LAYOUTS), channels=(8, 8, 8), blocks=(1, 1, 1))
    return Judge(config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model's and a judge's."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_judge(folder / "judge", toy_judge())
    return str(toy_folder(folder / "toy")), str(folder / "judge")


def test_a_whole_measurement(folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "tiny", "--model", folders[0], "--judge", folders[1], "--prompts", "10"]
    command += ["--guidance", "1,4", "--curve", "3", "--steps", "1", "--sampler", "euler"]
    sheet, card = tmp_path / "sheet.png", tmp_path / "card.md"
    assert main([*command, "--json", "--sheet", str(sheet), "--markdown", str(card)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["prompts"], report["singles"], report["pairs"]) == (10, 6, 4)
    assert report["drawn"]["object"]["asked"] == 6
    assert report["drawn"]["ground"]["asked"] == report["real"]["ground"]["asked"] == 10
    assert report["drawn"]["pair"]["goal"] == 0.6
    assert report["reached"] is False
    assert [point["guidance"] for point in report["curve"]] == [1.0, 4.0]
    assert all(point["object"]["asked"] == point["pair"]["asked"] == 3 for point in report["curve"])
    assert report["request"]["steps"] == 1
    assert 0 < report["psnr"] < 30, "random weights rebuild nothing"
    with Image.open(sheet) as image:
        assert image.width > 8 * 128
        assert image.height > 8 * 128
    text = card.read_text()
    assert "| ground colour right | 10 |" in text
    assert "| 4* |" in text

    assert main(command) == 0
    table = capsys.readouterr().out
    assert "on 10 prompts never trained on: 6 with one object, 4 with two" in table
    assert len([line for line in table.splitlines() if line.startswith(("object right", "ground colour"))]) == 2


def test_the_curve_at_the_tables_guidance_is_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    plan = Plan(10, (1.0, MODEL.preset.guidance), curve=100, steps=1)
    measuring = Measuring(MODEL, toy_judge(), plan, done.append)
    report = measuring.run("")
    assert sum(done) == measuring.count == 30, "drawn, real and rebuilt, and one of the two points"
    same = report.curve[1].shares
    assert same == {question: report.measured.drawn[question] for question in CURVE}


def test_measuring_twice_gives_the_same_numbers_whatever_the_batch() -> None:
    plan = Plan(10, (), steps=1)
    first = Measuring(MODEL, toy_judge(), plan, lambda _: None)
    second = Measuring(MODEL, toy_judge(), plan, lambda _: None)
    second.batch = 3
    a, b = first.run(""), second.run("")
    assert a.measured == b.measured


def test_many_prompts_in_one_batch_are_the_pictures_of_each_alone() -> None:
    words = ["a red apple", "a dog on the left", "a rocket above a strawberry"]
    request = TextToImage(prompt="", seed=5, batch=3, steps=2, width=32, height=32)
    together = MODEL.draw(request, prompts=words)
    for k, (prompt, image) in enumerate(zip(words, together, strict=True)):
        record = Record.model_validate_json(image.info["safelight"]).asked()
        assert (record.prompt, record.seed, record.batch) == (prompt, 5 + k, 1)
        (alone,) = MODEL.draw(record)
        pairs = zip(alone.tobytes(), image.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 1
    assert together[0].tobytes() != MODEL.draw(request)[0].tobytes(), "the words must matter"
    with pytest.raises(RequestError, match="3 prompts for a batch of 2"):
        MODEL.draw(request.changed(batch=2), prompts=words)


def test_runs_have_no_gaps() -> None:
    assert runs([0, 1, 2, 3, 7, 8], 3) == [[0, 1, 2], [3], [7, 8]]
    assert runs([], 3) == []


def test_a_contact_sheet_has_every_picture_in_its_place() -> None:
    shades = [Image.new("RGB", (8, 8), (10 * k, 0, 0)) for k in range(16)]
    sheet = contact_sheet([("one", shades), ("two", shades), ("three", shades)])
    for block, (left, top) in enumerate([(12, 12), (12 + 70 + 12, 12)]):
        for k in range(16):
            at = (left + k % 4 * 18 + 8, top + k // 4 * 18 + 8)
            assert sheet.getpixel(at) == (10 * k, 0, 0), f"block {block}, picture {k}"
    assert sheet.width == 12 + 2 * (70 + 12)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--guidance", "1,two", "'two' is no number"),
        ("--guidance", "nan", "'nan' is no number"),
        ("--guidance", "1,-3", "guidance"),
        ("--prompts", "3", "ask for 10 to 5000"),
        ("--curve", "0", "--curve 1 or more"),
        ("--sampler", "magic", "the samplers are"),
        ("--steps", "0", "steps"),
        ("--judge", "nowhere", "judge.json is missing"),
        ("--sheet", "nowhere/sheet.png", "there is no folder"),
        ("--sheet", "sheet.jpg", "must end in .png"),
    ],
)
def test_a_mistake_is_one_line(
    folders: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"--model": folders[0], "--judge": folders[1], option: value}
    assert main(["evaluate", "tiny", *(word for pair in options.items() for word in pair)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_scales_are_read() -> None:
    assert parse_scales("1, 4,7.5") == (1.0, 4.0, 7.5)
    assert parse_scales("none") == ()


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from safelight.cli import main; main(['evaluate', 'tiny', '--help'])"
    code += "\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--guidance" in done.stdout


def test_the_judge_is_trained_from_the_command_line_and_read_again(tmp_path: Path) -> None:
    output = tmp_path / "judge"
    command = ["train", "judge", "--output", str(output), "--images", "32", "--batch", "8", "--size", "32"]
    assert main([*command, "--count", "64", "--workers", "0", "--device", "cpu"]) == 0
    judge = read_judge(output)
    assert judge.config.image_size == 32
    with pytest.raises(TrainingError, match="a multiple of 8"):
        JudgeRecipe(Scenes(4, size=36, split="all"), seed=0)


def test_a_judge_learns_where_and_what_from_a_few_pictures() -> None:
    """A step of every loss: all of the judge's answers get better on one batch."""
    recipe = JudgeRecipe(Scenes(8, size=32, split="all"), seed=0)
    batch = recipe.batch(0, 8)
    rows, columns = batch.spots[:, 2], batch.spots[:, 3]
    assert ((rows >= 0) & (rows < 4) & (columns >= 0) & (columns < 4)).all()
    for k in range(8):
        there = batch.spots[batch.spots[:, 0] == k, 1]
        assert sorted(there.tolist()) == batch.objects[k].nonzero().flatten().tolist()
    optimizer = torch.optim.AdamW(recipe.judge.parameters(), 3e-3)
    logs = []
    for step in range(25):
        (turn,) = recipe.turns(batch, torch.Generator().manual_seed(step), 0)
        logs.append({key: float(value) for key, value in turn.log.items()})
        optimizer.zero_grad()
        torch.autograd.backward(turn.loss)
        optimizer.step()
    assert all(p.grad is not None and bool(p.grad.any()) for p in recipe.judge.parameters())
    assert logs[-1]["loss"] < 0.5 * logs[0]["loss"]
    assert logs[-1]["what"] < 0.8 * logs[0]["what"], "which object is where"
