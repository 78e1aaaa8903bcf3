"""Samplers: functions that walk a latent from noise to picture and yield every step.

`walk` says what a sampler is; `registry` names all of them, with what they are used with. The functions are
grouped by what they do with the network: ask it once a step (`onestep`), more often (`rungekutta`, `dpmsolver`),
remember what it said (`multistep`, `unipc`), follow a Brownian path (`stochastic`), or take its answer for the
end (`distilled`).
"""

from __future__ import annotations

from safelight.diffusion.samplers.distilled import lcm, tcd
from safelight.diffusion.samplers.dpmsolver import dpm_adaptive, dpm_fast
from safelight.diffusion.samplers.multistep import deis, dpm_2m, dpmpp_2m, ipndm, lms, plms, pndm
from safelight.diffusion.samplers.onestep import ddim, ddpm, euler, euler_a
from safelight.diffusion.samplers.registry import SAMPLERS, Sampler, SamplerOptions, bind
from safelight.diffusion.samplers.rungekutta import dpm_2, dpm_2_a, dpmpp_2s, dpmpp_2s_a, heun, restart
from safelight.diffusion.samplers.stochastic import dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde, er_sde
from safelight.diffusion.samplers.unipc import unipc
from safelight.diffusion.samplers.walk import NO_CHURN, Churn, SampleFunction, Step, finish, start

__all__ = [
    "NO_CHURN",
    "SAMPLERS",
    "Churn",
    "SampleFunction",
    "Sampler",
    "SamplerOptions",
    "Step",
    "bind",
    "ddim",
    "ddpm",
    "deis",
    "dpm_2",
    "dpm_2_a",
    "dpm_2m",
    "dpm_adaptive",
    "dpm_fast",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_a",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "er_sde",
    "euler",
    "euler_a",
    "finish",
    "heun",
    "ipndm",
    "lcm",
    "lms",
    "plms",
    "pndm",
    "restart",
    "start",
    "tcd",
    "unipc",
]
