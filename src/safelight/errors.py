"""Every error that Safelight raises on purpose. Each message is one line: what is wrong, and how to mend it."""

from __future__ import annotations


class SafelightError(Exception):
    """What all of our errors are. The command line prints the message alone and exits with code 2."""


class RequestError(SafelightError):
    """A request that cannot be answered: an unknown sampler, a size off the grid, a value out of range."""


class ModelFileError(SafelightError):
    """A weights file that is missing, truncated, of wrong shapes, of unknown family, or that tries to run code."""


class DataError(SafelightError):
    """Training data that cannot be used: an empty folder, an unreadable picture, a missing caption."""


class TrainingError(SafelightError):
    """A training run that cannot go on: a non-finite loss, a checkpoint that does not fit the run."""


class OutputError(SafelightError):
    """A result that could not be written: a full disk, a folder without permission. Nothing half-written is left."""
