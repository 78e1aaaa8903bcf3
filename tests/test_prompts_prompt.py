"""Whole prompts: comments, tags, AND, schedules; that every text is one, and that reading takes time by its length."""

from __future__ import annotations

import subprocess
import sys

import pytest

from prompt_cases import ADVERSARIES, lines_run, prompts
from safelight.conditioning.prompts import emphasis
from safelight.conditioning.prompts.edits import Steps, schedule
from safelight.conditioning.prompts.edits import read as read_edits
from safelight.conditioning.prompts.prompt import MAX_PARTS, Phase, Saying, phases, read, without_comments
from safelight.conditioning.prompts.tags import Hypernetwork, Lora, Tag, hypernetwork, lora, take
from safelight.errors import RequestError


def said(text: str, steps: int = 10, **options: bool) -> list[tuple[int, list[tuple[float, str]]]]:
    return [
        (phase.until, [(saying.weight, saying.text) for saying in phase.sayings])
        for phase in phases(read(text, **options), Steps(steps))
    ]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a b", "a b"),
        ("# all of it", "\n"),
        ("a # the end\nb", "a \nb"),
        ("a\n# a line\nb", "a\nb"),
        ("# one\n# two\na", "\n\na"),
        ("a #", "a \n"),
    ],
)
def test_comments(text: str, left: str) -> None:
    assert without_comments(text) == left
    assert str(read(text)) == left
    assert str(read(text, comments=False)) == text


@pytest.mark.parametrize(
    ("text", "left", "tags"),
    [
        ("a <lora:x:0.8> b", "a  b", [("lora", ("x", "0.8"))]),
        ("<lora:x><hypernet:y:1>a", "a", [("lora", ("x",)), ("hypernet", ("y", "1"))]),
        ("a <unknown:x=1:2>", "a ", [("unknown", ("x=1", "2"))]),
        ("a < b > c <:x> <lora:> <a b:c>", "a < b > c <:x> <lora:> <a b:c>", []),
        ("a <lora:x", "a <lora:x", []),
        ("<a:b<lora:x>", "", [("a", ("b<lora", "x"))]),
        ("<lo<x:y>ra:z>", "<lora:z>", [("x", ("y",))]),
    ],
)
def test_tags(text: str, left: str, tags: list[tuple[str, tuple[str, ...]]]) -> None:
    found, taken = take(text)
    assert found == left
    assert [(tag.kind, tag.arguments) for tag in taken] == tags
    assert str(read(text)) == text
    assert read(text, negative=True).tags == ()
    assert said(text, negative=True) == [(10, [(1.0, text)])], "a negative prompt has no tags"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("x",), Lora("x", 1.0, 1.0)),
        (("x", "0.8"), Lora("x", 0.8, 0.8)),
        (("x", "0.8", "0.5"), Lora("x", 0.8, 0.5)),
        (("x", "0.8", "0.5", "4"), Lora("x", 0.8, 0.5, 4)),
        (("x", "te=0.2"), Lora("x", 0.2, 0.2)),
        (("x", "unet=0.3"), Lora("x", 1.0, 0.3)),
        (("x", "unet=0.3", "0.7", "dyn=8"), Lora("x", 0.7, 0.3, 8)),
        (("x", "-1"), Lora("x", -1.0, -1.0)),
    ],
)
def test_loras(arguments: tuple[str, ...], expected: Lora) -> None:
    assert lora(Tag("lora", arguments, 0)) == expected


