"""How much each noise level counts in the training loss."""

from __future__ import annotations

from torch import Tensor


def min_snr(sigma: Tensor, gamma: float, prediction: str) -> Tensor:
    """min(SNR, gamma) / SNR for eps, min(SNR, gamma) / (SNR + 1) for v (Hang et al. 2023, sec. 3.4).

    Args:
        sigma: (B,), noise over signal; SNR = 1 / sigma^2.
        gamma: levels with a larger SNR count less. The paper uses 5.
    """
    snr = sigma.square().reciprocal()
    return snr.clamp(max=gamma) / (snr + 1 if prediction == "v" else snr)
