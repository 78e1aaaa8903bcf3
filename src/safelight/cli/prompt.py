"""`safelight prompt`: what a model makes of a prompt."""

# ruff: noqa: PLC0415  (a command imports what it needs, so that `--help` does not wait for torch)

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from safelight.cli.options import Json, ReadingOptions
from safelight.tasks.sources import PLAIN

prompt_app = App(name="prompt", help="What a model makes of a prompt.")


@prompt_app.command(name="explain")
def explain_prompt(
    prompt: str,
    *,
    negative: str = "",
    prompt_2: Annotated[str | None, Parameter(name="--prompt-2")] = None,
    negative_2: Annotated[str | None, Parameter(name="--negative-2")] = None,
    steps: int | None = None,
    emphasis: Literal["none", "ignore", "original", "no-norm"] = "original",
    style: tuple[str, ...] = (),
    styles: Path | None = None,
    wildcards: Path | None = None,
    seed: int = 0,
    model: str = "tiny",
    reading: ReadingOptions = None,
    as_json: Json = False,
) -> None:
    """The tokens of a prompt with their weights, its chunks and tags, and what is used at which step.

    Args:
        prompt: What is to be drawn.
        negative: What to stay away from.
        prompt_2: What SDXL's second text tower is told. Default: the same.
        negative_2: What that one is told to stay away from. Default: the same.
        steps: Sampling steps. Default: the model's.
        emphasis: What is done about brackets: they are words; all weighs the same; weights keep the mean; they do not.
        style: A style to put around the prompt; may be given several times.
        styles: The table that styles are in: a CSV file of name,prompt,negative_prompt.
        wildcards: A folder: __name__ becomes a line of name.txt in it, chosen by the seed.
        seed: The seed that chooses from wildcards.
        model: A shipped model, a folder, a .safetensors or .ckpt file, or a hub id.
    """
    from safelight.tasks.prompts.for_model import explain_wording
    from safelight.tasks.prompts.wording import Wording

    explained = explain_wording(
        Wording(prompt, negative, prompt_2, negative_2, style, styles, wildcards),
        model,
        PLAIN if reading is None else reading,
        steps=steps,
        emphasis=emphasis,
        seed=seed,
    )
    if as_json:
        print(json.dumps({"prompts": [one.model_dump() for one in explained]}))
    else:
        print(*(one.text() for one in explained), sep="\n")


def register(app: App) -> None:
    """Add the commands."""
    app.command(prompt_app)
