"""Wrappers that make a `Denoise` of a denoiser and what it is told. They compose with every sampler.

asking          several conditions in one batch or one after the other, nothing twice
branches        conditions that act together: weights, and masks for parts of the picture
formulas        what is done with the answers, each a function of a paper
guiding         `Guidance`, and `guided`, which puts all together
self_attention  away from a picture whose attended places are blurred
windows         a latent larger than the network knows
known           inpainting with any model

What changes the network itself for a time (perturbed attention, FreeU, what watches attention) is in the room models;
here it is a context (`within`, `SelfAttention.watch`) or a further `Denoise` (`Beside`).
"""

from safelight.diffusion.guidance.asking import Said, Stackable, Watch, always, conditioned, within
from safelight.diffusion.guidance.branches import Branch
from safelight.diffusion.guidance.formulas import Projection, interval_of_steps
from safelight.diffusion.guidance.guiding import UNGUIDED, Beside, Guidance, classifier_free, guided
from safelight.diffusion.guidance.known import keep_known
from safelight.diffusion.guidance.self_attention import SelfAttention
from safelight.diffusion.guidance.windows import Window, multi_diffusion, windows

__all__ = [
    "UNGUIDED",
    "Beside",
    "Branch",
    "Guidance",
    "Projection",
    "Said",
    "SelfAttention",
    "Stackable",
    "Watch",
    "Window",
    "always",
    "classifier_free",
    "conditioned",
    "guided",
    "interval_of_steps",
    "keep_known",
    "multi_diffusion",
    "windows",
    "within",
]
