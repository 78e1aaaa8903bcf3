"""Teach the shipped model one new thing by each method, and have it judged: the tables of docs/fine-tuning.md.

    pip install '.[train]' && python benchmarks/fine_tuning.py runs/face --sheet docs/fine-tuning.png

Eight pictures of "a jojo cat" (`jojo/creature.py` has two of them), on four grounds of eight and at two places of
five. A judge that knows it beside the world's 72 objects (`jojo/judging.py`) comes first, then the commands of
`jojo/methods.py`, with prior preservation and without, and what is drawn with each of the new thing, its class, and
others (`jojo/asking.py`). What is there from an earlier run is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import safelight
from jojo.asking import Numbers, Wearing, draw, measure
from jojo.creature import CLASS, NEW, THINGS, facts, join_world, training_pictures
from jojo.judging import train_judge, trust
from jojo.methods import METHODS, PICTURES, USUAL, Cost, draw_class, train
from measuring import print_machine
from safelight.checkpoints.components import read_judge
from safelight.evaluation.prompts import Prompt
from safelight.evaluation.tiny import judge_folder
from safelight.models.judge import Judge
from safelight.tasks.lettering import INK, PAPER, font
from safelight.tasks.model import Model

SHOWN = (
    "a jojo cat on a blue background",
    "a jojo cat at the bottom on a green background",
    "a jojo cat on the right on an orange background",
    "a jojo cat and a red apple on a white background",
    "a cat on a blue background",
    "a cat at the bottom on a green background",
    "a dog on a purple background",
    "an owl on a red background",
)
"""What the sheet shows, each with seed 0: chosen before anything was trained."""
SIDE, GAP, LABELS = 64, 2, 150


@dataclass(frozen=True)
class Row:
    """What came of one training."""

    title: str
    prior: bool | None
    """Whether the class was preserved; None where nothing else can change."""
    cost: Cost | None
    numbers: Numbers
    pictures: tuple[Image.Image, ...]


def table(rows: Sequence[Row]) -> str:
    """In Markdown, shares in percent; the drop of a cat against the first row."""
    before = rows[0].numbers
    lines = [
        "| | class pictures | jojo cat | untaught | ground | place | a cat | drop | others | file | CPU time | time |",
        "|---|---|" + 10 * "--:|",
    ]
    for row in rows:
        n = row.numbers
        prior = {True: "yes", False: "no", None: ""}[row.prior]
        shares = [f"{100 * share:.0f}" for share in (n.new, n.untaught, n.ground, n.place, n.kept)]
        drop = f"{100 * (before.kept - n.kept):.0f}" if row.cost is not None else ""
        made = ("", "", "")
        if row.cost is not None:
            made = (_size(row.cost.size), _time(row.cost.processor), _time(row.cost.seconds))
        lines.append("| " + " | ".join((row.title, prior, *shares, drop, f"{100 * n.others:.0f}", *made)) + " |")
    return "\n".join(lines)


def sheet(rows: Sequence[Row]) -> Image.Image:
    """A row of pictures for each, the first of them before; few colours, so that it is small."""
    size = (LABELS + len(SHOWN) * (SIDE + GAP), len(rows) * (SIDE + GAP))
    page = Image.new("RGB", size, PAPER)
    pen, letters = ImageDraw.Draw(page), font(12)
    for r, row in enumerate(rows):
        top = r * (SIDE + GAP)
        prior = {True: "with prior", False: "without prior", None: ""}[row.prior]
        pen.multiline_text((2, top + 16), f"{row.title}\n{prior}", fill=INK, font=letters)
        for c, picture in enumerate(row.pictures):
            page.paste(picture, (LABELS + c * (SIDE + GAP), top))
    return page.quantize(160, dither=Image.Dither.NONE)


def answers(folder: Path, name: str, model: Model, judges: tuple[Judge, Judge], worn: Wearing, scale: int) -> Numbers:
    """Measured, unless that was done."""
    kept = folder / f"{name} {scale}.json"
    if not kept.is_file():
        kept.write_text(json.dumps(asdict(measure(model, *judges, worn, scale))))
    return Numbers(**json.loads(kept.read_text()))


def shown(model: Model, wearing: Wearing) -> tuple[Image.Image, ...]:
    """The pictures of a row, each from seed 0."""
    anything = facts("blue", "unstated", CLASS)  # nothing of it is asked
    return tuple(draw(model, [Prompt(words, anything)], wearing, 0)[0] for words in SHOWN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where everything is made")
    parser.add_argument("--thing", choices=tuple(THINGS), default="face", help="what is taught; each in its own folder")
    parser.add_argument("--methods", nargs="*", choices=tuple(METHODS), default=USUAL)
    parser.add_argument("--prompts", type=int, default=100, help="of each kind")
    parser.add_argument("--threads", type=int, default=2, help="of the drawing; the trainings have OMP_NUM_THREADS")
    parser.add_argument("--train-only", action="store_true", help="draw nothing")
    parser.add_argument("--sheet", type=Path, help="PNG to write")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print_machine()
    thing = THINGS[chosen.thing]
    join_world(thing)
    folder: Path = chosen.folder
    training_pictures(folder / PICTURES)
    if not (folder / "judge" / "judge.json").is_file():
        train_judge(folder / "judge", thing.guests)
    judge = read_judge(folder / "judge").eval()
    judges = judge, read_judge(judge_folder(None)).eval()
    names = (NEW, CLASS, *thing.guests)
    print("judge, right on new scenes: " + ", ".join(f"{name} {100 * trust(judge, name):.1f} %" for name in names))
    drawn = draw_class(folder)
    print(f"pictures of the class: {drawn.processor:.0f} s of processor time\n")
    tiny = safelight.load("tiny", "cpu")
    rows = []
    for key in ("before", *chosen.methods):
        if key == "before":
            if not chosen.train_only:
                numbers = answers(folder, key, tiny, judges, Wearing(), chosen.prompts)
                rows.append(Row("before", None, None, numbers, shown(tiny, Wearing())))
            continue
        method = METHODS[key]
        for prior in (False, True) if method.prior else (None,):
            name = f"{key}-prior" if prior else key
            cost = train(method, name, bool(prior), folder)
            if not chosen.train_only:
                whole = method.gives == "model"
                model = safelight.load(str(folder / name), "cpu") if whole else tiny
                wearing = method.wearing(folder / name, bool(prior))
                numbers = answers(folder, name, model, judges, wearing, chosen.prompts)
                rows.append(Row(method.title, prior, cost, numbers, shown(model, wearing)))
    if rows:
        print(table(rows))
    if chosen.sheet is not None:
        sheet(rows).save(chosen.sheet, optimize=True)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    main()
