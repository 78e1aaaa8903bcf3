"""Prompts for tests: made by the grammar, or of its signs in any order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from random import Random
from types import FrameType
from typing import Any

WORDS = ("a", "red ", "apple, ", "\\(x\\)", " ", "\\:", "3", ".5", " b c\n", "", "é日", "BREAKs")
NUMBERS = ("3", ".5", "0.25", "1.0", "0", "12", "-1", "+2", "1e0", "1.e-1", "5.5")
SIGNS = (
    *"ab 3.5\\#<>_|:()[]()[]::",
    *(
        "\n",
        "[a:b:3]",
        "[a|b]",
        "[:",
        "::3]",
        ":.5]",
        "(a:1.2)",
        " BREAK ",
        " AND ",
        ":1.3)",
        "<lora:x:1>",
        "é日本",
        "  ",
    ),
)


def well_formed(random: Random, depth: int = 3) -> str:
    """What the grammar allows, without a bracket that is text."""

    def inside(depth: int) -> str:
        return "".join(item(depth) for _ in range(random.choice((0, 1, 1, 2, 3))))

    def number() -> str:
        return random.choice(("", "  ")) + random.choice(NUMBERS) + random.choice(("", "", " "))

    def item(depth: int) -> str:
        if depth <= 0 or random.random() < 0.4:
            return random.choice(WORDS)
        a, b, c = (inside(depth - 1) for _ in range(3))
        kinds = (f"({a})", f"({a}:{b})", f"[{a}]", f"[{a}:{number()}]", f"[{a}:{b}:{number()}]", f"[{a}|{b}]")
        return random.choice((*kinds, f"[{a}|{b}|{c}]"))

    return inside(depth)


def of_signs(random: Random, most: int = 20) -> str:
    """Signs in any order."""
    return "".join(random.choice(SIGNS) for _ in range(random.randint(0, most)))


def prompts(count: int, seed: int = 0) -> Iterator[str]:
    """Some of each."""
    random = Random(seed)
    for k in range(count):
        yield well_formed(random) if k % 3 == 0 else of_signs(random, 12 if k % 3 == 1 else 60)


def _repeated(unit: str) -> Callable[[int], str]:
    return lambda length: (unit * (length // len(unit) + 1))[:length]


def _nested(opening: str, closing: str) -> Callable[[int], str]:
    def nested(length: int) -> str:
        depth = length // (len(opening) + len(closing))
        return opening * depth + closing * depth

    return nested


ADVERSARIES: dict[str, Callable[[int], str]] = {
    **{repr(unit): _repeated(unit) for unit in ("(", "[", ")", "]", ":", "|", "\\", "#", "#\n", "<a:", "<a:b>", "<w")},
    **{repr(unit): _repeated(unit) for unit in ("([)]", "[(", "a(", "(a:1", "(:1.2)", ":  1 ", "[a|b]", "1", " ")},
    **{repr(unit): _repeated(unit) for unit in ("AND ", " AND :1", " BREAK ", "BREAK_", "[a:b:0.5] (c:1.2) ", "a, ")},
    "nested ()": _nested("(", ")"),
    "nested weights": _nested("(a", ":1.1)"),
    "nested edits": _nested("[a:", ":1]"),
    "nested turns": _nested("[|", "]"),
    "crossed brackets": _nested("([a", ")]"),
    "a long number": lambda length: ":" + "1" * (length - 1),
    "spaces around a colon": lambda length: " " * (length // 2 - 1) + ":" + " " * (length // 2),
}
"""Texts of about a length, each a reader's worst case of one kind."""


def lines_run(action: Callable[[], object]) -> int:
    """How many lines of Python an action runs: its work, counted and not timed."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count
