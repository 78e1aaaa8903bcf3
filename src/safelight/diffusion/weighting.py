"""How much each noise level counts in the training loss."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from safelight.diffusion.denoiser import Prediction

Weighting = Literal["none", "min_snr", "clamped_snr"]


def snr_weight(sigma: Tensor, weighting: Weighting, gamma: float, prediction: Prediction) -> Tensor | None:
    """The weight (B,) of a squared error of what the network predicts; None where all levels count alike.

    Seen as a weight of the error of x0 it is min(SNR, gamma) for "min_snr" (Hang et al. 2023, sec. 3.4), and for
    "clamped_snr" at least 1 as well (max(SNR, 1): Salimans & Ho 2022, sec. 4), so that pure noise, where the words
    alone decide what there will be, counts too.

    Args:
        sigma: (B,), noise over signal; SNR = 1 / sigma^2.
        gamma: the SNR above which a level counts less. The paper uses 5.
        prediction: errors of eps and v are SNR and SNR + 1 times that of x0.
    """
    if weighting == "none":
        return None
    snr = sigma.square().reciprocal()
    wanted = snr.clamp(min=1.0 if weighting == "clamped_snr" else 0.0, max=gamma)
    return wanted / {"eps": snr, "v": snr + 1, "x0": snr.new_ones(())}[prediction]
