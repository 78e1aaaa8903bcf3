"""Edits and turns, against the grammar of AUTOMATIC1111's web UI run by a parser that is not ours."""

from __future__ import annotations

from functools import cache
from itertools import islice
from random import Random

import lark
import pytest

from prompt_cases import of_signs, prompts, well_formed
from safelight.conditioning.prompts.edits import MAX_DEPTH, Edit, Steps, Text, Turns, read, said, schedule, written

GRAMMAR = r"""
!start: (prompt | /[][():]/+)*
prompt: (emphasized | scheduled | alternate | plain | WHITESPACE)*
!emphasized: "(" prompt ")" | "(" prompt ":" prompt ")" | "[" prompt "]"
scheduled: "[" [prompt ":"] prompt ":" [WHITESPACE] NUMBER [WHITESPACE] "]"
alternate: "[" prompt ("|" [prompt])+ "]"
WHITESPACE: /\s+/
plain: /([^\\\[\]():|]|\\.)+/
%import common.SIGNED_NUMBER -> NUMBER
"""
STEPS = 10

CASES = {
    "test": [(10, "test")],
    "": [(10, "")],
    "a [b:3]": [(3, "a "), (10, "a b")],
    "a [b: 3]": [(3, "a "), (10, "a b")],
    "a [[[b]]:2]": [(2, "a "), (10, "a [[b]]")],
    "[(a:2):3]": [(3, ""), (10, "(a:2)")],
    "a [b : c : 1] d": [(1, "a b  d"), (10, "a  c  d")],
    "a[b:[c:d:2]:1]e": [(1, "abe"), (2, "ace"), (10, "ade")],
    "a [unbalanced": [(10, "a [unbalanced")],
    "a [b:.5] c": [(5, "a  c"), (10, "a b c")],
    "((a][:b:c [d:3]": [(3, "((a][:b:c "), (10, "((a][:b:c d")],
    "[a|(b:1.1)]": [(k, "(b:1.1)" if k % 2 == 0 else "a") for k in range(1, 11)],
    "[fe|]male": [(k, "male" if k % 2 == 0 else "female") for k in range(1, 11)],
    "[fe|||]male": [(k, "female" if k % 4 == 1 else "male") for k in range(1, 11)],
    "[a::4]": [(4, "a"), (10, "")],
    "[a:b:0.25]": [(2, "a"), (10, "b")],
    "[a:b:99]": [(10, "a")],
    "[a:b:0]": [(10, "b")],
    "[a:b:-3]": [(10, "b")],
    "[a:b:1e400]": [(10, "a")],
    "[a:b:x]": [(10, "[a:b:x]")],
    "[a:b:1.2.3]": [(10, "[a:b:1.2.3]")],
    "[a:b:c:3]": [(10, "[a:b:c:3]")],
    "smile :) [a:b:3]": [(3, "smile :) a"), (10, "smile :) b")],
    "a|b [c:3]": [(10, "a|b [c:3]")],
    "[a:b:3] \\": [(10, "[a:b:3] \\")],
    "\\[a:b:3\\]": [(10, "\\[a:b:3\\]")],
}


@pytest.mark.parametrize("text", CASES)
def test_conformance(text: str) -> None:
    assert schedule(read(text), Steps(STEPS)) == CASES[text]


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [
        ("a [b:.5] c", Steps(10, before=10), [(10, "a b c")]),
        ("a [b:1.5] c", Steps(10, before=10), [(5, "a  c"), (10, "a b c")]),
        ("a [b:13] c", Steps(10, before=10), [(3, "a  c"), (10, "a b c")]),
        ("a [b:9] c", Steps(10, before=10), [(10, "a b c")]),
        ("a [b:0.5] c", Steps(10, below_one=True), [(5, "a  c"), (10, "a b c")]),
        ("a [b:2.5] c", Steps(10, below_one=True), [(2, "a  c"), (10, "a b c")]),
        ("a [b:1.0] c", Steps(10, below_one=True), [(1, "a  c"), (10, "a b c")]),
        ("a [b:1.0] c", Steps(10), [(10, "a  c")]),
    ],
)
def test_the_second_pass_and_the_older_rule(text: str, steps: Steps, expected: list[tuple[int, str]]) -> None:
    assert schedule(read(text), steps) == expected


def test_the_tree() -> None:
    assert read("a [b:[c|]: 3 ](d)") == (
        Text("a "),
        Edit((Text("b"),), (Turns(((Text("c"),), ())),), " 3 "),
        Text("(d)"),
    )
    assert read("[a:3]") == (Edit(None, (Text("a"),), "3"),)
    assert read("[:a:3]") == (Edit((), (Text("a"),), "3"),)


@cache
def parser(start: str = "start") -> lark.Lark:
    return lark.Lark(GRAMMAR, start=start)


