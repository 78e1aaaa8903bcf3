"""A request from any picture (`--from`), the command line that makes it again, and `safelight metadata show`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from cyclopts import App
from PIL import Image

from metadata_cases import MODEL, png, request
from safelight.cli import app as safelight_app
from safelight.cli import main
from safelight.cli.metadata import register
from safelight.errors import RequestError
from safelight.tasks.metadata import RECORD_CHUNK, ModelHint, Record, Recovered, recover, request_from
from safelight.tasks.metadata.recovered import fitting
from safelight.tasks.pictures import to_data_uri
from safelight.tasks.request import asked
from safelight.tasks.requests import TASKS, ClassToImage, ImageToImage, Inpaint, Prompted, TextToImage
from toy import toy_folder

TEXT = (
    "a house\nNegative prompt: blurry\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x96, "
    "Model hash: ab12ab12ab, Model: house, RNG: CPU, Clip skip: 2, Tiling: True"
)
DRAWN = TextToImage(
    prompt="a fox", seed=3, steps=2, sampler="euler", spacing="karras", guidance=2.0, width=64, height=32
)


def ours(path: Path, asked: Prompted | ClassToImage, local: bool = False) -> Path:
    model = MODEL.model_copy(update={"local": local})
    return png(path, {RECORD_CHUNK: Record.of(asked, model).to_json()})


def test_our_own_picture_gives_its_very_request(tmp_path: Path) -> None:
    picture = ours(tmp_path / "a.png", DRAWN)
    taken = request_from(picture, "txt2img")
    assert (taken.request, taken.notes, taken.source(), taken.dtype()) == (DRAWN, (), "tiny", "float32")
    assert request_from(picture.read_bytes(), "txt2img", {"seed": 0}).request == DRAWN.changed(seed=0)
    assert taken.other_weights(MODEL.sha256) is None
    assert "other weights (0000000000)" in str(taken.other_weights("0" * 64))


def test_a_local_model_must_be_named_again(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"local path, which is not recorded: give --model \(weights ab12ab12ab\)"):
        request_from(ours(tmp_path / "a.png", DRAWN, local=True), "txt2img").source()


def test_the_refiner_is_found_again_or_asked_for(tmp_path: Path) -> None:
    refiner = MODEL.model_copy(update={"name": "fine"})
    for local in (False, True):
        named = refiner.model_copy(update={"local": local})
        picture = png(tmp_path / "a.png", {RECORD_CHUNK: Record.of(DRAWN, MODEL, named).to_json()})
        taken = request_from(picture, "txt2img")
        assert taken.found.command("a.png").endswith("--refiner fine")
        if local:
            with pytest.raises(RequestError, match="give --refiner"):
                taken.refiner()
        else:
            assert taken.refiner() == "fine"
    assert request_from(ours(tmp_path / "b.png", DRAWN), "txt2img").refiner() is None


@pytest.mark.parametrize("task", [task for task, kind in TASKS.items() if issubclass(kind, Prompted)])
def test_every_task_told_by_words_takes_them_from_any_picture(task: str, tmp_path: Path) -> None:
    given = {
        name: "photo.png" if field.annotation is not int else 1
        for name, field in asked(TASKS[task]).items()
        if field.is_required() and name != "prompt"
    }
    for picture, words in (
        (ours(tmp_path / "a.png", DRAWN), "a fox"),
        (png(tmp_path / "b.png", {"parameters": TEXT}), "a house"),
    ):
        taken = request_from(picture, task, given)
        assert isinstance(taken.request, Prompted)
        assert (taken.request.task, taken.request.prompt) == (task, words)
        assert taken.request.steps in (2, 20)
        if task != "txt2img":
            assert taken.request.width is None, "the picture that it begins with says the size"


def test_what_another_tool_says_and_a_request_cannot_is_noted(tmp_path: Path) -> None:
    taken = request_from(png(tmp_path / "a.png", {"parameters": TEXT}), "txt2img", {"steps": 5})
    fields: dict[str, object] = {"prompt": "a house", "negative_prompt": "blurry", "seed": 1, "steps": 5}
    fields |= {"guidance": 7, "width": 64, "height": 96}
    assert taken.request.model_dump(include=set(fields)) == fields
    assert any("tiling: True" in note for note in taken.notes)
    with pytest.raises(RequestError, match=r"drawn by AUTOMATIC1111 with house \(hash ab12ab12ab\): give --model"):
        taken.source()
    assert (taken.dtype(), taken.other_weights("ab12ab12ab" + "0" * 54)) == (None, None)
    assert "other weights" in str(taken.other_weights("0" * 64))
    for other_kind in ("45dee52b", "blake3:ab12cd34ab12cd34"):  # A1111 before 2023, and InvokeAI
        picture = png(tmp_path / "b.png", {"parameters": TEXT.replace("ab12ab12ab", f'"{other_kind}"')})
        assert request_from(picture, "txt2img").other_weights("0" * 64) is None


def test_another_task_of_ours_leaves_what_it_has_no_field_for(tmp_path: Path) -> None:
    drawn = Inpaint(**DRAWN.model_dump(), image="a.png", image_sha256="0" * 64, mask="m.png", blur=9, strength=0.5)
    taken = request_from(ours(tmp_path / "a.png", drawn), "img2img")
    assert isinstance(taken.request, ImageToImage)
    assert (taken.request.image, taken.request.image_sha256, taken.request.strength) == ("a.png", None, 0.5)
    assert sorted(note.split()[0] for note in taken.notes) == ["blur", "mask"]


def test_tasks_without_words_take_only_from_their_own(tmp_path: Path) -> None:
    labelled = ClassToImage(label=5, seed=1)
    picture = ours(tmp_path / "a.png", labelled)
    assert request_from(picture, "class2img").request == labelled
    with pytest.raises(RequestError, match=r"was made by class2img.*use `safelight class2img --from"):
        request_from(picture, "txt2img")
    with pytest.raises(RequestError, match="was made by txt2img"):
        request_from(png(tmp_path / "b.png", {"parameters": TEXT}), "unconditional")


@pytest.mark.parametrize("task", TASKS)
def test_every_task_makes_its_own_picture_again(task: str, tmp_path: Path) -> None:
    least = {name: field.examples[0] for name, field in asked(TASKS[task]).items() if field.examples}
    drawn = TASKS[task].model_validate({**least, "seed": 4})
    picture = ours(tmp_path / "a.png", drawn)  # type: ignore[arg-type]
    assert request_from(picture, task, {"steps": 3}).request == drawn.changed(steps=3)


def test_values_out_of_range_are_left_out_one_by_one() -> None:
    fields, refused = fitting("txt2img", {"prompt": "x", "steps": 0, "seed": -1, "width": 64, "strength": 0.5})
    assert fields == {"prompt": "x", "width": 64}
    assert [note.split(":")[0] for note in refused] == [
        "steps cannot be 0",
        "seed cannot be -1",
        "strength 0.5 is left out",
    ]


# -- the command line


def parsed(line: str) -> tuple[str, dict[str, object]]:
    """What our own parser understands of a command line: the task, and the options by our names."""
    words = shlex.split(line)
    assert words[0] == "safelight"
    _, bound, _ = safelight_app.parse_args(words[1:], exit_on_error=False, print_error=False)
    return words[1], dict(bound.arguments)


def test_the_command_says_the_request_whatever_the_words() -> None:
    for seed in range(60):
        drawn = request(seed)
        fields = drawn.model_dump(mode="json")
        task, options = parsed(Recovered("x", drawn.task, fields, ModelHint("--odd name")).command("a.png"))
        drawing = options.pop("drawing")
        assert drawing.model == "--odd name"  # type: ignore[attr-defined]
        given = {name: value for name, value in options.items() if name in fields and value is not None}
        assert TASKS[task].model_validate(given) == drawn, f"case {seed}"


def test_options_of_many_parts_and_switches() -> None:
    drawn = DRAWN.changed(
        style=("ink wash", "-loud"), freeu=(1.5, 1.6, 0.9, 0.2), cfg_pp=True, apg=(0.0, 10.0, -0.5), emphasis="no-norm"
    )
    _, options = parsed(Recovered("x", "txt2img", drawn.model_dump(mode="json"), ModelHint()).command("a.png"))
    given = {name: value for name, value in options.items() if name in TextToImage.model_fields and value is not None}
    assert TextToImage.model_validate(given) == drawn


def test_sizes_and_pictures_in_commands() -> None:
    fields: dict[str, object] = {"prompt": "-x", "original_size": [1024, 512], "image": "my cat.png", "strength": 0.3}
    drawn = ImageToImage.model_validate(fields)
    task, options = parsed(Recovered("x", "img2img", drawn.model_dump(mode="json"), ModelHint()).command("a.png"))
    assert (task, options["prompt"], options["original_size"], options["image"]) == (
        "img2img",
        "-x",
        (1024, 512),
        "my cat.png",
    )
    whole = drawn.changed(image=to_data_uri(Image.new("RGB", (2, 2)))).model_dump(mode="json")
    assert Recovered("x", "img2img", whole, ModelHint()).command("a b.png") == "safelight img2img --from 'a b.png'"


# -- safelight metadata show


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> object:
    app = App(result_action="return_value")
    register(app)

    def run(*arguments: str) -> str:
        app(["metadata", "show", *arguments], exit_on_error=False, print_error=False)
        return capsys.readouterr().out

    return run


def test_show_says_all_of_it(show, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    picture = str(png(tmp_path / "a.png", {"parameters": TEXT.replace("a house", "a house\nin a wood")}))
    out = show(picture)
    for words in (
        "AUTOMATIC1111",
        "house (hash ab12ab12ab)",
        "a house\n",
        "tiling: True",
        "safelight txt2img 'a house",
    ):
        assert words in out
    told = json.loads(show(picture, "--json"))
    assert told["tool"] == "AUTOMATIC1111"
    assert told["request"]["sampler"] == "euler"
    assert told["model"] == {"name": "house", "hash": "ab12ab12ab"}
    assert told["command"].endswith("--model house")
    assert told["notes"]


def test_show_does_not_steer_the_terminal(show, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    hostile = DRAWN.changed(prompt="x\x1b[2Jy\x07")
    assert "\x1b" not in show(str(ours(tmp_path / "a.png", hostile)))
    assert "\x1b" not in show(str(png(tmp_path / "b.png", {"parameters": TEXT.replace("house", "\x1b[2J")})))


def test_the_command_draws_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(toy_folder(tmp_path / "toy"))
    draw = ["txt2img", "a 'red' apple", "--negative=-ugly", "--model", folder, "--seed", "5", "--steps", "2"]
    assert main([*draw, "--width", "32", "--height", "32", "--sampler", "euler_a", "--output", "a.png"]) == 0
    command = shlex.split(recover("a.png").command("a.png"))
    assert main([*command[1:], "--output", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
