"""Safelight: the Stable Diffusion family as one house. A picture is a `Request` answered by a `Model`.

Every public name is here, and each is imported when it is first used: `import safelight` imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from safelight.uncollected import uncollected

if TYPE_CHECKING:
    from safelight.errors import (
        DataError,
        ModelFileError,
        OutputError,
        RequestError,
        SafelightError,
        TrainingError,
    )
    from safelight.tasks.grid.axes import Axis
    from safelight.tasks.grid.drawing import draw_grid
    from safelight.tasks.loading import load
    from safelight.tasks.metadata import read_record, recover, request_from
    from safelight.tasks.model import Model
    from safelight.tasks.pictures import save_picture
    from safelight.tasks.requests import (
        ClassToImage,
        DepthToImage,
        ImageToImage,
        Inpaint,
        LayoutToImage,
        Refine,
        SemanticToImage,
        TextToImage,
        Unconditional,
        Upscale,
        Variations,
    )

__version__ = "0.1.0"

__all__ = [
    "Axis",
    "ClassToImage",
    "DataError",
    "DepthToImage",
    "ImageToImage",
    "Inpaint",
    "LayoutToImage",
    "Model",
    "ModelFileError",
    "OutputError",
    "Refine",
    "RequestError",
    "SafelightError",
    "SemanticToImage",
    "TextToImage",
    "TrainingError",
    "Unconditional",
    "Upscale",
    "Variations",
    "__version__",
    "draw_grid",
    "load",
    "read_record",
    "recover",
    "request_from",
    "save_picture",
]

_HOMES = {
    "Axis": "safelight.tasks.grid.axes",
    "ClassToImage": "safelight.tasks.requests",
    "DataError": "safelight.errors",
    "DepthToImage": "safelight.tasks.requests",
    "ImageToImage": "safelight.tasks.requests",
    "Inpaint": "safelight.tasks.requests",
    "LayoutToImage": "safelight.tasks.requests",
    "Model": "safelight.tasks.model",
    "ModelFileError": "safelight.errors",
    "OutputError": "safelight.errors",
    "Refine": "safelight.tasks.requests",
    "RequestError": "safelight.errors",
    "SafelightError": "safelight.errors",
    "SemanticToImage": "safelight.tasks.requests",
    "TextToImage": "safelight.tasks.requests",
    "TrainingError": "safelight.errors",
    "Unconditional": "safelight.tasks.requests",
    "Upscale": "safelight.tasks.requests",
    "Variations": "safelight.tasks.requests",
    "draw_grid": "safelight.tasks.grid.drawing",
    "load": "safelight.tasks.loading",
    "read_record": "safelight.tasks.metadata",
    "recover": "safelight.tasks.metadata",
    "request_from": "safelight.tasks.metadata",
    "save_picture": "safelight.tasks.pictures",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'safelight' has no attribute {name!r}")
    with uncollected():
        value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
