"""Training pictures from a folder, and which pictures are in which batch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from safelight.errors import DataError
from safelight.training.folders import TOML, identity_of, read_entries


@lru_cache(maxsize=8)
def permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """0 ... count - 1 in an order that depends on (seed, epoch) alone, on every machine and version.

    By sorting the raw numbers of a counter-based generator (Philox, Salmon et al. 2011), which NumPy promises
    to keep; it does not promise that of its `permutation`.
    """
    raw = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    order = np.argsort(raw, kind="stable").astype(np.int64)
    order.setflags(write=False)  # it is shared by all callers
    return order


def batch_indices(index: int, size: int, count: int, seed: int) -> list[int]:
    """The pictures of batch `index`, `size` out of `count`.

    Batches are cut from an endless row of shuffled epochs: each epoch has every picture once. Batch i of
    size n is batches 2i and 2i + 1 of size n / 2, so processes can share it.
    """
    if count < 1:
        raise DataError("there are no pictures to take a batch from: give at least one")
    chosen: list[int] = []
    position, end = index * size, (index + 1) * size
    while position < end:
        epoch, start = divmod(position, count)
        taken = min(end - position, count - start)
        chosen += permutation(seed, epoch, count)[start : start + taken].tolist()
        position += taken
    return chosen


class ImageFolder:
    """Captioned pictures in a folder and the folders in it: PNG, JPEG, WebP, BMP; captions as in `folders`.

    Everything is read once at the beginning, so that a mistake is found before the first step and not in the night.
    """

    def __init__(self, folder: Path, size: int) -> None:
        """Validate the folder; its pictures come out `size` pixels wide and high.

        Raises:
            DataError: as `folders.read_entries`.
        """
        self.folder, self.size = Path(folder), size
        if self.folder.suffix.lower() == TOML:
            raise DataError(f"{folder} says how to fine-tune, which is another recipe: give a folder of pictures")
        entries = read_entries(self.folder)
        self._identity = identity_of(entries, size)
        self._entries = [entry for entry in entries for _ in range(entry.repeats)]

    @property
    def identity(self) -> str:
        """Equal for equal names, bytes, captions, repeats and size."""
        return self._identity

    def __len__(self) -> int:
        return len(self._entries)

    def caption(self, index: int) -> str:
        """The caption alone, without reading the picture."""
        return self._entries[index].caption

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """(3, size, size) uint8 and the caption: scaled to cover the square, and cropped to its centre.

        Raises:
            DataError: the picture has changed since the beginning and is no longer one.
        """
        entry = self._entries[index]
        square = ImageOps.fit(entry.picture(), (self.size, self.size), Image.Resampling.LANCZOS)
        return to_uint8(square), entry.caption


def to_uint8(picture: Image.Image) -> Tensor:
    """(3, H, W) uint8 of an RGB picture."""
    pixels = torch.from_numpy(np.array(picture))  # (H, W, 3)
    return pixels.permute(2, 0, 1).contiguous()
