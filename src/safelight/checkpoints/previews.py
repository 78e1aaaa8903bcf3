"""Preview decoders as files: TAESD's in its own naming and in diffusers', and ours, which is the former."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from safelight.checkpoints.fields import MOST, Fields
from safelight.checkpoints.files import read_tensors
from safelight.checkpoints.writing import staged_folder, write_json, write_tensors
from safelight.errors import ModelFileError
from safelight.models.preview_decoder import PreviewDecoder, PreviewDecoderConfig

CONFIG = "config.json"
WEIGHTS = "preview_decoder.safetensors"
_FOUND_AS = (WEIGHTS, "taesd_decoder.safetensors", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_OURS, _THEIRS = "layers.", "decoder.layers."
_OWN = re.compile(r"(\d+)\.(.+)")
"""TAESD's own file is one sequence, whose first layer has no weights: it squashes the latent."""
_MEND = "give a TAESD decoder for this model's latents, or a folder from `safelight train preview-decoder`"


def read_preview_decoder(source: str | Path, latent_channels: int, factor: int) -> PreviewDecoder:
    """A decoder of a model's latents, in float32.

    Args:
        source: a file (taesd_decoder.safetensors or .pth, or of diffusers' AutoencoderTiny), or the folder of one.
        latent_channels, factor: what it must fit: the channels of the latents, and pixels per position on a side.

    Raises:
        ModelFileError: there is no such file, it holds something else, or it is for other latents.
    """
    path = _file(Path(source))
    tensors = _by_our_names(read_tensors(path))
    config = _config(path, tensors)
    if (config.latent_channels, config.factor) != (latent_channels, factor):
        raise ModelFileError(
            f"{path} decodes latents of {config.latent_channels} channels to {config.factor} times their size, and "
            f"the model's have {latent_channels} and want {factor} times: {_MEND}"
        )
    with torch.device("meta"):
        decoder = PreviewDecoder(config)
    wanted: dict[str, Tensor] = decoder.state_dict()
    for key in sorted(wanted.keys() | tensors.keys()):
        if key not in tensors or key not in wanted or wanted[key].shape != tensors[key].shape:
            raise ModelFileError(f"{path} holds no preview decoder ({key} does not fit): {_MEND}")
    decoder.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, strict=True, assign=True)
    return decoder.eval().requires_grad_(False)


def write_preview_decoder(folder: Path, decoder: PreviewDecoder, of: str) -> None:
    """A folder of the weights in half precision, in TAESD's own naming.

    Args:
        of: whose latents it decodes: `fingerprint` of the autoencoder's weights.

    Raises:
        OutputError: it cannot be written; nothing is left then.
    """
    named = {_own_name(key): tensor.half() for key, tensor in decoder.state_dict().items()}
    with staged_folder(folder, CONFIG) as staging:
        write_tensors(staging / WEIGHTS, named)
        write_json(staging / CONFIG, {"_class_name": "PreviewDecoder", **asdict(decoder.config), "autoencoder": of})


def decodes(folder: Path) -> str | None:
    """Whose latents a written decoder is for; None: it does not say."""
    found = Fields(folder / CONFIG).get("autoencoder", None)
    return found if isinstance(found, str) else None


def fingerprint(autoencoder: Mapping[str, Tensor]) -> str:
    """Tells trained autoencoders apart, of whatever precision: SHA-256 of the encoder's last layer in float16.

    Latents are what the encoder makes: a decoder that was trained further decodes the same ones.
    """
    weight = autoencoder["encoder.conv_out.weight"].detach().to("cpu", torch.float16).contiguous()
    return hashlib.sha256(weight.view(torch.uint8).numpy().tobytes()).hexdigest()


def _file(path: Path) -> Path:
    if path.is_dir():
        found = next((path / name for name in _FOUND_AS if (path / name).is_file()), None)
        if found is None:
            raise ModelFileError(f"{path} has no preview decoder, like {WEIGHTS}: {_MEND}")
        if found.name.startswith("diffusion_pytorch_model") and (path / CONFIG).is_file():
            fields = Fields(path / CONFIG)
            fields.kind("AutoencoderTiny", ["AutoencoderTiny"])
            fields.must({"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2})
            fields.must({"scaling_factor": 1.0, "shift_factor": 0.0, "out_channels": 3})
        return found
    if not path.is_file():
        raise ModelFileError(f"there is no preview decoder {str(path)!r}: {_MEND}")
    return path


def _by_our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the decoder: an AutoencoderTiny's encoder is not needed."""
    if any(key.startswith(_THEIRS) for key in tensors):
        return {_OURS + key.removeprefix(_THEIRS): t for key, t in tensors.items() if key.startswith(_THEIRS)}
    named = {}
    for key, tensor in tensors.items():
        own = _OWN.fullmatch(key)
        named[key if own is None else f"{_OURS}{int(own[1]) - 1}.{own[2]}"] = tensor
    return named


def _own_name(key: str) -> str:
    place, _, rest = key.removeprefix(_OURS).partition(".")
    return f"{int(place) + 1}.{rest}"


def _config(path: Path, tensors: Mapping[str, Tensor]) -> PreviewDecoderConfig:
    """The shape, told by which layers have weights."""
    first = tensors.get(f"{_OURS}0.weight")
    if first is None or first.ndim != 4 or not 1 <= first.shape[1] <= first.shape[0] <= MOST:
        raise ModelFileError(f"{path} holds no preview decoder: {_MEND}")
    blocks, place = [0], 2
    while f"{_OURS}{place}.weight" not in tensors:
        if f"{_OURS}{place}.conv.0.weight" in tensors:
            blocks[-1] += 1
            place += 1
        elif f"{_OURS}{place + 1}.weight" in tensors:  # behind a layer without weights, which doubles the size
            blocks.append(0)
            place += 2
        else:
            raise ModelFileError(f"{path} holds no preview decoder: {_MEND}")
    pixels = math.isqrt(len(tensors[f"{_OURS}{place}.weight"]) // 3)
    return PreviewDecoderConfig(first.shape[1], first.shape[0], tuple(blocks), max(pixels, 1))
