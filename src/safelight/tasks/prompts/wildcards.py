"""Wildcards: `__animal__` in a prompt becomes a line of FOLDER/animal.txt, chosen by the picture's seed.

The same seed, prompt and files give the same words. Pictures record the words and not the wildcards, so that they can
be made again without the files.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from safelight.errors import RequestError
from safelight.tasks.prompts.words import lines, read_words

MAX_DEPTH = 8
"""Of wildcards in the lines of wildcards."""
MAX_WORDS = 32_000
"""Characters that a prompt may come to."""
MAX_CHOICES = 1000

_WILDCARD = re.compile(r"__(?!_)([\w./\\ -]{1,200}?)(?<!_)__")


@dataclass(frozen=True)
class Wildcards:
    """The files of a folder; folders in it are named with a slash, as in `__animals/cats__`."""

    folder: Path
    _files: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)

    def resolve(self, prompt: str, seed: int, what: str = "prompt") -> str:
        """The prompt with a line in place of each wildcard; they may have wildcards themselves.

        Args:
            seed: the picture's own.
            what: the field that the prompt is of. Prompts of other fields choose other lines.

        Raises:
            RequestError: there is no such file, it is not in the folder, or wildcards come back to themselves.
        """
        choices = 0

        def choose(text: str, depth: int) -> str:
            def line(match: re.Match[str]) -> str:
                nonlocal choices
                name = match[1]
                if depth == MAX_DEPTH:
                    raise RequestError(
                        f"{what}: __{name}__ is more than {MAX_DEPTH} wildcards deep: does it name itself?"
                    )
                options, key = self._lines(name, what), f"{seed}\n{what}\n{choices}\n{name}"
                choices += 1
                if choices > MAX_CHOICES:
                    raise RequestError(f"{what}: there are more than {MAX_CHOICES} wildcards in it: use fewer")
                number = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest(), "big")
                return choose(options[number % len(options)], depth + 1)

            found = _WILDCARD.sub(line, text)
            if len(found) > MAX_WORDS:
                raise RequestError(f"{what}: with its wildcards it is longer than {MAX_WORDS} characters: use fewer")
            return found

        return choose(prompt, 0) if _WILDCARD.search(prompt) is not None else prompt

    def _lines(self, name: str, what: str) -> list[str]:
        if name not in self._files:
            try:
                folder = self.folder.resolve()
                path = (folder / f"{name.replace(chr(92), '/')}.txt").resolve()
            except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a zero byte
                raise RequestError(f"{what}: there is no file to be read for __{name}__ ({error})") from error
            if not path.is_relative_to(folder):
                raise RequestError(f"{what}: __{name}__ is not in the folder of wildcards {str(self.folder)!r}")
            if not path.is_file():
                raise RequestError(f"{what}: there is no {name}.txt for __{name}__ in {str(self.folder)!r}")
            found = lines(read_words(path, "wildcard file"))
            if not found:
                raise RequestError(f"{what}: {str(path)!r} for __{name}__ has no lines: write one or more")
            self._files[name] = found
        return self._files[name]
