"""What a request's field may be marked with, beside its type, range and description."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """How a field is called on the command line, where that is not its own name."""

    name: str


@dataclass(frozen=True)
class Positional:
    """The one field of a request that needs no flag on the command line."""


@dataclass(frozen=True)
class Recorded:
    """A field that the model fills in for the record; no face asks the user for it."""


@dataclass(frozen=True)
class Group:
    """Under which heading a field stands in help and forms, where that is not the task's own."""

    name: str
    """One of HEADINGS."""


HEADINGS = ("Sampler", "Guidance", "Shortcuts", "Prompt", "Adapters", "Stable Diffusion XL")
"""In the order in which they are shown, behind the task's own fields."""
