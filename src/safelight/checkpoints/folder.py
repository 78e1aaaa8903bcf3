"""The diffusers folder layout: one folder per part, each with its `config.json` and weights.

What may be in which folder stands in `pipelines`, and of which classes in `kinds`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from safelight.checkpoints import configs, vocabulary, wordpieces
from safelight.checkpoints.checkpoint import Checkpoint
from safelight.checkpoints.described import CONFIG, PRESET, SCHEDULE, agreed, described
from safelight.checkpoints.files import read_sharded, read_tensors
from safelight.checkpoints.index import INDEX, SCHEDULER, Contents, index_json, read_index
from safelight.checkpoints.kinds import KINDS, Kind, class_of, config_json, extractor_json, layout_of
from safelight.checkpoints.pipelines import BERT_WORDS, FEATURE_EXTRACTOR, noises_of, pipeline_for
from safelight.checkpoints.vocabulary import write_tokenizer
from safelight.checkpoints.wordpieces import write_pieces
from safelight.checkpoints.writing import staged_folder, write_json, write_tensors, write_text
from safelight.errors import ModelFileError
from safelight.models.tokenizer import BertTokenizer, ClipTokenizer, Tokenizing
from safelight.presets import Preset

EXTRACTOR = "preprocessor_config.json"


class SamplingWarning(UserWarning):
    """diffusers samples a model that was written otherwise than Safelight does."""


def weight_names(kind: Kind) -> list[str]:
    """The names that the weights of a class of network may have, best first: full precision, safetensors, one file.

    The mark of half precision stands before the ending or, in an index, also behind it: libraries differ.
    """
    safe, torch_ = kind.stems
    names = []
    for variant in ("", ".fp16"):
        for stem, ending in ((safe, ".safetensors"), (torch_, ".bin")):
            names += [f"{stem}{variant}{ending}", f"{stem}{ending}.index{variant}.json"]
            names += [f"{stem}{variant}{ending}.index.json"] if variant else []
    return names


def find_weights(folder: Path, kind: Kind) -> Path:
    """The weights file or index in the folder of a network.

    Raises:
        ModelFileError: there is none.
    """
    for name in weight_names(kind):
        if (folder / name).is_file():
            return folder / name
    raise ModelFileError(f"{folder} has no weights; it needs {weight_names(kind)[0]}")


def files_of(contents: Contents) -> tuple[list[str], list[str]]:
    """The files of a model but its index and weights: those that it must have, and those that are read if they are."""
    needed = [f"{place.folder}/{CONFIG}" for place in contents.places]
    needed += [f"{folder}/{SCHEDULE}" for folder in (SCHEDULER, *contents.pipeline.noises)]
    wanted = [PRESET]
    for place in contents.vocabularies:
        names = wordpieces.FILES if place.kinds == BERT_WORDS else vocabulary.FILES
        wanted += [f"{place.folder}/{name}" for name in names]
    return needed, wanted


def read_folder(folder: Path, preset: Preset | None = None, tokenizer: Path | None = None) -> Checkpoint:
    """A model in the diffusers folder layout.

    Args:
        preset: what the folder is said to hold; without it, what its own files say.
        tokenizer: a folder with another tokenizer.

    Raises:
        ModelFileError: a file is missing, damaged, or describes a network that we do not have.
    """
    contents = read_index(folder / INDEX)
    found, tokenizers = described(folder, contents, tokenizer)
    found = agreed(folder, contents, found, preset)
    networks = found.networks
    parts, dropped = {}, []
    for place in contents.places:
        path = find_weights(folder / place.folder, KINDS[contents.kinds[place.folder]])
        tensors = read_sharded(path) if path.suffix == ".json" else read_tensors(path)
        loaded, unused = layout_of(networks[place.part], place.part, tensors).load(tensors, str(path))
        parts.update(loaded)
        dropped += [drop._replace(key=f"{place.folder}/{drop.key}") for drop in unused]
    return Checkpoint(found, parts, tokenizers, folder, tuple(dropped))


def write_folder(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a model in the diffusers folder layout, in the dtype of its weights, with its preset beside.

    diffusers' pipeline of such members reads it. Either all of it is there afterwards, or nothing. In what diffusers
    samples it otherwise than by the preset is said (`SamplingWarning`).

    Raises:
        OutputError: the disk is full, or `folder` is something else than an earlier model.
        ModelFileError: the checkpoint has no tokenizer, or diffusers has no such network or pipeline.
    """
    preset, tokenizers = checkpoint.preset, checkpoint.vocabularies()
    texts = descriptions(preset)
    _, pipeline = pipeline_for(preset)
    _, otherwise = configs.scheduler_json(configs.Scheduling.of(preset), pipeline.schedulers)
    if otherwise:
        told = f"diffusers will sample {folder.name} otherwise than Safelight, which reads {PRESET}: "
        warnings.warn(told + "; ".join(otherwise), SamplingWarning, stacklevel=2)
    networks = preset.networks
    with staged_folder(Path(folder), INDEX) as staging:
        for place in pipeline.places:
            if place.part in networks:
                (staging / place.folder).mkdir()
                tensors = layout_of(networks[place.part], place.part).save(checkpoint.parts)
                stem, _ = KINDS[str(class_of(networks[place.part]))].stems
                write_tensors(staging / place.folder / f"{stem}.safetensors", tensors)
        for place in pipeline.vocabularies:
            if place.part in networks:
                (staging / place.folder).mkdir()
                _write_vocabulary(staging / place.folder, tokenizers[place.part])
        write_text(staging / PRESET, preset.to_json())
        for file, content in texts.items():
            (staging / file).parent.mkdir(exist_ok=True)
            write_json(staging / file, content)


def descriptions(preset: Preset) -> dict[str, Mapping[str, object]]:
    """All that is written of a member but its weights and words: content by file, that of the whole last.

    Raises:
        ModelFileError: diffusers has no such network or pipeline.
    """
    name, pipeline = pipeline_for(preset)
    networks = preset.networks
    files: dict[str, Mapping[str, object]] = {
        f"{place.folder}/{CONFIG}": config_json(networks[place.part], preset)
        for place in pipeline.places
        if place.part in networks
    }
    schedules = {SCHEDULER: configs.scheduler_json(configs.Scheduling.of(preset), pipeline.schedulers)[0]}
    schedules |= {folder: configs.noise_json(schedule) for folder, schedule in noises_of(preset).items()}
    files |= {f"{folder}/{SCHEDULE}": content for folder, content in schedules.items()}
    others = {folder: ("diffusers", content["_class_name"]) for folder, content in schedules.items()}
    if (extractor := extractor_json(networks)) is not None:
        files[f"{FEATURE_EXTRACTOR}/{EXTRACTOR}"] = extractor
        others[FEATURE_EXTRACTOR] = ("transformers", extractor["image_processor_type"])
    return {**files, INDEX: index_json(name, preset, others)}


def _write_vocabulary(folder: Path, tokenizer: Tokenizing) -> None:
    if isinstance(tokenizer, BertTokenizer):
        write_pieces(folder, tokenizer)
    else:
        assert isinstance(tokenizer, ClipTokenizer)
        write_tokenizer(folder, tokenizer)
