"""What a folder's own files say that it holds, and whether that is what it is said to hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path

from pydantic import ValidationError

from safelight.checkpoints import configs
from safelight.checkpoints.configs.autoencoder import default_scale
from safelight.checkpoints.files import unreadable
from safelight.checkpoints.index import INDEX, SCHEDULER, Contents
from safelight.checkpoints.kinds import KINDS
from safelight.checkpoints.pipelines import Told, misfit
from safelight.checkpoints.vocabulary import read_tokenizer, settled
from safelight.checkpoints.wordpieces import read_pieces
from safelight.diffusion.schedule import ScheduleConfig
from safelight.errors import ModelFileError
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.bert import BertConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.networks import Config
from safelight.models.tokenizer import ClipTokenizer, Tokenizing
from safelight.presets import PRESETS, Preset
from safelight.presets.conditions import Condition
from safelight.presets.preset import AUTOENCODER, UNET

PRESET, CONFIG, SCHEDULE = "safelight.json", "config.json", "scheduler_config.json"


def described(folder: Path, contents: Contents, tokenizer: Path | None) -> tuple[Preset, dict[str, Tokenizing]]:
    """The preset that the folder's own configs describe, and its tokenizers by text tower.

    What they do not say, the habits (steps, sampler, guidance), is of the registered member with these networks; of
    unknown shapes, of the first that is told by the same.

    Raises:
        ModelFileError: a file is missing, damaged, or describes what we do not have.
    """
    pipeline = contents.pipeline
    facts = {p.part: KINDS[contents.kinds[p.folder]].read(folder / p.folder / CONFIG) for p in contents.places}
    networks = {part: fact.config for part, fact in facts.items()}
    tokenizers = _tokenizers(folder, contents, networks, tokenizer)
    for part, found in tokenizers.items():
        config = networks[part]
        if isinstance(config, ClipTextConfig) and isinstance(found, ClipTokenizer):
            networks[part] = settled(config, found)

    told = Told(networks, _noises(folder, contents), contents.flags)
    autoencoder = networks.get(AUTOENCODER)
    assert autoencoder is None or isinstance(autoencoder, AutoencoderConfig)
    conditions = _conditions(folder, contents, told)
    draft = replace(PRESETS["sd1"], unet=told.unet, autoencoder=autoencoder, conditions=conditions)
    draft = configs.read_schedule(folder / SCHEDULER / SCHEDULE, draft)
    base, known = _habitual(folder, contents, draft, facts[UNET].latent_size)
    if pipeline.scale is not None:
        scale: float | None = pipeline.scale()
    else:
        scale = facts[AUTOENCODER].latent_scale if AUTOENCODER in facts else None
    if scale is None:
        scale = base.latent_scale if known or autoencoder is None else default_scale(autoencoder)
    return replace(
        base,
        unet=draft.unet,
        autoencoder=draft.autoencoder,
        conditions=conditions,
        schedule=replace(draft.schedule, aligned=base.schedule.aligned),
        prediction=draft.prediction,
        latent_scale=scale,
    ), tokenizers


def _noises(folder: Path, contents: Contents) -> Mapping[str, ScheduleConfig]:
    return {name: configs.read_noise(folder / name / SCHEDULE) for name in contents.pipeline.noises}


def _conditions(folder: Path, contents: Contents, told: Told) -> tuple[Condition, ...]:
    """What the networks are told by, if it fits them."""
    conditions = contents.pipeline.told(told)
    if (wrong := misfit(told, conditions)) is not None:
        name, is_, expected = wrong
        [place] = [place for place in contents.places if place.part == UNET]
        raise ModelFileError(
            f"{folder / place.folder / CONFIG}: {name} is {is_}, expected {expected} in a {contents.name} "
            "with these parts"
        )
    return conditions


def _habitual(folder: Path, contents: Contents, draft: Preset, latent_size: int | None) -> tuple[Preset, bool]:
    """The preset whose habits the draft's are, its size, too; and whether its networks are the draft's."""
    sized = contents.pipeline.sized
    side = None if latent_size is None else latent_size * draft.factor
    base = _base(draft, side if sized else None, configs.read_habits(folder / SCHEDULER / SCHEDULE))
    known = base is not None
    if base is None:
        name = folder.absolute().name
        base = replace(_nearest(draft), name=name, title=name)
    if side is not None and (sized or not known):
        base = replace(base, width=side, height=side)
    return base, known


def agreed(folder: Path, contents: Contents, found: Preset, said: Preset | None) -> Preset:
    """The preset that is said, or stands beside the model, if it is what the configs describe; else that of them.

    Raises:
        ModelFileError: it is not.
    """
    if said is None:
        said = _stored(folder / PRESET)
    if said is None:
        return found
    towers = {words.part: words.tower for words in found.words if isinstance(words.tower, ClipTextConfig)}
    for name, field, is_, expected in _facts(contents, found, said):
        if is_ != expected:
            raise ModelFileError(
                f"{folder / name} does not fit the preset {said.name}: {field} is {is_}, expected {expected}; "
                f"name another preset, or none and delete {PRESET}"
            )
    return said.with_towers(towers)


def _tokenizers(
    folder: Path, contents: Contents, networks: Mapping[str, Config], given: Path | None
) -> dict[str, Tokenizing]:
    """The given vocabulary goes before the folder's own, whose word to fill up with stays."""
    found: dict[str, Tokenizing] = {}
    for place in contents.vocabularies:
        config, own = networks.get(place.part), folder / place.folder
        if isinstance(config, BertConfig):
            found[place.part] = read_pieces(own if given is None else given, config)
        elif isinstance(config, ClipTextConfig):
            found[place.part] = read_tokenizer(own if given is None else given, config, marks=own)
    return found


