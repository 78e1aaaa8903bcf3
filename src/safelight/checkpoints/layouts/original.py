"""The original single file of any member: all parts in one state dict (latent-diffusion, Stable Diffusion, sgm).

Two programs wrote such files. They name UNet and autoencoder alike; what is told to the UNet stands behind
`cond_stage_model.` in files of the older, and behind `conditioner.embedders.0.`, `.1.` ... in files of the newer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from safelight.checkpoints.keys import Drop, Layout, Pair
from safelight.checkpoints.layouts import bert, ldm, midas, openclip, transformers
from safelight.models.bert import BertConfig
from safelight.models.networks import shapes_of
from safelight.presets import Preset
from safelight.presets.conditions import (
    BOXES,
    DEPTH,
    LABELS,
    NORMALIZER,
    RESCALER,
    VISION,
    Boxes,
    DepthMap,
    HiddenPicture,
    Label,
    LabelMap,
    Numbers,
    SeenPicture,
    SmallPicture,
    Words,
)
from safelight.presets.preset import AUTOENCODER, UNET

OLD_STAGE, NEW_STAGE = "cond_stage_model.", "conditioner.embedders."
IMAGE_TOWER = "embedder.model."
SCALE = "scale_factor"
"""The latent scale, where training measured it."""

ABSENT = {NORMALIZER: "the statistics of CLIP's embeddings, which the original code keeps in a file of their own"}
"""Parts that no original file holds, and why."""

_TABLE = "a table computed from a noise schedule"

Part = tuple[str, tuple[Pair, ...], tuple[Drop, ...]]


def layout(preset: Preset, keys: Collection[str] = (), *, ema: bool = False) -> Layout:
    """The layout of a whole file.

    Args:
        keys: those of the file to be read, for the writings that differ from file to file; none: as a file is written.
        ema: take the UNet's running average (`model_ema.*`) instead of its last weights.
    """
    pairs = {UNET: ldm.unet(preset.unet, ema=ema)}
    drops = [*ldm.DROPS, *((*ldm.DROP_COUNTERS, ldm.DROP_TWIN) if ema else (ldm.DROP_EMA,))]
    if preset.autoencoder is not None:
        pairs[AUTOENCODER] = ldm.autoencoder(preset.autoencoder, ldm.AUTOENCODER)
    for part, found, unused in _told(preset, keys):
        pairs[part] = found
        drops += unused
    drops += [*_tables(preset), Drop(SCALE, "read as the latent scale")]
    shapes = {part: shapes_of(config) for part, config in preset.networks.items() if part in pairs}
    return Layout(pairs, shapes, tuple(drops))


def is_new(preset: Preset, keys: Collection[str] = ()) -> bool:
    """Whether the file is of the newer kind; without keys, whether it is to be."""
    if keys:
        return any(key.startswith(NEW_STAGE) for key in keys)
    return any(isinstance(condition, Numbers) for condition in preset.conditions)


def _told(preset: Preset, keys: Collection[str]) -> Iterator[Part]:
    """What the UNet is told by: part, pairs, and what a file may have beyond them."""
    number, new = 0, is_new(preset, keys)
    for condition in preset.conditions:
        match condition:
            case Words():
                yield _words(condition, f"{NEW_STAGE}{number}." if new else OLD_STAGE, keys)
                number += 1
            case Label():
                yield LABELS, bert.labels(condition.labels), ()
            case Boxes():
                yield BOXES, bert.transformer(condition.tower), bert.DROPS
            case LabelMap():
                yield RESCALER, bert.rescaler(condition.rescaler), ()
            case DepthMap():
                yield DEPTH, midas.pairs(condition.network), midas.drops()
            case SeenPicture():
                tables = (Drop("noise_augmentor.*", _TABLE),)
                yield (
                    VISION,
                    openclip.vision(condition.tower, IMAGE_TOWER),
                    (*openclip.vision_drops(IMAGE_TOWER), *tables),
                )
            case SmallPicture() | HiddenPicture() | Numbers():
                pass


def _tables(preset: Preset) -> Iterator[Drop]:
    """What conditions leave in a file that no network of theirs needs."""
    for condition in preset.conditions:
        if isinstance(condition, SmallPicture) and condition.schedule is not None:
            yield Drop("low_scale_model.*", _TABLE)
        if isinstance(condition, HiddenPicture) and condition.style == "latent":
            yield Drop(OLD_STAGE + "*", "the autoencoder once more: it reads the picture with the hole, too")


def _words(words: Words, stage: str, keys: Collection[str]) -> Part:
    if isinstance(words.tower, BertConfig):
        return words.part, bert.transformer(words.tower, stage + "transformer."), bert.DROPS
    if words.tower.activation == "gelu":  # all such towers are OpenCLIP's
        prefix = stage + "model."
        return words.part, openclip.text(words.tower, prefix), openclip.text_drops(words.tower, prefix)
    prefix = stage + "transformer."
    writing = transformers.prefix_of(keys, prefix) if keys else transformers.PREFIX
    places = (prefix, prefix + writing)
    drops = (
        *(Drop(place + drop.pattern.lstrip("*"), drop.why) for drop in transformers.DROPS for place in places),
        Drop(stage + "logit_scale", "CLIP's training temperature"),
    )
    return words.part, transformers.text(words.tower, prefix + writing), drops
