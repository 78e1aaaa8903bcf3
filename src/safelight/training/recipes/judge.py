"""Recipe: the classifier that measures models trained on scenes. It learns from facts of scenes, never words.

Shapes: B batch, S side of the picture in pixels, N objects in all pictures of the batch together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.checkpoints.components import write_judge
from safelight.errors import TrainingError
from safelight.models.judge import Judge, JudgeConfig
from safelight.training.data import batch_indices
from safelight.training.loop import Turn
from safelight.training.pictures import pixels
from safelight.training.scenes import GROUNDS, LAYOUTS, NAMES, Scenes, labels, render
from safelight.training.scenes.glyphs import INDEX


@dataclass(frozen=True)
class JudgeBatch:
    """B scenes and what is in them."""

    pixels: Tensor
    """(B, 3, S, S) in [-1, 1]."""
    objects: Tensor
    """(B, objects) 0 or 1."""
    grounds: Tensor
    """(B,) index."""
    layouts: Tensor
    """(B,) index."""
    spots: Tensor
    """(N, 4) int64: picture, object, row and column of the cell of the judge's map where its centre is."""


class JudgeRecipe:
    """The classifier, from nothing, on scenes of both splits: it must know what the model has not seen.

    Raises TrainingError when the size of the scenes is not a multiple of the pixels of a cell.
    """

    def __init__(self, scenes: Scenes, *, seed: int) -> None:
        self.scenes, self.seed = scenes, seed
        torch.manual_seed(seed)
        config = JudgeConfig(len(NAMES), len(GROUNDS), len(LAYOUTS), image_size=scenes.size)
        if scenes.size % config.factor:
            raise TrainingError(f"size {scenes.size} cannot be judged: give a multiple of {config.factor}")
        self.judge = Judge(config)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"judge": self.judge}

    def batch(self, index: int, size: int) -> JudgeBatch:
        scenes = [self.scenes.scene(i) for i in batch_indices(index, size, len(self.scenes), self.seed)]
        facts = [labels(scene.facts) for scene in scenes]
        objects = torch.zeros(size, self.judge.config.objects)
        spots = []
        cells = self.scenes.size // self.judge.config.factor
        for row, (scene, fact) in enumerate(zip(scenes, facts, strict=True)):
            objects[row, list(fact.objects)] = 1
            for name, place in zip(scene.facts.objects, scene.placements, strict=True):
                spots.append((row, INDEX[name], int(place.y / 64 * cells), int(place.x / 64 * cells)))
        return JudgeBatch(
            pixels([torch.from_numpy(np.array(render(scene))).permute(2, 0, 1) for scene in scenes]),
            objects,
            torch.tensor([fact.ground for fact in facts]),
            torch.tensor([fact.position for fact in facts]),
            torch.tensor(spots),
        )

    def turns(self, batch: JudgeBatch, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
        verdict = self.judge(blemish(batch.pixels, generator))
        whether = F.binary_cross_entropy_with_logits(verdict.objects, batch.objects, reduction="none")
        # Which object is where it is: a far quicker teacher than whether it is anywhere at all, which only
        # ever moves the one position that spoke loudest.
        picture, name, row, column = batch.spots.unbind(1)
        what = F.cross_entropy(verdict.map[picture, :, row, column].float(), name)
        grounds = F.cross_entropy(verdict.grounds, batch.grounds)
        layouts = F.cross_entropy(verdict.layouts, batch.layouts)
        loss = whether.sum(1).mean() + what + grounds + layouts
        with torch.no_grad():
            there = batch.objects.bool()
            lowest = verdict.objects.masked_fill(~there, torch.inf).amin(1)
            log = {
                "loss": loss.detach(),
                "what": what.detach(),
                # as evaluation asks: those that are there score above all that are not
                "objects": lowest.gt(verdict.objects.masked_fill(there, -torch.inf).amax(1)).float().mean(),
                "grounds": verdict.grounds.argmax(1).eq(batch.grounds).float().mean(),
                "layouts": verdict.layouts.argmax(1).eq(batch.layouts).float().mean(),
            }
        yield Turn("judge", loss, log)

    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        """Weights in half precision and the shape, as `safelight evaluate` reads them."""
        judge = weights["judge"]
        assert isinstance(judge, Judge)
        write_judge(folder, judge)


def blemish(x: Tensor, generator: torch.Generator) -> Tensor:
    """Softness, noise fine and coarse, a shift of brightness: what decoded latents have, each to a random degree.

    (B, 3, S, S) -> (B, 3, S, S). A judge that has never seen it takes a soft picture for another object.
    """
    count, side = len(x), x.shape[-1]

    def uniform() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator).to(x.device)

    def noise(size: int) -> Tensor:
        return torch.randn(count, 3, size, size, generator=generator).to(x.device)

    for _ in range(2):
        soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        x = x + 0.8 * uniform() * (soft - x)
    coarse = F.interpolate(noise(max(1, side // 4)), size=(side, side), mode="bilinear")
    return x + 0.12 * uniform() * noise(side) + 0.15 * uniform() * coarse + 0.1 * (2 * uniform() - 1)
