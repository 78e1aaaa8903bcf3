"""Latents of training pictures, encoded once and kept in files: the encoder does not change while others learn."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from safelight.checkpoints.files import read_tensors
from safelight.checkpoints.writing import write_tensors
from safelight.models.autoencoder import Autoencoder
from safelight.training.buckets import BucketedPictures
from safelight.training.pictures import pixels

PIXELS = 64 * 64 * 64
"""Of the pictures that are encoded together."""
MIRRORED = "mirrored/"


def kept(
    cache: Path, identity: str, autoencoder: Autoencoder, count: int, make: Callable[[range], Mapping[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """Tensors made from `count` pictures by an encoder, in files for the next start.

    The files are named after the encoder's weights and the data, so a change of either makes new ones. Of several
    processes each makes those of its share and waits for the others' files.

    Args:
        make: the tensors of some of the pictures.

    Returns:
        Of each share, in their order; memory-mapped.
    """
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    digest = hashlib.sha256(identity.encode())
    for module in (autoencoder.encoder, autoencoder.quant_conv):
        for parameter in module.parameters():
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    stem = f"latents-{digest.hexdigest()[:16]}"
    paths = [cache / f"{stem}-{k + 1}-of-{processes}.safetensors" for k in range(processes)]
    bounds = [k * count // processes for k in range(processes + 1)]
    if not paths[rank].exists():
        cache.mkdir(parents=True, exist_ok=True)
        write_tensors(paths[rank], make(range(bounds[rank], bounds[rank + 1])))
    wait_for(paths)
    return [read_tensors(path) for path in paths]


def wait_for(paths: list[Path]) -> None:
    """Until other processes have written their files. One that fails is noticed by whoever launched all."""
    while not all(path.exists() for path in paths):
        time.sleep(0.5)


@torch.no_grad()
def moments(autoencoder: Autoencoder, pictures: list[Tensor]) -> Tensor:
    """Mean and deviation of latents, unscaled: pictures (3, H, W) uint8 -> (N, 2C, h, w) float16."""
    mean, logvar = autoencoder.encode(pixels(pictures).to(next(autoencoder.parameters()).device))
    return torch.cat([mean, torch.exp(0.5 * logvar)], dim=1).half().cpu()


class Latents:
    """The moments of every picture of a data set, each of the size of its bucket, and mirrored if that is asked for."""

    def __init__(self, pictures: BucketedPictures, autoencoder: Autoencoder, cache: Path, *, mirrored: bool) -> None:
        identity = f"{pictures.identity} mirrored" if mirrored else pictures.identity

        def make(chosen: range) -> Mapping[str, Tensor]:
            return dict(_encoded(pictures, autoencoder, chosen, mirrored=mirrored))

        shares = kept(cache, identity, autoencoder, len(pictures), make)
        self._moments = {name: tensor for share in shares for name, tensor in share.items()}

    def __call__(self, index: int, mirrored: bool = False) -> Tensor:
        """(2C, h, w) float32."""
        return self._moments[f"{MIRRORED if mirrored else ''}{index}"].float()


def _encoded(
    pictures: BucketedPictures, autoencoder: Autoencoder, chosen: range, *, mirrored: bool
) -> Iterator[tuple[str, Tensor]]:
    """The moments of some pictures, those of one size together."""
    waiting = sorted(chosen, key=lambda index: (pictures.places[index].bucket, index))
    with tqdm(total=len(waiting), desc="encoding pictures", unit="picture", disable=None) as bar:
        while waiting:
            size = pictures.places[waiting[0]].bucket
            most = max(1, PIXELS // (size[0] * size[1]))
            batch = [index for index in waiting[:most] if pictures.places[index].bucket == size]
            waiting = waiting[len(batch) :]
            shown = [pictures.picture(index) for index in batch]
            yield from zip(map(str, batch), moments(autoencoder, shown), strict=True)
            if mirrored:
                turned = moments(autoencoder, [picture.flip(-1) for picture in shown])
                yield from zip((f"{MIRRORED}{index}" for index in batch), turned, strict=True)
            bar.update(len(batch))
