"""`model_index.json`: which pipeline a folder is of, and which classes are in its folders. Both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safelight.checkpoints.files import read_json
from safelight.checkpoints.kinds import KINDS, class_of
from safelight.checkpoints.pipelines import FEATURE_EXTRACTOR, FLAGS, NOTHING, PIPELINES, WRITTEN_AS, Pipeline, Place
from safelight.errors import ModelFileError
from safelight.presets import Preset

INDEX, SCHEDULER = "model_index.json", "scheduler"
NEEDLESS = (
    *(SCHEDULER, FEATURE_EXTRACTOR, "safety_checker", "requires_safety_checker", "add_watermarker", "watermarker"),
    *FLAGS,
)
"""What any model_index.json may name beside our parts: it does not change the networks."""


@dataclass(frozen=True)
class Contents:
    """What is in a folder, as its model_index.json says."""

    name: str
    """Of the pipeline."""
    pipeline: Pipeline
    kinds: Mapping[str, str]
    """By folder: the class of the network there."""
    vocabularies: tuple[Place, ...]
    flags: Mapping[str, int]

    @property
    def places(self) -> tuple[Place, ...]:
        """The folders of networks."""
        return tuple(place for place in self.pipeline.places if place.folder in self.kinds)


def read_index(path: Path) -> Contents:
    """Refuse a pipeline with parts that we do not have, before anything large is read or downloaded.

    Raises:
        ModelFileError: it is missing, names a pipeline or a class that we do not have, or lacks a part.
    """
    if path.parent.is_dir() and not path.is_file():
        raise ModelFileError(
            f"{path.parent} is no model folder: it has no {path.name}; give a folder in diffusers' layout"
        )
    content = read_json(path)
    name, pipeline = _pipeline(path, content)
    named = {key: _kind(value) for key, value in content.items() if not key.startswith("_") and key not in NEEDLESS}
    there = {key: kind for key, kind in named.items() if kind is not None and kind is not False}
    known = {place.folder: place for place in (*pipeline.places, *pipeline.vocabularies)}
    for key, kind in there.items():
        if key in known and kind not in known[key].kinds:
            raise ModelFileError(f"{path}: {key} is {ascii(kind)[:80]}, expected {' or '.join(known[key].kinds)}")
        if key not in known and key not in pipeline.noises:
            raise ModelFileError(f"{path}: it has a part {ascii(key)[:80]}, which no {name} of Safelight has")
    needed = [*(place.folder for place in known.values() if not place.optional), *pipeline.noises]
    if absent := [key for key in needed if key not in there]:
        raise ModelFileError(f"{path}: it has no {absent[0]}; give the folder of a whole model")
    return Contents(
        name,
        pipeline,
        {place.folder: str(there[place.folder]) for place in pipeline.places if place.folder in there},
        tuple(place for place in pipeline.vocabularies if place.folder in there),
        {flag: _flag(path, flag, content.get(flag)) for flag in pipeline.flags},
    )


def index_json(name: str, preset: Preset, others: Mapping[str, tuple[str, object]]) -> dict[str, object]:
    """The model_index.json of a member.

    Args:
        name: of the pipeline.
        others: library and class of what is in its folders beside networks and vocabularies.
    """
    pipeline, networks = PIPELINES[name], preset.networks
    content: dict[str, object] = {**pipeline.stated, **{flag: FLAGS[flag].of(preset) for flag in pipeline.flags}}
    for place in pipeline.places:
        kind = class_of(networks[place.part]) if place.part in networks else None
        content[place.folder] = NOTHING if kind is None else [KINDS[kind].library, kind]
    for place in pipeline.vocabularies:
        content[place.folder] = ["transformers", place.kinds[0]] if place.part in networks else NOTHING
    content |= {folder: list(found) for folder, found in others.items()}
    return {"_class_name": name, "_diffusers_version": WRITTEN_AS, **dict(sorted(content.items()))}


def _pipeline(path: Path, content: Mapping[str, object]) -> tuple[str, Pipeline]:
    name = content.get("_class_name")
    if isinstance(name, str) and name in PIPELINES:
        return name, PIPELINES[name]
    if name is None:  # then the first part of a kind that we do not have says best what this is
        for key, value in content.items():
            kinds = {
                kind for pipeline in PIPELINES.values() for p in pipeline.places if p.folder == key for kind in p.kinds
            }
            if kinds and _kind(value) not in (None, *kinds):
                raise ModelFileError(
                    f"{path}: {key} is {ascii(_kind(value))[:80]}, expected {' or '.join(sorted(kinds))}"
                )
    raise ModelFileError(f"{path}: _class_name is {ascii(name)[:80]}, expected one of {', '.join(PIPELINES)}")


def _kind(value: object) -> object:
    """The class in what stands for a part: [library, class], or the value of a field that is no part."""
    return value[-1] if isinstance(value, list) and value else value


def _flag(path: Path, name: str, value: object) -> int:
    default = FLAGS[name].default
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) is not isinstance(default, bool) or value < 0:
        expected = "true or false" if isinstance(default, bool) else "a whole number"
        raise ModelFileError(f"{path}: {name} is {ascii(value)[:80]}, expected {expected}")
    return value
