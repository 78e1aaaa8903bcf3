"""Recipe: the classifier that measures models trained on scenes. It learns from the facts of scenes, not from words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.checkpoints.writing import staged_folder, write_json, write_tensors
from safelight.models.judge import Judge, JudgeConfig
from safelight.training.data import batch_indices
from safelight.training.loop import Turn
from safelight.training.pictures import pixels
from safelight.training.scenes import GROUNDS, LAYOUTS, NAMES, Scenes, labels

CONFIG, WEIGHTS = "judge.json", "judge.safetensors"


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


class JudgeRecipe:
    """The classifier, from nothing, on scenes of both splits: it must know what the model has not seen."""

    def __init__(self, scenes: Scenes, *, seed: int) -> None:
        self.scenes, self.seed = scenes, seed
        torch.manual_seed(seed)
        self.judge = Judge(JudgeConfig(len(NAMES), len(GROUNDS), len(LAYOUTS), image_size=scenes.size))

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"judge": self.judge}

    def batch(self, index: int, size: int) -> JudgeBatch:
        chosen = batch_indices(index, size, len(self.scenes), self.seed)
        facts = [labels(self.scenes.scene(i).facts) for i in chosen]
        objects = torch.zeros(size, len(NAMES))
        for row, fact in enumerate(facts):
            objects[row, list(fact.objects)] = 1
        return JudgeBatch(
            pixels([self.scenes[i][0] for i in chosen]),
            objects,
            torch.tensor([fact.ground for fact in facts]),
            torch.tensor([fact.position for fact in facts]),
        )

    def turns(self, batch: JudgeBatch, generator: torch.Generator, images_seen: int) -> Iterator[Turn]:
        verdict = self.judge(blemish(batch.pixels, generator))
        objects = F.binary_cross_entropy_with_logits(verdict.objects, batch.objects, reduction="none").sum(1).mean()
        grounds = F.cross_entropy(verdict.grounds, batch.grounds)
        layouts = F.cross_entropy(verdict.layouts, batch.layouts)
        loss = objects + grounds + layouts
        found = verdict.objects.gt(0).float().eq(batch.objects).all(1).float().mean()
        ground = verdict.grounds.argmax(1).eq(batch.grounds).float().mean()
        layout = verdict.layouts.argmax(1).eq(batch.layouts).float().mean()
        yield Turn("judge", loss, {"loss": loss.detach(), "objects": found, "grounds": ground, "layouts": layout})

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Nothing to keep beside the parts."""

    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        """Weights in half precision and the shape, as `safelight evaluate` reads them."""
        judge = weights["judge"]
        assert isinstance(judge, Judge)
        with staged_folder(folder, CONFIG) as staging:
            write_tensors(staging / WEIGHTS, {key: value.half() for key, value in judge.state_dict().items()})
            write_json(staging / CONFIG, asdict(judge.config))


def blemish(x: Tensor, generator: torch.Generator) -> Tensor:
    """Softness, noise and a shift of brightness such as decoded latents have: (B, 3, S, S) -> (B, 3, S, S)."""
    count = len(x)

    def uniform() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator).to(x.device)

    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    softness = 0.8 * uniform()
    x = x + softness * (soft - x)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    return x + 0.12 * uniform() * noise + 0.1 * (2 * uniform() - 1)
