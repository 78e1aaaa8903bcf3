"""What other tools call the samplers and spacings: a table per tool, for writing (A1111) and for reading.

A name that stands in no table is told to the user as not understood; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from safelight.diffusion.names import SAMPLER_NAMES, SPACING_NAMES

SAMPLER_LABELS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "deis": "DEIS",
    "dpm_2": "DPM2",
    "dpm_2_a": "DPM2 a",
    "dpm_adaptive": "DPM adaptive",
    "dpm_fast": "DPM fast",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_2s_a": "DPM++ 2S a",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "er_sde": "ER SDE",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "ipndm": "IPNDM",
    "lcm": "LCM",
    "lms": "LMS",
    "plms": "PLMS",
    "restart": "Restart",
    "tcd": "TCD",
    "unipc": "UniPC",
}
"""In A1111's text; a sampler that is not here goes by its own name."""
SPACING_LABELS = {
    "align_your_steps": "Align Your Steps",
    "beta": "Beta",
    "ddim_uniform": "DDIM",
    "exponential": "Exponential",
    "karras": "Karras",
    "kl_optimal": "KL Optimal",
    "linspace": "Uniform",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "turbo": "SD Turbo",
}
"""In A1111's text, as its `sd_schedulers` has them; the last is ours, since Forge calls trailing Turbo."""
BY_TIMESTEPS = frozenset({"ddim", "plms"})
"""Which A1111 always gives the leading timesteps, whatever schedule is chosen."""
AUTOMATIC = "Automatic"
A1111_OWN = {
    "dpm_2": "karras",
    "dpm_2_a": "karras",
    "dpmpp_2m": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_2m_sde_heun": "exponential",
    "dpmpp_2s_a": "karras",
    "dpmpp_3m_sde": "exponential",
    "dpmpp_sde": "karras",
    "restart": "karras",
}
"""What `Schedule type: Automatic` is for a sampler; for those not here it is Uniform, which is our linspace."""
A1111_CHOOSES = frozenset({"dpm_adaptive", "dpm_fast", "lcm", "tcd", "unipc"})
"""Samplers that take other noise levels there than a schedule says."""


@dataclass(frozen=True)
class Names:
    """How a tool calls samplers and spacings, in lower case -> how we do."""

    samplers: Mapping[str, str]
    spacings: Mapping[str, str]

    def sampler(self, name: str) -> str | None:
        """Ours, or None if there is none."""
        ours = self.samplers.get(name.strip().lower())
        return ours if ours in SAMPLER_NAMES else None

    def spacing(self, name: str) -> str | None:
        """Ours, or None if there is none."""
        ours = self.spacings.get(name.strip().lower())
        return ours if ours in SPACING_NAMES else None


def _reversed(labels: Mapping[str, str]) -> dict[str, str]:
    return {label.lower(): name for name, label in labels.items()}


A1111 = Names(
    {
        **{name: name for name in SAMPLER_NAMES},
        **_reversed(SAMPLER_LABELS),
        "k_dpm_2": "dpm_2",
        "k_dpm_2_a": "dpm_2_a",
        "k_dpmpp_2m": "dpmpp_2m",
        "k_euler": "euler",
        "k_euler_a": "euler_a",
        "k_euler_ancestral": "euler_a",
        "k_heun": "heun",
        "k_lms": "lms",
        "euler ancestral": "euler_a",
    },
    {
        **{name: name for name in SPACING_NAMES},
        **_reversed(SPACING_LABELS),
        "normal": "linspace",
        "sgmuniform": "sgm_uniform",
        "turbo": "trailing",
    },
)
"""AUTOMATIC1111, Forge, SD.Next, and the sites that write as they do."""

