"""What a file of the LoRA family says of itself, and what ours say: kohya's `ss_*` fields and ModelSpec 1.0."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from safelight.adapters.kinds import Additive, Full, GLoRA, Kind, LoHa, LoKr, LoRA
from safelight.checkpoints.files import printable, read_contents, unreadable
from safelight.presets import Preset

ALGORITHMS: Mapping[type[Kind], str] = {LoRA: "lora", LoHa: "loha", LoKr: "lokr", GLoRA: "glora", Full: "full"}
"""LyCORIS' names."""
SPEC = "1.0.0"
_MOST_WORDS = 50
_LONGEST = 4000
_LEGACY = slice(0x100000, 0x110000)
_OF_NOTHING = hashlib.sha256().hexdigest()
_HASH = re.compile(r"[0-9a-f]{64}")


_SPEC = {
    "trigger": "trigger_phrase",
    "author": "author",
    "description": "description",
    "usage": "usage_hint",
    "licence": "license",
    "date": "date",
}
"""What ModelSpec calls the fields of `Said`."""


@dataclass(frozen=True)
class Said:
    """What people say of a file."""

    name: str
    """What it is called; of a file that was read, without its ending: what prompts call it."""
    trigger: str | None = None
    """The phrase that it was taught."""
    author: str | None = None
    description: str | None = None
    usage: str | None = None
    licence: str | None = None
    date: str | None = None
    """As ISO 8601 has it."""


@dataclass(frozen=True)
class Card(Said):
    """What a file says of itself, in a stranger's words: printable, one line each, and short."""

    alias: str | None = None
    """What it was called in training."""
    title: str | None = None
    architecture: str | None = None
    """ModelSpec's name of the family."""
    base_model: str | None = None
    """The file that it was trained with."""
    base_version: str | None = None
    """kohya's name of the family."""
    resolution: str | None = None
    words: tuple[tuple[str, int], ...] = ()
    """The captions' tags that it saw most often, and how often."""

    @classmethod
    def of(cls, metadata: Mapping[str, str], name: str) -> Card:
        """From what stands beside a file's tensors."""

        def said(*keys: str) -> str | None:
            found = (metadata[key].strip()[:_LONGEST] for key in keys if key in metadata)
            return next(
                (" ".join(printable(x) for x in text.split()) for text in found if text not in ("", "None")), None
            )

        return cls(
            name=name,
            alias=said("ss_output_name"),
            title=said("modelspec.title", "ss_training_comment"),
            architecture=said("modelspec.architecture"),
            base_model=said("ss_sd_model_name"),
            base_version=said("ss_base_model_version"),
            resolution=said("modelspec.resolution", "ss_resolution"),
            words=_words(metadata.get("ss_tag_frequency")),
            **{ours: said(f"modelspec.{theirs}") for ours, theirs in _SPEC.items()},
        )


@dataclass(frozen=True)
class About(Said):
    """What is to be said of a file that is written."""

    training: Mapping[str, str] = field(default_factory=dict)
    """Further `ss_*` fields: how it was trained. They go before those made here."""


def metadata_of(kinds: Mapping[str, Mapping[str, Kind]], preset: Preset, about: About) -> dict[str, str]:
    """The `ss_*` and `modelspec.*` fields of a file, without its hashes."""
    version, architecture = _family(preset)
    every = [kind for layers in kinds.values() for kind in layers.values()]
    algorithms = Counter(ALGORITHMS.get(type(kind), "other") for kind in every)
    plain = all(isinstance(kind, LoRA) and kind.lora_mid is None and kind.dora_scale is None for kind in every)
    arguments = {} if plain else {"algo": max(algorithms, key=lambda name: algorithms[name], default="lora")}
    if any(isinstance(kind, Additive) and kind.dora_scale is not None for kind in every):
        arguments["dora_wd"] = "True"
    rank, alpha = _sizes(every)
    found = {
        "ss_v2": str(version.startswith("sd_v2")),
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(arguments),
        "ss_output_name": about.name,
    }
    said = {theirs: getattr(about, ours) for ours, theirs in _SPEC.items()}
    said["prediction_type"] = {"eps": "epsilon"}.get(preset.prediction, preset.prediction)
    spec = {
        "sai_model_spec": SPEC,
        "architecture": f"{architecture}/lora",
        "implementation": "diffusers",
        "title": about.name,
        "resolution": f"{preset.width}x{preset.height}",
        **{key: value for key, value in said.items() if value is not None},
    }
    return {**found, **about.training, **{f"modelspec.{key}": value for key, value in spec.items()}}


def with_hashes(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The fields with the hashes by which web interfaces find a file: of its tensors' bytes, whatever stands before."""
    trained = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = save(dict(tensors), metadata=trained)
    start = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(memoryview(content)[start:]).hexdigest()
    hashes = {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    if legacy := content[_LEGACY]:  # a file too short for it has none: the hash of nothing is everybody's
        hashes["sshs_legacy_hash"] = hashlib.sha256(legacy).hexdigest()[:8]
    return {**metadata, **hashes}


def hash_of(path: Path) -> str:
    """The SHA-256 by which AUTOMATIC1111's web UI knows the file: of a `.safetensors`, without its header.

    Raises:
        ModelFileError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                file.seek(8 + int.from_bytes(file.read(8), "little"))
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def shown_hash(path: Path) -> str | None:
    """The SHA-256 of which the web UI writes 12 letters into pictures: what the file says of itself, else `hash_of`.

    None for a file without tensors: the hash of nothing is everybody's.

    Raises:
        ModelFileError: it cannot be read.
    """
    said = read_contents(path).metadata.get("sshs_model_hash", "").lower()
    found = said if _HASH.fullmatch(said) else hash_of(path)
    return None if found == _OF_NOTHING else found


def _sizes(kinds: list[Kind]) -> tuple[str, str]:
    """Rank and alpha as most layers have them; "Dynamic" where they have none in common, as kohya's tools say."""
    ranks = Counter(kind.rank for kind in kinds if kind.rank is not None)
    alphas = Counter(
        float(kind.rank if kind.alpha is None else kind.alpha)
        for kind in kinds
        if isinstance(kind, Additive) and kind.rank is not None
    )
    return _in_common(ranks), _in_common(alphas)


def _in_common(found: Counter[int] | Counter[float]) -> str:
    """What more than half are, or "Dynamic"."""
    [(most, times)] = found.most_common(1) or [(0, 0)]
    return f"{most}" if 2 * times > found.total() else "Dynamic"


def _family(preset: Preset) -> tuple[str, str]:
    """kohya's name and ModelSpec's."""
    unet = preset.unet
    if unet.size_width is not None:
        kind = "base" if len(preset.words) > 1 else "refiner"
        return f"sdxl_{kind}_v1-0", f"stable-diffusion-xl-v1-{kind}"
    predicts = "_v" if preset.prediction == "v" else ""
    if unet.context_width == 768:
        return f"sd_v1{predicts}", "stable-diffusion-v1"
    if unet.context_width == 1024:
        return f"sd_v2{predicts}", "stable-diffusion-v2-768-v" if predicts else "stable-diffusion-v2-512"
    name = preset.name if preset.name else "unnamed"
    return f"safelight_{name}", f"safelight-{name}"


def _words(text: str | None) -> tuple[tuple[str, int], ...]:
    """The most frequent tags of kohya's count by folder, if it is one."""
    try:
        folders = json.loads(text if text is not None and len(text) < 4 << 20 else "{}")
    except (ValueError, RecursionError):
        return ()
    counted: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and 0 < count < 1 << 40:
                counted[printable(tag.strip())] += count
    return tuple(sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:_MOST_WORDS])
