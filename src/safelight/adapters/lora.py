"""Reading and writing files of the LoRA family: every key is used, or refused by name."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from safelight.adapters.card import About, Card, hash_of, metadata_of, with_hashes
from safelight.adapters.family import family_of
from safelight.adapters.kinds import Additive, Kind, Unfit, built
from safelight.adapters.layouts.diffusers import PARTS, RAW, ROWS
from safelight.adapters.layouts.kohya import is_text
from safelight.adapters.names import Layer, adapted, names_of, written
from safelight.checkpoints.files import printable, read_contents, read_json, read_tensors
from safelight.checkpoints.keys import Dropped
from safelight.checkpoints.sorts import LORA, sort_of
from safelight.checkpoints.writing import write_tensors
from safelight.errors import ModelFileError
from safelight.presets import Preset
from safelight.presets.preset import UNET

WEIGHTS, PEFT_WEIGHTS, PEFT_CONFIG = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "adapter_config.json",
)
"""What diffusers and PEFT call the file in a folder of a LoRA, and where PEFT keeps its alpha."""
ADAPTER_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps that, as JSON, beside the tensors."""
BUNDLED = "bundle_emb."
_UNUSED = "of the last layer of a whole text tower, which the model does not use"

Change = tuple[Kind, float]
Changes = dict[str, list[Change]]
"""By layer: what changes it, how strongly."""


@dataclass(frozen=True)
class Strength:
    """How strongly an adapter acts: 0 not at all, 1 as trained."""

    text: float = 1.0
    """On the text towers."""
    unet: float = 1.0

    def on(self, part: str) -> float:
        """On one of a member's networks."""
        return self.text if is_text(part) else self.unet


@dataclass(frozen=True)
class Adapter:
    """What a file of the LoRA family changes, by part and layer, and what it says of itself."""

    kinds: Mapping[str, Mapping[str, Kind]]
    """By part ("unet", "text", "text_2") and layer."""
    card: Card
    source: Path | None = None
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Textual inversions that come with it, by name: tensors as a file of their own would have them."""
    dropped: tuple[Dropped, ...] = ()
    """Keys that are of no use, and why."""

    @cached_property
    def sha256(self) -> str | None:
        """As AUTOMATIC1111's web UI hashes the file, of which it shows 12 letters; the first use reads the file."""
        return None if self.source is None else hash_of(self.source)

    @property
    def titles(self) -> tuple[str, ...]:
        """The kinds in it, most frequent first."""
        every = [kind.title for layers in self.kinds.values() for kind in layers.values()]
        return tuple(sorted(set(every), key=lambda title: (-every.count(title), title)))


def changes(adapters: Sequence[tuple[Adapter, Strength]], part: str) -> Changes:
    """What several adapters together change in a part, by layer: for `patching.patched`."""
    found: Changes = defaultdict(list)
    for adapter, strength in adapters:
        for layer, kind in adapter.kinds.get(part, {}).items():
            if strength.on(part) != 0:
                found[layer].append((kind, strength.on(part)))
    return dict(found)


def read_lora(path: Path, preset: Preset) -> Adapter:
    """Read a file of the LoRA family for a model. Its tensors are views of the mapped file.

    Args:
        path: `.safetensors`, or a PyTorch file, of kohya's, LyCORIS', diffusers' or PEFT's naming; or a folder with
            such a file as the last two call it.
        preset: of the model that it is for.

    Raises:
        ModelFileError: the file is missing, damaged, tries to run code, is no adapter, or one for another model. The
            line names the first key that does not fit.
    """
    path = weights_of(path)
    tensors = read_tensors(path)
    metadata = read_contents(path).metadata
    names = names_of(preset.networks)
    found: dict[Layer, dict[str, Tensor]] = defaultdict(dict)
    keys: dict[tuple[Layer, str], str] = {}
    embeddings: dict[str, dict[str, Tensor]] = defaultdict(dict)
    dropped, unknown = [], []
    for key, tensor in tensors.items():
        place = names.place(key)
        if key.startswith(BUNDLED):
            name, _, ending = key.removeprefix(BUNDLED).partition(".")
            embeddings[name][ending] = tensor
        elif place is None:
            if names.is_above(key):
                dropped.append(Dropped(key, _UNUSED))
            else:
                unknown.append(key)
        else:
            ending = "dora_scale" if place.ending == ROWS else place.ending
            if (place.layer, ending) in keys:
                _refuse(path, key, f"is there twice: {keys[place.layer, ending]} is the same", tensors, preset)
            keys[place.layer, ending] = key
            rows = place.ending == ROWS
            found[place.layer][ending] = _rows(tensor, names.shapes[place.layer]) if rows else tensor
    if not found:
        _refuse_other(path, tensors, preset)
    if unknown:
        _refuse(path, unknown[0], "is of no layer of it that an adapter changes", tensors, preset)
    alphas = _Alphas.of(path, metadata, tensors)
    kinds: dict[str, dict[str, Kind]] = defaultdict(dict)
    for layer, endings in found.items():
        kind = built(endings, names.shapes[layer])
        if isinstance(kind, Unfit):
            missing = f"{keys[layer, next(iter(endings))]}: {kind.ending}"
            _refuse(path, keys.get((layer, kind.ending), missing), kind.why, tensors, preset)
        alphas.complete(layer, kind)
        kinds[layer.part][layer.name] = kind
    card = Card.of(metadata, path.stem)
    return Adapter(dict(kinds), card, path, {k: dict(v) for k, v in embeddings.items()}, tuple(dropped))


