"""What the judge sees in pictures, and whether that is what was asked for.

Shapes: B batch, S side of the judge's pictures in pixels, w side of its map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image

from safelight.errors import ModelFileError
from safelight.evaluation.proportions import Share
from safelight.models.judge import Judge, Verdict
from safelight.tasks.pictures import to_pixels
from safelight.training.scenes import GROUNDS, LAYOUTS, NAMES, Facts, labels

Question = Literal["object", "ground", "position", "stated position", "all of one", "pair", "relation"]
QUESTIONS: dict[Question, str] = {
    "object": "object right, one object",
    "ground": "ground colour right",
    "position": "position right, one object",
    "stated position": "  of these, where stated",
    "all of one": "  object, ground and position right",
    "pair": "both objects of a pair right",
    "relation": "  of those found, order as stated",
}
"""What is asked of pictures, and how a table calls it."""
Marks = Mapping[Question, bool]
"""The answers about one picture: only the questions that its facts raise."""
AT_ONCE = 64  # pictures


@dataclass(frozen=True)
class Seen:
    """One picture as the judge sees it."""

    ranking: tuple[str, ...]
    """Names of all objects, the surest first."""
    ground: int
    """Index into GROUNDS (in order)."""
    layout: int
    """Index into LAYOUTS."""
    spots: Mapping[str, tuple[int, int]]
    """Row and column of the map where each object is most likely, by name."""


def check_judge(judge: Judge, source: str) -> None:
    """Refuse a judge of another world.

    Raises:
        ModelFileError: it knows other numbers of objects, grounds or layouts than this version of scenes has.
    """
    has = (judge.config.objects, judge.config.grounds, judge.config.layouts)
    wanted = (len(NAMES), len(GROUNDS), len(LAYOUTS))
    if has != wanted:
        raise ModelFileError(
            f"{source} tells {has[0]} objects, {has[1]} grounds and {has[2]} layouts apart, but scenes have "
            f"{wanted[0]}, {wanted[1]} and {wanted[2]}: train another with `safelight train judge`"
        )


@torch.inference_mode()
def look(judge: Judge, images: Sequence[Image.Image]) -> list[Seen]:
    """Show pictures of any size to the judge: as 8-bit RGB, as a user sees them, scaled to the judge's size."""
    found: list[Seen] = []
    weight = judge.conv_in.weight
    for first in range(0, len(images), AT_ONCE):
        group = images[first : first + AT_ONCE]
        pixels = torch.cat([to_pixels(_fitted(image, judge.config.image_size)) for image in group])
        found += seen(judge(pixels.to(weight.device, weight.dtype)))  # (B, 3, S, S)
    return found


def seen(verdict: Verdict) -> list[Seen]:
    """A verdict about B pictures, in words."""
    columns = verdict.map.shape[-1]
    best: list[list[int]] = verdict.map.flatten(2).argmax(2).tolist()  # (B, objects), cell by cell
    order: list[list[int]] = verdict.objects.argsort(dim=1, descending=True).tolist()
    grounds: list[int] = verdict.grounds.argmax(1).tolist()
    layouts: list[int] = verdict.layouts.argmax(1).tolist()
    return [
        Seen(
            tuple(NAMES[i] for i in ranked),
            ground,
            layout,
            {name: divmod(cell, columns) for name, cell in zip(NAMES, cells, strict=True)},
        )
        for ranked, ground, layout, cells in zip(order, grounds, layouts, best, strict=True)
    ]


def mark(facts: Facts, picture: Seen) -> Marks:
    """What of the facts the picture shows. Facts of three objects are not asked about."""
    wanted = labels(facts)
    ground = picture.ground == wanted.ground
    if len(facts.objects) == 1:
        name, position = picture.ranking[0] == facts.objects[0], picture.layout == wanted.position
        marks: dict[Question, bool] = {"object": name, "ground": ground, "position": position}
        if facts.place != "unstated":
            marks["stated position"] = position
        marks["all of one"] = name and ground and position
        return marks
    both = set(picture.ranking[:2]) == set(facts.objects)
    marks = {"ground": ground, "pair": both}
    stated = _stands(facts, picture)
    if both and stated is not None:
        marks["relation"] = stated
    return marks


def tally(marks: Sequence[Marks]) -> dict[Question, Share]:
    """Every question over all pictures that raise it."""
    return {question: Share.of(m[question] for m in marks if question in m) for question in QUESTIONS}


def _stands(facts: Facts, picture: Seen) -> bool | None:
    """Whether two objects are where the words place them; None where the words do not say ("and")."""
    (row, column), (other_row, other_column) = (picture.spots[name] for name in facts.objects)
    match facts.place:
        case "left of":
            return column < other_column
        case "right of":
            return column > other_column
        case "above":
            return row < other_row
        case "below":
            return row > other_row
        case _:
            return None


def _fitted(image: Image.Image, side: int) -> Image.Image:
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BOX)
