"""Every registered member at toy size: the same kinds of networks and conditions, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from safelight.checkpoints import Checkpoint
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.bert import BertConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.depth import DepthConfig
from safelight.models.networks import NETWORKS, Config
from safelight.models.tokenizer import (
    FIRST,
    MASK,
    PAD,
    SEPARATOR,
    UNKNOWN,
    BertTokenizer,
    ClipTokenizer,
    Tokenizing,
)
from safelight.presets import Preset
from safelight.presets.conditions import (
    TEXT,
    Boxes,
    Condition,
    DepthMap,
    Label,
    LabelMap,
    Numbers,
    SeenPicture,
    Words,
)
from safelight.tasks.model import Model

WIDTH, SECOND_WIDTH, PROJECTED, SEEN = 24, 32, 20, 12
"""Of text towers, the second one of a member, their summary, and what CLIP says of a picture."""
SIZE_WIDTH = 8
CLASSES = 10
CLIP_WORDS = ClipTokenizer.train([], vocab_size=514)  # no merges, so no ties between them
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
PIECES = [PAD, UNKNOWN, FIRST, SEPARATOR, MASK, *LETTERS, *(f"##{letter}" for letter in LETTERS), ",", "."]
BERT_WORDS = BertTokenizer({piece: i for i, piece in enumerate(PIECES)})
TOY_DEPTH = DepthConfig(
    stem_width=16,
    stage_widths=(32, 64, 96),
    stage_blocks=(2, 1, 2),
    norm_groups=4,
    width=48,
    layers=4,
    heads=3,
    mlp_width=96,
    taps=(1, 3),
    neck_widths=(40, 56),
    fusion_width=32,
    image_size=64,
)


def _attended(condition: Words | Boxes) -> int:
    """How wide what the network attends to is."""
    tower = condition.tower
    if isinstance(condition, Words) and condition.states == "embedding" and isinstance(tower, ClipTextConfig):
        return tower.projection_width
    return tower.width


def toy_preset(preset: Preset) -> Preset:
    """The same member, small: as many levels, towers, heads and doors, of an eighth of the width and less."""
    conditions = tuple(_condition(condition) for condition in preset.conditions)
    unet = preset.unet
    contexts = [_attended(c) for c in conditions if isinstance(c, Words | Boxes)]
    contexts += [c.labels.width for c in conditions if isinstance(c, Label)]
    small = replace(
        unet,
        channels=tuple(width // 8 for width in unet.channels),
        blocks_per_level=1,
        transformer_depth=tuple(min(depth, 3) for depth in unet.transformer_depth),
        middle_depth=min(unet.middle_depth, 3),
        context_width=None if unet.context_width is None else sum(contexts),
        vector_width=None if unet.vector_width is None else _vector_width(conditions),
        size_width=None if unet.size_width is None else SIZE_WIDTH,
        norm_groups=4,
    )
    side = preset.factor * max(8, 2 ** (len(unet.channels) - 1))
    return replace(
        preset,
        unet=small,
        autoencoder=None if preset.autoencoder is None else _autoencoder(preset.autoencoder),
        conditions=conditions,
        width=side,
        height=side,
        steps=2,
    )


def toy_model(preset: Preset, seed: int = 0) -> Model:
    """A member at toy size, with random weights of about the size that training leaves."""
    small = toy_preset(preset)
    return Model(small, _networks(small, seed), toy_tokenizers(small))


def filled(small: Preset, seed: int = 0) -> Checkpoint:
    """Random weights for a preset that is small already."""
    parts = {part: dict(network.state_dict()) for part, network in _networks(small, seed).items()}
    return Checkpoint(small, parts, toy_tokenizers(small))


def _networks(small: Preset, seed: int) -> dict[str, torch.nn.Module]:
    generator = torch.Generator().manual_seed(seed)
    return {part: _network(config, generator) for part, config in small.networks.items()}


def toy_tokenizers(preset: Preset) -> Mapping[str, Tokenizing]:
    """One for every text tower."""
    return {
        words.part: CLIP_WORDS.padded_with(words.tower.pad_token)
        if isinstance(words.tower, ClipTextConfig)
        else BERT_WORDS
        for words in preset.words
    }


def _network(config: Config, generator: torch.Generator) -> torch.nn.Module:
    network = NETWORKS[type(config)](config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 1
            gain = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(gain + (0.1 * values if parameter.ndim < 2 else values * fan_in**-0.5))
            if name == "std":
                parameter.copy_(values.abs() + 0.5)
    return network


def _condition(condition: Condition) -> Condition:
    small: Condition = condition
    match condition:
        case Words(tower=BertConfig() as tower):
            small = replace(condition, tower=_bert(tower, len(PIECES)))
        case Words(tower=ClipTextConfig() as tower):
            small = replace(condition, tower=_clip(tower, WIDTH if condition.part == TEXT else SECOND_WIDTH))
        case Boxes():
            small = replace(condition, tower=_bert(condition.tower, condition.tower.vocab_size))
        case Label():
            empty = None if condition.empty is None else CLASSES
            labels = replace(condition.labels, classes=CLASSES + (empty is not None), width=WIDTH)
            small = replace(condition, labels=labels, empty=empty)
        case LabelMap():
            small = replace(condition, rescaler=replace(condition.rescaler, in_channels=CLASSES))
        case DepthMap():
            small = replace(condition, network=TOY_DEPTH)
        case SeenPicture():
            tower = replace(
                condition.tower,
                width=32,
                layers=2,
                heads=2,
                mlp_width=40,
                image_size=28,
                projection_width=SEEN,
            )
            small = replace(condition, tower=tower, normalizer=replace(condition.normalizer, width=SEEN))
    return small


def _clip(tower: ClipTextConfig, width: int) -> ClipTextConfig:
    last = len(CLIP_WORDS.vocab) - 1
    return replace(
        tower,
        vocab_size=last + 1,
        width=width,
        layers=3,
        heads=2,
        mlp_width=48,
        projection_width=PROJECTED,
        start_token=last - 1,
        end_token=last,
        pad_token=0 if tower.pad_token == 0 else last,
    )


def _bert(tower: BertConfig, words: int) -> BertConfig:
    return replace(tower, vocab_size=words, width=WIDTH, layers=2, heads=2, head_width=12, mlp_width=48)


def _vector_width(conditions: tuple[Condition, ...]) -> int:
    width = 0
    for condition in conditions:
        if isinstance(condition, Words) and condition.pooled:
            width += PROJECTED
        elif isinstance(condition, Numbers):
            width += SIZE_WIDTH * (5 if condition.aesthetic else 6)
        elif isinstance(condition, SeenPicture):
            width += 2 * SEEN
    return width


def _autoencoder(config: AutoencoderConfig) -> AutoencoderConfig:
    return replace(
        config,
        channels=tuple(max(width // 16, 8) for width in config.channels),
        blocks_per_level=1,
        codebook_size=None if config.codebook_size is None else 50,
        norm_groups=4,
    )
