"""The patch discriminator of the autoencoder's adversarial loss (Isola et al. 2017, sec. 3.2.2; Esser et al. 2021)."""

from __future__ import annotations

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Says for overlapping patches of a picture whether they look real.

    Args:
        width: channels after the first convolution; doubled by each layer up to eight times.
        layers: strided layers; the receptive field is 70 pixels at 3, 34 at 2, 16 at 1.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for i in range(1, layers + 1):
            wider = width * min(2**i, 8)
            stride = 2 if i < layers else 1
            # The norm has a bias, so the convolution before it needs none.
            stages += [
                nn.Conv2d(channels, wider, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(wider),
            ]
            stages.append(nn.LeakyReLU(0.2))
            channels = wider
        stages.append(nn.Conv2d(channels, 1, 4, padding=1))
        self.main = nn.Sequential(*stages)
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 1, H', W') logits, larger for real."""
        y: Tensor = self.main(pixels)
        return y
