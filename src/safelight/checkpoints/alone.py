"""Parts that come in files of their own: an autoencoder to be used in place of a model's."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from safelight.checkpoints.files import read_tensors
from safelight.checkpoints.keys import Drop, Layout
from safelight.checkpoints.layouts import diffusers, ldm
from safelight.errors import ModelFileError
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.networks import shapes_of
from safelight.presets.preset import AUTOENCODER

FOLDER_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def read_vae(source: Path, config: AutoencoderConfig) -> dict[str, Tensor]:
    """The weights of an autoencoder by our names, mapped where the file allows it.

    Args:
        source: a file of an autoencoder alone, in the original layout (`encoder.down.0...`) or in diffusers', a folder
            in diffusers' layout with such a file in it, or a whole original file, of which the autoencoder is taken.
        config: the shape that it must have, that of the model's own.

    Raises:
        ModelFileError: there is no such file, or it holds no autoencoder of this shape.
    """
    path = source
    if source.is_dir():
        path = next((source / name for name in FOLDER_FILES if (source / name).is_file()), source / FOLDER_FILES[0])
    tensors = read_tensors(path)
    prefix = ldm.AUTOENCODER if any(key.startswith(ldm.AUTOENCODER) for key in tensors) else ""
    if any(key.startswith("encoder.down_blocks.") for key in tensors):
        layout = diffusers.autoencoder_layout(config, old_names=diffusers.has_old_names(tensors))
    else:
        tensors = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if not any(key.startswith(prefix + "encoder.") for key in tensors):
            raise ModelFileError(
                f"{path} holds no autoencoder: give a file of one alone, or of a whole model, by --vae"
            )
        pairs = {AUTOENCODER: ldm.autoencoder(config, prefix)}
        extra = (
            Drop(prefix + "loss.*", "the autoencoder's training loss"),
            Drop(prefix + "model_ema.*", "its running average"),
        )
        layout = Layout(pairs, {AUTOENCODER: shapes_of(config)}, extra)
    parts, _ = layout.load(tensors, str(path))
    return parts[AUTOENCODER]
