"""The original single file of any member: all parts in one state dict (latent-diffusion, Stable Diffusion, sgm).

Two programs wrote such files. They name UNet and autoencoder alike; what is told to the UNet stands behind
`cond_stage_model.` in files of the older, and behind `conditioner.embedders.0.`, `.1.` ... in files of the newer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from safelight.checkpoints.keys import Drop, Layout, Pair
from safelight.checkpoints.layouts import bert, ldm, midas, openclip, transformers
from safelight.models.bert import BertConfig
from safelight.models.networks import shapes_of
from safelight.presets import PRESETS, Preset
from safelight.presets.conditions import (
    BOXES,
    DEPTH,
    LABELS,
    NORMALIZER,
    RESCALER,
    TEXT,
    TEXT_2,
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

STATISTICS = {"mean": "noise_augmentor.data_mean", "std": "noise_augmentor.data_std"}
"""The statistics of CLIP's embeddings, as the original code calls them. Its own files lack them: it keeps them in a
file beside. Ours have them, which it does not mind."""

BROUGHT = {AUTOENCODER: "--vae", **dict.fromkeys((TEXT, TEXT_2), "--text-encoder"), NORMALIZER: "--normalizer"}
"""Parts that a file may lack altogether, and by which option one is given."""

_TABLE = "a table computed from a noise schedule"

Part = tuple[str, tuple[Pair, ...], tuple[Drop, ...]]


def layout(preset: Preset, keys: Collection[str] = (), *, ema: bool = False) -> Layout:
    """The layout of a whole file.

    Args:
        keys: those of the file to be read, for what differs from file to file: writings, and parts that it lacks
            (`BROUGHT`); none: as a file is written.
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
    if keys:
        lacking = [part for part in BROUGHT if part in pairs and not any(pair.theirs in keys for pair in pairs[part])]
        pairs = {part: found for part, found in pairs.items() if part not in lacking}
    shapes = {part: shapes_of(config) for part, config in preset.networks.items() if part in pairs}
    return Layout(pairs, shapes, tuple(drops))


def save(preset: Preset, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A whole file of a member's parts, as far as they are there, with the latent scale if it is not the preset's."""
    whole = layout(preset)
    tensors = Layout({part: pairs for part, pairs in whole.pairs.items() if part in parts}, whole.shapes).save(parts)
    if preset.name not in PRESETS or preset.latent_scale != PRESETS[preset.name].latent_scale:
        tensors[SCALE] = torch.tensor(preset.latent_scale)
    return tensors


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
                yield NORMALIZER, tuple(Pair(theirs, ours) for ours, theirs in STATISTICS.items()), ()
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
