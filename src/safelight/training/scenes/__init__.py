"""A training world that needs no download: real artwork on coloured grounds, with captions that are true.

    scenes = Scenes(count=100_000, size=64, seed=0)
    pixels, words = scenes[7]

Scenes come from a seed, endlessly. Some combinations of object and ground, and some pairs of objects, are
never in the split "train": on these a trained model is measured (`is_held_out`).
"""

from __future__ import annotations

from safelight.training.scenes.captions import caption
from safelight.training.scenes.facts import (
    GROUNDS,
    LAYOUTS,
    PLACES,
    TEXTURES,
    Facts,
    Labels,
    draw_facts,
    held_out_grounds,
    is_held_out,
    is_held_out_pair,
    labels,
    layout,
    seen_order,
)
from safelight.training.scenes.glyphs import NAMES, SHORT
from safelight.training.scenes.painting import Placement
from safelight.training.scenes.world import Scene, Scenes, make_scene, render

__all__ = [
    "GROUNDS",
    "LAYOUTS",
    "NAMES",
    "PLACES",
    "SHORT",
    "TEXTURES",
    "Facts",
    "Labels",
    "Placement",
    "Scene",
    "Scenes",
    "caption",
    "draw_facts",
    "held_out_grounds",
    "is_held_out",
    "is_held_out_pair",
    "labels",
    "layout",
    "make_scene",
    "render",
    "seen_order",
]
