"""Files of words that users write: read whole, or refused in one line."""

from __future__ import annotations

from pathlib import Path

from safelight.errors import RequestError

MAX_BYTES = 16 * 2**20
"""Of one file. The largest collections of styles and wildcards have a fraction of it."""


def read_words(path: Path, what: str) -> str:
    """The text of a file, with or without a byte order mark.

    Args:
        what: what it is to the user, for the message.

    Raises:
        RequestError: there is no such file, or it is no text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        why = error.strerror if isinstance(error, OSError) else "no name of a file"
        raise RequestError(f"cannot read the {what} {str(path)!r} ({why}): give an existing file") from error
    if len(data) > MAX_BYTES:
        raise RequestError(f"the {what} {str(path)!r} is larger than {MAX_BYTES // 2**20} MiB: give a smaller one")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RequestError(f"the {what} {str(path)!r} is no UTF-8 in line {line}: save it as UTF-8") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise RequestError(f"the {what} {str(path)!r} has a zero byte in line {line}: give a file of text")
    return text


def lines(text: str) -> list[str]:
    """The lines that say something: those that are empty, or begin with `#`, are for the reader."""
    found = [line.strip() for line in text.split("\n")]
    return [line for line in found if line and not line.startswith("#")]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one a line; lines that are empty or begin with `#` are none.

    Raises:
        RequestError: it cannot be read, or has no prompt.
    """
    prompts = lines(read_words(path, "list of prompts"))
    if not prompts:
        raise RequestError(f"the list of prompts {str(path)!r} has none: write one a line")
    return prompts
