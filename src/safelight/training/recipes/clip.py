"""Recipe: a CLIP of one's own, contrastively, from pictures and captions (Radford et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from safelight.checkpoints.components import write_clip
from safelight.checkpoints.writing import staged_folder
from safelight.errors import TrainingError
from safelight.models.clip import Clip, ClipTextConfig, ClipVisionConfig, initialise
from safelight.models.tokenizer import VOCAB_FILE, ClipTokenizer
from safelight.training.data import batch_indices
from safelight.training.loop import Turn
from safelight.training.losses import contrastive, normalise
from safelight.training.pictures import Pictures, pixels
from safelight.training.recipes.settings import ClipSettings

MAX_LOGIT_SCALE = math.log(100)  # section 2.5 of the paper: more than this is unstable
CAPTIONS_FOR_VOCABULARY = 20_000


@dataclass(frozen=True)
class ClipBatch:
    """B pictures and captions."""

    pixels: Tensor
    """(B, 3, S, S) in [-1, 1]."""
    ids: Tensor
    """(B, L) int64."""


class ClipRecipe:
    """Both towers and their projections, from nothing."""

    def __init__(
        self,
        settings: ClipSettings,
        pictures: Pictures,
        text: ClipTextConfig,
        vision: ClipVisionConfig,
        *,
        cache: Path,
        seed: int,
    ) -> None:
        self.settings, self.pictures, self.seed = settings, pictures, seed
        self.tokenizer = kept_vocabulary(pictures, settings.vocabulary, text.context_length, cache)
        self.text = fit_vocabulary(text, self.tokenizer)
        self.vision = vision
        side = pictures[0][0].shape[-1]
        if side != vision.image_size:
            raise TrainingError(f"pictures are {side} pixels wide but the image tower reads {vision.image_size}")
        torch.manual_seed(seed)
        self.clip = Clip(self.text, vision)
        initialise(self.clip)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip}

    def batch(self, index: int, size: int) -> ClipBatch:
        members = range(self.settings.family)
        families, left = divmod(size, self.settings.family)
        if left:
            raise TrainingError(f"--batch {size} is no multiple of --family {self.settings.family}: give one")
        count = len(self.pictures) // self.settings.family
        chosen = batch_indices(index, families, count, self.seed)
        items = [self.pictures[i * self.settings.family + k] for i in chosen for k in members]
        return ClipBatch(pixels([p for p, _ in items]), self.tokenizer([c for _, c in items]))

    def turns(self, batch: ClipBatch, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
        images = self.clip.embed_image(normalise(batch.pixels))
        texts = self.clip.embed_text(up_to_last_end(batch.ids, self.text.end_token))
        loss = contrastive(images, texts, self.clip.logit_scale.clamp(max=MAX_LOGIT_SCALE))
        with torch.no_grad():
            own = torch.arange(len(images), device=images.device)
            accuracy = ((images @ texts.T).argmax(1) == own).float().mean()
        yield Turn("clip", loss, {"loss": loss.detach(), "accuracy": accuracy})

    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        """A folder that transformers' CLIPModel and CLIPTokenizer read too."""
        clip = weights["clip"]
        assert isinstance(clip, Clip)
        write_clip(folder, clip, self.tokenizer)


def kept_vocabulary(pictures: Pictures, size: int, length: int, cache: Path) -> ClipTokenizer:
    """The vocabulary of this run: learned when it begins, read when it goes on.

    Learning it anew would not do: among equally frequent pairs the library merges in any order.
    """
    folder = cache / "vocabulary"
    if not folder.is_dir():
        sample = (pictures.caption(i) for i in range(min(len(pictures), CAPTIONS_FOR_VOCABULARY)))
        cache.mkdir(parents=True, exist_ok=True)
        with staged_folder(folder, VOCAB_FILE) as staging:
            ClipTokenizer.train(sample, size, length).write(staging)
    return ClipTokenizer.read(folder, length)


def up_to_last_end(ids: Tensor, end_token: int) -> Tensor:
    """The columns of ids (B, L) up to the one where the last row has its first end token.

    The tower is causal and pooled at that token: what comes later changes neither loss nor gradients.
    """
    lengths = (ids == end_token).int().argmax(1) + 1
    return ids[:, : int(lengths.max())]


def fit_vocabulary(text: ClipTextConfig, tokenizer: ClipTokenizer) -> ClipTextConfig:
    """The tower's shape with the vocabulary that was really learned."""
    return replace(
        text,
        vocab_size=len(tokenizer.vocab),
        start_token=tokenizer.start_token,
        end_token=tokenizer.end_token,
        pad_token=tokenizer.pad_token,
    )
