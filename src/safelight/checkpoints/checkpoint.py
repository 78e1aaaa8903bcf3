"""What reading a model gives, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from safelight.checkpoints.keys import Dropped
from safelight.checkpoints.layouts import original
from safelight.errors import ModelFileError
from safelight.models.tokenizer import Tokenizing
from safelight.presets import Preset


@dataclass(frozen=True)
class Checkpoint:
    """Weights by our names, and what they are the weights of."""

    preset: Preset
    parts: dict[str, dict[str, Tensor]]
    """By part (those of `Preset.networks`) and name; views of the mapped file, in the file's dtype."""
    tokenizers: Mapping[str, Tokenizing] = field(default_factory=dict)
    """By text tower. One that is missing: the file has no vocabulary, and none was found on this machine."""
    source: Path | None = None
    """The file or folder that was read."""
    dropped: tuple[Dropped, ...] = ()
    """(key, why) of what was in the file and is of no use."""

    def absent(self) -> list[str]:
        """Parts that the member has and the file has not."""
        return [part for part in self.preset.networks if part not in self.parts]

    def require_whole(self) -> None:
        """Refuse what lacks a part, without which nothing can be drawn.

        Raises:
            ModelFileError: it does.
        """
        if absent := self.absent():
            file = "the model" if self.source is None else str(self.source)
            options = " and ".join(dict.fromkeys(original.BROUGHT[part] for part in absent))
            raise ModelFileError(f"{file} has no {' and no '.join(absent)} in it: give one by {options}")

    def vocabularies(self) -> Mapping[str, Tokenizing]:
        """A tokenizer for every text tower, which a model needs as soon as it is told anything.

        Raises:
            ModelFileError: one is missing.
        """
        if any(words.part not in self.tokenizers for words in self.preset.words):
            raise ModelFileError(
                f"{'the model' if self.source is None else self.source} holds no vocabulary, and that "
                "of its text tower is not in the local hub cache; give a folder with vocab.json and merges.txt (or "
                "vocab.txt) by --tokenizer"
            )
        return self.tokenizers
