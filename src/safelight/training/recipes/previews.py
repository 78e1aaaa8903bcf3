"""Pictures drawn while a model is being trained, to see when it is enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from safelight.checkpoints.writing import atomic
from safelight.models.tokenizer import Tokenizing
from safelight.presets import Preset
from safelight.tasks.model import Model
from safelight.tasks.requests import TextToImage

FOLDER = "previews"


@dataclass(frozen=True)
class Previews:
    """Which pictures are drawn, and when. They change nothing of the run."""

    prompts: tuple[str, ...]
    every: int
    """Images seen between them."""
    folder: Path
    seed: int = 0

    def due(self, images_seen: int, step_images: int) -> bool:
        """Whether some are to be drawn behind steps of so many images each."""
        return bool(self.prompts) and (images_seen - step_images) // self.every < images_seen // self.every

    def draw(
        self, images_seen: int, preset: Preset, networks: Mapping[str, nn.Module], tokenizers: Mapping[str, Tokenizing]
    ) -> None:
        """Write one picture for each prompt: `previews/000000000500-1.png`.

        Raises:
            OutputError: one could not be written.
        """
        if not self.prompts:
            return
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        with resting(networks):
            model = Model(preset, networks, tokenizers)
            for number, prompt in enumerate(self.prompts, start=1):
                [picture] = model.draw(TextToImage(prompt=prompt, seed=self.seed))
                with atomic(self.folder / FOLDER / f"{images_seen:012}-{number}.png") as path:
                    picture.save(path, "PNG")


@contextmanager
def resting(networks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within it networks are not in training; afterwards they are what they were, and so are the random numbers."""
    modes = [(module, module.training) for network in networks.values() for module in network.modules()]
    trained = [(p, p.requires_grad) for network in networks.values() for p in network.parameters()]
    device = next(iter(trained))[0].device.type
    with torch.random.fork_rng(), torch.autocast(device, enabled=False):
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, flag in trained:
                parameter.requires_grad_(flag)