def weights_of(path: Path) -> Path:
    """The file of a LoRA; in a folder, the one that diffusers or PEFT writes there."""
    if not path.is_dir():
        return path
    return next((path / name for name in (WEIGHTS, PEFT_WEIGHTS) if (path / name).is_file()), path / WEIGHTS)


def write_lora(
    path: Path, adapter: Adapter, preset: Preset, about: About | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write a `.safetensors` with kohya's keys and metadata, which other tools read. All of it, or nothing.

    Args:
        preset: of the model that it is for.
        about: what is said of it; None: its name alone.
        dtype: of the tensors but alpha; None: as they are.

    Raises:
        OutputError: it could not be written.
    """
    parts = adapted(preset.networks)
    tensors: dict[str, Tensor] = {}
    for part, layers in adapter.kinds.items():
        for layer, kind in layers.items():
            for ending, tensor in _stored(kind).items():
                cast = dtype is not None and tensor.is_floating_point() and tensor.ndim > 0
                tensors[written(Layer(part, layer), ending, parts)] = tensor.to(dtype) if cast else tensor
    for name, endings in adapter.embeddings.items():
        tensors |= {f"{BUNDLED}{name}.{ending}": tensor for ending, tensor in endings.items()}
    tensors = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    metadata = metadata_of(adapter.kinds, preset, About(adapter.card.name) if about is None else about)
    write_tensors(path, tensors, {**with_hashes({"format": "pt", **metadata}, tensors)})


def _stored(kind: Kind) -> dict[str, Tensor]:
    """The tensors of a kind by ending; with an alpha, without which tools differ in what they assume."""
    tensors: dict[str, Tensor] = dict(kind.state_dict())
    if isinstance(kind, Additive) and kind.alpha is None and kind.rank is not None:
        tensors["alpha"] = torch.tensor(float(kind.rank))
    return tensors


def _rows(lengths: Tensor, shape: Sequence[int]) -> Tensor:
    """PEFT's lengths of rows as LyCORIS writes them; of another number, as they are."""
    return lengths.reshape(-1, *(1 for _ in shape[1:])) if lengths.numel() == shape[0] else lengths


@dataclass(frozen=True)
class _Alphas:
    """Alphas that stand beside the tensors, as PEFT has it: by part, what its config says."""

    configs: Mapping[str, Mapping[str, object]]

    @classmethod
    def of(cls, path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> _Alphas:
        if any(key.startswith(RAW) for key in tensors):
            config = path.parent / PEFT_CONFIG
            if not config.is_file():
                raise ModelFileError(
                    f"{path} is PEFT's, which keeps alpha in {PEFT_CONFIG}: that is not beside it; copy it there"
                )
            content = read_json(config)
            if content.get("peft_type") != "LORA":
                raise ModelFileError(f"{config}: peft_type is {ascii(content.get('peft_type'))[:80]}, expected 'LORA'")
            return cls({UNET: content})
        try:
            said = json.loads(metadata.get(ADAPTER_METADATA, "{}"))
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"{path}: its {ADAPTER_METADATA} is no JSON; download it again") from error
        configs: dict[str, dict[str, object]] = defaultdict(dict)
        for key, value in said.items() if isinstance(said, dict) else ():
            for part, prefix in PARTS.items():
                if key.startswith(f"{prefix}."):
                    configs[part][key.removeprefix(f"{prefix}.")] = value
        return cls(configs)

    def complete(self, layer: Layer, kind: Kind) -> None:
        """Give a kind the alpha that stands beside, if it has none of its own."""
        config = self.configs.get(layer.part, {})
        if not isinstance(kind, Additive) or kind.alpha is not None or kind.rank is None:
            return
        alpha, patterns = config.get("lora_alpha"), config.get("alpha_pattern")
        for name, value in patterns.items() if isinstance(patterns, dict) else ():
            if f".{layer.name}".endswith(f".{str(name).removeprefix('^')}"):
                alpha = value
        if isinstance(alpha, int | float) and not isinstance(alpha, bool) and math.isfinite(alpha):
            stabilised = config.get("use_rslora") is True
            kind.alpha = torch.tensor(float(alpha) * (math.sqrt(kind.rank) if stabilised else 1.0))


def _refuse_other(path: Path, tensors: Mapping[str, Tensor], preset: Preset) -> NoReturn:
    """A file without a single key that fits."""
    sort = sort_of(tensors)
    if sort is not None and sort != LORA:
        raise ModelFileError(f"{path} is {sort.what.removesuffix(', not a model')}, not a LoRA; {sort.use}")
    _refuse(path, next(iter(tensors), "it has no key that"), "is of no layer of it", tensors, preset)


def _refuse(path: Path, key: str, why: str, tensors: Mapping[str, Tensor], preset: Preset) -> NoReturn:
    family = family_of(tensors, preset)
    title = preset.title if preset.title else "this model"
    if family is not None:
        raise ModelFileError(
            f"{path} is a LoRA for {family}, and the model is {title}: {printable(key)} {why}; give one that was made "
            f"for {title}, or load a model of its family"
        )
    raise ModelFileError(
        f"{path} does not fit {title}: {printable(key)} {why}; download it again, or give a LoRA made for this model"
    )
