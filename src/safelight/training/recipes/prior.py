"""Pictures of the class of what is taught, by the model itself, so that it keeps what it knew (Ruiz et al. 2023)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from safelight.checkpoints.writing import atomic
from safelight.errors import OutputError
from safelight.tasks.loading import load
from safelight.tasks.requests import TextToImage
from safelight.training.config import LoopConfig
from safelight.training.folders import Entry, find_pictures, read_entries
from safelight.training.latents import wait_for
from safelight.training.recipes.settings import PriorSettings

CLASS, DRAWN = "class", "drawn-"
TOGETHER = 4
"""Pictures of the class that are drawn in one batch."""


def with_class(settings: PriorSettings, entries: Sequence[Entry], loop: LoopConfig) -> list[Sequence[Entry]]:
    """The pictures to learn, and those of their class if that is asked for.

    Raises:
        DataError: a picture of the class is damaged, or has no caption.
        OutputError: one could not be written.
    """
    if settings.class_prompt is not None:
        return [entries, class_pictures(settings, settings.class_prompt, loop)]
    return [entries] if settings.class_data is None else [entries, read_entries(settings.class_data)]


def class_pictures(settings: PriorSettings, prompt: str, loop: LoopConfig) -> list[Entry]:
    """Pictures of the class, those that are missing drawn by the model as it is. Each depends on its number alone.

    Raises:
        DataError: one that is there is damaged.
        OutputError: one could not be written.
    """
    folder = loop.output / CLASS if settings.class_data is None else settings.class_data
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}): choose another --class-data") from error
    brought = sum(not path.name.startswith(DRAWN) for path in find_pictures(folder))
    wanted = [folder / f"{DRAWN}{k:05}.png" for k in range(settings.class_images - brought)]
    _draw(settings.model, prompt, wanted, loop)
    wait_for(wanted)
    return read_entries(folder, prompt)


def _draw(model: str, prompt: str, wanted: Sequence[Path], loop: LoopConfig) -> None:
    """Draw what of the wanted pictures is not there; of several processes, each its share."""
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    starts = range(rank * TOGETHER, len(wanted), processes * TOGETHER)
    due = [start for start in starts if not all(path.exists() for path in wanted[start : start + TOGETHER])]
    drawing = load(model, "cpu" if loop.device == "cpu" else None) if due else None
    for start in tqdm(due, desc=f"drawing {prompt}", unit=f" x {TOGETHER}", disable=None):
        assert drawing is not None
        some = wanted[start : start + TOGETHER]
        pictures = drawing.draw(TextToImage(prompt=prompt, seed=loop.seed + start, batch=len(some)))
        for path, picture in zip(some, pictures, strict=True):
            if not path.exists():
                with atomic(path) as temporary:
                    picture.save(temporary, "PNG")
