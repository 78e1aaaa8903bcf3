"""What fine-tuning begins from: a model that predicts from noise and words, and what it is told in training.

Shapes: B batch, L tokens, D context width, V vector width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from safelight.checkpoints import Checkpoint
from safelight.conditioning.joining import beside
from safelight.conditioning.sizes import numbers_door
from safelight.conditioning.text import encode_prompts
from safelight.doors import Conditioning
from safelight.errors import TrainingError
from safelight.models.autoencoder import Autoencoder
from safelight.models.bert import Bert
from safelight.models.clip import ClipText, Layer
from safelight.models.layers import ResnetBlock
from safelight.models.spatial_transformer import SpatialTransformer
from safelight.models.tokenizer import Tokenizing
from safelight.models.unet import UNet
from safelight.presets import Preset
from safelight.presets.conditions import Numbers, Words
from safelight.presets.preset import AUTOENCODER, UNET
from safelight.tasks.loading import fill, open_checkpoint

CPU = torch.device("cpu")
REMEMBERED = 1 << 30
"""Bytes of encoded captions that are kept."""


@dataclass(frozen=True)
class Taught:
    """What text towers know beside their vocabulary: textual inversion."""

    tokenizers: Mapping[str, Tokenizing]
    rows: Mapping[str, Tensor]
    """By part, (n, D)."""


class Foundation:
    """The networks of a model, and its words: told captions as in training, never cut into chunks or weighted.

    Raises:
        TrainingError: it is told something else than words.
        ModelFileError: there is no such model, or it is not whole.
    """

    def __init__(self, model: str, *, dtype: torch.dtype = torch.float32) -> None:
        """dtype: of the UNet."""
        self.model = model
        origin = self.checkpoint()
        origin.require_whole()
        self.source = origin.source
        self.preset: Preset = origin.preset
        _require_tunable(model, origin.preset)
        self.tokenizers = dict(origin.vocabularies())
        self.unet = cast(UNet, fill(self.preset.unet, origin.parts[UNET], CPU, dtype))
        self.towers: dict[str, ClipText | Bert] = {
            words.part: cast(ClipText | Bert, fill(words.tower, origin.parts[words.part], CPU, torch.float32))
            for words in self.preset.words
        }
        for network in (self.unet, *self.towers.values()):
            network.eval().requires_grad_(False)
        self._said: OrderedDict[str, Conditioning] = OrderedDict()

    def checkpoint(self) -> Checkpoint:
        """The model's files, opened anew: their tensors are views."""
        return open_checkpoint(self.model)

    def autoencoder(self) -> Autoencoder:
        """Read anew, for those who need it for a while."""
        network = fill(self.preset.networks[AUTOENCODER], self.checkpoint().parts[AUTOENCODER], CPU, torch.float32)
        return cast(Autoencoder, network.eval().requires_grad_(False))

    def to(self, device: torch.device) -> None:
        """Move the networks, unless they are there."""
        for network in (self.unet, *self.towers.values()):
            network.to(device)

    def says(self, captions: Sequence[str], taught: Taught | None = None) -> Conditioning:
        """Captions through every tower: gradients reach what of them is trained. No caption is what the model was
        taught as none (SDXL: zeros).
        """
        parts = []
        empty = torch.tensor([caption == "" for caption in captions])
        for words in self.preset.words:
            tokenizer, rows = self.tokenizers[words.part], None
            if taught is not None and words.part in taught.rows:
                tokenizer, rows = taught.tokenizers[words.part], taught.rows[words.part]
            said = encode_prompts(
                tokenizer,
                self.towers[words.part],
                captions,
                states=words.states,
                pooled=words.pooled,
                taught=rows,
            )
            parts.append(said.map(partial(_silenced, empty)) if words.zeros and bool(empty.any()) else said)
        return beside(parts)

    def remembers(self, captions: Sequence[str]) -> Conditioning:
        """As `says`, of towers that stay as they are: each caption is encoded once, alone."""
        with torch.no_grad():
            return Conditioning.stack([self._remembered(caption) for caption in captions])

    def _remembered(self, caption: str) -> Conditioning:
        found = self._said.pop(caption, None)
        if found is None:
            found = self.says([caption])
            context = found.context
            size = 1 if context is None else context.nbytes
            while self._said and len(self._said) >= REMEMBERED // size:
                self._said.popitem(last=False)
        self._said[caption] = found
        return found

    def with_sizes(self, said: Conditioning, numbers: Tensor) -> Conditioning:
        """What is said, with the sizes and crops (B, 6) that SDXL is told beside it."""
        width = self.preset.unet.size_width
        if width is None:
            return said
        return beside([said, numbers_door(numbers, width, numbers.device)])


def _silenced(empty: Tensor, door: Tensor) -> Tensor:
    """Zeros in the rows of what is empty (B,)."""
    return door.masked_fill(empty.to(door.device).view(-1, *(1 for _ in door.shape[1:])), 0.0)


def _require_tunable(model: str, preset: Preset) -> None:
    """Refuse what is not told by words, or by more than words and sizes."""
    others = [c.kind for c in preset.conditions if not isinstance(c, Words | Numbers)]
    scored = any(isinstance(c, Numbers) and c.aesthetic for c in preset.conditions)
    if not preset.words:
        raise TrainingError(f"{model} is {preset.title}, which reads no words: fine-tune a model that draws prompts")
    if others or scored or preset.autoencoder is None:
        what = others[0] if others else "aesthetic score" if scored else "pixels alone"
        raise TrainingError(
            f"{model} is {preset.title}, which is told a {what} beside the words: fine-tune the model that it was made "
            "from"
        )


def save_memory(*networks: nn.Module) -> None:
    """Gradient checkpointing: blocks forget what they computed, and compute it again for the gradient (Chen et al.
    2016). Slower by a third, and the same numbers."""
    for network in networks:
        for block in network.modules():
            if isinstance(block, ResnetBlock | SpatialTransformer | Layer):
                block.forward = partial(_forgetful, block.forward)  # type: ignore[method-assign]


def _forgetful(forward: Callable[..., Tensor], *inputs: Tensor | torch.Size | None) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    y: Tensor = checkpoint(forward, *inputs, use_reentrant=False)
    return y
