"""A model answers requests: encode the conditions, choose the sigmas, let a sampler walk a denoiser, decode.

Every task goes the one way through `Model.steps`; what differs between tasks is where the walk starts.
Shapes: B batch, C latent channels, h w latent size, H W picture size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from safelight.checkpoints import Checkpoint, write_folder
from safelight.diffusion.denoiser import Denoise, Denoiser
from safelight.diffusion.guidance import classifier_free, conditioned, keep_known
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import SAMPLERS, Step, finish, start
from safelight.diffusion.schedule import Schedule
from safelight.doors import Conditioning
from safelight.errors import RequestError
from safelight.models.autoencoder import Autoencoder
from safelight.models.tokenizer import Tokenizing
from safelight.models.unet import UNet
from safelight.presets import Preset
from safelight.presets.conditions import HiddenPicture
from safelight.presets.preset import AUTOENCODER, UNET
from safelight.tasks import inputs, pictures
from safelight.tasks.drawn import drawn_on, sized
from safelight.tasks.identity import hash_files, hash_parts
from safelight.tasks.metadata import RECORD_CHUNK, TEXT_CHUNK, ModelIdentity, Record, infotext
from safelight.tasks.precision import careful
from safelight.tasks.request import Request
from safelight.tasks.requests import ImageToImage, Inpaint, Prompted, TextToImage
from safelight.tasks.resolve import needed, noise_levels, resolve
from safelight.tasks.told import Teller

__all__ = ["Model", "Step", "Watch"]

R = TypeVar("R", bound=Request)
Watch = Callable[[Step], None]
"""Called after every step, for progress and previews. To stop early, raise, or break from `Model.steps`."""


class Model:
    """Networks and the preset that says how they belong together. Make one with `safelight.load`."""

    def __init__(
        self,
        preset: Preset,
        networks: Mapping[str, nn.Module],
        tokenizers: Mapping[str, Tokenizing],
        *,
        name: str = "unsaved",
        local: bool = True,
        weights: Path | None = None,
    ) -> None:
        """Join networks that are already filled, all on one device.

        Args:
            networks: those of `Preset.networks`, by part.
            tokenizers: one for each text tower, by part.
            name: under which pictures record the model.
            local: whether the name means something on this machine only.
            weights: the file or folder that the weights came from; None: from memory.
        """
        self.preset = preset
        self.networks = {part: network.eval().requires_grad_(False) for part, network in networks.items()}
        self.tokenizers = dict(tokenizers)
        self.schedule = Schedule(preset.schedule)
        self._name, self._local, self._weights = name, local, weights

    @property
    def unet(self) -> UNet:
        """The network that denoises."""
        return cast(UNet, self.networks[UNET])

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The network between pictures and latents; None where there are no latents."""
        return cast("Autoencoder | None", self.networks.get(AUTOENCODER))

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the networks run."""
        return self.unet.conv_in.weight.dtype

    @cached_property
    def identity(self) -> ModelIdentity:
        """Name and hash of the weights, which every picture records. The first use reads the files again."""
        return ModelIdentity(
            name=self._name,
            local=self._local,
            preset=self.preset.name,
            sha256=hash_parts(self._parts()) if self._weights is None else hash_files(self._weights),
            dtype=str(self.dtype).removeprefix("torch."),
        )

    # -- the public tasks

    def txt2img(
        self,
        prompt: str | TextToImage,
        *,
        negative_prompt: str = "",
        seed: int | None = None,
        batch: int = 1,
        steps: int | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        guidance: float | None = None,
        width: int | None = None,
        height: int | None = None,
        watch: Watch | None = None,
    ) -> list[Image.Image]:
        """Draw pictures of a prompt, or answer a whole `TextToImage` (whose fields the arguments are).

        Returns:
            `batch` pictures; `image.info` holds the metadata that `safelight.save_picture` writes.

        Raises:
            RequestError: an argument is out of range, unknown, or cannot be drawn by this model.
        """
        if isinstance(prompt, TextToImage):
            return self.draw(prompt, watch)
        request = TextToImage(
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            batch=batch,
            steps=steps,
            sampler=sampler,
            spacing=spacing,
            guidance=guidance,
            width=width,
            height=height,
        )
        return self.draw(request, watch)

    def img2img(
        self,
        prompt: str | ImageToImage,
        image: Image.Image | Path | str | None = None,
        *,
        strength: float | None = None,
        negative_prompt: str = "",
        seed: int | None = None,
        batch: int = 1,
        steps: int | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        guidance: float | None = None,
        width: int | None = None,
        height: int | None = None,
        watch: Watch | None = None,
    ) -> list[Image.Image]:
        """Draw over a picture, or answer a whole `ImageToImage` (whose fields the arguments are).

        Args:
            image: a picture in memory (its record then carries it whole), or the path of one.
            strength: 0 to 1; None is the request's default.

        Returns and raises as `txt2img`.
        """
        if isinstance(prompt, ImageToImage):
            return self.draw(prompt, watch)
        source = pictures.to_data_uri(image) if isinstance(image, Image.Image) else image
        request = ImageToImage(
            prompt=prompt,
            image="" if source is None else str(source),
            strength=ImageToImage.model_fields["strength"].default if strength is None else strength,
            negative_prompt=negative_prompt,
            seed=seed,
            batch=batch,
            steps=steps,
            sampler=sampler,
            spacing=spacing,
            guidance=guidance,
            width=width,
            height=height,
        )
        return self.draw(request, watch)

    def draw(
        self, request: Request, watch: Watch | None = None, *, prompts: Sequence[str] | None = None
    ) -> list[Image.Image]:
        """Answer any request with `request.batch` pictures, each with the metadata to make it again alone.

        Args:
            watch: called after every step.
            prompts: as in `steps`.

        Raises:
            RequestError: the request cannot be answered by this model.
        """
        request = self.resolve(request)
        x = None
        with _enough_memory():
            for step in self.steps(request, prompts=prompts):
                if watch is not None:
                    watch(step)
                x = step.x
            images = self.decode(finish(needed(x), noise_levels(request, self.schedule)))
        if isinstance(request, Inpaint):
            whole = drawn_on(request)
            images = [whole.paste(image, request.blur) for image in images]
        for k, image in enumerate(images):
            changes: dict[str, object] = {"seed": needed(request.seed) + k, "batch": 1}
            alone = request.changed(**(changes if prompts is None else changes | {"prompt": prompts[k]}))
            image.info[TEXT_CHUNK] = infotext(alone, self.identity)
            image.info[RECORD_CHUNK] = Record.of(alone, self.identity).to_json()
        return images

    def resolve(self, request: R) -> R:
        """The request with every None filled in (the seed too), checked against what this model can do.

        Raises:
            RequestError: it cannot be answered by this model.
        """
        request = sized(inputs.recorded(request), self.preset)
        resolved = resolve(request, self.preset)
        noise_levels(resolved, self.schedule)  # what is wrong with the steps is said here and not when they begin
        return resolved

    def unread(self, request: Request) -> dict[str, int]:
        """How many tokens at the end of each prompt the model will not see, where it will not see all."""
        if not isinstance(request, Prompted):
            return {}
        texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        left = {
            name: max([0, *(len(t.words(text)) + 2 - t.length for t in self.tokenizers.values())])
            for name, text in texts.items()
        }
        return {name: count for name, count in left.items() if count > 0}

    def count_steps(self, request: Request) -> int:
        """How many steps `steps` will yield for a resolved request."""
        return len(noise_levels(request, self.schedule)) - 1

    # -- the one way

    def steps(self, request: Request, *, prompts: Sequence[str] | None = None) -> Iterator[Step]:
        """The sampler's steps of any request; `break` to stop early.

        Args:
            request: what to draw.
            prompts: one per picture of the batch, instead of the request's: many prompts in one go.

        Yields:
            Steps with x and denoised (B, C, h, w), float32, on the model's device; see `preview`.

        Raises:
            RequestError: the request cannot be answered by this model, or a step is not finite.
        """
        request = self.resolve(request)
        if prompts is not None and len(prompts) != request.batch:
            raise RequestError(f"{len(prompts)} prompts for a batch of {request.batch}: give one per picture")
        with torch.inference_mode():
            levels = noise_levels(request, self.schedule)
            seeds = [needed(request.seed) + k for k in range(request.batch)]
            noise = Noise(seeds, self._latent_shape(request))
            x, known = self._first(request, noise().to(self.device), levels)
            denoise = self._denoise(request, noise, prompts, known)
            walk = SAMPLERS[needed(request.sampler)].function(denoise, x, levels, noise)
        while True:
            with torch.inference_mode():  # not around the yield: what the reader does is the reader's affair
                step = next(walk, None)
                if step is None:
                    return
                pictures.require_finite(step.x, f"step {step.index + 1}")
            yield step

    def _denoise(
        self, request: Request, noise: Noise, prompts: Sequence[str] | None, known: tuple[Tensor, Tensor] | None
    ) -> Denoise:
        """The network told of what the request says, under guidance; what is known of the latent stays."""
        denoiser = Denoiser(self._ask, self.schedule, self.preset.prediction, self.dtype)
        if prompts is None:
            prompts = [request.prompt] if isinstance(request, Prompted) else []
        canvas = drawn_on(request) if isinstance(request, Inpaint) else None
        teller = Teller(
            self.preset,
            self.networks,
            self.tokenizers,
            self._encode,
            request,
            noise,
            prompts,
            None if canvas is None else (canvas.picture(), canvas.hole()),
        )
        told = teller.tell(self.device, self.dtype)
        if told.uncond is None:
            denoise = conditioned(denoiser, told.cond)
        else:
            denoise = classifier_free(denoiser, told.cond, told.uncond, needed(request.guidance))
        return denoise if known is None else keep_known(denoise, *known)

    def _ask(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The UNet's answer, from float32 if its own precision is not enough."""

        def ask(dtype: torch.dtype) -> Tensor:
            doors = cond.map(lambda door: door.to(dtype) if door.is_floating_point() else door)
            y: Tensor = self.unet(x.to(dtype), t, doors)
            return y

        return careful(self.unet, ask)

    def _first(self, request: Request, noise: Tensor, levels: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Where the walk starts (B, C, h, w), at noise, or at a picture under noise (Meng et al. 2022); and what of
        the latent is known, (1, C, h, w), with a mask (1, 1, h, w) that is 1 there.
        """
        if not isinstance(request, ImageToImage):
            return start(noise, levels), None
        canvas = drawn_on(request) if isinstance(request, Inpaint) else None
        if canvas is None:
            size = (needed(request.width), needed(request.height))
            latent = self.encode(ImageOps.fit(inputs.picture(request, "image"), size, Image.Resampling.LANCZOS))
        else:
            latent = self.encode(canvas.picture())
        forgets = request.strength == 1.0 and type(request) is not ImageToImage
        x = start(noise, levels) if forgets else latent + noise * float(levels[0])
        if canvas is None or any(isinstance(c, HiddenPicture) for c in self.preset.conditions):
            return x, None
        hole = inputs.numbers(canvas.hole()).to(latent.device) / 255
        return x, (latent, 1 - F.adaptive_max_pool2d(hole, latent.shape[-2:]))

    def _latent_shape(self, request: Request) -> tuple[int, int, int]:
        """(C, h, w)."""
        factor = self.preset.factor
        return self.preset.unet.out_channels, needed(request.height) // factor, needed(request.width) // factor

    # -- between pictures and latents

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Tensor:
        """A picture (sides multiples of the autoencoder's factor) -> scaled latent (1, C, h, w), float32.

        The mean of what the encoder says, so that nothing is left to chance.
        """
        return self._encode(pictures.to_pixels(image))

    def _encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> scaled latent (B, C, h, w), float32."""
        pixels, encoder = pixels.to(self.device), self.autoencoder
        if encoder is None:
            return pixels * self.preset.latent_scale
        mean = careful(encoder, lambda dtype: encoder.encode(pixels.to(dtype))[0])
        return mean.float() * self.preset.latent_scale

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> list[Image.Image]:
        """Scaled latents (B, C, h, w) -> B pictures, decoded one by one: memory does not grow with the batch.

        Raises:
            RequestError: the pixels are not finite numbers.
        """
        z, decoder = (latent / self.preset.latent_scale).to(self.device), self.autoencoder

        def pixels(one: Tensor) -> Tensor:
            return one if decoder is None else careful(decoder, lambda dtype: decoder.decode(one.to(dtype)))

        return [pictures.to_images(pixels(one))[0] for one in torch.split(z, 1)]

    def preview(self, step: Step) -> list[Image.Image]:
        """What the pictures look like at a step: what the network believes is under the noise."""
        return self.decode(step.denoised)

    # -- files

    def save(self, folder: str | Path) -> None:
        """Write a diffusers folder of safetensors with the preset beside them, atomically.

        Raises:
            OutputError: it could not be written.
        """
        write_folder(Path(folder), Checkpoint(self.preset, self._parts(), self.tokenizers))

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        return {part: dict(network.state_dict()) for part, network in self.networks.items()}


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Say that memory was short, which is the request's size and no fault of ours."""
    try:
        yield
    except RuntimeError as error:
        # On the CPU it is a plain RuntimeError, known only by its words.
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RequestError(
                "there is not enough memory for this request: ask for a smaller size, a smaller batch, "
                "or --dtype bfloat16"
            ) from error
        raise
