"""Models made of models: merges, adapters put in for good, and a LoRA taken out of a difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from safelight.adapters.extraction import extracted
from safelight.adapters.lora import Adapter, Strength, read_lora, write_lora
from safelight.adapters.merging import Shares, add_difference, weighted_sum, with_adapters
from safelight.checkpoints.files import printable
from safelight.errors import RequestError
from safelight.tasks.files import write_model
from safelight.tasks.loading import open_checkpoint
from safelight.tasks.sources import PLAIN, Reading
from safelight.tasks.wardrobe import Named

Method = Literal["weighted-sum", "add-difference"]


def merge_models(
    sources: Sequence[str],
    output: Path,
    *,
    share: float = 0.5,
    blocks: Sequence[str] = (),
    loras: Sequence[str] = (),
    reading: Reading = PLAIN,
    dtype: str | None = None,
    layout: Literal["diffusers", "original"] = "diffusers",
) -> tuple[str, ...]:
    """Write a model made of others.

    Args:
        sources: one, with adapters to put in; two, for first + share (second - first); or three, for
            first + share (second - third).
        share: how much of the others.
        blocks: `BLOCK=SHARE` for blocks of the UNet, as IN04=0.3.
        loras: `FILE:WEIGHT:UNET-WEIGHT`, put in afterwards.
        output, dtype, layout: as `convert_model`.

    Returns:
        What of the LoRAs is not in it, a line each, to be shown: no model holds the words that come with one.

    Raises:
        RequestError: nothing is to be merged, the models are of different kinds, or a share is no number.
        ModelFileError: as `load`, of any of the files.
        OutputError: it could not be written.
    """
    if len(sources) == 1 and not loras:
        raise RequestError("one model alone is no merge: give a second one, or a --lora")
    if len(sources) > 3:
        raise RequestError(f"{len(sources)} models are too many: give two, three, or one with a --lora")
    models = [open_checkpoint(source, reading) for source in sources]
    shares = Shares(share, dict(_share(text) for text in blocks))
    merged = models[0]
    if len(models) == 2:
        merged = weighted_sum(models[0], models[1], shares)
    elif len(models) == 3:
        merged = add_difference(models[0], models[1], models[2], shares)
    worn: list[tuple[Adapter, Strength]] = []
    if loras:
        named = [Named.of(text, 2) for text in loras]
        worn = [
            (read_lora(n.path, merged.preset), Strength(*((n.numbers[0], n.numbers[-1]) if n.numbers else (1.0, 1.0))))
            for n in named
        ]
        merged = with_adapters(merged, worn)
    write_model(merged, output, dtype, layout)
    words = ((adapter.source, word) for adapter, _ in worn for word in adapter.embeddings)
    return tuple(f"{source}: not merged: the word {printable(word)}, an embedding" for source, word in words)


def extract_lora(
    tuned: str, original: str, output: Path, *, rank: int = 16, convolution_rank: int | None = None
) -> tuple[float, tuple[str, ...]]:
    """Write the LoRA that makes one model into another, as nearly as its rank allows.

    Returns:
        How much of the difference is in it, 0 to 1; and the weights that differ too and are not.

    Raises:
        RequestError: the models are not of one kind, or do not differ, or the output does not end in .safetensors.
        ModelFileError: as `load`.
        OutputError: it could not be written.
    """
    if output.suffix != ".safetensors":
        raise RequestError(f"a LoRA is one file: {str(output)!r} must end in .safetensors")
    first, second = open_checkpoint(tuned), open_checkpoint(original)
    found = extracted(first, second, rank, convolution_rank, output.stem)
    write_lora(output, found.adapter, second.preset)
    return found.kept, found.left_out


def _share(text: str) -> tuple[str, float]:
    block, _, number = text.partition("=")
    try:
        return block, float(number)
    except ValueError as error:
        raise RequestError(f"block {text!r} is not understood: write IN04=0.3") from error
