"""Weights become a `Model`, and are never held twice on the way."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from safelight.checkpoints import Checkpoint, read
from safelight.checkpoints.alone import read_vae
from safelight.errors import ModelFileError, RequestError
from safelight.models.networks import NETWORKS, Config
from safelight.presets import PRESETS
from safelight.presets.preset import AUTOENCODER, UNET
from safelight.tasks.model import Model
from safelight.tasks.parts import Networks
from safelight.tasks.sources import PLAIN, Reading

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    source: str | Path = "tiny",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    preset: str | None = None,
    ema: bool = False,
    tokenizer: Path | None = None,
    vae: str | Path | None = None,
    revision: str = "main",
    refiner: str | Path | None = None,
    low_memory: bool = False,
) -> Model:
    """Load a model.

    Args:
        source: the name of a shipped model ("tiny"; write "./tiny" for a folder of that name), a folder in
            the diffusers layout, a single .safetensors or .ckpt file, or a hub id ("owner/name").
        device: where to compute; None: CUDA if there is one, else the CPU.
        dtype: in which the networks run; None: float32 on the CPU, elsewhere that of the weights.
        preset, ema, tokenizer, vae, revision: the fields of `Reading`.
        refiner: a second model, named like `source`, that takes over at a request's `switch`.
        low_memory: bring each network when it is needed, and let go of it after its work: slower, for the memory
            of the largest one.

    Raises:
        ModelFileError: no such model, or its weights are damaged, incomplete or of no known family.
        RequestError: no such device or dtype.
    """
    target = choose_device(device)
    reading = Reading(preset, ema, tokenizer, None if vae is None else str(vae), revision)
    checkpoint = open_checkpoint(source, reading)
    checkpoint.vocabularies()  # what is missing is said before the weights are read
    if absent := checkpoint.absent():
        raise ModelFileError(
            f"{source} lacks {absent[0]}, without which it cannot draw: give a folder that has all parts"
        )
    if dtype is None:
        stored = next(iter(checkpoint.parts[UNET].values())).dtype
        dtype = torch.float32 if target.type == "cpu" else stored
    chosen = choose_dtype(dtype)
    networks = _networks(checkpoint, target, chosen, frees=low_memory)
    if not low_memory:
        networks.bring()
    return _model(
        source,
        checkpoint,
        networks,
        refiner=None if refiner is None else _load_refiner(refiner, target, chosen, tokenizer, low_memory),
    )


def _load_refiner(
    source: str | Path, device: torch.device, dtype: torch.dtype, tokenizer: Path | None, low_memory: bool
) -> Model:
    """A model of which only what goes on with a picture is ever brought: not its autoencoder."""
    checkpoint = open_checkpoint(source, Reading(tokenizer=tokenizer))
    return _model(source, checkpoint, _networks(checkpoint, device, dtype, frees=low_memory))


def _model(source: str | Path, checkpoint: Checkpoint, networks: Networks, refiner: Model | None = None) -> Model:
    local = Path(source).exists() and str(source) not in shipped()
    return Model(
        checkpoint.preset,
        networks,
        checkpoint.vocabularies(),
        name=Path(source).absolute().name if local else str(source),
        local=local,
        weights=checkpoint.source,
        refiner=refiner,
    )


def _networks(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, *, frees: bool) -> Networks:
    """The networks of a checkpoint, none of them made yet."""

    def make(part: str, config: Config) -> nn.Module:
        tensors = checkpoint.parts[part]
        return fill(config, dict(tensors) if frees else tensors, device, dtype)

    makers = {part: partial(make, part, config) for part, config in checkpoint.preset.networks.items()}
    return Networks(makers, device, dtype, frees=frees)


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
    if reading.vae is None:
        return checkpoint
    config = checkpoint.preset.autoencoder
    if config is None:
        raise RequestError(f"{checkpoint.preset.name} works on the pixels themselves: leave out --vae")
    # From two files it has the hash of its numbers, not of one of the files.
    parts = {**checkpoint.parts, AUTOENCODER: read_vae(Path(reading.vae), config)}
    return replace(checkpoint, parts=parts, source=None)


def shipped() -> dict[str, Path]:
    """The models in this package, by name."""
    assets = Path(str(files("safelight"))) / "assets"
    found = sorted(assets.glob("*/model_index.json"))
    return {index.parent.name: index.parent for index in found}


def fill(config: Config, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Build the network of a config around tensors, one by one: what is cast or moved is let go at once.

    Args:
        tensors: all of its parameters, under our names. It is empty afterwards.
    """
    with torch.device("meta"):  # no memory is taken for numbers that are about to be replaced
        module = NETWORKS[type(config)](config)
    moved = {}
    for key in list(tensors):
        moved[key] = tensors.pop(key).to(device, dtype)
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
        raise RequestError(f"networks cannot run in {dtype!r}: use {', '.join(DTYPES)}")
    return DTYPES[dtype]
