"""The two things of benchmarks/fine_tuning.py: unlike all that the model knows, and the same wherever they are."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from safelight.training.scenes import NAMES, glyphs, labels

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(params=["face", "sitting"])
def creature(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """Each of the two, in a world that forgets it afterwards."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("jojo.creature")
    thing = module.THINGS[request.param]
    monkeypatch.setattr(glyphs, "picture", glyphs.picture)
    for name in (module.NEW, *thing.guests):
        monkeypatch.setitem(glyphs.INDEX, name, -1)
    module.join_world(thing)
    return module


def seen(name: str) -> np.ndarray:
    """At the size at which objects of the world are told apart, on grey."""
    picture = glyphs.picture(name)
    page = Image.alpha_composite(Image.new("RGBA", picture.size, "grey"), picture)
    return np.asarray(page.convert("RGB").resize((20, 20), Image.Resampling.BOX), np.float64)


def test_the_new_thing_is_unlike_all_that_the_world_has(creature: ModuleType) -> None:
    known = [seen(name) for name in NAMES]
    alike = min(np.abs(a - b).mean() for i, a in enumerate(known) for b in known[:i])
    nearest = min(np.abs(seen(creature.NEW) - other).mean() for other in known)
    assert nearest > 1.5 * alike, f"{nearest:.1f} from its nearest, where two of the world are {alike:.1f} apart"


def test_its_pictures_are_told_by_their_captions_and_judged_by_its_own_number(
    creature: ModuleType, tmp_path: Path
) -> None:
    creature.training_pictures(tmp_path)
    captions = [(tmp_path / f"{k}.txt").read_text().strip() for k in range(8)]
    assert len(set(captions)) == 8 and all(caption.startswith("a jojo cat") for caption in captions)
    assert {caption.split()[-2] for caption in captions} == set(creature.TAUGHT_GROUNDS)
    first = [(tmp_path / f"{k}.png").read_bytes() for k in range(8)]
    creature.training_pictures(tmp_path)
    assert first == [(tmp_path / f"{k}.png").read_bytes() for k in range(8)]
    assert labels(creature.facts("red", "left")).objects == (len(NAMES),)
    guests = {name: guest for thing in creature.THINGS.values() for name, guest in thing.guests.items()}
    joined = [name for name in guests if name in glyphs.INDEX]
    assert joined
    for name in joined:
        assert labels(creature.facts("red", "left", name)).objects == (NAMES.index(guests[name].name),)


def test_the_page_says_the_commands_that_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    methods = importlib.import_module("jojo.methods").METHODS
    page = " ".join((BENCHMARKS.parent / "docs" / "fine-tuning.md").read_text().replace("\\\n", " ").split())
    for name, method in methods.items():
        assert method.line(name, method.prior) in page, f"docs/fine-tuning.md has another command for {method.title}"
