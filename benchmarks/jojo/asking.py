"""What is asked of a model before and after, and what the judge says of the answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image

from jojo.creature import CLASS, NEW, TAUGHT_GROUNDS, TAUGHT_PLACES, facts
from jojo.judging import judged
from safelight.evaluation.prompts import Prompt, held_out_prompts
from safelight.models.judge import Judge
from safelight.tasks.model import Model
from safelight.tasks.requests import TextToImage
from safelight.training.scenes import GROUNDS, caption
from safelight.training.scenes.facts import PLACES, draw_facts

AT_ONCE = 50  # pictures


@dataclass(frozen=True)
class Wearing:
    """What a request has beside the words: files of adapters."""

    lora: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()
    hypernetwork: tuple[str, ...] = ()


@dataclass(frozen=True)
class Numbers:
    """Shares, 0 to 1."""

    new: float
    """Of pictures of "a jojo cat", how many are one."""
    untaught: float
    """Of those where neither ground nor place were in the training pictures."""
    ground: float
    """Of pictures of "a jojo cat" on an untaught ground, how many have it."""
    place: float
    """Of those at an untaught place, how many are there."""
    kept: float
    """Of pictures of "a cat", how many are one, by the shipped judge, and no jojo cat by the other."""
    turned: float
    """Of these, how many are a jojo cat."""
    others: float
    """Of pictures of the other 71 objects on grounds where the model never saw them, how many are that, by the shipped
    judge."""


def about(name: str, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts about one thing: all grounds and places in turn, said in the world's many ways."""
    grounds, places = tuple(GROUNDS), PLACES[0]
    found = []
    for i in range(count):
        asked = facts(grounds[i % len(grounds)], places[(i + i // len(grounds)) % len(places)], name)
        found.append(Prompt(caption(asked, Random(f"{name}/{seed}/{i}")), asked))
    return found


def of_others(count: int) -> list[Prompt]:
    """Held-out prompts of one object each, none of them the class."""
    prompts = [p for p in held_out_prompts(5 * count) if len(p.facts.objects) == 1 and p.facts.objects != (CLASS,)]
    return prompts[:count]


def class_prompts(count: int) -> list[str]:
    """What prior preservation draws: the class in every third, anything else of the world in the others."""
    cats = about(CLASS, -(-count // 3), seed=1)
    rng = Random("class prompts")
    return [cats[i // 3].words if i % 3 == 0 else caption(draw_facts(rng, "train", i % 3), rng) for i in range(count)]


def draw(model: Model, prompts: Sequence[Prompt], wearing: Wearing, seed: int) -> list[Image.Image]:
    """Picture k from seed + k."""
    images: list[Image.Image] = []
    for first in range(0, len(prompts), AT_ONCE):
        words = [prompt.words for prompt in prompts[first : first + AT_ONCE]]
        request = TextToImage(
            prompt="",
            seed=seed + first,
            batch=len(words),
            lora=wearing.lora,
            embedding=wearing.embedding,
            hypernetwork=wearing.hypernetwork,
        )
        images += model.draw(request, prompts=words)
    return images


def measure(model: Model, judge: Judge, shipped: Judge, wearing: Wearing, scale: int) -> Numbers:
    """Draw and judge: `scale` prompts of the new thing, as many of its class, and half as many of others.

    Args:
        judge: knows the new thing, and says where that is.
        shipped: says what is an object that was known before, as it does for the model's own numbers.
    """
    asked = about(NEW, scale), about(CLASS, scale), of_others(scale // 2)
    facts_of = [[prompt.facts for prompt in prompts] for prompts in asked]
    drawn = [draw(model, prompts, wearing, 10_000 * (1 + i)) for i, prompts in enumerate(asked)]
    new = list(zip(facts_of[0], judged(judge, drawn[0], facts_of[0]), strict=True))
    turned = [seen.name == NEW for seen in judged(judge, drawn[1], facts_of[1])]
    cats = [seen.name == CLASS for seen in judged(shipped, drawn[1], facts_of[1])]
    others = [
        seen.name == facts.objects[0]
        for facts, seen in zip(facts_of[2], judged(shipped, drawn[2], facts_of[2]), strict=True)
    ]
    grounds = [(f, s) for f, s in new if f.ground not in TAUGHT_GROUNDS]
    places = [(f, s) for f, s in new if f.place not in (*TAUGHT_PLACES, "middle")]
    both = [(f, s) for f, s in grounds if f.place not in (*TAUGHT_PLACES, "middle")]
    return Numbers(
        new=_share(s.name == NEW for _, s in new),
        untaught=_share(s.name == NEW for _, s in both),
        ground=_share(s.ground for _, s in grounds),
        place=_share(s.position for _, s in places),
        kept=_share(cat and not lost for cat, lost in zip(cats, turned, strict=True)),
        turned=_share(turned),
        others=_share(others),
    )


def _share(answers: Iterable[bool]) -> float:
    found = list(answers)
    return sum(found) / len(found)