COMFY = Names(
    {
        "ddim": "ddim",
        "ddpm": "ddpm",
        "deis": "deis",
        "dpm_2": "dpm_2",
        "dpm_2_ancestral": "dpm_2_a",
        "dpm_adaptive": "dpm_adaptive",
        "dpm_fast": "dpm_fast",
        "dpmpp_2m": "dpmpp_2m",
        "dpmpp_2m_sde": "dpmpp_2m_sde",
        "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
        "dpmpp_2m_sde_heun": "dpmpp_2m_sde_heun",
        "dpmpp_2m_sde_heun_gpu": "dpmpp_2m_sde_heun",
        "dpmpp_2s_ancestral": "dpmpp_2s_a",
        "dpmpp_3m_sde": "dpmpp_3m_sde",
        "dpmpp_3m_sde_gpu": "dpmpp_3m_sde",
        "dpmpp_sde": "dpmpp_sde",
        "dpmpp_sde_gpu": "dpmpp_sde",
        "er_sde": "er_sde",
        "euler": "euler",
        "euler_ancestral": "euler_a",
        "heun": "heun",
        "ipndm": "ipndm",
        "lcm": "lcm",
        "lms": "lms",
        "restart": "restart",
        "tcd": "tcd",
        "uni_pc": "unipc",
        "uni_pc_bh2": "unipc",
    },
    {
        "beta": "beta_timesteps",
        "ddim_uniform": "ddim_uniform",
        "exponential": "exponential",
        "karras": "karras",
        "kl_optimal": "kl_optimal",
        "linear_quadratic": "linear_quadratic",
        "normal": "linspace",
        "sgm_uniform": "sgm_uniform",
        "simple": "simple",
        # nodes that make the noise levels by themselves
        "alignyourstepsscheduler": "align_your_steps",
        "betasamplingscheduler": "beta_timesteps",
        "exponentialscheduler": "exponential",
        "karrasscheduler": "karras",
        "polyexponentialscheduler": "polyexponential",
        "sdturboscheduler": "turbo",
    },
)

_INVOKE = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "deis": "deis",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_2s": "dpmpp_2s",
    "dpmpp_sde": "dpmpp_sde",
    "euler": "euler",
    "euler_a": "euler_a",
    "heun": "heun",
    "kdpm_2": "dpm_2",
    "kdpm_2_a": "dpm_2_a",
    "lcm": "lcm",
    "lms": "lms",
    "pndm": "plms",
    "tcd": "tcd",
    "unipc": "unipc",
}
INVOKE = Names({**_INVOKE, **{f"{name}_k": ours for name, ours in _INVOKE.items()}}, {"_k": "karras"})
"""InvokeAI since 3 adds _k for Karras' levels. Its dpmpp_3m is no SDE."""
INVOKE_OLD = Names(
    {
        "ddim": "ddim",
        "plms": "plms",
        "k_dpm_2": "dpm_2",
        "k_dpm_2_a": "dpm_2_a",
        "k_dpmpp_2": "dpmpp_2m",
        "k_euler": "euler",
        "k_euler_a": "euler_a",
        "k_heun": "heun",
        "k_lms": "lms",
    },
    {},
)
"""InvokeAI 1 and 2."""

NOVELAI = Names(
    {
        "ddim": "ddim",
        "k_dpm_2": "dpm_2",
        "k_dpm_2_ancestral": "dpm_2_a",
        "k_dpm_adaptive": "dpm_adaptive",
        "k_dpm_fast": "dpm_fast",
        "k_dpmpp_2m": "dpmpp_2m",
        "k_dpmpp_2m_sde": "dpmpp_2m_sde",
        "k_dpmpp_2s_ancestral": "dpmpp_2s_a",
        "k_dpmpp_3m_sde": "dpmpp_3m_sde",
        "k_dpmpp_sde": "dpmpp_sde",
        "k_euler": "euler",
        "k_euler_ancestral": "euler_a",
        "k_heun": "heun",
        "k_lms": "lms",
        "plms": "plms",
    },
    {
        "exponential": "exponential",
        "karras": "karras",
        "native": "linspace",
        "polyexponential": "polyexponential",
    },
)
