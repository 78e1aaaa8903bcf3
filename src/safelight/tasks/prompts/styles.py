"""Styles: named words that go around or behind a prompt, from a table of `name,prompt,negative_prompt`.

The table is that of AUTOMATIC1111's web UI, `styles.csv`. A row without a name, or with one that begins with `#`, is
for the reader.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from safelight.conditioning.prompts.prompt import without_comments
from safelight.errors import RequestError
from safelight.tasks.prompts.words import read_words

COLUMNS = ("name", "prompt", "negative_prompt")
PLACE = "{prompt}"


@dataclass(frozen=True)
class Style:
    """What a style adds."""

    name: str
    prompt: str = ""
    """With `{prompt}` where the prompt is to stand; else it is added behind a comma."""
    negative_prompt: str = ""
    """The same, of the negative prompt."""


def read_styles(path: Path) -> dict[str, Style]:
    """The styles of a table, by name and in its order.

    Raises:
        RequestError: it cannot be read, has other columns, or a row is bad: the message names the row.
    """
    text = read_words(path, "table of styles")
    styles: dict[str, Style] = {}
    rows = csv.reader(StringIO(text, newline=""), strict=True)

    def bad(why: str) -> RequestError:
        return RequestError(f"styles: {str(path)!r} line {rows.line_num}: {why}")

    try:
        names = [name.strip() for name in next(rows, [])]
        names = ["prompt" if name == "text" else name for name in names]  # as the first versions called it
        if names not in (list(COLUMNS), list(COLUMNS[:2])):
            raise bad(f"the columns must be {','.join(COLUMNS)}")
        for row in rows:
            if not any(row) or not row[0].strip() or row[0].startswith("#"):
                continue
            if len(row) != len(names):
                raise bad(f"{row[0][:40]!r} has {len(row)} cells for {len(names)} columns: put quotes around commas")
            style = Style(row[0].strip(), *row[1:])
            if style.name in styles:
                raise bad(f"there is a {style.name[:40]!r} already: give one of them another name")
            styles[style.name] = style
    except csv.Error as error:
        raise bad(f"this is no row ({error}): put quotes around cells, and two in place of one inside them") from error
    return styles


def styled(prompt: str, negative_prompt: str, styles: Sequence[Style]) -> tuple[str, str]:
    """The prompt and the negative prompt in these styles, one after the other.

    Comments are taken out before, which otherwise would hide what is added behind them.
    """
    if styles:
        prompt, negative_prompt = without_comments(prompt), without_comments(negative_prompt)
    for style in styles:
        prompt = _merged(prompt, without_comments(style.prompt))
        negative_prompt = _merged(negative_prompt, without_comments(style.negative_prompt))
    return prompt, negative_prompt


def _merged(prompt: str, style: str) -> str:
    if PLACE in style:
        return style.replace(PLACE, prompt)
    if not style.strip():
        return prompt
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


def chosen(names: Sequence[str], styles: Mapping[str, Style], path: Path) -> list[Style]:
    """The styles of these names.

    Raises:
        RequestError: there is no such style in the table.
    """
    for name in names:
        if name not in styles:
            known = ", ".join(list(styles)[:20]) + (", ..." if len(styles) > 20 else "")
            raise RequestError(f"there is no style {name[:40]!r} in {str(path)!r}: it has {known if known else 'none'}")
    return [styles[name] for name in names]
