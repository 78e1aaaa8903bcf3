"""`safelight models` and `safelight convert`: what there is, what a file holds, and the same in another layout."""

# ruff: noqa: PLC0415  (a command imports what it needs, so that `--help` does not wait for torch)

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from cyclopts import App

from safelight.cli.options import Dtype, Json, ReadingOptions
from safelight.tasks.sources import PLAIN

models_app = App(name="models", help="What models there are, and what a file holds.")


@models_app.command(name="list")
def list_models(*, as_json: Json = False) -> None:
    """The models known by name, and whether their weights are shipped."""
    from safelight.tasks.files import known_models

    models = known_models()
    if as_json:
        print(json.dumps({"models": [model.model_dump() for model in models]}))
        return
    rows = [(model.name, f"{model.width}x{model.height}", model.title, model.weights) for model in models]
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(3)]
    for *cells, weights in rows:
        print("".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)) + weights)


@models_app.command(name="show")
def show_model(source: str, *, reading: ReadingOptions = None, as_json: Json = False) -> None:
    """What a model is made of, and what of its file would not be used.

    Args:
        source: A shipped model, a folder, a .safetensors or .ckpt file, or a hub id.
    """
    from safelight.tasks.files import describe

    card = describe(source, PLAIN if reading is None else reading)
    print(card.model_dump_json() if as_json else card.text())


def convert(
    source: str,
    output: Path,
    *,
    layout: Literal["diffusers", "original"] = "diffusers",
    dtype: Dtype | None = None,
    reading: ReadingOptions = None,
    as_json: Json = False,
) -> None:
    """Write a model as a diffusers folder of safetensors, or as one file in the original layout.

    Args:
        source: A shipped model, a folder, a .safetensors or .ckpt file, or a hub id.
        output: The folder to write: a new one, an empty one, or an earlier model to replace. Or the file.
        layout: A diffusers folder, or the single .safetensors file that the original code and most programs read.
        dtype: Number format of the weights that are written. Default: as they are.
    """
    from safelight.tasks.files import convert_model

    convert_model(source, output, PLAIN if reading is None else reading, dtype, layout)
    print(json.dumps({"folder" if layout == "diffusers" else "file": str(output)}) if as_json else output)


def register(app: App) -> None:
    """Add the commands."""
    app.command(models_app)
    app.command(convert)
