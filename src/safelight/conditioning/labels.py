"""Labels and boxes to the context door, maps of labels to the concat door (Rombach et al. 2022, sec. 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safelight.doors import Conditioning
from safelight.errors import RequestError
from safelight.models.bert import Bert
from safelight.models.boxes import WHOLE, Box, BoxTokenizer, Rectangle
from safelight.models.labels import Labels
from safelight.models.rescaler import Rescaler


def encode_labels(labels: Labels, chosen: Sequence[int]) -> Conditioning:
    """One class for each of B pictures -> `context` (B, 1, D).

    Raises:
        RequestError: there is no such class.
    """
    classes = labels.config.classes
    for label in chosen:
        if not 0 <= label < classes:
            raise RequestError(f"there is no class {label}: they are 0 to {classes - 1}")
    device = labels.embedding.weight.device
    return Conditioning(context=labels(torch.tensor(list(chosen), dtype=torch.int64, device=device)))


def encode_boxes(
    tokenizer: BoxTokenizer, transformer: Bert, pictures: Sequence[Sequence[Box]], crop: Rectangle = WHOLE
) -> Conditioning:
    """Boxes of B pictures -> `context` (B, L, D). No boxes at all are a layout too.

    Raises:
        RequestError: too many boxes, an unknown class, a box that reaches out of the picture.
    """
    ids = tokenizer(pictures, crop).to(next(transformer.parameters()).device)
    return Conditioning(context=transformer(ids))


def encode_maps(rescaler: Rescaler, maps: Tensor) -> Conditioning:
    """The class of every pixel, (B, H, W) whole numbers -> `concat` (B, C', h, w) of the latent's size.

    Raises:
        RequestError: there is no such class.
    """
    classes = rescaler.config.in_channels
    if maps.numel() and not 0 <= int(maps.min()) <= int(maps.max()) < classes:
        raise RequestError(f"the map has classes {int(maps.min())} to {int(maps.max())}: they are 0 to {classes - 1}")
    weight = next(iter(rescaler.parameters()), None)
    shape = (len(maps), classes, *maps.shape[1:])
    spread = torch.zeros(shape) if weight is None else weight.new_zeros(shape)
    spread.scatter_(1, maps.long()[:, None].to(spread.device), 1)  # one of (B, classes, H, W), the others 0
    return Conditioning(concat=rescaler(spread))
