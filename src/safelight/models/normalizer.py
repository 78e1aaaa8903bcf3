"""Mean and deviation of CLIP's picture embeddings, between which noise is added to them (unCLIP, Ramesh et al. 2022).

Parameter names are those of diffusers' StableUnCLIPImageNormalizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NormalizerConfig:
    """How wide the embeddings are. The default is ViT-L/14's; ViT-H/14's are 1024 wide."""

    width: int = 768
    """P."""


class Normalizer(nn.Module):
    """Measured once on a data set, and never trained. Fresh from here it changes nothing."""

    def __init__(self, config: NormalizerConfig) -> None:
        super().__init__()
        self.config = config
        self.mean = nn.Parameter(torch.zeros(1, config.width))
        self.std = nn.Parameter(torch.ones(1, config.width))

    def scale(self, embedding: Tensor) -> Tensor:
        """(B, P) -> (B, P) of mean 0 and deviation 1."""
        return (embedding - self.mean) / self.std

    def unscale(self, embedding: Tensor) -> Tensor:
        """Inverse of `scale`."""
        return embedding * self.std + self.mean