def _base(draft: Preset, side: int | None, habits: tuple[str | None, str]) -> Preset | None:
    """The registered member with these networks, told by the same; of several, the one that is most like the rest."""

    def likeness(preset: Preset) -> tuple[bool, ...]:
        computes_alike = (preset.prediction == draft.prediction, preset.schedule == draft.schedule)
        sizes_alike = side in (None, preset.width)
        return (*computes_alike, sizes_alike, _habits(preset.sampler, preset.spacing) == _habits(*habits))

    return max((preset for preset in PRESETS.values() if _alike(preset, draft)), key=likeness, default=None)


def _habits(sampler: str | None, spacing: str) -> tuple[str | None, str]:
    """Members that were distilled say in which way they are sampled, be it with fresh noise in each step or not."""
    return None if sampler is None else sampler.removesuffix("_a"), spacing


def _nearest(draft: Preset) -> Preset:
    """The first member that is told by the same kinds of things, through networks of the same kinds."""

    def kinds(preset: Preset) -> tuple[object, ...]:
        return [c.kind for c in preset.conditions], {part: type(config) for part, config in preset.networks.items()}

    return next((preset for preset in PRESETS.values() if kinds(preset) == kinds(draft)), PRESETS["sd1"])


def _alike(preset: Preset, draft: Preset) -> bool:
    fitted = _with_marks_of(draft, preset)
    return all(getattr(fitted, name) == getattr(draft, name) for name in ("unet", "autoencoder", "conditions"))


def _with_marks_of(found: Preset, preset: Preset) -> Preset:
    """The preset, with what does not shape its text towers (tokenizer's marks, projections they have not) as found."""
    towers = {}
    for words in preset.words:
        a, b = words.tower, found.networks.get(words.part)
        if isinstance(a, ClipTextConfig) and isinstance(b, ClipTextConfig):
            towers[words.part] = replace(
                a,
                start_token=b.start_token,
                end_token=b.end_token,
                pad_token=b.pad_token,
                projection_width=a.projection_width if a.projected else b.projection_width,
            )
    return preset.with_towers(towers)


def _stored(path: Path) -> Preset | None:
    """The preset beside a model that we wrote."""
    if not path.is_file():
        return None
    try:
        return Preset.from_json(path.read_text("utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelFileError(f"{path}: {where}: {first['msg']}; delete it to read the folder without it") from error
    except ValueError as error:
        raise ModelFileError(f"{path} is damaged ({error}); delete it to read the folder without it") from error


Fact = tuple[str, str, object, object]
"""File, field, what it is, what the preset says."""


def _facts(contents: Contents, found: Preset, said: Preset) -> Iterator[Fact]:
    """What the configs describe beside what the preset that was asked for, or stored, says."""
    said = _with_marks_of(found, said)
    yield INDEX, "the list of networks", sorted(found.networks), sorted(said.networks)
    files = {place.part: f"{place.folder}/{CONFIG}" for place in contents.places}
    for part, config in found.networks.items():
        yield from _fields(files[part], config, said.networks[part])
    yield files.get(AUTOENCODER, files[UNET]), "scaling_factor", found.latent_scale, said.latent_scale
    yield f"{SCHEDULER}/{SCHEDULE}", "the noise schedule", found.schedule, said.schedule
    yield f"{SCHEDULER}/{SCHEDULE}", "the prediction kind", found.prediction, said.prediction
    yield INDEX, "what it is told by", _kinds(found), _kinds(said)
    for a, b in zip(found.conditions, said.conditions, strict=True):
        yield from _fields(INDEX, a, b)


def _kinds(preset: Preset) -> list[str]:
    return [condition.kind for condition in preset.conditions]


def _fields(file: str, found: Config | Condition, wanted: Config | Condition) -> Iterator[Fact]:
    yield file, "the kind of network", type(found).__name__, type(wanted).__name__
    for field in fields(found):
        yield file, field.name, getattr(found, field.name), getattr(wanted, field.name)
