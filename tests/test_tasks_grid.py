"""Grids: what an axis may say, which cells there are, that each is the picture of its own request, and what is kept."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from safelight.errors import ModelFileError, RequestError
from safelight.tasks.grid import drawing as grid_drawing
from safelight.tasks.grid.axes import MAX_VALUES, Axis, parse_axis, shown
from safelight.tasks.grid.drawing import Grid, Progress, draw_grid
from safelight.tasks.grid.plan import lay_out
from safelight.tasks.grid.record import GRID_CHUNK, read_grid
from safelight.tasks.grid.sheet import Label, Layout, Look, compose
from safelight.tasks.lettering import font, legible, mosaic, mosaic_size, wrapped
from safelight.tasks.metadata import read_record
from safelight.tasks.model import Model
from safelight.tasks.pictures import to_data_uri
from safelight.tasks.request import asked, flag
from safelight.tasks.requests import TASKS, ImageToImage, TextToImage
from toy import toy_folder, toy_model

BASE = TextToImage(prompt="a red apple on a blue ground", seed=3, steps=2, sampler="euler", width=32, height=32)
AXES = [Axis("sampler", ("euler", "heun", "ddim")), Axis("steps", (1, 2))]


@pytest.fixture(scope="module")
def model() -> Model:
    return toy_model()


def texts(*axes: str) -> list[Axis]:
    return [parse_axis(axis, TextToImage) for axis in axes]


# -- what an axis says


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("sampler=euler, heun ,dpmpp_2m", Axis("sampler", ("euler", "heun", "dpmpp_2m"))),
        ("schedule=none,karras", Axis("spacing", (None, "karras"))),
        ("spacing=karras", Axis("spacing", ("karras",))),
        ("steps=5..25:5", Axis("steps", (5, 10, 15, 20, 25))),
        ("steps=25..5:5,50", Axis("steps", (25, 20, 15, 10, 5, "50"))),
        ("seed=1..4", Axis("seed", (1, 2, 3, 4))),
        ("guidance=1..10:3", Axis("guidance", (1, 4, 7, 10))),
        ("guidance=0.1..0.5:0.1", Axis("guidance", (0.1, 0.2, 0.3, 0.4, 0.5))),
        ("guidance=1..2:0.75", Axis("guidance", (1, 1.75))),
        ("prompt=1..4,none", Axis("prompt", ("1..4", "none"))),
        ("negative=,ugly", Axis("negative_prompt", ("", "ugly"))),
        ('negative="",none', Axis("negative_prompt", ("", "none"))),
        ('prompt:apple=apple,pear,"green, house"', Axis("prompt", ("apple", "pear", "green, house"), "apple")),
        ('prompt:apple="say ""no""",none', Axis("prompt", ('say "no"', "none"), "apple")),
        ('prompt:"a=b"=c=d', Axis("prompt", ("c=d",), "a=b")),
        ("prompt:(word:1.3)=(word:1.3),(word:1.5)", Axis("prompt", ("(word:1.3)", "(word:1.5)"), "(word:1.3)")),
        ("crop=0x0,16 8,none", Axis("crop", (("0", "0"), ("16", "8"), None))),
        ("model=tiny,./folder", Axis("model", ("tiny", "./folder"))),
    ],
)
def test_an_axis_says(text: str, axis: Axis) -> None:
    assert parse_axis(text, TextToImage) == axis


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sampler", "gives no values: write FIELD=VALUES"),
        ("=euler", "gives no values"),
        ("samplr=euler", "txt2img has no 'samplr' to vary: did you mean sampler? an axis is one of model, "),
        ("strength=0.5", "txt2img has no 'strength'"),
        ("image_sha256=0", "no 'image_sha256'"),
        ("steps=1..5:0", "more than 1000 values"),
        ("seed=1..18446744073709551615", "more than 1000 values"),
        (f"seed={','.join(map(str, range(MAX_VALUES + 1)))}", "more than 1000 values"),
        ('prompt="a', "a quote that is not closed"),
        ('prompt="a"b,c', "a quote that is not closed"),
        ("steps:3=4", "names no part of a text"),
        ("model:tiny=x", "names no part of a text"),
        ("prompt:=x", "names no part of a text"),
    ],
)
def test_a_mistaken_axis_is_one_line(text: str, words: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_axis(text, TextToImage)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_any_text_can_be_quoted() -> None:
    chance = random.Random(0)
    for _ in range(500):
        values = ["".join(chance.choices('a ",=:;.\n\\é苹', k=chance.randrange(6))) for _ in range(3)]
        written = ",".join('"' + value.replace('"', '""') + '"' for value in values)
        assert parse_axis(f"prompt={written}", TextToImage).values == tuple(values)
        part = "p" + values[0]
        quoted = part.replace('"', '""')
        assert parse_axis(f'prompt:"{quoted}"={written}', TextToImage) == Axis("prompt", tuple(values), part)


def test_several_texts_are_one_value() -> None:
    class Styled(TextToImage):
        style: tuple[str, ...] = ()
        bright: bool = False

    base = Styled(**BASE.model_dump())
    axes = [parse_axis(text, Styled) for text in ('style=,photo,photo; "old" film', "bright=no,yes")]
    plan = lay_out(base, axes)
    assert plan.axes[0].values == ((), ("photo",), ("photo", '"old" film'))
    assert plan.axes[1].values == (False, True)
    assert len({cell.name for cell in plan.cells}) == 6


@pytest.mark.parametrize("task", TASKS)
def test_every_field_of_every_task_can_be_an_axis(task: str) -> None:
    for name, field in asked(TASKS[task]).items():
        for typed in {name, flag(name, field)}:
            axis = parse_axis(f"{typed}=1", TASKS[task])
            assert axis.field == name
            assert axis.name(TASKS[task]) == flag(name, field)


def test_values_are_shown_in_words() -> None:
    values = (None, True, False, 7.0, 7.5, 3, "euler", (64, 32), ("a", "b"), "", ())
    assert [shown(v) for v in values] == ["default", "yes", "no", "7", "7.5", "3", "euler", "64x32", "a; b", '""', '""']


# -- which cells there are


def test_cells_are_every_combination_with_names_of_their_own() -> None:
    axes = texts("prompt:apple=apple,pear,Pear,苹果,a/b", "guidance=1,7.5", "schedule=none,karras")
    plan = lay_out(BASE, axes)
    assert len(plan.cells) == len({cell.place for cell in plan.cells}) == 20
    names = [cell.name for cell in plan.cells]
    assert len({name.lower() for name in names}) == 20, "also on disks that do not know upper case"
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_") and len(name) < 200 for name in names)
    asked_ = {(c.request.prompt, c.request.guidance, c.request.spacing) for c in plan.cells}  # type: ignore[attr-defined]
    assert ("a red 苹果 on a blue ground", 7.5, None) in asked_
    assert len(asked_) == 20


def test_a_longer_axis_keeps_the_names_of_its_cells() -> None:
    short = {cell.name for cell in lay_out(BASE, texts("steps=10", "sampler=euler,heun")).cells}
    long = {cell.name for cell in lay_out(BASE, texts("steps=5,10", "sampler=ddim,euler,heun")).cells}
    assert short < long


def test_parts_are_replaced_in_one_go() -> None:
    """What replaces one part is not itself replaced, and the order of the axes does not matter."""
    one, other = texts("prompt:apple=blue,apple", "prompt:blue=apple,green")
    for axes in ([one, other], [other, one]):
        words = {cell.request.prompt for cell in lay_out(BASE, axes).cells}  # type: ignore[attr-defined]
        assert words == {f"a red {a} on a {b} ground" for a in ("blue", "apple") for b in ("apple", "green")}
    pies = lay_out(BASE.changed(prompt="apple pie, apple"), texts("prompt:apple=pear", "prompt:apple pie=plum jam"))
    assert [cell.request.prompt for cell in pies.cells] == ["plum jam, pear"]  # type: ignore[attr-defined]
    whole = texts('prompt="an apple","two apples"', "prompt:apple=pear,plum")
    words = [cell.request.prompt for cell in lay_out(BASE.changed(prompt="an apple"), whole).cells]  # type: ignore[attr-defined]
    assert words == ["an pear", "an plum", "two pears", "two plums"]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ([], "one to three axes"),
        (["steps=1,2", "seed=1", "guidance=1", "width=32"], "one to three axes, and not 4"),
        (["steps=1,2", "steps=3,4"], "two axes vary the same: steps, steps"),
        (["sampler=euler", "steps=five"], "y steps=five: steps cannot be 'five': give a whole number from 1 to 1000"),
        (["guidance=7.5,nan"], "x guidance=nan: guidance cannot be"),
        (["steps=5,5.0"], "x steps=5.0: this value is there twice"),
        (["prompt:pear=a,b"], "x prompt:pear: 'pear' is not in the prompt"),
        (["prompt:red apple=a", "prompt:apple=b"], "'apple' is not in the prompt of every cell"),
        (["seed=1..999", "steps=1..999"], "998001 cells, more than 4096"),
        (["model=,tiny"], "x model: a value is missing"),
    ],
)
def test_a_mistaken_value_is_one_line(axes: list[str], words: str) -> None:
    with pytest.raises(RequestError) as error:
        lay_out(BASE, texts(*axes))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (["sampler=euler,magic", "steps=1,2"], "x sampler=magic: there is no sampler 'magic'"),
        (["steps=1,2", "sampler=magic,euler"], "y sampler=magic: there is no sampler 'magic'"),
        (["sampler=magic,wizard", "steps=1,2"], "x sampler=magic, y steps=1: there is no sampler 'magic'"),
        (["guidance=1,2", "seed=1,2", "width=32,33"], "z width=33: width 33 is not a multiple of 8"),
        (["width=8192,32", "height=8192,32", "batch=2,1"], "x width=8192, y height=8192, z batch=2: 2 x 8192x8192 is"),
        (["steps=1,2", "model=nowhere,tiny"], "y model=nowhere: nowhere does not exist"),
    ],
)
def test_every_cell_is_looked_at_before_the_first_is_drawn(
    axes: list[str], words: str, model: Model, tmp_path: Path
) -> None:
    with pytest.raises((RequestError, ModelFileError)) as error:
        draw_grid(model, BASE, texts(*axes), tmp_path / "grid.png")
    assert str(error.value).startswith(words)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_the_base_is_not_put_upon_the_axes(model: Model, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^width 33 is not a multiple"):
        draw_grid(model, BASE.changed(width=33), AXES, tmp_path / "grid.png")


# -- drawing


class Counted:
    """A watch that counts, and may stop."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[Progress] = []
        self.stop_at = stop_at

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_each_cell_is_the_picture_of_its_request_and_stands_in_its_place(model: Model, tmp_path: Path) -> None:
    watch = Counted()
    axes = [Axis("seed", (1, 0, 7)), Axis("guidance", (1.0, 7.5))]  # no two cells are the same picture
    grid = draw_grid(model, BASE, axes, tmp_path / "grid.png", watch=watch)
    assert [(p.done, p.total) for p in watch.seen] == [(k + 1, 12) for k in range(12)]
    with Image.open(grid.sheet) as file:
        sheet = file.convert("RGB")
    places = {}
    for cell in grid.cells:
        x, y = cell.cell.place
        (alone,) = model.draw(BASE.changed(seed=(1, 0, 7)[x], guidance=(1.0, 7.5)[y]))
        with Image.open(cell.paths[0]) as saved:
            assert saved.tobytes() == alone.tobytes()
            assert saved.info == alone.info
        places[x, y] = found(sheet, alone.resize((128, 128), Image.Resampling.NEAREST))
    assert {x for x, _ in places.values()} == {places[0, 0][0] + 134 * k for k in range(3)}, "columns are x"
    assert {y for _, y in places.values()} == {places[0, 0][1] + 134 * k for k in range(2)}, "rows are y"
    assert all(at == (places[x, 0][0], places[0, y][1]) for (x, y), at in places.items())


def found(sheet: Image.Image, picture: Image.Image) -> tuple[int, int]:
    """The one place where the picture is on the sheet."""
    whole, row = sheet.tobytes(), picture.tobytes()[: picture.width * 3]
    places, at = [], whole.find(row)
    while at >= 0:
        y, x = divmod(at // 3, sheet.width)
        if at % 3 == 0 and sheet.crop((x, y, x + picture.width, y + picture.height)).tobytes() == picture.tobytes():
            places.append((x, y))
        at = whole.find(row, at + 1)
    [place] = places
    return place


def test_the_same_grid_is_the_same_bytes(model: Model, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        draw_grid(model, BASE, AXES, tmp_path / name / "grid.png")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_grid_that_was_interrupted_goes_on(model: Model, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    draw_grid(model, BASE, AXES, tmp_path / "whole" / "grid.png")
    part = tmp_path / "part"
    part.mkdir()
    with pytest.raises(KeyboardInterrupt):
        draw_grid(model, BASE, AXES, part / "grid.png", watch=Counted(stop_at=5))
    done = content(part)
    assert len(done) == 1 + 3, "the plan, and the cells of 1, 2 and 1 steps; the fourth has 2"
    assert done.items() <= content(tmp_path / "whole").items(), "nothing is half-written"
    watch = Counted()
    grid = draw_grid(model, BASE, AXES, part / "grid.png", watch=watch)
    assert [cell.kept for cell in grid.cells] == [True] * 3 + [False] * 3
    assert [(p.done, p.total) for p in watch.seen] == [(k + 1, 5) for k in range(5)]
    assert content(part) == content(tmp_path / "whole")


def remade(model: Model, output: Path, base: TextToImage = BASE) -> list[bool]:
    return [not cell.kept for cell in draw_grid(model, base, AXES, output).cells]


def test_only_what_is_missing_or_another_is_drawn_again(model: Model, tmp_path: Path) -> None:
    output = tmp_path / "grid.png"
    grid = draw_grid(model, BASE, AXES, output)
    before = content(tmp_path)
    assert remade(model, output) == [False] * 6
    grid.cells[1].paths[0].unlink()
    grid.cells[2].paths[0].write_bytes(grid.cells[2].paths[0].read_bytes()[:-40])
    grid.cells[3].paths[0].write_bytes(grid.cells[4].paths[0].read_bytes())
    Image.new("RGB", (32, 32)).save(grid.cells[5].paths[0])
    assert remade(model, output) == [False, True, True, True, False, True]
    assert content(tmp_path) == before
    assert remade(model, output, BASE.changed(prompt="a dog")) == [True] * 6
    assert remade(model, output, BASE.changed(prompt="a dog")) == [False] * 6
    assert remade(toy_model(seed=1), output, BASE.changed(prompt="a dog")) == [True] * 6, "other weights"


def test_without_a_seed_all_cells_have_the_same_and_the_grid_goes_on_with_it(model: Model, tmp_path: Path) -> None:
    def seeds(grid: Grid) -> set[int | None]:
        return {cell.request.seed for cell in grid.cells}

    open_ = BASE.changed(seed=None)
    first = draw_grid(model, open_, AXES, tmp_path / "grid.png")
    assert len(seeds(first)) == 1
    again = draw_grid(model, open_, AXES, tmp_path / "grid.png")
    assert seeds(again) == seeds(first)
    assert all(cell.kept for cell in again.cells)
    other = draw_grid(model, open_.changed(prompt="a dog"), AXES, tmp_path / "grid.png")
    assert seeds(other) != seeds(first)
    mixed = draw_grid(model, open_, [Axis("seed", (None, 5)), AXES[1]], tmp_path / "seeds.png")
    assert len(seeds(mixed)) == 2
    assert 5 in seeds(mixed)


def test_a_batch_is_one_cell(model: Model, tmp_path: Path) -> None:
    grid = draw_grid(model, BASE.changed(batch=3), [Axis("steps", (1, 2))], tmp_path / "grid.png")
    assert [len(cell.paths) for cell in grid.cells] == [3, 3]
    together = model.draw(BASE.changed(batch=3, steps=2))
    for path, picture in zip(grid.cells[1].paths, together, strict=True):
        with Image.open(path) as saved:
            assert saved.info == picture.info
            assert saved.tobytes() == picture.tobytes()
    again = draw_grid(model, BASE.changed(batch=3), [Axis("steps", (1, 2))], tmp_path / "grid.png")
    assert all(cell.kept for cell in again.cells)


def test_each_model_is_loaded_once_and_one_at_a_time(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    names = (str(toy_folder(tmp_path / "a" / "toy")), str(tmp_path / "other"))
    toy_model(seed=1).save(names[1])
    loaded: list[str] = []
    plain: Callable[..., Model] = grid_drawing.load

    def counting(name: str, device: object, dtype: object, *, low_memory: bool) -> Model:
        if not low_memory:
            loaded.append(name)
        return plain(name, device, dtype, low_memory=low_memory)

    monkeypatch.setattr(grid_drawing, "load", counting)
    axes = [Axis("steps", (1, 2)), Axis("model", names)]
    grid = draw_grid(model, BASE, axes, tmp_path / "grid.png")
    assert loaded == list(names), "although the models are the rows and not the columns"
    for cell in grid.cells:
        (alone,) = plain(cell.cell.model).draw(cell.request)
        with Image.open(cell.paths[0]) as saved:
            assert saved.tobytes() == alone.tobytes()
            assert saved.info == alone.info
    draw_grid(model, BASE, axes, tmp_path / "grid.png")
    assert loaded == list(names), "nothing is missing, so none is needed"
    assert [m.name for m in grid.record.models] == ["toy", "other"]
    assert str(tmp_path) not in grid.record.to_json(), "the folders above a model are nobody's affair"
    assert not any("pytest" in path.name for cell in grid.cells for path in cell.paths)


def test_other_tasks_have_grids_too(model: Model, tmp_path: Path) -> None:
    sources = [to_data_uri(Image.effect_noise((32, 32), sigma).convert("RGB")) for sigma in (20, 90)]
    base = ImageToImage(**BASE.model_dump(), image=sources[0])
    axes = [Axis("image", tuple(sources)), Axis("strength", (0.5, 1.0))]
    grid = draw_grid(model, base, axes, tmp_path / "grid.png")
    for cell in grid.cells:
        x, y = cell.cell.place
        (alone,) = model.draw(base.changed(image=sources[x], strength=(0.5, 1.0)[y]))
        with Image.open(cell.paths[0]) as saved:
            assert saved.tobytes() == alone.tobytes()
    assert all(cell.kept for cell in draw_grid(model, base, axes, tmp_path / "grid.png").cells)


# -- the sheet


def test_the_sheet_tells_how_it_was_made(model: Model, tmp_path: Path) -> None:
    axes = [*texts("prompt:apple=apple,苹果,naïve “pear”", "crop=none"), Axis("guidance", (1.0, 0.1))]
    grid = draw_grid(model, BASE, axes[:1] + axes[2:], tmp_path / "grid.png")
    record = read_grid(grid.sheet)
    assert record is not None
    assert record == grid.record
    assert record.asked() == (BASE, (axes[0], axes[2]))
    assert record.models == [model.identity]
    with Image.open(grid.sheet) as sheet, Image.open(grid.cells[0].paths[0]) as first:
        assert sheet.info["parameters"] == first.info["parameters"]
        assert sheet.info[GRID_CHUNK].isascii()
    with pytest.raises(RequestError, match="Safelight record"):
        read_record(grid.sheet)
    assert read_grid(grid.cells[0].paths[0]) is None
    assert grid.unwritten == "苹果"


def test_a_damaged_grid_record_is_one_line(tmp_path: Path) -> None:
    from PIL import PngImagePlugin  # noqa: PLC0415

    for text in ("{", "{}", '{"task": "txt2img", "request": {}, "axes": [], "models": []}'):
        info = PngImagePlugin.PngInfo()
        info.add_text(GRID_CHUNK, text)
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
        with pytest.raises(RequestError, match="it is damaged, or of a newer version"):
            read_grid(tmp_path / "a.png")


def layout(columns: int, rows: int, blocks: int, size: tuple[int, int] = (64, 64), look: Look = Look()) -> Layout:  # noqa: B008
    labels = [
        [Label("field", f"{axis} {k}") for k in range(n)]
        for axis, n in zip("xyz", (columns, rows, blocks), strict=True)
    ]
    spots = {(x, y, z): size for x in range(columns) for y in range(rows) for z in range(blocks)}
    return Layout(look, tuple(labels), spots)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "cell_size", "on_the_sheet"),
    [
        ((64, 64), None, (128, 128)),
        ((64, 32), None, (128, 64)),
        ((40, 40), None, (160, 160)),
        ((512, 256), None, (512, 256)),
        ((512, 256), 100, (100, 50)),
        ((64, 64), 200, (192, 192)),
    ],
)
def test_pictures_are_seen_and_pixels_stay_square(
    size: tuple[int, int], cell_size: int | None, on_the_sheet: tuple[int, int]
) -> None:
    assert layout(2, 2, 1, size, Look(cell_size)).scaled(size) == on_the_sheet


@pytest.mark.parametrize(("blocks", "abreast"), [(1, 1), (2, 2), (3, 3), (4, 2), (6, 3), (7, 3), (9, 3)])
def test_blocks_make_about_a_square(blocks: int, abreast: int) -> None:
    assert layout(3, 3, blocks).abreast == abreast
    assert layout(20, 1, 4).abreast == 1, "wide blocks are stacked"
    assert layout(1, 20, 4).abreast == 4, "high ones stand side by side"


def test_nothing_on_the_sheet_covers_anything_else() -> None:
    """Where no cell is there is only paper and ink; labels end before the pictures."""
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    plan = layout(3, 2, 3)
    sheet = compose(plan, lambda _: red)
    assert sheet.size == plan.size
    colours = {colour: count for count, colour in sheet.getcolors(1 << 20)}  # type: ignore[union-attr]
    assert colours[255, 0, 0] == 18 * 128 * 128
    greys = [colour for colour in colours if colour != (255, 0, 0)]
    assert all(max(colour) - min(colour) <= 1 for colour in greys), "letters on red would be neither"
    assert len(greys) > 10, "there are labels"


def test_the_labels_of_two_values_differ() -> None:
    """In the cell's own column, over the pictures: the only thing that differs between two sheets is the word."""
    white = Image.new("RGB", (64, 64), "white")
    sheets = []
    for word in ("euler", "heun"):
        plan = Layout(
            Look(),
            ([Label("sampler", word), Label("sampler", "ddim")], [], []),
            {(0, 0, 0): (64, 64), (1, 0, 0): (64, 64)},
        )
        sheets.append(compose(plan, lambda _: white))
    box = ImageChops.difference(*sheets).getbbox()
    assert box is not None
    assert box[2] <= 16 + 128, "the other column is as it was"


def test_a_sheet_that_is_too_large_is_refused_before_anything_is_drawn(model: Model, tmp_path: Path) -> None:
    axes = [Axis("seed", tuple(range(60))), Axis("steps", tuple(range(1, 61)))]
    with pytest.raises(RequestError, match=r"the sheet would be \d+x\d+, more than 89 million pixels: .* --cell-size"):
        draw_grid(model, BASE.changed(width=512, height=512), axes, tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []


def calls(work: Callable[[], object]) -> int:
    """How many functions some work calls, Python's and the libraries': what it costs, on a busy machine, too."""
    count = 0

    def seen(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_the_work_of_a_sheet_grows_with_its_cells_and_not_with_their_square() -> None:
    few, many = (calls(lambda side=side: layout(side, side, 1).require_room()) for side in (16, 64))  # type: ignore[misc]
    assert many < 1.5 * (64 / 16) ** 2 * few


# -- letters


@pytest.mark.parametrize("width", [40, 90, 300])
@pytest.mark.parametrize("most", [1, 3, 50])
def test_lines_fit_and_say_all_or_end_in_dots(width: int, most: int) -> None:
    letters = font(18)
    for text in (
        "",
        "euler",
        "a red apple on a blue background",
        "/home/of/a/very_long_path_without_a_space.safetensors",
    ):
        lines = wrapped(text, letters, width, most)
        assert len(lines) <= most
        assert all(letters.getlength(line) <= width for line in lines)
        said = "".join(lines).replace(" ", "")
        whole = text.replace(" ", "")
        assert said == whole or (said.endswith("…") and whole.startswith(said[:-1]) and len(lines) == most)


def test_the_work_of_a_very_long_word_does_not_grow_with_its_square() -> None:
    def written(length: int) -> None:
        plan = Layout(Look(), ([Label("prompt", "x" * length)], [], []), {(0, 0, 0): (64, 64)})
        compose(plan, lambda _: Image.new("RGB", (64, 64)))

    written(10)  # fonts are read once
    few, many = calls(lambda: written(2_000)), calls(lambda: written(32_000))
    assert many < 1.5 * 16 * few


def test_letters_that_the_font_lacks_are_named_and_accents_go() -> None:
    letters = font(18)
    assert legible("ébène\n naïve", letters) == ("ebene naive", "")
    assert legible("apple 苹果 苹", letters) == ("apple 苹果 苹", "苹果")


def test_a_font_of_ones_own(tmp_path: Path) -> None:
    built_in = font(18)
    assert isinstance(built_in.path, io.BytesIO)
    file = tmp_path / "own.ttf"
    file.write_bytes(built_in.path.getvalue())
    assert font(18, file).getname() == built_in.getname()
    file.write_text("no font")
    for path in (file, tmp_path / "gone.ttf", tmp_path):
        with pytest.raises(RequestError, match=r"is no font that can be read: give a \.ttf"):
            font(18, path)


@pytest.mark.parametrize("count", range(1, 10))
def test_a_mosaic_has_the_size_that_is_promised(count: int) -> None:
    pictures = [Image.new("RGB", (8, 6), (k, 0, 0)) for k in range(1, count + 1)]
    whole = mosaic(pictures)
    assert whole.size == mosaic_size((8, 6), count)
    assert {colour for _, colour in whole.getcolors()} - {(255, 255, 255)} == {(k, 0, 0) for k in range(1, count + 1)}  # type: ignore[union-attr]
