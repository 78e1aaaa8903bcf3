"""Training pictures from a folder, and which pictures are in which batch."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from safelight.errors import DataError

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
CAPTIONS = (".txt", ".caption")
METADATA = "metadata.jsonl"


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
    """Captioned pictures in a folder and the folders in it: PNG, JPEG, WebP, BMP.

    The caption is in a file of the same stem, `.txt` or `.caption`; or all are in `metadata.jsonl`, one line
    {"file_name": ..., "text": ...} per picture. Everything is read once at the beginning, so that a mistake
    is found before the first step and not in the night.
    """

    def __init__(self, folder: Path, size: int) -> None:
        """Validate the folder; its pictures come out `size` pixels wide and high.

        Raises:
            DataError: no such folder, no picture in it, a picture that is damaged or has no caption.
        """
        self.folder, self.size = Path(folder), size
        if not self.folder.is_dir():
            raise DataError(f"{self.folder} is not a folder: give one with pictures and captions")
        try:
            found = _pictures(self.folder)
            captions = _from_metadata(self.folder, found) if (self.folder / METADATA).exists() else _from_files(found)
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read ({error.strerror}): check it") from error
        if not found:
            endings = ", ".join(sorted(PICTURES))
            raise DataError(f"{self.folder} has no pictures: put {endings} files with captions there")
        self._paths = found
        self._captions = captions
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            hashes = list(pool.map(_verify, found))
        digest = hashlib.sha256(f"{size}".encode())
        for path, content, caption in zip(found, hashes, captions, strict=True):
            name = path.relative_to(self.folder).as_posix()
            digest.update(json.dumps([name, content, caption]).encode())
        self._identity = f"folder-{digest.hexdigest()}"

    @property
    def identity(self) -> str:
        """Equal for equal names, bytes, captions and size."""
        return self._identity

    def __len__(self) -> int:
        return len(self._paths)

    def caption(self, index: int) -> str:
        """The caption alone, without reading the picture."""
        return self._captions[index]

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """(3, size, size) uint8 and the caption: scaled to cover the square, and cropped to its centre.

        Raises:
            DataError: the picture has changed since the beginning and is no longer one.
        """
        path = self._paths[index]
        picture = _decode(path, _bytes_of(path))
        square = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(square))  # (H, W, 3)
        return pixels.permute(2, 0, 1).contiguous(), self._captions[index]


def _pictures(folder: Path) -> list[Path]:
    """In the order of their names, which must not depend on the file system. Hidden ones are left out."""
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES
        and path.is_file()
        and not any(name.startswith(".") for name in path.relative_to(folder).parts)
    ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _from_files(pictures: list[Path]) -> list[str]:
    """The captions beside the pictures."""
    captions = []
    for path in pictures:
        beside = [path.with_suffix(suffix) for suffix in CAPTIONS if path.with_suffix(suffix).is_file()]
        if not beside:
            raise DataError(f"{path} has no caption: write one to {path.with_suffix('.txt')}")
        if len(beside) > 1:
            raise DataError(f"{path} has two captions, {beside[0].name} and {beside[1].name}: delete one")
        captions.append(_text_of(beside[0]).strip())
    return captions


def _from_metadata(folder: Path, pictures: list[Path]) -> list[str]:
    """The captions of metadata.jsonl, in the order of the pictures."""
    file = folder / METADATA
    captions: dict[str, str] = {}
    for number, line in enumerate(_text_of(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file} line {number} is not JSON: write one object per line") from error
        name = entry.get("file_name") if isinstance(entry, dict) else None
        text = entry.get("text") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not isinstance(text, str):
            raise DataError(f"{file} line {number} needs a file_name and a text: both are strings")
        name = PurePosixPath(name).as_posix()
        if name in captions:
            raise DataError(f"{file} line {number} names {name} a second time: delete one")
        captions[name] = text.strip()
    names = [path.relative_to(folder).as_posix() for path in pictures]
    for name in captions.keys() - set(names):
        raise DataError(f"{file} names {name}, which is no picture in {folder}: mend the name or the line")
    for name in names:
        if name not in captions:
            raise DataError(f"{folder / name} has no caption: write a line for it into {file}")
    return [captions[name] for name in names]


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as that") from error


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check it") from error


def _verify(path: Path) -> str:
    """Decode the whole picture; the hash of its bytes."""
    data = _bytes_of(path)
    _decode(path, data)
    return hashlib.sha256(data).hexdigest()


def _decode(path: Path, data: bytes) -> Image.Image:
    """An upright RGB picture; transparency falls on white, 16 bits become 8."""
    try:
        with Image.open(BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits of grey, which convert() would clip
                grey = np.asarray(upright, dtype=np.float64) / 257
                upright = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a whole picture: replace it or take it out") from error
