"""The networks of a member, by us and by its peers, each given the same tensors: what `contestants.py` runs.

Ours come out of `safelight.load`, as a user's do. Shapes: B batch, C channels, h w latent size, L tokens, D context
width, P width of the pooled words, V of the vector door, T width of a text tower.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
import transformers
from torch import Tensor, nn

import safelight
from contestants import COMPILED, GUIDED, Job
from measuring import SAFELIGHT
from safelight.conditioning.sizes import base_numbers, numbers_door
from safelight.doors import Conditioning
from safelight.models.clip import ClipText
from safelight.presets import PRESETS, Preset
from safelight.tasks.model import Model
from weights import FOLDER

Call = Callable[[], object]
CALIBRATION = 4
"""Random inputs that int8's scales are found from."""

diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def prepare(name: str, preset: str, folder: Path, job: Job, device: str = "cpu") -> Call:
    """What does the job once."""
    given = {key: x.to(device) for key, x in inputs(PRESETS[preset], job).items()}
    path = folder / FOLDER
    if name in (SAFELIGHT, COMPILED):
        model = _model(path, "int8" if job.int8 else job.dtype, device, compiled=name == COMPILED)
        return ours(model, job, given)
    if name.startswith("openvino"):
        return _openvino(folder, PRESETS[preset], job, given, int8=name.endswith("int8"))
    theirs = _theirs(path, PRESETS[preset], job.network, job.dtype).to(device)
    run = cast(Callable[..., Tensor], torch.compile(theirs) if name == "compiled" else theirs)
    return lambda: run(*given.values())


def inputs(preset: Preset, job: Job, seed: int = 0) -> dict[str, Tensor]:
    """What the work is given, the same for everyone, in the networks' dtype."""
    generator = torch.Generator().manual_seed(seed)
    B, side, latent = job.batch, job.size, job.size // preset.factor

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(getattr(torch, job.dtype))

    if job.work == "decode":
        return {"latent": noise(B, preset.unet.out_channels, latent, latent)}
    if job.work == "encode":
        return {"pixels": noise(B, 3, side, side).clamp(-1, 1)}
    tower = preset.words[0].tower
    if job.work == "text":
        ids = torch.randint(tower.vocab_size - 2, (B * job.chunks, tower.context_length), generator=generator)
        ids[:, -1] = tower.vocab_size - 1  # the end token
        return {"ids": ids}
    unet = preset.unet
    assert unet.context_width is not None
    pictures = noise(B, unet.in_channels, latent, latent)
    if job.work == GUIDED:
        pictures, B = torch.cat([pictures] * 2), 2 * B
    given = {
        "x": pictures,
        "t": torch.full((B,), 500.0),
        "context": noise(B, tower.context_length * job.chunks, unet.context_width),
    }
    if unet.vector_width is not None and unet.size_width is not None:
        numbers = base_numbers((side, side), (side, side))
        given["pooled"] = noise(B, unet.vector_width - len(numbers) * unet.size_width)
        given["numbers"] = torch.tensor(numbers).repeat(B, 1)
    return given


@lru_cache(maxsize=1)
def _model(path: Path, dtype: str, device: str, *, compiled: bool) -> Model:
    return safelight.load(path, device, dtype, compile=compiled)


def ours(model: Model, job: Job, given: Mapping[str, Tensor]) -> Call:
    """Safelight's networks of a loaded model."""
    if job.work == "decode":
        return lambda: model.to_pixels(given["latent"])
    if job.work == "encode":
        return lambda: model.to_latent(given["pixels"])
    if job.work == "text":
        return lambda: _said(model, given["ids"])
    if job.work == "walk":
        words = " ".join(["apple"] * 70 * job.chunks) if job.chunks > 1 else "an apple"
        asked = safelight.TextToImage(
            prompt=words, seed=0, steps=job.steps, sampler="euler", batch=job.batch, width=job.size, height=job.size
        )
        return lambda: [step.index for step in model.steps(asked)]
    cond = _conditions(model, given)
    if job.work == GUIDED:
        halves = [_conditions(model, given, half) for half in (slice(job.batch), slice(job.batch, None))]
        cond = Conditioning.stack(halves, same_pictures=True)  # as guidance does it
    return lambda: model.unet(given["x"], given["t"], cond)


def _conditions(model: Model, given: Mapping[str, Tensor], rows: slice = slice(None)) -> Conditioning:
    """What some rows of a batch are told."""
    vector = None
    if "pooled" in given:
        sizes = numbers_door(given["numbers"][rows], cast(int, model.preset.unet.size_width)).vector
        vector = torch.cat([given["pooled"][rows], cast(Tensor, sizes).to(given["pooled"].dtype)], dim=1)
    return Conditioning(context=given["context"][rows], vector=vector)


