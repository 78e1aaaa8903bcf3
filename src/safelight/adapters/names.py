"""A key of a file -> the layer of ours that it is about, and what it is of that layer's change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from safelight.adapters.kinds import Shape
from safelight.adapters.layouts import diffusers, kohya
from safelight.models.networks import Config, shapes_of

ENDINGS = tuple(sorted({**kohya.ENDINGS, **diffusers.ENDINGS}.items(), key=lambda item: -len(item[0])))
"""The longest first: `.weight` ends others."""


class Layer(NamedTuple):
    """A layer of one of a member's networks."""

    part: str
    name: str


class Place(NamedTuple):
    """Where a tensor of a file belongs."""

    layer: Layer
    ending: str


class Names:
    """Every name that files may have for the layers of some networks."""

    def __init__(self, parts: Mapping[str, Config]) -> None:
        """parts: the networks that adapters change (`adapted`), by part."""
        self.shapes: dict[Layer, Shape] = {}
        self._layers: dict[str, Layer] = {}
        for part, config in parts.items():
            for layer, shape in layers(config).items():
                place = Layer(part, layer)
                self.shapes[place] = shape
                for names in (kohya.names, diffusers.names):
                    for name in names(part, layer, parts):
                        known = self._layers.setdefault(name, place)
                        assert known == place, f"{name} is both {known} and {place}"
        self._above = tuple(_above(parts))

    def place(self, key: str) -> Place | None:
        """Where a key belongs; None: no layer is called so."""
        for end, ending in ENDINGS:
            if key.endswith(end) and (layer := self._layers.get(key.removesuffix(end))) is not None:
                return Place(layer, ending)
        return None

    def is_above(self, key: str) -> bool:
        """Whether a key is about the last layer of a whole text tower, which ours (of SD 2) lacks, being unused."""
        return any(key.startswith(start) for start in self._above)


def names_of(networks: Mapping[str, Config]) -> Names:
    """The names for a member, given all of its networks; made once."""
    return _names(tuple(adapted(networks).items()))


@lru_cache(maxsize=8)
def _names(parts: tuple[tuple[str, Config], ...]) -> Names:
    return Names(dict(parts))


def layers(config: Config) -> Mapping[str, Shape]:
    """Every layer of a network that has a weight, and the weight's shape."""
    return {
        name.removesuffix(".weight"): shape for name, shape in shapes_of(config).items() if name.endswith(".weight")
    }


def adapted(networks: Mapping[str, Config]) -> dict[str, Config]:
    """Those of a member's networks that adapters change: the UNet and the text towers."""
    return {part: config for part, config in networks.items() if part in diffusers.PARTS}


def written(layer: Layer, ending: str, parts: Mapping[str, Config]) -> str:
    """The key that we write: kohya's."""
    return f"{next(kohya.names(*layer, parts))}.{ending}"


def targets(config: Config, *, convolutions: bool = False) -> tuple[str, ...]:
    """The layers that kohya's tools train: what attends in a UNet, and every matrix of a text tower's layers.

    Args:
        convolutions: the residual blocks and the ways between levels, too (LoCon, "C3Lier").
    """
    wanted = r"encoder\.layers\..*|.*\battentions\..*"
    if convolutions:
        wanted += r"|.*\b(resnets|downsamplers|upsamplers)\..*"
    return tuple(name for name, shape in layers(config).items() if len(shape) > 1 and re.fullmatch(wanted, name))


def _above(parts: Mapping[str, Config]) -> Iterator[str]:
    for part, config in parts.items():
        last = max((int(n[1]) for x in layers(config) if (n := re.match(r"encoder\.layers\.(\d+)\.", x))), default=None)
        if last is None:
            continue
        inside = next(iter(name for name in layers(config) if name.startswith(f"encoder.layers.{last}.")))
        for names in (kohya.names, diffusers.names):
            for name in names(part, inside, parts):
                for mark in (f"layers_{last}_", f"layers.{last}."):
                    if mark in name:
                        yield name[: name.index(mark)] + mark.replace(str(last), str(last + 1))
