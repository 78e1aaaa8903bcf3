"""What is asked was never trained on; shares and their intervals are the textbook's."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from scipy.stats import binomtest

from safelight.errors import RequestError
from safelight.evaluation.prompts import (
    PAIR_PLACES,
    SHOWN,
    first_of_each,
    held_out_prompts,
    real_scene,
)
from safelight.evaluation.proportions import Share
from safelight.training.scenes import (
    GROUNDS,
    NAMES,
    PLACES,
    SHORT,
    Facts,
    held_out_grounds,
    is_held_out,
    is_held_out_pair,
)

PROMPTS = held_out_prompts(500)


@pytest.mark.parametrize("total", [500, 5000])
def test_every_prompt_is_held_out_and_no_two_are_the_same(total: int) -> None:
    prompts = held_out_prompts(total)
    assert len({prompt.words for prompt in prompts}) == len(prompts) == total
    for prompt in prompts:
        facts = prompt.facts
        assert is_held_out(facts), f"training may show {prompt.words!r}"
        if len(facts.objects) == 1:
            assert facts.ground in held_out_grounds(facts.objects[0])
        else:
            assert is_held_out_pair(*facts.objects), "the pair itself must be new, not only its ground"


def test_the_default_set_has_what_the_goals_ask_for() -> None:
    singles = [p.facts for p in PROMPTS if len(p.facts.objects) == 1]
    pairs = [p.facts for p in PROMPTS if len(p.facts.objects) == 2]
    assert (len(singles), len(pairs)) == (300, 200)
    assert Counter(facts.place for facts in singles) == dict.fromkeys(PLACES[0], 50)
    assert Counter(facts.place for facts in pairs) == dict.fromkeys(PAIR_PLACES, 40)
    assert {facts.objects[0] for facts in singles} == set(NAMES)
    assert {facts.sizes[0] for facts in singles} == {"small", "medium", "large"}
    assert {facts.ground for facts in pairs} == set(GROUNDS)
    assert len({facts.texture for facts in singles}) == 5
    assert sum(facts.texture == "plain" for facts in singles) > 150


def test_the_words_say_the_facts() -> None:
    for prompt in PROMPTS:
        assert prompt.facts.ground in prompt.words, "the ground is always said, for it is asked about"
        for name in prompt.facts.objects:
            assert name in prompt.words or SHORT.get(name, name) in prompt.words


def test_the_same_seed_gives_the_same_prompts_and_a_larger_total_only_adds() -> None:
    assert held_out_prompts(500) == PROMPTS
    assert held_out_prompts(500, seed=1) != PROMPTS
    assert held_out_prompts(100)[:60] == PROMPTS[:60]
    assert held_out_prompts(100)[60:] == PROMPTS[300:340]


def test_the_curve_asks_the_first_of_each_kind() -> None:
    chosen = first_of_each(PROMPTS, 100)
    assert chosen == [*range(100), *range(300, 400)]
    assert first_of_each(PROMPTS, 1000) == list(range(500))
    assert {PROMPTS[i].facts.place for i in chosen[:72]} == set(PLACES[0])


@pytest.mark.parametrize("total", [0, 9, 5001])
def test_too_few_or_too_many_are_refused(total: int) -> None:
    with pytest.raises(RequestError, match="ask for 10 to 5000"):
        held_out_prompts(total)


def test_what_a_contact_sheet_shows_is_held_out_and_said_truly() -> None:
    singles: list[Facts] = []
    for words, facts in SHOWN:
        assert is_held_out(facts)
        assert f"{facts.ground} background" in words
        assert all(name in words or SHORT.get(name, name) in words for name in facts.objects)
        if len(facts.objects) == 1:
            singles.append(facts)
        else:
            assert is_held_out_pair(*facts.objects)
            assert facts.place in words
    assert len(singles) == 2


def test_a_real_scene_shows_the_facts_of_its_prompt() -> None:
    scene = real_scene(PROMPTS[3], 3, 0, 64)
    assert scene == real_scene(PROMPTS[3], 3, 0, 64)
    assert scene != real_scene(PROMPTS[3], 4, 0, 64)
    assert (scene.facts, scene.size) == (PROMPTS[3].facts, 64)


@pytest.mark.parametrize(("right", "asked"), [(0, 7), (7, 7), (1, 2), (255, 300), (170, 200), (499, 500)])
def test_the_interval_is_wilsons(right: int, asked: int) -> None:
    expected = binomtest(right, asked).proportion_ci(confidence_level=0.95, method="wilson")
    low, high = Share(right, asked).interval
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= low <= right / asked <= high <= 1


def test_shares_count_and_know_when_nothing_was_asked() -> None:
    assert Share.of([True, False, True, True]) == Share(3, 4)
    assert Share(3, 4).reaches(0.75)
    assert not Share(3, 4).reaches(0.76)
    nothing = Share.of([])
    assert math.isnan(nothing.value)
    assert nothing.interval == (0.0, 1.0)
    assert not nothing.reaches(0.0)
