"""Prompts whose combinations training has never shown, made of facts alone: nothing is rendered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from random import Random

from safelight.errors import RequestError
from safelight.training.scenes import (
    NAMES,
    PLACES,
    Facts,
    Scene,
    caption,
    draw_facts,
    held_out_grounds,
    make_scene,
)
from safelight.training.scenes.facts import Place

FEWEST, MOST = 10, 5000
"""Prompts of one measurement: below it nothing is measured, above it the combinations run out."""
SINGLES = 0.6
"""Share of the prompts that name one object; the others name two."""
PAIR_PLACES: tuple[Place, ...] = ("left of", "right of", "above", "below", "and")
SHOWN: tuple[tuple[str, Facts], ...] = (
    (
        "a red apple on an orange background",
        Facts(("red apple",), ("medium",), "orange", "plain", "unstated"),
    ),
    (
        "a large tropical fish at the bottom on a green background",
        Facts(("tropical fish",), ("large",), "green", "plain", "bottom"),
    ),
    (
        "a dog to the left of a car on a blue background",
        Facts(("dog face", "automobile"), ("medium", "medium"), "blue", "plain", "left of"),
    ),
    (
        "a rocket above a strawberry on a purple background",
        Facts(("rocket", "strawberry"), ("medium", "medium"), "purple", "plain", "above"),
    ),
)
"""What a contact sheet shows: chosen before there was a model, and held out as well."""


@dataclass(frozen=True)
class Prompt:
    """What is asked for, in words and in facts."""

    words: str
    facts: Facts


def held_out_prompts(total: int, seed: int = 0) -> list[Prompt]:
    """`total` different prompts: first those with one object on the ground that training never gave it, then
    pairs that training never showed. The same for the same seed; a larger total only adds to each part.

    Objects and places come in turn, so that every part of the list has all of them. Sizes, textures and
    phrasings are as frequent as in training.

    Raises:
        RequestError: fewer than 10 or more than 5000.
    """
    if not FEWEST <= total <= MOST:
        raise RequestError(f"{total} prompts cannot be made: ask for {FEWEST} to {MOST}")
    singles = round(SINGLES * total)
    return [*islice(_singles(seed), singles), *islice(_pairs(seed), total - singles)]


def first_of_each(prompts: list[Prompt], each: int) -> list[int]:
    """Indices of the first `each` prompts with one object, and of the first `each` with two."""
    single = [i for i, prompt in enumerate(prompts) if len(prompt.facts.objects) == 1]
    pair = [i for i, prompt in enumerate(prompts) if len(prompt.facts.objects) == 2]
    return single[:each] + pair[:each]


def real_scene(prompt: Prompt, index: int, seed: int, size: int) -> Scene:
    """A scene as the generator draws it, of a prompt's facts: what a perfect model would have made."""
    return make_scene(prompt.facts, Random(f"evaluation/scene/{seed}/{index}"), size)


def _singles(seed: int) -> Iterator[Prompt]:
    rng = Random(f"evaluation/single/{seed}")
    names = list(NAMES)
    rng.shuffle(names)
    places, said = PLACES[0], set()
    for i in count():
        turn, which = divmod(i, len(names))
        name, place = names[which], places[(which + turn) % len(places)]
        (ground,) = held_out_grounds(name)
        while True:
            drawn = draw_facts(rng, "held_out", 1)
            facts = replace(drawn, objects=(name,), ground=ground, place=place)
            words = caption(facts, rng)
            if words not in said:
                break
        said.add(words)
        yield Prompt(words, facts)


def _pairs(seed: int) -> Iterator[Prompt]:
    rng = Random(f"evaluation/pair/{seed}")
    said = set()
    for i in count():
        while True:
            facts = replace(draw_facts(rng, "held_out", 2), place=PAIR_PLACES[i % len(PAIR_PLACES)])
            words = caption(facts, rng)
            if words not in said:
                break
        said.add(words)
        yield Prompt(words, facts)
