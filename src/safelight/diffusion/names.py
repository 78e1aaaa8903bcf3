"""What samplers and schedules are called. No torch here: help must be instant. Adding one, name it here too."""

from __future__ import annotations

SAMPLER_NAMES = ("ddim", "ddpm", "dpmpp_2m", "euler", "euler_a", "heun", "lms")
"""The keys of `samplers.SAMPLERS`."""
SPACING_NAMES = ("exponential", "karras", "leading", "linspace", "quadratic", "sgm_uniform", "trailing")
"""The keys of `sigmas.SPACINGS`."""
