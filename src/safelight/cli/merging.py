"""`safelight models merge` and `safelight models extract`: models made of models, and LoRAs of their differences."""

# ruff: noqa: PLC0415  (a command imports what it needs, so that `--help` does not wait for torch)

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from safelight.cli.models import models_app
from safelight.cli.options import Dtype, Json, ReadingOptions
from safelight.tasks.sources import PLAIN


@models_app.command(name="merge")
def merge(
    first: str,
    second: str | None = None,
    third: str | None = None,
    *,
    output: Path,
    share: float = 0.5,
    block: tuple[str, ...] = (),
    lora: Annotated[tuple[str, ...], Parameter(name="--lora")] = (),
    layout: Literal["diffusers", "original"] = "diffusers",
    dtype: Dtype | None = None,
    reading: ReadingOptions = None,
    as_json: Json = False,
) -> None:
    """Make one model of several, or put LoRAs into one for good.

    Of two models: first + share (second - first). Of three: first + share (second - third), what the second learned
    beyond the third. Numbers are computed in float32 and kept in the format of the first.

    Args:
        first: A shipped model, a folder, a .safetensors or .ckpt file, or a hub id.
        second: Another one of the same kind.
        third: The one that the second was made of.
        output: The folder to write, or with --layout original the file.
        share: How much of the others: 0 is none of them, 1 all.
        block: BLOCK=SHARE for a block of the UNet (IN00 ..., M00, OUT00 ...), like IN04=0.3. Several times, too.
        lora: FILE:WEIGHT:UNET-WEIGHT of a LoRA to put in; may be given several times.
        layout: A diffusers folder, or the single .safetensors file that the original code and most programs read.
        dtype: Number format of the weights that are written. Default: as they are.
    """
    from safelight.tasks.merging import merge_models

    sources = [source for source in (first, second, third) if source is not None]
    chosen = PLAIN if reading is None else reading
    left = merge_models(
        sources, output, share=share, blocks=block, loras=lora, reading=chosen, dtype=dtype, layout=layout
    )
    for line in left:
        print(f"note: {line}", file=sys.stderr)
    print(json.dumps({"folder" if layout == "diffusers" else "file": str(output)}) if as_json else output)


@models_app.command(name="extract")
def extract(
    tuned: str,
    original: str,
    *,
    output: Path,
    rank: int = 16,
    convolution_rank: int | None = None,
    as_json: Json = False,
) -> None:
    """Take a LoRA out of what one model has learned beyond another.

    Args:
        tuned: The model that learned more.
        original: The one that it was made of.
        output: The .safetensors file to write.
        rank: Of the LoRA: the more, the nearer and the larger.
        convolution_rank: Of its convolutions. Default: they are left out.
    """
    from safelight.tasks.merging import extract_lora

    kept, left = extract_lora(tuned, original, output, rank=rank, convolution_rank=convolution_rank)
    if left:
        print(f"note: {len(left)} weights differ that this LoRA does not hold, like {left[0]}", file=sys.stderr)
    if as_json:
        print(json.dumps({"file": str(output), "kept": kept, "left_out": list(left)}))
    else:
        print(output)
        print(f"it holds {kept:.1%} of the difference", file=sys.stderr)


def register(app: App) -> None:
    """The commands are of `models`, and are there with it."""
