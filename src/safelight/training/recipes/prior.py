"""Pictures of the class of what is taught, by the model itself, so that it keeps what it knew (Ruiz et al. 2023)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from safelight.checkpoints.writing import atomic, write_text
from safelight.errors import OutputError, TrainingError
from safelight.tasks.loading import load
from safelight.tasks.prompts.words import read_prompts
from safelight.tasks.requests import TextToImage
from safelight.training.config import LoopConfig
from safelight.training.folders import CAPTIONS, Entry, find_pictures, read_entries
from safelight.training.latents import wait_for
from safelight.training.recipes.tuning_settings import PriorSettings

CLASS, DRAWN = "class", "drawn-"
TOGETHER = 4
"""Pictures of the class that are drawn in one batch."""


def with_class(settings: PriorSettings, entries: Sequence[Entry], loop: LoopConfig) -> list[Sequence[Entry]]:
    """The pictures to learn, and those of their class if that is asked for.

    Raises:
        DataError: a picture of the class is damaged, or has no caption.
        OutputError: one could not be written.
        RequestError: the file of prompts cannot be read.
        TrainingError: the pictures of the class are named in two ways.
    """
    learned, brought = [[e for e in entries if e.prior is prior] for prior in (False, True)]
    if brought:
        if settings.class_prompt is not None or settings.class_prompts is not None or settings.class_data is not None:
            raise TrainingError("the data say which pictures are of the class (is_reg): leave out --class-...")
        if not learned:
            raise TrainingError("all of the data are of the class (is_reg), and nothing is to be learned: add a subset")
        return [learned, brought]
    prompts = [] if settings.class_prompt is None else [settings.class_prompt]
    if settings.class_prompts is not None:
        prompts = read_prompts(settings.class_prompts)
    if prompts:
        return [entries, class_pictures(settings, prompts, loop)]
    return [entries] if settings.class_data is None else [entries, read_entries(settings.class_data)]


def class_pictures(settings: PriorSettings, prompts: Sequence[str], loop: LoopConfig) -> list[Entry]:
    """Pictures of the class, those that are missing drawn by the model as it is. Each depends on its number alone, and
    has its prompt beside it as a caption.

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
    wanted = {folder / f"{DRAWN}{k:05}.png": prompts[k % len(prompts)] for k in range(settings.class_images - brought)}
    _draw(settings, wanted, loop)
    wait_for(list(wanted))
    return read_entries(folder, prompts[0])


def _draw(settings: PriorSettings, wanted: Mapping[Path, str], loop: LoopConfig) -> None:
    """Draw what of the wanted pictures is not there; of several processes, each its share."""
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    paths = list(wanted)
    starts = range(rank * TOGETHER, len(paths), processes * TOGETHER)
    due = [start for start in starts if not all(path.exists() for path in paths[start : start + TOGETHER])]
    drawing = load(settings.model, "cpu" if loop.device == "cpu" else None) if due else None
    for start in tqdm(due, desc="drawing the class", unit=f" x {TOGETHER}", disable=None):
        assert drawing is not None
        some = paths[start : start + TOGETHER]
        prompts = [wanted[path] for path in some]
        request = TextToImage(
            prompt=prompts[0], seed=loop.seed + start, batch=len(some), guidance=settings.class_guidance
        )
        for path, picture in zip(some, drawing.draw(request, prompts=prompts), strict=True):
            if not path.exists():
                write_text(path.with_suffix(CAPTIONS[0]), wanted[path] + "\n")
                with atomic(path) as temporary:
                    picture.save(temporary, "PNG")
