"""Recipe: textual inversion, a word whose vectors are learned while all networks stay as they are (Gal et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from safelight.adapters.embedding_files import write_embedding
from safelight.adapters.embeddings import ONLY, Embedding, TaughtTokenizer
from safelight.adapters.origin import Origin
from safelight.doors import Conditioning
from safelight.errors import DataError, TrainingError
from safelight.models.bert import Bert
from safelight.models.clip import ClipText
from safelight.models.tokenizer import Tokenizing
from safelight.training.config import LoopConfig
from safelight.training.folders import Entry, read_entries
from safelight.training.recipes.foundation import Foundation, Taught
from safelight.training.recipes.tuning import Tuning
from safelight.training.recipes.tuning_settings import InversionSettings, TuningData


class TextualInversion(Tuning):
    """The vectors of one word, for every text tower."""

    settings: InversionSettings

    def __init__(self, settings: InversionSettings, data: TuningData, loop: LoopConfig) -> None:
        """Read the pictures, all of whose captions must have the word, and begin its vectors.

        Raises:
            DataError, ModelFileError, TrainingError: as `read_entries`, `Foundation` and `Tuning`; a caption lacks the
                word, or the vectors do not fit into a prompt.
            RequestError: the word has no letters that the model can read.
        """
        entries = read_entries(data.data, data.caption)
        foundation = Foundation(settings.model, dtype=torch.bfloat16 if loop.precision == "bf16" else torch.float32)
        generator = torch.Generator().manual_seed(loop.seed)
        self._tokenizers: dict[str, Tokenizing] = {}
        rows: dict[str, Tensor] = {}
        for part, tower in foundation.towers.items():
            known = foundation.tokenizers[part]
            if settings.vectors > known.length - 2:
                raise TrainingError(
                    f"--vectors {settings.vectors} are more than a prompt has room for: give at most {known.length - 2}"
                )
            rows[part] = _begun(settings, tower, known, generator)
            word = [([settings.file], settings.vectors)]
            tokenizer = TaughtTokenizer(known, _table(tower)[1].num_embeddings, word)
            _require_word(settings, entries, tokenizer)
            self._tokenizers[part] = tokenizer
        self._rows_of = nn.ParameterDict({part: nn.Parameter(row) for part, row in rows.items()})
        super().__init__(settings, data, [entries], foundation, loop)
        steps = -(-loop.images // loop.step_images)
        self._origin = Origin(settings.file, steps, Path(settings.model).name)

    @property
    def trained(self) -> nn.Module:
        return self._rows_of

    def says(self, captions: Sequence[str]) -> Conditioning:
        return self.foundation.says(captions, Taught(self._tokenizers, dict(self._rows_of.items())))

    @contextmanager
    def acting(self, drawing: bool) -> Iterator[Mapping[str, Tokenizing]]:
        """To draw, the towers' tables have the new rows at their end for a time."""
        before: list[tuple[nn.Module, str, nn.Embedding]] = []
        try:
            for part, tower in self.foundation.towers.items() if drawing else ():
                owner, table = _table(tower)
                name = next(name for name, module in owner.named_children() if module is table)
                longer = torch.cat([table.weight, self._rows_of[part].detach().to(table.weight)])
                setattr(owner, name, nn.Embedding(len(longer), longer.shape[1], _weight=longer))
                before.append((owner, name, table))
            yield self._tokenizers
        finally:
            for owner, name, table in before:
                setattr(owner, name, table)

    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        """One `.safetensors` that the web UIs read."""
        [rows] = weights.values()
        assert isinstance(rows, nn.ParameterDict)
        vectors = {part: row.detach().float().cpu() for part, row in rows.items()}
        if len(vectors) == 1:
            vectors = {ONLY: next(iter(vectors.values()))}
        folder.mkdir(parents=True, exist_ok=True)
        name = self.settings.file
        write_embedding(folder / f"{name}.safetensors", Embedding((name,), vectors, self._origin))


def _table(tower: ClipText | Bert) -> tuple[nn.Module, nn.Embedding]:
    """The vectors of a tower's vocabulary, and the module that has them."""
    for module in tower.modules():
        for name in ("token_embedding", "embed_tokens"):
            table = getattr(module, name, None)
            if isinstance(table, nn.Embedding):
                return module, table
    raise AssertionError("a text tower has a vocabulary")


def _begun(
    settings: InversionSettings, tower: ClipText | Bert, tokenizer: Tokenizing, generator: torch.Generator
) -> Tensor:
    """(n, D) float32: those of the initial words, over and over, or noise of the vocabulary's own size."""
    table = _table(tower)[1].weight.detach().float()
    if settings.initial is None:
        return torch.randn(settings.vectors, table.shape[1], generator=generator) * table.std()
    ids = tokenizer.words(settings.initial)
    if not ids:
        raise TrainingError(f"--initial {settings.initial!r} is no word that the model knows: give another")
    return table[[ids[k % len(ids)] for k in range(settings.vectors)]].clone()


def _require_word(settings: InversionSettings, entries: Sequence[Entry], tokenizer: TaughtTokenizer) -> None:
    """Refuse a caption that does not say the word: its picture would teach nothing."""
    for entry in entries:
        if settings.file not in tokenizer.mentioned(entry.caption):
            raise DataError(
                f"the caption of {entry.path} is {entry.caption[:80]!r}, without {settings.file}: write the word into "
                "it, or give a --placeholder that is there"
            )