def _said(model: Model, ids: Tensor) -> Tensor:
    """The states (B, L, D) of all towers beside each other."""
    states = []
    for words in model.preset.words:
        tower = cast(ClipText, model.networks[words.part])
        states.append(tower.attended(tower(ids), words.states))
    return torch.cat(states, dim=-1)


# diffusers and transformers


class Denoising(nn.Module):
    """Their UNet, given tensors one behind the other: x (B, C, h, w), t (B,), context (B, L, D), SDXL's two more."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, context: Tensor, *more: Tensor) -> Tensor:
        """(B, C, h, w)."""
        added = {"text_embeds": more[0], "time_ids": more[1]} if more else None
        y: Tensor = self.unet(x, t, context, added_cond_kwargs=added, return_dict=False)[0]
        return y


class Decoding(nn.Module):
    """Their autoencoder, from scaled latents to pixels."""

    def __init__(self, autoencoder: nn.Module, scale: float) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
        self.scale = scale

    def forward(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W)."""
        y: Tensor = self.autoencoder.decode(latent / self.scale, return_dict=False)[0]
        return y


class Encoding(Decoding):
    """The same, from pixels to the mean of the latent."""

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""
        h: Tensor = self.autoencoder.quant_conv(self.autoencoder.encoder(pixels))
        return h.chunk(2, dim=1)[0] * self.scale


class Reading(nn.Module):
    """Their text towers, beside each other."""

    def __init__(self, towers: list[nn.Module], last: list[bool]) -> None:
        super().__init__()
        self.towers, self.last = nn.ModuleList(towers), last

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        states = []
        for tower, last in zip(self.towers, self.last, strict=True):
            said = tower(ids, output_hidden_states=not last)
            states.append(said.last_hidden_state if last else said.hidden_states[-2])
        return torch.cat(states, dim=-1)


def _theirs(path: Path, preset: Preset, work: str, dtype: str) -> nn.Module:
    """Their networks for a work, read from the same folder, as their pipelines read them."""
    to = getattr(torch, dtype)
    made: nn.Module
    if work == "unet":
        made = Denoising(diffusers.UNet2DConditionModel.from_pretrained(path / "unet", torch_dtype=to))
    elif work == "text":
        kinds = [transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection]
        folders = [folder for folder in (path / "text_encoder", path / "text_encoder_2") if folder.exists()]
        pooled = [words.pooled for words in preset.words]
        towers = [kinds[p].from_pretrained(folder, dtype=to) for folder, p in zip(folders, pooled, strict=True)]
        made = Reading(towers, [words.states == "last" for words in preset.words])
    else:
        kind = Decoding if work == "decode" else Encoding
        autoencoder = diffusers.AutoencoderKL.from_pretrained(path / "vae", torch_dtype=to)
        made = kind(autoencoder, preset.latent_scale)
    return made.eval().requires_grad_(False)


# OpenVINO


def _openvino(folder: Path, preset: Preset, job: Job, given: Mapping[str, Tensor], *, int8: bool) -> Call:
    """OpenVINO's network, converted from theirs once for a folder, compiled for exactly these shapes."""
    import openvino  # noqa: PLC0415 - an optional peer

    plain, quantised = (folder / f"openvino-{job.network}{kind}.xml" for kind in ("", "-int8"))
    if not plain.exists():
        theirs = _theirs(folder / FOLDER, preset, job.network, "float32")
        converted = openvino.convert_model(theirs, example_input=tuple(given.values()))
        openvino.save_model(converted, plain, compress_to_fp16=False)
        del converted, theirs
    if int8 and not quantised.exists():
        _quantise(plain, quantised, preset, job)
    core = openvino.Core()
    network = core.read_model(quantised if int8 else plain)
    network.reshape({i: list(x.shape) for i, x in enumerate(given.values())})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(network, "CPU", settings)
    arrays = [x.numpy() for x in given.values()]
    return lambda: compiled(arrays)[0]


def _quantise(plain: Path, target: Path, preset: Preset, job: Job) -> None:
    """Weights and activations in int8, as NNCF does it after training; scales from random inputs."""
    os.environ.setdefault("NNCF_TELEMETRY", "0")
    import nncf  # noqa: PLC0415 - an optional peer
    import openvino  # noqa: PLC0415

    network = openvino.Core().read_model(plain)
    data = [[x.numpy() for x in inputs(preset, job, seed).values()] for seed in range(1, CALIBRATION + 1)]
    transformer = nncf.ModelType.TRANSFORMER if job.network in ("unet", "text") else None
    quantised = nncf.quantize(network, nncf.Dataset(data), subset_size=CALIBRATION, model_type=transformer)
    openvino.save_model(quantised, target, compress_to_fp16=False)
