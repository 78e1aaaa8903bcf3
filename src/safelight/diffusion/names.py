"""What samplers and schedules are called. No torch here: help must be instant. Adding one, name it here too."""

from __future__ import annotations

SAMPLER_NAMES = (
    *("ddim", "ddpm", "deis", "dpm_2", "dpm_2_a", "dpm_2m", "dpm_adaptive", "dpm_fast", "dpmpp_2m"),
    *("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_2s", "dpmpp_2s_a", "dpmpp_3m_sde", "dpmpp_sde", "er_sde"),
    *("euler", "euler_a", "heun", "ipndm", "lcm", "lms", "plms", "pndm", "restart", "tcd", "unipc"),
)
"""The keys of `samplers.SAMPLERS`."""
SPACING_NAMES = (
    *("align_your_steps", "beta", "beta_timesteps", "ddim_uniform", "exponential", "karras", "kl_optimal", "lcm"),
    *("leading", "leading_0", "leading_dpm", "linear_quadratic", "linspace", "linspace_straight", "linspace_whole"),
    *("polyexponential", "quadratic", "sgm_uniform", "sgm_uniform_whole", "simple", "trailing", "turbo", "vp"),
)
"""The keys of `sigmas.SPACINGS`."""