def test_hypernetworks() -> None:
    assert hypernetwork(Tag("hypernet", ("x",), 0)) == Hypernetwork("x", 1.0)
    assert hypernetwork(Tag("hypernet", ("x", "0.5"), 0)) == Hypernetwork("x", 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "much"), "in <lora:x:much> 'much' is no number: write <lora:name:1>"),
        (("x", "nan"), "in <lora:x:nan> 'nan' is no number"),
        (("te=1",), "<lora:te=1> has no name: write <lora:name:1>"),
        (("x", "dyn=1.5"), "in <lora:x:dyn=1.5> dyn cannot be '1.5': give a whole number from 1"),
    ],
)
def test_tags_that_cannot_be_understood(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError) as error:
        lora(Tag("lora", arguments, 0))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a AND b", [(1.0, "a"), (1.0, " b")]),
        ("a :2 AND b:-0.5 AND c : .5 ", [(2.0, "a"), (-0.5, " b"), (0.5, " c")]),
        ("a :1.5", [(1.5, "a")]),
        ("a: 3. AND b:+1", [(3.0, "a"), (1.0, " b")]),
        ("ANDa and BAND", [(1.0, "ANDa and BAND")]),
        ("a:x AND b:1.2.3", [(1.0, "a:x"), (1.0, " b:1.2.3")]),
        ("two\nlines :2 AND b", [(2.0, "two\nlines"), (1.0, " b")]),
        ("(a:1.2) AND b", [(1.0, "(a:1.2)"), (1.0, " b")]),
        ("AND", [(1.0, ""), (1.0, "")]),
        (f"a :{'9' * 400}", [(1.0, f"a :{'9' * 400}")]),
    ],
)
def test_and(text: str, expected: list[tuple[float, str]]) -> None:
    assert said(text) == [(10, expected)]
    assert str(read(text)) == text
    assert said(text, negative=True) == [(10, [(1.0, text)])], "in a negative prompt, AND is a word"


def test_schedules_of_parts_are_joined() -> None:
    assert said("a [b:3] AND [c|d] :0.5", 4) == [
        (1, [(1.0, "a "), (0.5, " c")]),
        (2, [(1.0, "a "), (0.5, " d")]),
        (3, [(1.0, "a "), (0.5, " c")]),
        (4, [(1.0, "a b"), (0.5, " d")]),
    ]
    assert said("[a|a]", 3) == [(3, [(1.0, "a")])], "what does not change is one phase"
    assert said("# note\n<lora:x:1>a [b:c:.5]", 4) == [(2, [(1.0, "\na b")]), (4, [(1.0, "\na c")])]


def test_the_second_prompt_goes_along() -> None:
    found = phases(read("a [b:2] AND c"), Steps(4), read("[d:e:3]"))
    assert found == (
        Phase(2, (Saying(1.0, "a ", "d"), Saying(1.0, " c", "d"))),
        Phase(3, (Saying(1.0, "a b", "d"), Saying(1.0, " c", "d"))),
        Phase(4, (Saying(1.0, "a b", "e"), Saying(1.0, " c", "e"))),
    )
    both = phases(read("a :2 AND b"), Steps(4), read("c :9 AND d"))
    assert both == (Phase(4, (Saying(2.0, "a", "c"), Saying(1.0, " b", " d"))),)
    with pytest.raises(RequestError, match="the prompt has 1 parts joined by AND and prompt_2 2: give one, or as many"):
        phases(read("a"), Steps(4), read("b AND c"))


def test_too_many_parts() -> None:
    with pytest.raises(RequestError, match="the prompt has 65 parts joined by AND: 64 is the most"):
        phases(read(" AND ".join("a" * (MAX_PARTS + 1))), Steps(4))


def test_every_text_is_a_prompt_and_is_written_to_the_letter() -> None:
    """Ten thousand prompts; and what is said at their steps is a text whose weights can be read and written."""
    for text in prompts(10_000, seed=7):
        prompt = read(text)
        assert str(prompt) == without_comments(text)
        assert read(str(prompt)) == prompt
        for phase in phases(prompt, Steps(4)):
            for saying in phase.sayings:
                blocks = emphasis.read(saying.text)
                assert emphasis.read(emphasis.written(blocks)) == blocks
        assert read(text, negative=True).tags == ()


@pytest.mark.parametrize("name", ADVERSARIES)
def test_the_work_grows_with_the_length_and_nothing_else(name: str) -> None:
    def work(length: int) -> int:
        text = ADVERSARIES[name](length)
        return lines_run(lambda: (read(text), emphasis.read(text)))

    work(100)
    few, many = work(1024), work(4096)
    assert many <= 4.4 * few, f"{few} lines of work for 1024 characters, {many} for 4096"
    assert many <= 80 * 4096, "work per character"


def test_a_long_prompt_at_many_steps() -> None:
    text = "[a|b]" * 1600
    found = schedule(read_edits(text), Steps(50))
    assert [until for until, _ in found] == list(range(1, 51))
    assert {said for _, said in found} == {"a" * 1600, "b" * 1600}


def test_reading_prompts_does_not_wait_for_torch() -> None:
    code = (
        "import sys; import safelight.conditioning.prompts.prompt, safelight.conditioning.prompts.chunks, "
        "safelight.tasks.prompts.wording, safelight.cli.prompt; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
