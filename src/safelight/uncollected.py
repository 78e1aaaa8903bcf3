"""Without Python's search for garbage, where many objects are made and all are kept."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Importing and making networks leave some hundred thousand objects and no garbage. Looking through all of them
    again and again took 0.4 of the 2.5 seconds from a process's start to a loaded model.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
