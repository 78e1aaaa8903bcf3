"""Weights become a `Model`, and are never held twice on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from safelight.checkpoints import Checkpoint, read
from safelight.checkpoints.alone import read_normalizer, read_texts, read_vae
from safelight.checkpoints.pages import MappedPages, read_ahead
from safelight.checkpoints.previews import decodes, fingerprint, read_preview_decoder
from safelight.errors import ModelFileError, RequestError
from safelight.memory import keep_memory
from safelight.models.int8 import quantise, rounded_weights
from safelight.models.int8_products import supported
from safelight.models.networks import Config, unfilled
from safelight.models.normalizer import NormalizerConfig
from safelight.models.packed import FINE_TILES, TILES, pack
from safelight.models.preview_decoder import PreviewDecoder
from safelight.models.unet import UNet, UNetConfig
from safelight.presets import PRESETS
from safelight.presets.conditions import NORMALIZER
from safelight.presets.preset import AUTOENCODER, UNET
from safelight.sending import layout
from safelight.tasks.carrying import Carrier
from safelight.tasks.compiling import compile_blocks, keep_compiled, require_compiler
from safelight.tasks.machine import choose_threads
from safelight.tasks.model import Model
from safelight.tasks.parts import Networks
from safelight.tasks.quantising import known_numbers
from safelight.tasks.sources import PLAIN, Reading
from safelight.uncollected import uncollected

LAID_OUT = {UNET: TILES, AUTOENCODER: FINE_TILES}
"""Parts that are asked often enough, or for long enough, to lay out their weights for the CPU, and for what tiles of
their convolutions."""
INT8 = "int8"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@uncollected()
def load(
    source: str | Path = "tiny",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    preset: str | None = None,
    ema: bool = False,
    tokenizer: Path | None = None,
    vae: str | Path | None = None,
    text_encoder: Sequence[str | Path] = (),
    normalizer: str | Path | None = None,
    revision: str = "main",
    refiner: str | Path | None = None,
    guide: str | Path | None = None,
    low_memory: bool = False,
    compile: bool = False,
    preview_decoder: str | Path | None = None,
) -> Model:
    """Load a model.

    Args:
        source: the name of a shipped model ("tiny"; write "./tiny" for a folder of that name), a folder in
            the diffusers layout, a single .safetensors or .ckpt file, or a hub id ("owner/name").
        device: where to compute; None: CUDA if there is one, else the CPU.
        dtype: in which the networks run; None: float32 on the CPU, elsewhere that of the weights. "int8", on the CPU:
            most products of the UNet in whole numbers (`safelight.models.int8`), all else in float32.
        preset, ema, tokenizer, vae, text_encoder, normalizer, revision: the fields of `Reading`.
        refiner: a second model, named like `source`, that takes over at a request's `switch`.
        guide: a weaker one, that a request's `autoguidance` leads away from.
        low_memory: bring each network when it is needed, and let go of it after its work: slower, for the memory
            of the largest one; on CUDA, where they come from pinned memory of the host, of the largest two.
        compile: have the UNet's blocks compiled when they are first asked (`compiling`); for GPUs.
        preview_decoder: a file or folder of a small decoder of the model's latents (TAESD's, or one of our own); None:
            the shipped one, if there is one for these latents.

    Raises:
        ModelFileError: no such model, or its weights are damaged, incomplete or of no known family.
        RequestError: no such device or dtype, or there is no compiler.
    """
    target = choose_device(device)
    if compile:
        keep_compiled()
        require_compiler(target)
    reading = Reading(
        preset,
        ema,
        tokenizer,
        vae=None if vae is None else str(vae),
        text_encoder=tuple(str(encoder) for encoder in text_encoder),
        normalizer=None if normalizer is None else str(normalizer),
        revision=revision,
    )
    checkpoint = open_checkpoint(source, reading)
    checkpoint.require_whole()  # what is missing is said before the weights are read
    checkpoint.vocabularies()
    if int8 := dtype == INT8:
        if target.type != "cpu":
            raise RequestError(f"int8 is for the CPU, and this is for {target.type}: leave out the one or the other")
        if not supported():
            raise RequestError("this processor or PyTorch cannot multiply in int8: leave out --precision int8")
        if compile:
            raise RequestError("int8 has layers of its own, which cannot be compiled: leave out --compile or int8")
        dtype = torch.float32
    if dtype is None:
        stored = next(iter(checkpoint.parts[UNET].values())).dtype
        dtype = torch.float32 if target.type == "cpu" else stored
    chosen = choose_dtype(dtype)
    previews = preview_decoder_of(checkpoint, preview_decoder)
    if target.type == "cpu":
        choose_threads()
    networks = _networks(checkpoint, target, chosen, frees=low_memory, int8=int8, compiled=compile)
    if not low_memory:
        for words in checkpoint.preset.words:  # what is cast is read once, and let go of
            read_ahead(x for x in checkpoint.parts[words.part].values() if x.dtype == chosen)
        networks.bring()
        if target.type == "cpu":
            keep_memory()

    def other(named: str | Path | None) -> Model | None:
        """A model of which only what goes on with a picture is ever brought: not its autoencoder."""
        if named is None:
            return None
        found = open_checkpoint(named, Reading(tokenizer=tokenizer))
        return _model(named, found, _networks(found, target, chosen, frees=low_memory, int8=int8, compiled=compile))

    return _model(
        source, checkpoint, networks, ema=ema, refiner=other(refiner), guide=other(guide), preview_decoder=previews
    )


def _model(
    source: str | Path,
    checkpoint: Checkpoint,
    networks: Networks,
    *,
    ema: bool = False,
    refiner: Model | None = None,
    guide: Model | None = None,
    preview_decoder: PreviewDecoder | None = None,
) -> Model:
    local = Path(source).exists() and str(source) not in shipped()
    return Model(
        checkpoint.preset,
        networks,
        checkpoint.vocabularies(),
        name=Path(source).absolute().name if local else str(source),
        local=local,
        weights=None if ema else checkpoint.source,  # the file has two sets of weights: its hash says not which
        refiner=refiner,
        guide=guide,
        preview_decoder=preview_decoder,
    )


def _networks(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    frees: bool,
    int8: bool = False,
    compiled: bool = False,
) -> Networks:
    """The networks of a checkpoint, none of them made yet."""
    carried = frees and device.type == "cuda"
    place = torch.device("cpu") if carried else device

    def make(part: str, config: Config) -> nn.Module:
        tensors = checkpoint.parts[part]
        rounded = int8 and isinstance(config, UNetConfig)
        network = fill(config, dict(tensors) if frees else tensors, place, dtype, as_stored=rounded)
        if rounded:
            assert isinstance(network, UNet)
            read = known_numbers(network.requires_grad_(False), checkpoint.source)
            quantise(network, read, MappedPages())
        if compiled and part == UNET:  # others, which are asked once for a picture, would never earn it back
            compile_blocks(network)
        elif part in LAID_OUT and (device.type, dtype) == ("cpu", torch.float32) and not frees:
            pack(network.requires_grad_(False), MappedPages(), LAID_OUT[part])
        return network

    makers = {part: partial(make, part, config) for part, config in checkpoint.preset.networks.items()}
    return Networks(
        makers,
        device,
        dtype,
        frees=frees,
        precision=INT8 if int8 else None,
        carrier=Carrier(device) if carried else None,
    )


def open_checkpoint(source: str | Path, reading: Reading = PLAIN) -> Checkpoint:
    """Read what `load` would load; tensors of safetensors stay in their file until they are used.

    Raises:
        ModelFileError: as `load`.
    """
    name = str(source)
    if reading.preset is not None and reading.preset not in PRESETS:
        raise RequestError(f"there is no preset {reading.preset!r}: the presets are {', '.join(PRESETS)}")
    if name in PRESETS and name not in shipped() and not Path(source).exists():
        raise ModelFileError(
            f"the weights of {name!r} are not shipped: give the path of a {PRESETS[name].title} file or "
            f"folder, or a hub id; shipped: {', '.join(shipped()) if shipped() else 'none'}"
        )
    checkpoint = read(
        shipped().get(name, source),
        preset=None if reading.preset is None else PRESETS[reading.preset],
        ema=reading.ema,
        revision=reading.revision,
        tokenizer=reading.tokenizer,
    )
    return _with_parts(checkpoint, reading)


def _with_parts(checkpoint: Checkpoint, reading: Reading) -> Checkpoint:
    """The checkpoint with the parts that were given beside it."""
    preset = checkpoint.preset
    brought: dict[str, dict[str, Tensor]] = {}
    if reading.vae is not None:
        if preset.autoencoder is None:
            raise RequestError(f"{preset.name} works on the pixels themselves: leave out --vae")
        brought[AUTOENCODER] = read_vae(reading.vae, preset.autoencoder, preset.latent_scale)
    if reading.text_encoder:
        if not preset.words:
            raise RequestError(f"{preset.name} reads no words: leave out --text-encoder")
        brought |= read_texts(reading.text_encoder, {words.part: words.tower for words in preset.words})
    if reading.normalizer is not None:
        config = preset.networks.get(NORMALIZER)
        if not isinstance(config, NormalizerConfig):
            raise RequestError(f"{preset.name} is told no picture embeddings: leave out --normalizer")
        brought[NORMALIZER] = read_normalizer(reading.normalizer, config)
    if not brought:
        return checkpoint
    # From several files it has the hash of its numbers, not of one of the files.
    return replace(checkpoint, parts={**checkpoint.parts, **brought}, source=None)


def shipped() -> dict[str, Path]:
    """The models in this package, by name."""
    assets = Path(str(files("safelight"))) / "assets"
    found = sorted(assets.glob("*/model_index.json"))
    return {index.parent.name: index.parent for index in found}


def preview_decoder_of(checkpoint: Checkpoint, given: str | Path | None) -> PreviewDecoder | None:
    """The small decoder given, or the shipped one that was trained for the latents of this checkpoint's autoencoder.

    Raises:
        ModelFileError: the one given is none, or does not fit.
        RequestError: one is given, and there are no latents.
    """
    preset = checkpoint.preset
    if preset.autoencoder is None:
        if given is not None:
            raise RequestError(f"{preset.name} works on the pixels themselves: leave out --preview-decoder")
        return None
    channels = preset.autoencoder.latent_channels
    if given is not None:
        return read_preview_decoder(given, channels, preset.factor)
    found = sorted((Path(str(files("safelight"))) / "assets" / "previews").glob("*/config.json"))
    names = {fingerprint(checkpoint.parts[AUTOENCODER])} if found else set()
    folder = next((path.parent for path in found if decodes(path.parent) in names), None)
    return None if folder is None else read_preview_decoder(folder, channels, preset.factor)


def fill(
    config: Config, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype, *, as_stored: bool = False
) -> nn.Module:
    """Build the network of a config around tensors, one by one: what is cast or moved is let go at once.

    Args:
        tensors: all of its parameters, under our names. It is empty afterwards.
        as_stored: leave the dtype of a UNet's weights that are going to be in whole numbers.
    """
    module = unfilled(config)  # no memory is taken for numbers that are about to be replaced
    left = rounded_weights(module) if as_stored and isinstance(module, UNet) else {}
    moved, pages = {}, MappedPages()
    for key in list(tensors):
        read = tensors.pop(key)
        moved[key] = read.to(device, None if key in left else dtype, memory_format=layout(read, device))
        if moved[key] is not read:
            pages.release(read)
    module.load_state_dict(moved, strict=True, assign=True)
    return module


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        RequestError: there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch's own words for "unknown" and "not built in"
        raise RequestError(f"there is no device {str(device)!r} here: leave it out, or use cpu") from error
    return chosen


def choose_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype of that name.

    Raises:
        RequestError: it is none that networks run in.
    """
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise RequestError(f"networks cannot run in {dtype!r}: use {', '.join(DTYPES)} (or int8, to draw on the CPU)")
    return DTYPES[dtype]
