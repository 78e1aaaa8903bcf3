"""Weights and BREAK: the known cases, the rule applied letter by letter, and texts written again."""

from __future__ import annotations

import re
from itertools import pairwise
from random import Random

import pytest

from prompt_cases import ADVERSARIES, of_signs, prompts
from safelight.conditioning.prompts.emphasis import (
    EMPHASES,
    EMPHASIS_LABELS,
    LARGEST,
    Segment,
    emphasis,
    read,
    written,
)
from safelight.errors import RequestError

CASES = {
    "": [],
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    "unbalanced)": [("unbalanced)", 1.0)],
    "\\(literal\\]": [("(literal]", 1.0)],
    "\\\\(a)": [("\\", 1.0), ("a", 1.1)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ],
    "[x:1.3]": [("x:1.3", 1 / 1.1)],
    "[x]": [("x", 1 / 1.1)],
    "x:1.3)": [("x:1.3)", 1.0)],
    "(x: +.5 )": [("x", 0.5)],
    "(x:-2)": [("x", -2.0)],
    "(x:1.2.3)": [("x:1.2.3", 1.1)],
    "(x:.)": [("x:.", 1.1)],
    "(a [b) c]": [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)],
    "a\\b": [("ab", 1.0)],
    "a: b": [("a: b", 1.0)],
}


@pytest.mark.parametrize("text", CASES)
def test_conformance(text: str) -> None:
    [block] = read(text)
    assert [(segment.text, segment.weight) for segment in block] == CASES[text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", ["a", "b"]),
        ("a\n\n BREAK\tb", ["a", "b"]),
        ("BREAK a", ["", "a"]),
        ("a BREAK", ["a", ""]),
        ("a BREAK BREAK b", ["a", "", "b"]),
        ("a BREAKs, unBREAK, break", ["a BREAKs, unBREAK, break"]),
        ("a,BREAK,b", ["a,", ",b"]),
        ("(a BREAK b)", ["a", "b"]),
    ],
)
def test_break(text: str, expected: list[str]) -> None:
    assert ["".join(segment.text for segment in block) for block in read(text)] == expected


def test_break_in_brackets_leaves_the_weights() -> None:
    assert read("(a BREAK b) c") == ((Segment("a", 1.1),), (Segment("b", 1.1), Segment(" c")))


def test_modes() -> None:
    text = "a (b:1.3) BREAK [c]"
    assert read(text, "none") == ((Segment(text),),)
    assert read("", "none") == ((),)
    assert read(text, "ignore") == ((Segment("a "), Segment("b")), (Segment("c"),))
    assert (
        read(text, "original")
        == read(text, "no-norm")
        == ((Segment("a "), Segment("b", 1.3)), (Segment("c", 1 / 1.1),))
    )
    assert [emphasis(mode) for mode in EMPHASES] == [emphasis(EMPHASIS_LABELS[mode]) for mode in EMPHASES]
    with pytest.raises(RequestError, match="emphasis cannot be 'strong': choose none, ignore, original, no-norm"):
        emphasis("strong")


def letters(text: str) -> list[tuple[str, float]]:
    """Every letter with its weight, after the rule: whoever closes a bracket multiplies all that is in it."""
    found: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        found[start:] = [(letter, weight * factor) for letter, weight in found[start:]]

    while text:
        weight = re.match(r":\s*([+-]?[.\d]+)\s*\)", text)
        if weight is not None and opened["("] and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", weight[1]):
            multiply(opened["("].pop(), float(weight[1]))
            text = text[weight.end() :]
        elif weight is not None and not opened["("]:
            found += [(letter, 1.0) for letter in weight[0]]
            text = text[weight.end() :]
        elif text[0] == "\\":
            kept = text[1:2] if text[1:2] in [*"()[]\\"] else ""
            found += [(kept, 1.0)] if kept else []
            text = text[1 + len(kept) :]
        elif text[0] in opened:
            opened[text[0]].append(len(found))
            text = text[1:]
        elif text[0] in ")]" and opened["(" if text[0] == ")" else "["]:
            multiply(opened["(" if text[0] == ")" else "["].pop(), 1.1 if text[0] == ")" else 1 / 1.1)
            text = text[1:]
        else:
            found.append((text[0], 1.0))
            text = text[1:]
    for bracket, factor in (("(", 1.1), ("[", 1 / 1.1)):
        for start in opened[bracket]:
            multiply(start, factor)
    return found


def test_the_rule_letter_by_letter() -> None:
    weighted = 0
    for text in (prompt.replace("BREAK", "break") for prompt in prompts(3000, seed=4)):
        [block] = read(text)
        assert [(letter, s.weight) for s in block for letter in s.text] == letters(text), text
        assert all(a.weight != b.weight for a, b in pairwise(block)), "neighbours of equal weight"
        weighted += len(block) > 1
    assert weighted > 1000


def test_deeper_than_exact_only_the_last_bits_may_differ() -> None:
    random = Random(5)
    for depth in (16, 17, 40, 60):
        text = "".join(random.choice("([") + "x" for _ in range(depth)) + "".join(
            random.choice((")", "]", ":1.01)", "y")) for _ in range(depth)
        )
        [block] = read(text)
        ours = [(letter, s.weight) for s in block for letter in s.text]
        assert [letter for letter, _ in ours] == [letter for letter, _ in letters(text)]
        assert [w for _, w in ours] == pytest.approx([w for _, w in letters(text)], rel=1e-14)
        if depth == 16:
            assert ours == letters(text)


def test_weights_stop_where_no_picture_is_left() -> None:
    [[huge]] = read(f"((a:{'9' * 400}):{'9' * 400})")
    assert huge.weight == LARGEST
    [[small]] = read(f"(a:-{'9' * 400})")
    assert small.weight == -LARGEST


def test_what_is_written_reads_the_same() -> None:
    random = Random(6)
    texts = [*prompts(3000, seed=6), *(of_signs(random, 30) for _ in range(1000)), *CASES]
    texts += [make(300) for make in ADVERSARIES.values()]
    texts += ["BRE(AK:1)", "x (y :1)BREAK z", "(a )BREAK( b)", "(BRE(AK:1):1.3)", "a (\\::1.5)b"]
    for text in texts:
        blocks = read(text)
        assert read(written(blocks)) == blocks, text
        assert written(read(written(blocks))) == written(blocks), text


def test_what_is_written() -> None:
    assert written(read("a ((b)) \\(c\\) [d] BREAK e")) == (
        "a (b:1.2100000000000002) \\(c\\) (d:0.9090909090909091) BREAK e"
    )
    assert written(read("BRE(AK:1)")) == "B(REAK:1)"