def lark_says(text: str) -> list[tuple[int, str]]:
    """The schedule of the tree that lark makes; the text as it is where lark makes none."""
    try:
        tree = parser().parse(text)
    except lark.exceptions.LarkError:
        return [(STEPS, text)]
    stops = {STEPS}
    for node in tree.iter_subtrees():
        if node.data == "scheduled":
            stops |= {stop for stop in [last(node.children[-2])] if stop >= 1}
        elif node.data == "alternate":
            stops |= set(range(1, STEPS + 1))
    return [(stop, lark_at(tree, stop)) for stop in sorted(stops)]


def last(when: object) -> int:
    return min(STEPS, int(float(str(when)) * STEPS if "." in str(when) else float(str(when))))


def lark_at(node: object, step: int) -> str:
    if node is None:
        return ""
    if not isinstance(node, lark.Tree):
        return str(node)
    if node.data == "scheduled":
        before, after, _, when, _ = node.children
        return lark_at(before if step <= last(when) else after, step)
    if node.data == "alternate":
        return lark_at(node.children[(step - 1) % len(node.children)], step)
    return "".join(lark_at(child, step) for child in node.children)


def compare_with_lark(count: int, seed: int) -> None:
    random = Random(seed)
    changing = 0
    for _ in range(count):
        text = well_formed(random)
        expected = lark_says(text)
        assert schedule(read(text), Steps(STEPS)) == expected, text
        changing += len(expected) > 1
    assert changing > count / 4, "most of the prompts have nothing to schedule"


def test_prompts_of_the_grammar_say_what_lark_reads() -> None:
    compare_with_lark(150, seed=0)


@pytest.mark.slow
def test_thousands_of_prompts_say_what_lark_reads() -> None:
    compare_with_lark(5000, seed=1)


def by_pieces(text: str) -> list[tuple[int, str]]:
    """The schedule where brackets are text in places: each `[` that lark can read as an edit or turns is one.

    Lark itself, given the whole of such a text, takes any of its readings, and not always the one with the edits.
    """
    changes: dict[int, tuple[int, lark.Tree[lark.Token]]] = {}
    place = 0
    while place < len(text):
        if text[place] == "\\":
            if text[place + 1 : place + 2] in ("", "\n"):
                return [(STEPS, text)]
            place += 2
            continue
        if text[place] == "[":
            for end in range(len(text), place + 2, -1):
                tree = _whole(text[place:end])
                if tree is not None:
                    changes[place] = end, tree
                    place = end - 1
                    break
        if text[place] == "|":
            return [(STEPS, text)]
        place += 1
    pieces: list[object] = []
    place = 0
    for start, (end, tree) in changes.items():
        pieces += [text[place:start], tree]
        place = end
    stops = {STEPS}
    for piece in pieces:
        for node in piece.iter_subtrees() if isinstance(piece, lark.Tree) else ():
            if node.data == "scheduled":
                stops |= {stop for stop in [last(node.children[-2])] if stop >= 1}
            elif node.data == "alternate":
                stops |= set(range(1, STEPS + 1))
    return [(s, "".join(lark_at(piece, s) for piece in [*pieces, text[place:]])) for s in sorted(stops)]


def _whole(text: str) -> lark.Tree[lark.Token] | None:
    if text[-1] != "]":
        return None
    for start in ("scheduled", "alternate"):
        try:
            return parser(start).parse(text)
        except lark.exceptions.LarkError:
            continue
    return None


def test_prompts_with_brackets_that_are_text() -> None:
    random = Random(2)
    changing = 0
    for _ in range(300):
        text = of_signs(random, 9)
        expected = by_pieces(text)
        assert schedule(read(text), Steps(STEPS)) == expected, text
        changing += len(expected) > 1
    assert changing > 20


def test_writing_is_to_the_letter_and_reading_again_the_same() -> None:
    for text in prompts(2000, seed=3):
        nodes = read(text)
        assert written(nodes) == text
        assert read(written(nodes)) == nodes


def test_a_tree_made_by_hand_is_written() -> None:
    nodes = (Text("a "), Edit((Text("b"),), (), "0.5"), Turns(((Text("c"),), (Edit(None, (Text("d"),), "3"),))))
    assert written(nodes) == "a [b::0.5][c|[d:3]]"
    assert read(written(nodes)) == nodes


def test_what_is_nested_too_deep_is_text() -> None:
    deep = "[a:" * MAX_DEPTH + ":1]" * MAX_DEPTH
    assert isinstance(read(deep)[0], Edit)
    assert said(read(deep), 1, Steps(10)) == "a"
    deeper = f"[b:{deep}:1]"
    [first, inner, *_] = read(deeper)
    assert first == Text("[b:")
    assert isinstance(inner, Edit)
    assert written(read(deeper)) == deeper


def test_steps_are_capped() -> None:
    assert [Steps(20).last(when) for when in ("7", "0.5", "-1", "999", ".99", "1.0")] == [7, 10, 0, 20, 19, 20]
    assert list(islice((Steps(4).last(f"{k}") for k in range(9)), 9)) == [0, 1, 2, 3, 4, 4, 4, 4, 4]
