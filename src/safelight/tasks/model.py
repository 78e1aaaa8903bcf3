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
from PIL import Image, ImageOps
from torch import Tensor, nn

from safelight.checkpoints import Checkpoint, write_folder
from safelight.conditioning.text import encode_prompts, repeat
from safelight.diffusion.denoiser import Denoise, Denoiser
from safelight.diffusion.guidance import classifier_free
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import SAMPLERS, Step, finish, start
from safelight.diffusion.schedule import Schedule
from safelight.doors import Conditioning
from safelight.errors import RequestError
from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import ClipText
from safelight.models.tokenizer import ClipTokenizer
from safelight.models.unet import UNet
from safelight.presets import Preset
from safelight.presets.preset import AUTOENCODER, UNET
from safelight.tasks import pictures
from safelight.tasks.identity import hash_files, hash_parts
from safelight.tasks.metadata import RECORD_CHUNK, TEXT_CHUNK, ModelIdentity, Record, infotext
from safelight.tasks.requests import ImageToImage, Request, TextToImage
from safelight.tasks.resolve import needed, noise_levels, resolve

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
        tokenizers: Mapping[str, ClipTokenizer],
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
    def autoencoder(self) -> Autoencoder:
        """The network between pictures and latents."""
        return cast(Autoencoder, self.networks[AUTOENCODER])

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
        for k, image in enumerate(images):
            prompt = request.prompt if prompts is None else prompts[k]
            alone = request.changed(prompt=prompt, seed=needed(request.seed) + k, batch=1)
            image.info[TEXT_CHUNK] = infotext(alone, self.identity)
            image.info[RECORD_CHUNK] = Record.of(alone, self.identity).to_json()
        return images

    def resolve(self, request: R) -> R:
        """The request with every None filled in (the seed too), checked against what this model can do.

        Raises:
            RequestError: it cannot be answered by this model.
        """
        if isinstance(request, ImageToImage):
            image, digest = self._source(request)
            factor = self.preset.autoencoder.factor
            request = request.changed(
                image_sha256=digest,
                width=_on_grid(image.width, factor) if request.width is None else request.width,
                height=_on_grid(image.height, factor) if request.height is None else request.height,
            )
        resolved = resolve(request, self.preset)
        noise_levels(resolved, self.schedule)  # what is wrong with the steps is said here and not when they begin
        return resolved

    def unread(self, text: str) -> int:
        """How many tokens at the end of a prompt the model will not see."""
        return max([0, *(len(t.words(text)) - (t.length - 2) for t in self.tokenizers.values())])

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
            denoise = self._denoise(request, [request.prompt] if prompts is None else prompts)
            levels = noise_levels(request, self.schedule)
            seeds = [needed(request.seed) + k for k in range(request.batch)]
            noise = Noise(seeds, self._latent_shape(request))
            x = self._first(request, noise().to(self.device), levels)
            walk = SAMPLERS[needed(request.sampler)].function(denoise, x, levels, noise)
        while True:
            with torch.inference_mode():  # not around the yield: what the reader does is the reader's affair
                step = next(walk, None)
                if step is None:
                    return
                pictures.require_finite(step.x, f"step {step.index + 1}")
            yield step

    def _denoise(self, request: Request, prompts: Sequence[str]) -> Denoise:
        """The network told of one prompt or of one per picture, under guidance; at scale 1 the negative
        prompt is not encoded.
        """
        denoiser = Denoiser(self.unet, self.schedule, self.preset.prediction, self.dtype)
        cond = self._told(prompts)
        if len(prompts) == 1:
            cond = repeat(cond, request.batch)
        scale = needed(request.guidance)
        uncond = cond
        if scale != 1.0:
            uncond = repeat(self._told([request.negative_prompt]), request.batch)
        return classifier_free(denoiser, cond, uncond, scale)

    def _told(self, prompts: Sequence[str]) -> Conditioning:
        """What the network is told by B prompts."""
        [words] = self.preset.words
        return encode_prompts(self.tokenizers[words.part], cast(ClipText, self.networks[words.part]), prompts)

    def _first(self, request: Request, noise: Tensor, levels: Tensor) -> Tensor:
        """Where the walk starts (B, C, h, w): at noise, or at a picture under noise (Meng et al. 2022)."""
        if not isinstance(request, ImageToImage):
            return start(noise, levels)
        image, _ = self._source(request)
        fitted = ImageOps.fit(image, (needed(request.width), needed(request.height)), Image.Resampling.LANCZOS)
        return self.encode(fitted) + noise * float(levels[0])

    def _latent_shape(self, request: Request) -> tuple[int, int, int]:
        """(C, h, w)."""
        factor = self.preset.autoencoder.factor
        channels = self.preset.autoencoder.latent_channels
        return channels, needed(request.height) // factor, needed(request.width) // factor

    def _source(self, request: ImageToImage) -> tuple[Image.Image, str]:
        """The picture started from, and the hash of its bytes."""
        data = pictures.read_picture_bytes(request.image)
        digest = pictures.sha256(data)
        if request.image_sha256 not in (None, digest):
            raise RequestError(f"image {request.image!r} is no longer the picture of this request: name it anew")
        return pictures.decode_picture(data, request.image), digest

    # -- between pictures and latents

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Tensor:
        """A picture (sides multiples of the autoencoder's factor) -> scaled latent (1, C, h, w), float32.

        The mean of what the encoder says, so that nothing is left to chance.
        """
        pixels = pictures.to_pixels(image).to(self.device, self.dtype)
        mean, _ = self.autoencoder.encode(pixels)
        return mean.float() * self.preset.latent_scale

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> list[Image.Image]:
        """Scaled latents (B, C, h, w) -> B pictures, decoded one by one: memory does not grow with the batch.

        Raises:
            RequestError: the pixels are not finite numbers.
        """
        z = (latent / self.preset.latent_scale).to(self.device, self.dtype)
        return [pictures.to_images(self.autoencoder.decode(one))[0] for one in torch.split(z, 1)]

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


def _on_grid(size: int, factor: int) -> int:
    """The largest multiple of the factor that is not above the size, but at least one."""
    return max(size // factor, 1) * factor
