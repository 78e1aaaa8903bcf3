"""A model answers requests: encode the conditions, choose the sigmas, let a sampler walk a denoiser, decode.

Every task goes the one way through `Model.steps` (`walk`). Shapes: B batch, C latent channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from safelight.checkpoints import Checkpoint, write_folder
from safelight.diffusion.samplers import Step
from safelight.errors import RequestError
from safelight.memory import give_back
from safelight.models.preview_decoder import PreviewDecoder
from safelight.models.tokenizer import Tokenizing
from safelight.presets import Preset
from safelight.presets.preset import AUTOENCODER
from safelight.tasks import inputs, pictures
from safelight.tasks.alone import differing, single, wordings_of
from safelight.tasks.drawn import sized
from safelight.tasks.handover import require_same_latents
from safelight.tasks.identity import hash_files, hash_parts
from safelight.tasks.member import Member
from safelight.tasks.metadata import RECORD_CHUNK, TEXT_CHUNK, ModelIdentity, Record, infotext
from safelight.tasks.metadata.formats import format_of, require_room
from safelight.tasks.parts import Networks
from safelight.tasks.previewing import Previews
from safelight.tasks.prompts.explain import unread
from safelight.tasks.prompts.readers import readers
from safelight.tasks.request import Request
from safelight.tasks.requests import ImageToImage, Inpaint, Prompted, TextToImage
from safelight.tasks.resolve import count_steps, needed, noise_levels, resolve, wording_of
from safelight.tasks.walk import prepare
from safelight.tasks.wardrobe import with_hashes, worn_by
from safelight.tasks.wearing import notes, outfit

__all__ = ["Model", "Step", "Watch"]

R = TypeVar("R", bound=Request)
Watch = Callable[[Step], None]
"""Called after every step, for progress and previews. To stop early, raise, or break from `Model.steps`."""


class Model(Member):
    """A member of the family that answers requests. Make one with `safelight.load`."""

    def __init__(
        self,
        preset: Preset,
        networks: Mapping[str, nn.Module] | Networks,
        tokenizers: Mapping[str, Tokenizing],
        *,
        name: str = "unsaved",
        local: bool = True,
        weights: Path | None = None,
        refiner: Model | None = None,
        guide: Model | None = None,
        preview_decoder: PreviewDecoder | None = None,
    ) -> None:
        """Join networks that are already filled, all on one device.

        Args:
            networks: those of `Preset.networks`, by part.
            tokenizers: one for each text tower, by part.
            name: under which pictures record the model.
            local: whether the name means something on this machine only.
            weights: the file or folder that the weights came from; None: from memory.
            refiner: takes over at a request's `switch`.
            guide: a weaker model, which a request's `autoguidance` leads away from.
            preview_decoder: a small decoder of the model's latents, for `preview`.

        Raises:
            RequestError: one of them cannot go on with what this model begins.
        """
        super().__init__(preset, networks, tokenizers)
        self._name, self._local, self._weights = name, local, weights
        self.refiner, self.guide = refiner, guide
        self._previews = Previews(self, preview_decoder)
        for other in (refiner, guide):
            if other is not None:
                require_same_latents(self, other)

    @cached_property
    def identity(self) -> ModelIdentity:
        """Name and hash of the weights, which every picture records. The first use reads the files again."""
        return ModelIdentity(
            name=self._name,
            local=self._local,
            preset=self.preset.name,
            sha256=hash_parts(self.weights()) if self._weights is None else hash_files(self._weights),
            dtype=self.networks.precision,
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
        wordings = wordings_of(request, prompts)
        x = None
        worn = outfit(request, wordings[0].prompt, self.preset)
        with _enough_memory(), worn.on(self):
            try:
                walk = prepare(self, request, differing(wordings), self.refiner, self.guide, worn)
                for step in walk.steps():
                    if watch is not None:
                        watch(step)
                    x = step.x
                self._rest(but=(AUTOENCODER,))
                images = self.decode(walk.end(needed(x)))
            finally:
                self._rest()
        if self.device.type == "cpu":
            give_back()
        if isinstance(request, Inpaint):
            images = [needed(walk.canvas).paste(image, request.blur) for image in images]
        for k, (image, wording) in enumerate(zip(images, wordings, strict=True)):
            image.info.update(self._texts(single(request, k, wording)))
        return images

    def resolve(self, request: R) -> R:
        """The request with every None filled in (the seed too), checked against what this model can do.

        Raises:
            RequestError: it cannot be answered by this model.
        """
        request = sized(with_hashes(inputs.recorded(request)), self.preset)
        refiner = None if self.refiner is None else self.refiner.preset
        resolved = resolve(request, self.preset, refiner, guided=self.guide is not None)
        noise_levels(resolved, self.schedule)  # what is wrong with the steps is said here and not when they begin
        return resolved

    def record(self, request: Request, k: int) -> Record:
        """What picture k of a batch records: the request of that picture alone, without files of words.

        Args:
            request: resolved.
        """
        return self._record(single(request, k, wordings_of(request, None)[k]))

    def _record(self, alone: Request) -> Record:
        others = (None if model is None else model.identity for model in (self.refiner, self.guide))
        return Record.of(alone, self.identity, *others)

    def require_room(self, request: Request, output: Path) -> None:
        """Say so, before the drawing, if a file of that name could not hold a picture of a resolved request.

        Raises:
            OutputError: it could not.
        """
        size = needed(request.width), needed(request.height)
        require_room(format_of(output), size, self._texts(single(request, 0, wordings_of(request, None)[0])))

    def _texts(self, alone: Request) -> dict[str, str]:
        """What the picture of a request says of itself."""
        refiner = None if self.refiner is None else self.refiner.identity
        return {
            TEXT_CHUNK: infotext(alone, self.identity, refiner, worn_by(alone)),
            RECORD_CHUNK: self._record(alone).to_json(),
        }

    def unread(self, request: Request) -> dict[str, int]:
        """How many tokens at the end of each prompt the model will not see, where it will not see all."""
        if not isinstance(request, Prompted):
            return {}
        reading = readers(self.preset, self.tokenizers, request.emphasis)
        steps = self.preset.steps if request.steps is None else request.steps
        wording = wording_of(request)
        left = {
            "prompt": unread(wording.prompt, reading, steps, second=wording.prompt_2),
            "negative_prompt": unread(
                wording.negative_prompt, reading, steps, second=wording.negative_prompt_2, negative=True
            ),
        }
        return {name: count for name, count in left.items() if count > 0}

    def notes(self, request: Request) -> list[str]:
        """What of the request's tags and adapters does nothing here, a line each."""
        return notes(request, self)

    def count_steps(self, request: Request) -> int | None:
        """How many steps `steps` will yield for a resolved request; None: only the walk will show."""
        return count_steps(request, noise_levels(request, self.schedule))

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
        wordings = wordings_of(request, prompts)
        worn = outfit(request, wordings[0].prompt, self.preset)
        try:
            with worn.on(self):
                yield from prepare(self, request, differing(wordings), self.refiner, self.guide, worn).steps()
        finally:
            self._rest()

    def _rest(self, *, but: tuple[str, ...] = ()) -> None:
        """Let go of the networks that can be brought again (`--low-memory`), except some of its own."""
        self.networks.free(but=but)
        for model in (self.refiner, self.guide):
            if model is not None:
                model.networks.free()

    # -- between pictures and latents

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Tensor:
        """A picture (sides multiples of the autoencoder's factor) -> scaled latent (1, C, h, w), float32.

        The mean of what the encoder says, so that nothing is left to chance.
        """
        return self.to_latent(pictures.to_pixels(image))

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> list[Image.Image]:
        """Scaled latents (B, C, h, w) -> B pictures, decoded one by one: memory does not grow with the batch.

        Raises:
            RequestError: the pixels are not finite numbers.
        """
        return [pictures.to_images(self.to_pixels(one))[0] for one in torch.split(latent, 1)]

    @torch.inference_mode()
    def preview(self, step: Step) -> list[Image.Image]:
        """About what the pictures look like at a step: what the network believes is under the noise.

        In a small part of the time of `decode(step.denoised)`, which shows it exactly (`previewing`).
        """
        return pictures.to_images(self._previews.show(step.denoised))

    # -- files

    def save(self, folder: str | Path) -> None:
        """Write a diffusers folder of safetensors with the preset beside them, atomically.

        Raises:
            OutputError: it could not be written.
        """
        write_folder(Path(folder), Checkpoint(self.preset, self.weights(), self.tokenizers))


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
