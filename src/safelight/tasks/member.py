"""A member of the family with its weights: its preset and networks, and what they compute. It knows no requests.

Shapes: B batch, C latent channels, h w latent size, H W picture size in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.reusing import Reusing
from safelight.diffusion.schedule import Schedule
from safelight.doors import Conditioning
from safelight.models import strips
from safelight.models.autoencoder import Autoencoder
from safelight.models.packed import expect
from safelight.models.tokenizer import Tokenizing
from safelight.models.unet import Deep, UNet
from safelight.presets import Preset
from safelight.presets.preset import AUTOENCODER, UNET
from safelight.tasks.parts import Networks
from safelight.tasks.precision import careful


class Member:
    """Networks, tokenizers and the preset that says how they belong together."""

    def __init__(
        self, preset: Preset, networks: Mapping[str, nn.Module] | Networks, tokenizers: Mapping[str, Tokenizing]
    ) -> None:
        """Join what belongs together.

        Args:
            networks: those of `Preset.networks`, by part, filled, all on one device.
            tokenizers: one for each text tower, by part.
        """
        self.preset = preset
        self.networks = networks if isinstance(networks, Networks) else Networks.of(networks)
        self.tokenizers = dict(tokenizers)
        self.schedule = Schedule(preset.schedule)

    @property
    def unet(self) -> UNet:
        """The network that denoises."""
        return cast(UNet, self.networks[UNET])

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The network between pictures and latents; None where there are no latents."""
        return cast(Autoencoder, self.networks[AUTOENCODER]) if AUTOENCODER in self.networks else None

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.networks.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the networks run."""
        return self.networks.dtype

    def denoiser(self) -> Denoiser[Conditioning]:
        """The network seen as (x, sigma) -> x0, to be told conditions."""
        return Denoiser(self._answer, self.schedule, self.preset.prediction, self.dtype)

    def reusing(self, levels: Tensor, every: int, joins: int) -> Denoiser[Conditioning]:
        """As `denoiser`, for one walk over these levels: what is below the finest joins is asked once for so many."""

        def ask(x: Tensor, t: Tensor, cond: Conditioning, known: Tensor | None) -> tuple[Tensor, Tensor]:
            deep = Deep(joins, known)
            answer = self._answer(x, t, cond, deep)
            assert deep.found is not None, f"the network has {joins} joins or more"
            return answer, deep.found

        return Reusing(ask, self.schedule, self.preset.prediction, self.dtype, levels=levels, every=every)

    def _answer(self, x: Tensor, t: Tensor, cond: Conditioning, deep: Deep | None = None) -> Tensor:
        """The UNet's answer, from float32 where its own precision is not enough."""
        unet = self.unet

        def ask(dtype: torch.dtype) -> Tensor:
            doors = cond.map(lambda door: door.to(dtype) if door.is_floating_point() else door)
            y: Tensor = unet(x.to(dtype), t, doors, deep)
            return y

        return careful(unet, ask)

    def to_latent(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> scaled latent (B, C, h, w), float32.

        The mean of what the encoder says, so that nothing is left to chance.
        """
        pixels, encoder = pixels.to(self.device), self.autoencoder
        if encoder is None:
            return pixels * self.preset.latent_scale
        expect(encoder, 1)
        mean = careful(encoder, lambda dtype: strips.encode(encoder, pixels.to(dtype))[0])
        return mean.float() * self.preset.latent_scale

    def to_pixels(self, latent: Tensor) -> Tensor:
        """Scaled latent (B, C, h, w) -> (B, 3, H, W), about in [-1, 1]."""
        z, decoder = (latent / self.preset.latent_scale).to(self.device), self.autoencoder
        if decoder is None:
            return z
        expect(decoder, 1)
        return careful(decoder, lambda dtype: strips.decode(decoder, z.to(dtype)))

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture of so many pixels."""
        return self.preset.unet.out_channels, height // self.preset.factor, width // self.preset.factor

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor of every network, by part and our name."""
        return {part: dict(network.state_dict()) for part, network in self.networks.items()}
