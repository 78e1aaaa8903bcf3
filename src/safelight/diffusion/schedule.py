"""The noise schedule that a network was trained with: how much noise there is at each of its timesteps."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Literal, overload

import torch
from torch import Tensor

ScheduleKind = Literal["scaled_linear", "linear", "cosine"]
Aligned = Literal["sd1", "sdxl"]

LAST_VISIBLE = 2.0**-24
"""What stands for an alpha_bar of 0, whose sigma is infinite: sigma 4096 (diffusers' Euler)."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The numbers of a schedule. Plain values, no tensors.

    kind: "linear" betas (Ho et al. 2020, section 4), "scaled_linear" (linear in sqrt(beta): what latent
    diffusion calls "linear"), or "cosine" (Nichol & Dhariwal 2021, eq. 17; start and end are not used).
    start, end: the first and the last beta, 0 < start < end < 1. steps: number of timesteps, at least 2.
    zero_snr: rescaled so that nothing of the picture is left at the last timestep (Lin et al. 2023, algorithm 1).
    Such a network must predict v or x0: the noise alone, which is all it sees there, says nothing of the picture.
    aligned: the table that the spacing align_your_steps follows. It says how the model is best walked, not what
    its noise is: schedules that differ in it are equal.
    """

    kind: ScheduleKind = "scaled_linear"
    start: float = 0.00085
    end: float = 0.012
    steps: int = 1000
    zero_snr: bool = False
    aligned: Aligned = field(default="sd1", compare=False)

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"a schedule needs at least 2 steps, not {self.steps}")
        if self.kind != "cosine" and not 0 < self.start < self.end < 1:
            raise ValueError(f"betas must satisfy 0 < start < end < 1, not {self.start} and {self.end}")


class Schedule:
    """Tables of a schedule in float64, on the CPU, and the map between timestep and sigma.

    sigma is the noise level in "variance exploding" space, x = x0 + sigma * noise: sigma^2 = (1 - abar) /
    abar (Karras et al. 2022, Table 1). Between whole timesteps log(sigma) is linear in t.
    """

    config: ScheduleConfig
    betas: Tensor
    """(T,) float64."""
    alphas_cumprod: Tensor
    """(T,) float64, descending in (0, 1): abar of Ho et al. 2020, section 2. The last is 0 with zero_snr."""
    sigmas: Tensor
    """(T,) float64, ascending: the sigma of each whole timestep. With zero_snr the last, which is infinite, is 4096:
    there x is noise but for 1 part in 4096, and the arithmetic of every sampler holds."""

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        self.betas = _betas(config)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        visible = self.alphas_cumprod
        if config.zero_snr:
            self.betas, self.alphas_cumprod = _without_signal_at_the_end(self.alphas_cumprod)
            visible = self.alphas_cumprod.clone()
            visible[-1] = min(LAST_VISIBLE, float(visible[-2]) / 2)  # and still less than the one before
        self.sigmas = ((1 - visible) / visible).sqrt()
        self._log_sigmas = self.sigmas.log()
        # The same table as plain numbers: a sampler asks for one sigma at a time, and a list answers in a
        # microsecond.
        self._log_sigma_list: list[float] = self._log_sigmas.tolist()

    @property
    def steps(self) -> int:
        """T, the number of timesteps; the last one is T - 1."""
        return self.config.steps

    @property
    def sigma_min(self) -> float:
        """sigma at timestep 0."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """sigma at timestep T - 1."""
        return float(self.sigmas[-1])

    @overload
    def sigma(self, t: float) -> float: ...
    @overload
    def sigma(self, t: Tensor) -> Tensor: ...
    def sigma(self, t: float | Tensor) -> float | Tensor:
        """The noise level at timestep t in [0, T - 1], whole or fractional. The inverse of `t`.

        A tensor of any shape gives float32 of that shape on its device; a number gives a number.
        Raises ValueError when a timestep lies outside the schedule.
        """
        last = self.steps - 1
        if not isinstance(t, Tensor):
            if not 0 <= t <= last:
                raise ValueError(f"timestep {t} is outside 0..{last}")
            low = min(int(t), last - 1)
            table = self._log_sigma_list
            return math.exp(table[low] + (t - low) * (table[low + 1] - table[low]))
        exact = t.detach().to("cpu", torch.float64)
        if exact.numel() and not (exact.min() >= 0 and exact.max() <= last):
            raise ValueError(f"timesteps {exact.min():g}..{exact.max():g} are outside 0..{last}")
        lows = exact.floor().long().clamp(max=last - 1)
        logs = torch.lerp(self._log_sigmas[lows], self._log_sigmas[lows + 1], exact - lows)
        return logs.exp().to(t.device, torch.float32)

    @overload
    def t(self, sigma: float) -> float: ...
    @overload
    def t(self, sigma: Tensor) -> Tensor: ...
    def t(self, sigma: float | Tensor) -> float | Tensor:
        """The (fractional) timestep whose noise level is sigma: the inverse of `sigma`.

        Noise levels beyond the ends of the schedule give the end: the network knows no other timestep.
        A tensor of any shape gives float32 of that shape on its device; a number gives a number.
        """
        last = self.steps - 1
        if not isinstance(sigma, Tensor):
            table = self._log_sigma_list
            log = math.log(sigma) if sigma > 0 else -math.inf
            low = min(max(bisect_right(table, log) - 1, 0), last - 1)
            part = (log - table[low]) / (table[low + 1] - table[low])
            return low + min(max(part, 0.0), 1.0)
        logs = sigma.detach().to("cpu", torch.float64).log()
        lows = (torch.searchsorted(self._log_sigmas, logs, right=True) - 1).clamp(0, last - 1)
        floor, ceiling = self._log_sigmas[lows], self._log_sigmas[lows + 1]
        parts = ((logs - floor) / (ceiling - floor)).clamp(0, 1)
        return (lows + parts).to(sigma.device, torch.float32)


def _betas(config: ScheduleConfig) -> Tensor:
    """(T,) float64: the variance that each step of the forward process adds."""
    if config.kind == "linear":
        return torch.linspace(config.start, config.end, config.steps, dtype=torch.float64)
    if config.kind == "scaled_linear":
        roots = torch.linspace(config.start**0.5, config.end**0.5, config.steps, dtype=torch.float64)
        return roots**2
    # Nichol & Dhariwal 2021, eq. 17: the offset 0.008 keeps the first betas from vanishing, the cap the last
    # from 1.
    ticks = torch.arange(config.steps + 1, dtype=torch.float64) / config.steps
    abar = torch.cos((ticks + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)


def _without_signal_at_the_end(alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """betas and abar (T,) with sqrt(abar) shifted to 0 at the end, stretched to what it was at the beginning.

    Lin et al. 2023, algorithm 1.
    """
    roots = alphas_cumprod.sqrt()
    first, last = roots[0], roots[-1]
    abar = ((roots - last) * (first / (first - last))) ** 2
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    return 1 - abar / before, abar
