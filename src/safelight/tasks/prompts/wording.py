"""The words of a request before anything is told: its prompts, with what files add to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safelight.errors import RequestError
from safelight.tasks.prompts.styles import chosen, read_styles, styled
from safelight.tasks.prompts.wildcards import Wildcards


@dataclass(frozen=True)
class Wording:
    """Prompts as a user gives them."""

    prompt: str
    negative_prompt: str = ""
    prompt_2: str | None = None
    """What SDXL's second tower is told; None: the same."""
    negative_prompt_2: str | None = None
    style: tuple[str, ...] = ()
    """Names of styles, which are put around or behind the prompt and the negative prompt in this order."""
    styles: Path | None = None
    """The table that they are in."""
    wildcards: Path | None = None
    """A folder of wildcards; None: `__name__` is words like others."""

    def resolved(self, seed: int) -> Wording:
        """The same without files: the words that one picture is told, and records.

        Args:
            seed: the picture's own, which chooses from wildcards.

        Raises:
            RequestError: a file is missing or damaged, or has no such style or wildcard.
        """
        if self.style and self.styles is None:
            raise RequestError(f"style {self.style[0][:40]!r} needs a table of styles: give one by --styles")
        prompt, negative = self.prompt, self.negative_prompt
        if self.styles is not None:
            prompt, negative = styled(prompt, negative, chosen(self.style, read_styles(self.styles), self.styles))
        plain = Wording(prompt, negative, self.prompt_2, self.negative_prompt_2)
        if self.wildcards is None:
            return plain
        if not self.wildcards.is_dir():
            raise RequestError(f"there is no folder of wildcards {str(self.wildcards)!r}: name an existing one")
        files = Wildcards(self.wildcards)
        second, negative_2 = self.prompt_2, self.negative_prompt_2
        return Wording(
            files.resolve(prompt, seed, "prompt"),
            files.resolve(negative, seed, "negative_prompt"),
            None if second is None else files.resolve(second, seed, "prompt_2"),
            None if negative_2 is None else files.resolve(negative_2, seed, "negative_prompt_2"),
        )
