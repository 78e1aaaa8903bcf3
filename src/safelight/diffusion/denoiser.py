"""A network, its schedule and what it predicts, seen as one function (x, sigma) -> x0.

Shapes: B batch, C latent channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from safelight.diffusion.schedule import Schedule
from safelight.sending import sent

Prediction = Literal["eps", "v", "x0"]

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x (B, C, h, w) float32, sigma () or (B,)) -> x0 (B, C, h, w) float32: all that a sampler ever sees."""

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)


class Network(Protocol[C_contra]):
    """What can be denoised with: (x (B, C, h, w), t (B,) float32 timesteps, cond) -> (B, C, h, w)."""

    def __call__(self, x: Tensor, t: Tensor, cond: C_contra, /) -> Tensor: ...


class Denoiser(Generic[C]):
    """Turns a trained network into an estimate of the clean latent (Karras et al. 2022, eq. 7 and Table 1).

    prediction: what the network answers: the noise ("eps", Ho et al. 2020), the velocity ("v", Salimans & Ho
    2022, appendix D: alpha * noise - sigma * x0) or the clean latent ("x0").
    dtype: that of the network's parameters. The latent goes in as this; all else here is float32. Timesteps
    stay float32 in any case (bfloat16 cannot tell 980 from 981), and casting the condition is its maker's
    business.
    """

    def __init__(
        self,
        network: Network[C],
        schedule: Schedule,
        prediction: Prediction = "eps",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if prediction not in ("eps", "v", "x0"):
            raise ValueError(f"a network predicts eps, v or x0, not {prediction!r}")
        if prediction == "eps" and schedule.config.zero_snr:
            raise ValueError("where the last level is noise alone, eps says nothing of x0: predict v or x0")
        self.network = network
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.dtype = dtype

    def __call__(self, x: Tensor, sigma: Tensor, cond: C) -> Tensor:
        """The clean latent (B, C, h, w), float32, that x = x0 + sigma * noise came from.

        x: (B, C, h, w) float32. sigma: () or (B,), best on the CPU (scalings are computed there in float64).
        """
        level = _level(sigma)
        answer = self._ask(x, level, cond)
        if self.prediction == "x0":
            return answer
        variance = 1 + level * level
        if self.prediction == "eps":
            return x - answer * _like(level, x)
        return x * _like(1 / variance, x) - answer * _like(level * variance**-0.5, x)

    def predict(self, x0: Tensor, noise: Tensor, sigma: Tensor, cond: C) -> Tensor:
        """The network's raw answer (B, C, h, w), float32, to x0 + sigma * noise."""
        level = _level(sigma)
        return self._ask(x0 + noise * _like(level, x0), level, cond)

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What that answer should be, (B, C, h, w)."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x0
        level = _level(sigma)
        return (noise - x0 * _like(level, x0)) * _like((1 + level * level) ** -0.5, x0)

    def loss(
        self,
        x0: Tensor,
        noise: Tensor,
        sigma: Tensor,
        cond: C,
        weight: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        """Squared error (B,) of what the network predicts, averaged over C, h and w (Ho et al. 2020, eq. 14).

        x0, noise: (B, C, h, w) float32. sigma: () or (B,). weight: (B,), multiplies each picture's error.
        target: (B, C, h, w), instead of `target`.
        """
        wanted = self.target(x0, noise, sigma) if target is None else target
        errors = (self.predict(x0, noise, sigma, cond) - wanted).square().mean(dim=(1, 2, 3))
        return errors if weight is None else errors * weight.to(errors)

    def _ask(self, x: Tensor, level: float | Tensor, cond: C) -> Tensor:
        """The network's raw answer in float32. x is scaled to unit variance on the way in."""
        if isinstance(level, Tensor):
            t = sent(self.schedule.t(level.flatten()), x.device)
        else:
            t = torch.full((x.shape[0],), self.schedule.t(level), dtype=torch.float32, device=x.device)
        scaled = x * _like((1 + level * level) ** -0.5, x)
        return self._tell(scaled.to(self.dtype), t, cond, level).float()

    def _tell(self, x: Tensor, t: Tensor, cond: C, level: float | Tensor) -> Tensor:
        """What the network says. level: the sigma that t is, on the CPU, for those who go by it."""
        return self.network(x, t, cond)


def _level(sigma: Tensor) -> float | Tensor:
    """sigma as a number, or as (B, 1, 1, 1) float64 on the CPU: so the scalings are exact before the cast."""
    if sigma.ndim == 0:
        return float(sigma)
    return sigma.detach().to("cpu", torch.float64).view(-1, 1, 1, 1)


def _like(scale: float | Tensor, x: Tensor) -> float | Tensor:
    """A scale that multiplies x without changing its dtype."""
    return sent(scale, x.device, x.dtype) if isinstance(scale, Tensor) else scale
