"""Which member a single file holds, by exact keys and shapes. Where that does not decide, it asks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from safelight.checkpoints.files import printable
from safelight.checkpoints.keys import Misfit
from safelight.checkpoints.layouts import ldm, midas, original
from safelight.checkpoints.sorts import MODEL, sort_of
from safelight.errors import ModelFileError
from safelight.presets import PRESETS, Preset
from safelight.presets.conditions import Boxes, DepthMap, HiddenPicture, Label, LabelMap, SeenPicture, Words


def detect(tensors: Mapping[str, Tensor], file: str, *, ema: bool = False) -> Preset:
    """The one preset whose original layout has exactly these keys and shapes.

    Of presets that differ in habits alone (a default size, a default number of steps) it is the first: they compute
    the same. Others that fit alike are not chosen among.

    Raises:
        ModelFileError: none or several fit. The line names what differs from the nearest, or the candidates.
    """
    fitting, nearest = candidates(tensors, file, ema=ema)
    if not fitting:
        name, misfit = nearest
        raise ModelFileError(
            f"{file} fits no known preset; compared with {name}, the nearest: {misfit}; check that it is complete and "
            "not changed, or download it again"
        )
    if all(same(preset, fitting[0]) for preset in fitting):
        return fitting[0]
    names = ", ".join(preset.name for preset in fitting)
    raise ModelFileError(f"{file} may be any of {names}: their keys and shapes are the same; say which by --preset")


def candidates(
    tensors: Mapping[str, Tensor], file: str, *, ema: bool = False
) -> tuple[list[Preset], tuple[str, Misfit]]:
    """All presets that fit, in the registry's order; and the nearest that was compared, with what differs.

    Raises:
        ModelFileError: the file holds something else than a model.
    """
    refuse_other_sorts(tensors, file)
    # A few shapes tell nearly all presets apart at no cost; only what they leave is compared in full.
    found = _file_marks(tensors)
    likeness = {name: _likeness(_marks(preset, tensors), found) for name, preset in PRESETS.items()}
    best = max(likeness.values())
    nearest = [PRESETS[name] for name, score in likeness.items() if score == best]
    misfits = {preset.name: original.layout(preset, tensors, ema=ema).misfit(tensors) for preset in nearest}
    closest = min(misfits.items(), key=lambda item: len(item[1]))
    return [preset for preset in nearest if not misfits[preset.name]], closest


def same(one: Preset, other: Preset) -> bool:
    """Whether two presets differ in habits alone: a default size, a default number of steps."""
    return _computes(one) == _computes(other)


def _computes(preset: Preset) -> tuple[object, ...]:
    """All of a preset but its habits."""
    return preset.networks, preset.conditions, preset.schedule, preset.prediction, preset.latent_scale


def refuse_other_sorts(tensors: Mapping[str, Tensor], file: str) -> None:
    """Say what a file is that is no model.

    Raises:
        ModelFileError: it is none.
    """
    sort = sort_of(tensors)
    if sort is None:
        raise ModelFileError(
            f"{file} holds no model that Safelight knows: none of its {len(tensors)} keys, like "
            f"{printable(next(iter(tensors), 'none'))}, begins with {ldm.UNET}; give an original Stable Diffusion "
            "checkpoint or a folder in diffusers' layout"
        )
    if sort != MODEL:
        raise ModelFileError(f"{file} is {sort.what}; {sort.use}")


_CONV_IN = ldm.UNET + "input_blocks.0.0.weight"
_MIDDLE = ldm.UNET + "middle_block.0.in_layers.0.weight"
_CONTEXT = "attn2.to_k.weight"
_LABEL, _VECTOR = ldm.UNET + "label_emb.weight", ldm.UNET + "label_emb.0.0.weight"
_LATENT, _CODEBOOK = ldm.AUTOENCODER + "decoder.conv_in.weight", ldm.AUTOENCODER + "quantize.embedding.weight"
_MIDDLE_ATTENTION = ldm.AUTOENCODER + "decoder.mid.attn_1.q.weight"

Marks = tuple[object, ...]


def _file_marks(tensors: Mapping[str, Tensor]) -> Marks:
    """A few numbers that tell members apart, as a file has them; None for what is not there."""

    def size(key: str, axis: int) -> int | None:
        tensor = tensors.get(key)
        return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else None

    context = next((key for key in tensors if key.startswith(ldm.UNET) and key.endswith(_CONTEXT)), "")
    return (
        size(_CONV_IN, 0),
        size(_CONV_IN, 1),
        size(_MIDDLE, 0),
        size(context, 1),
        size(_LABEL, 0),
        size(_VECTOR, 1),
        size(_LATENT, 1),
        size(_LATENT, 0),
        size(_CODEBOOK, 0),
        _MIDDLE_ATTENTION in tensors,
        size("cond_stage_model.embedding.weight", 0),
        any(key.startswith((original.OLD_STAGE, original.NEW_STAGE)) and "token_emb" in key for key in tensors),
        any(key.startswith(midas.PREFIX) for key in tensors),
        any(key.startswith(original.IMAGE_TOWER) for key in tensors),
        "cond_stage_model.channel_mapper.weight" in tensors,
        "cond_stage_model.encoder.conv_in.weight" in tensors,
    )


def _marks(preset: Preset, tensors: Mapping[str, Tensor]) -> Marks:
    """The same numbers, as the preset says that its files have them.

    Some files lack the autoencoder, which is no mark of them then.
    """
    unet, conditions = preset.unet, preset.conditions
    autoencoder = preset.autoencoder if any(key.startswith(ldm.AUTOENCODER) for key in tensors) else None
    labels = next((c.labels.classes for c in conditions if isinstance(c, Label)), None)
    return (
        unet.channels[0],
        unet.in_channels,
        unet.channels[-1],
        unet.context_width,
        unet.classes,
        unet.vector_width,
        None if autoencoder is None else autoencoder.z_channels,
        None if autoencoder is None else autoencoder.channels[-1],
        None if autoencoder is None else autoencoder.codebook_size,
        autoencoder is not None and autoencoder.middle_attention,
        labels,
        any(isinstance(c, Words | Boxes) for c in conditions),
        any(isinstance(c, DepthMap) for c in conditions),
        any(isinstance(c, SeenPicture) for c in conditions),
        any(isinstance(c, LabelMap) for c in conditions),
        any(isinstance(c, HiddenPicture) and c.style == "latent" for c in conditions),
    )


def _likeness(wanted: Marks, found: Marks) -> int:
    return sum(a == b for a, b in zip(wanted, found, strict=True))
