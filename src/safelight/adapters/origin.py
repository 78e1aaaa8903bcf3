"""Where an adapter comes from: what its file says of that, and which family its widths are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from safelight.checkpoints.files import printable
from safelight.checkpoints.sorts import Sort, sort_of
from safelight.errors import ModelFileError

STEP, MODEL, MODEL_HASH = "step", "sd_checkpoint_name", "sd_checkpoint"
"""What AUTOMATIC1111's web UI calls them; `name` it calls so, too."""

TOWERS: Mapping[tuple[int, ...], str] = {
    (768,): "Stable Diffusion 1",
    (1024,): "Stable Diffusion 2",
    (768, 1280): "Stable Diffusion XL",
    (1280,): "the Stable Diffusion XL refiner, or latent diffusion",
    (128,): "Safelight tiny",
}
"""By the widths of their text towers, in order."""
CONTEXTS: Mapping[int, str] = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    2048: "Stable Diffusion XL",
    1280: TOWERS[1280,],
    128: TOWERS[128,],
}
"""By the width of what their networks attend to."""

_LARGE = 1 << 53
"""No number that a file has in earnest is larger, and Python writes none of thousands of digits."""


@dataclass(frozen=True)
class Origin:
    """How an adapter came to be, as far as its file says: the words of a stranger."""

    name: str | None = None
    """What its maker called it."""
    step: int | None = None
    """How many steps it was trained for."""
    model: str | None = None
    """The model that it was trained with."""
    model_hash: str | None = None
    """The hash of that, as the web UI counts: the first letters of SHA-256."""

    @classmethod
    def of(cls, fields: Mapping[object, object]) -> Origin:
        """From the fields of a file; what is of another kind than it should be is nothing."""
        step = fields.get(STEP)
        if isinstance(step, str) and step.isdecimal() and len(step) < 16:
            step = int(step)
        number = isinstance(step, int) and not isinstance(step, bool) and abs(step) < _LARGE
        return cls(
            _text(fields.get("name")),
            step if number and isinstance(step, int) else None,
            _text(fields.get(MODEL)),
            _text(fields.get(MODEL_HASH)),
        )

    def fields(self) -> dict[str, str | int | None]:
        """Inverse of `of`."""
        return {"name": self.name, STEP: self.step, MODEL: self.model, MODEL_HASH: self.model_hash}


def require_no_other(path: Path, values: Mapping[object, object], wanted: Sort, called: str) -> None:
    """Refuse a file that is plainly something else, and say what it is.

    Args:
        values: tensors by key, or what is no tensor, of which nothing is said.
        wanted: what it should be, which people call `called`.

    Raises:
        ModelFileError: it is something else.
    """
    tensors = {str(key): value for key, value in values.items() if isinstance(value, Tensor)}
    sort = sort_of(tensors) if len(tensors) == len(values) else None
    if sort is not None and sort != wanted:
        raise ModelFileError(f"{path} is {sort.what.removesuffix(', not a model')}, not {called}; {sort.use}")


def named(key: object) -> str:
    """A key of a stranger's file, as it can stand in a message."""
    if isinstance(key, str):
        return repr(printable(key))
    return str(key) if isinstance(key, int) and abs(key) < _LARGE else f"a {type(key).__name__}"


def _text(value: object) -> str | None:
    return printable(value) if isinstance(value, str) and value else None
