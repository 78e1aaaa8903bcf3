"""`safelight metadata`: what a picture says of how it was made, whoever drew it."""

# ruff: noqa: PLC0415  (a command imports what it needs, so that `--help` is quick)

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cyclopts import App

from safelight.cli.options import Json

if TYPE_CHECKING:
    from safelight.tasks.metadata import Recovered

metadata_app = App(name="metadata", help="What a picture says of how it was made.")


@metadata_app.command(name="show")
def show_metadata(picture: str, *, as_json: Json = False) -> None:
    """Who drew a picture, the request recovered, what was not understood, and the command that would make it.

    Args:
        picture: A PNG, JPEG or WebP by Safelight, AUTOMATIC1111 and its kin, ComfyUI, InvokeAI or NovelAI; or a .txt
            with A1111's text.
    """
    from safelight.tasks.metadata import recover
    from safelight.tasks.metadata.bounded import readable

    found = recover(picture)
    if as_json:
        print(json.dumps(_fields(found, picture)))
        return
    rows = {"drawn by": found.tool, "task": found.task, "model": str(found.model)}
    rows |= {name.replace("_", " "): _short(value) for name, value in found.fields.items() if value is not None}
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        indented = readable(value).replace("\n", "\n" + " " * width)
        print(f"{name:<{width}}{indented}")
    if found.notes:
        print("\nnotes", *map(readable, found.notes), sep="\n- ")
    print(f"\n{readable(found.command(picture))}")


def _fields(found: Recovered, picture: str) -> dict[str, object]:
    return {
        "tool": found.tool,
        "task": found.task,
        "request": dict(found.fields),
        "model": {"name": found.model.name, "hash": found.model.hash},
        "notes": list(found.notes),
        "command": found.command(picture),
    }


def _short(value: object) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{text[:40]}... ({len(text)} characters)" if text.startswith("data:") else text


def register(app: App) -> None:
    """Add the command."""
    app.command(metadata_app)
