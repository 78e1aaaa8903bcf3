"""A judge of 73 objects: the shipped one, which knows 72, goes on with scenes in which the new one is, too.

It knows facts and no words, and has nothing to do with what is judged: no picture that it learns from is seen by a
generator, nor the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from PIL import Image

from jojo.creature import CLASS, NEW, Guest
from safelight.checkpoints.components import read_judge
from safelight.evaluation.judging import AT_ONCE
from safelight.evaluation.tiny import judge_folder
from safelight.models.judge import Judge
from safelight.tasks.pictures import to_pixels
from safelight.training.config import LoopConfig
from safelight.training.loop import train
from safelight.training.recipes.judge import JudgeRecipe, blemish
from safelight.training.scenes import NAMES, Facts, Scene, Scenes, labels, make_scene, render
from safelight.training.scenes.facts import draw_facts

OBJECTS = (*NAMES, NEW)
IMAGES = 16_000
HELD_OUT = 1
"""The seed of scenes that the judge has not learned from."""


class MixedScenes(Scenes):
    """Scenes of both splits; in three of eight the new object is one of theirs, and in one of eight a guest."""

    def __init__(self, count: int, guests: Mapping[str, Guest]) -> None:
        super().__init__(count)
        self.guests = guests

    def scene(self, i: int) -> Scene:
        rng = Random(f"judge of {len(OBJECTS)}/{self.seed}/{i}")
        drawn = draw_facts(rng, "all")
        if i % 8 < 4:
            new = NEW if i % 8 < 3 else rng.choice(tuple(self.guests))
            known = self.guests[new].name if new in self.guests else None
            kept = [name for name in drawn.objects[1:] if name != known]
            names = [new, *kept, *rng.sample(NAMES, len(drawn.objects) - 1 - len(kept))]
            rng.shuffle(names)
            if len(set(names)) == len(names):
                drawn = replace(drawn, objects=tuple(names))
        return make_scene(drawn, rng, self.size)


class JudgeOfMore(JudgeRecipe):
    """The shipped judge with an answer more, all of which is trained on."""

    def __init__(self, scenes: Scenes, *, seed: int) -> None:
        super().__init__(scenes, seed=seed)
        old = read_judge(judge_folder(None))
        weights = dict(old.state_dict())
        for name in ("objects.weight", "objects.bias"):  # the new thing begins as its class
            weights[name] = torch.cat([weights[name], weights[name][[NAMES.index(CLASS)]]])
        self.judge = Judge(replace(old.config, objects=len(OBJECTS)))
        self.judge.load_state_dict(weights)


def train_judge(folder: Path, guests: Mapping[str, Guest]) -> None:
    """Some minutes on two cores."""
    loop = LoopConfig(
        output=folder, images=IMAGES, batch=64, lr=1e-3, warmup=1280, ema=0.98, save_every=IMAGES, device="cpu"
    )
    train(JudgeOfMore(MixedScenes(1_000_000, guests), seed=0), loop)


@dataclass(frozen=True)
class Seen:
    """What the judge says of a picture of one object."""

    name: str
    ground: bool
    """Whether it is as the facts say."""
    position: bool
    """Likewise."""


@torch.inference_mode()
def judged(judge: Judge, images: Sequence[Image.Image], asked: Sequence[Facts]) -> list[Seen]:
    """Each picture beside the facts of which it should be."""
    found: list[Seen] = []
    for first in range(0, len(images), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        verdict = judge(torch.cat([to_pixels(image) for image in images[some]]))
        answers = (verdict.objects.argmax(1), verdict.grounds.argmax(1), verdict.layouts.argmax(1))
        for facts, name, ground, layout in zip(asked[some], *(answer.tolist() for answer in answers), strict=True):
            wanted = labels(facts)
            found.append(Seen(OBJECTS[name], ground == wanted.ground, layout == wanted.position))
    return found


def trust(judge: Judge, name: str, count: int = 200) -> float:
    """The share of scenes of one object, blemished as drawn ones are and never learned from, that it names right."""
    rng = Random(f"trust/{HELD_OUT}/{name}")
    asked = [replace(draw_facts(rng, "all", 1), objects=(name,)) for _ in range(count)]
    images = [render(make_scene(facts, rng)) for facts in asked]
    generator = torch.Generator().manual_seed(HELD_OUT)
    pixels = blemish(torch.cat([to_pixels(image) for image in images]), generator)
    with torch.inference_mode():
        answers = torch.cat([judge(some).objects.argmax(1) for some in torch.split(pixels, AT_ONCE)])
    return float((answers == labels(asked[0]).objects[0]).float().mean())
