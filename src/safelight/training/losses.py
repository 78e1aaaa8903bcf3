"""What the autoencoder is trained by (Esser et al. 2021, eq. 4 to 7; Rombach et al. 2022, appendix G), and CLIP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.clip import PIXEL_MEAN, PIXEL_STD, ClipVision

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Two batches of pixels (B, 3, H, W) in [-1, 1] -> their distances (B, 1, 1, 1)."""

MAX_ADAPTIVE_WEIGHT = 1e4
ADAPTIVE_EPS = 1e-4


@dataclass(frozen=True)
class Reconstruction:
    """The parts of the autoencoder's own loss, each summed over a picture and averaged over the batch."""

    absolute_and_perceptual: Tensor
    kl: Tensor


def reconstruction(
    pixels: Tensor, decoded: Tensor, mean: Tensor, logvar: Tensor, perceptual: Perceptual, weight: float
) -> Reconstruction:
    """L1 plus `weight` times the perceptual distance at every pixel, and the KL divergence to a standard normal.

    Args:
        pixels, decoded: (B, 3, H, W) in [-1, 1].
        mean, logvar: (B, C, h, w), moments of the latent.
    """
    distance = (pixels - decoded).abs() + weight * perceptual(pixels, decoded)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
    batch = len(pixels)
    return Reconstruction(distance.sum() / batch, kl.sum() / batch)


def adaptive_weight(reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: Tensor) -> Tensor:
    """How strongly the adversarial loss may pull: the ratio of both gradients at the last layer (Esser, eq. 7)."""
    (ours,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (theirs,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    ratio: Tensor = ours.norm() / (theirs.norm() + ADAPTIVE_EPS)
    return ratio.clamp(0, MAX_ADAPTIVE_WEIGHT).detach()


def hinge(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """The discriminator's loss (Lim & Ye 2017): real above 1, fake below -1."""
    return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())


def contrastive(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over all pairs of a batch (Radford et al. 2021, figure 3).

    Args:
        images, texts: (B, P), of length 1; row k of both belongs together.
        logit_scale: log of the inverse temperature.
    """
    logits = logit_scale.exp() * images @ texts.T
    own = torch.arange(len(images), device=images.device)
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))


class ClipDistance:
    """Perceptual distance in a CLIP image tower's patches: as LPIPS, without learned weights, over all its layers.

    For those who have no VGG weights at hand but have trained a CLIP.
    """

    def __init__(self, tower: ClipVision) -> None:
        self.tower = tower.eval().requires_grad_(False)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y (B, 3, S, S) in [-1, 1] -> (B, 1, 1, 1)."""
        total = torch.zeros(len(x), device=x.device)
        with torch.no_grad():
            wanted = self._features(x)
        for a, b in zip(wanted, self._features(y), strict=True):
            total = total + (a - b).square().sum(-1).mean(-1)  # mean over patches
        return (total / len(wanted))[:, None, None, None]

    def _features(self, x: Tensor) -> list[Tensor]:
        tower = self.tower
        states = tower.encoder(tower.pre_layrnorm(tower.embeddings(normalise(x))))
        return [F.normalize(state[:, 1:], dim=-1) for state in states]


def normalise(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, S, S) in [-1, 1] -> as CLIP's image tower expects them."""
    mean = torch.tensor(PIXEL_MEAN, device=pixels.device)[:, None, None]
    std = torch.tensor(PIXEL_STD, device=pixels.device)[:, None, None]
    return ((pixels + 1) / 2 - mean) / std
