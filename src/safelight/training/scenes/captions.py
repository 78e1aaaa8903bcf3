"""Facts said in plain lower-case English, in several phrasings."""

from __future__ import annotations

from random import Random

from safelight.training.scenes.facts import Facts
from safelight.training.scenes.glyphs import SHORT

_PLACE_WORDS = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}
_RELATION_WORDS = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
    "in front of": "in front of",
}
_PHRASINGS = {  # and their weights
    "{subject} on {a_ground} background": 45,
    "a picture of {subject} on {a_ground} background": 7,
    "a photo of {subject} on {a_ground} background": 7,
    "an image of {subject} on {a_ground} background": 6,
    "{subject}, {ground} background": 10,
    "{a_ground} background with {subject}": 10,
    "{ground} background with {subject}": 5,
    "{subject} against {a_ground} background": 5,
    "{subject} over {ground}": 5,
}


def article(noun: str) -> str:
    """The noun after "a" or "an"; "a unicorn", as it is spoken."""
    vowel = noun[0] in "aeio" or (noun[0] == "u" and not noun.startswith("uni"))
    return f"{'an' if vowel else 'a'} {noun}"


def _object(facts: Facts, i: int, rng: Random) -> str:
    name = facts.objects[i]
    if name in SHORT and rng.random() < 0.5:
        name = SHORT[name]
    size = facts.sizes[i]
    return article(name if size == "medium" else f"{size} {name}")


def _subject(facts: Facts, rng: Random) -> str:
    """The objects and where they are, without the ground."""
    first, *others = (_object(facts, i, rng) for i in range(len(facts.objects)))
    if not others:
        return first if facts.place == "unstated" else f"{first} {_PLACE_WORDS[facts.place]}"
    if len(others) == 2:
        return f"{first}, {others[0]} and {others[1]}"
    if facts.place == "and":
        return f"{first} and {others[0]}"
    return f"{first} {_RELATION_WORDS[facts.place]} {others[0]}"


def caption(facts: Facts, rng: Random, *, full: bool = True) -> str:
    """One phrasing of the facts, drawn with `rng`. With full=False the ground is left unsaid."""
    subject = _subject(facts, rng)
    if not full:
        return subject
    ground = facts.ground if facts.texture == "plain" else f"{facts.texture} {facts.ground}"
    if facts.texture == "plain" and rng.random() < 0.1:
        ground = f"plain {ground}"
    template = rng.choices(tuple(_PHRASINGS), tuple(_PHRASINGS.values()))[0]
    return template.format(subject=subject, ground=ground, a_ground=article(ground))
