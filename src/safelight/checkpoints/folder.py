"""The diffusers folder layout: one folder per part, each with its `config.json` and weights."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from safelight.checkpoints import configs
from safelight.checkpoints.checkpoint import Checkpoint
from safelight.checkpoints.files import read_json, read_sharded, read_tensors, unreadable
from safelight.checkpoints.layouts import diffusers, transformers
from safelight.checkpoints.vocabulary import read_tokenizer, settled, write_tokenizer
from safelight.checkpoints.writing import staged_folder, write_json, write_tensors, write_text
from safelight.errors import ModelFileError
from safelight.models.clip import ClipTextConfig
from safelight.models.networks import Config
from safelight.models.tokenizer import ClipTokenizer
from safelight.presets import PRESETS, Preset
from safelight.presets import preset as presets

INDEX, PRESET = "model_index.json", "safelight.json"
UNET, VAE, TEXT, TOKENIZER, SCHEDULER = "unet", "vae", "text_encoder", "tokenizer", "scheduler"
CONFIGS = tuple(f"{part}/config.json" for part in (UNET, VAE, TEXT))
SCHEDULE = f"{SCHEDULER}/scheduler_config.json"
STEMS = {
    UNET: ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    VAE: ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    TEXT: ("model", "pytorch_model"),
}
"""Name of the weights without their ending: as safetensors, and as a PyTorch file."""

CLASSES: dict[str, tuple[str, ...]] = {
    UNET: ("UNet2DConditionModel",),
    VAE: ("AutoencoderKL",),
    TEXT: ("CLIPTextModel",),
    TOKENIZER: ("CLIPTokenizer", "CLIPTokenizerFast"),
}
NEEDLESS = (SCHEDULER, "safety_checker", "feature_extractor", "requires_safety_checker")
"""What a model_index.json may name beside our parts: they do not change the networks."""


def weight_names(part: str) -> list[str]:
    """The names that the weights of a part may have, best first: full precision, safetensors, one file."""
    safe, torch_ = STEMS[part]
    names = []
    for variant in ("", ".fp16"):
        for stem, ending in ((safe, ".safetensors"), (torch_, ".bin")):
            names += [f"{stem}{variant}{ending}", f"{stem}{ending}.index{variant}.json"]
    return names


def find_weights(folder: Path, part: str) -> Path:
    """The weights file or index of a part that `folder` has.

    Raises:
        ModelFileError: it has none.
    """
    for name in weight_names(part):
        if (folder / part / name).is_file():
            return folder / part / name
    raise ModelFileError(f"{folder / part} has no weights; it needs {weight_names(part)[0]}")


def read_folder(folder: Path, preset: Preset | None = None, tokenizer: Path | None = None) -> Checkpoint:
    """A model in the diffusers folder layout.

    Args:
        preset: what the folder is said to hold; without it, what its own files say.
        tokenizer: a folder with another tokenizer.

    Raises:
        ModelFileError: a file is missing, damaged, or describes a network that we do not have.
    """
    check_index(folder / INDEX)
    described, tokenizers = _described(folder, tokenizer)
    said = _stored(folder / PRESET) if preset is None else preset
    if said is not None:
        _agree(folder, described, said)
        described = said.with_towers({words.part: words.tower for words in described.words})

    tensors = {part: _weights(folder, part) for part in (UNET, VAE, TEXT)}
    layouts = {
        UNET: diffusers.unet_layout(described.unet),
        VAE: diffusers.autoencoder_layout(described.autoencoder, old_names=diffusers.has_old_names(tensors[VAE][1])),
        TEXT: transformers.text_layout(_tower(described), transformers.prefix_of(tensors[TEXT][1])),
    }
    parts, dropped = {}, []
    for part, layout in layouts.items():
        path, found = tensors[part]
        loaded, unused = layout.load(found, str(path))
        parts.update(loaded)
        dropped += [drop._replace(key=f"{part}/{drop.key}") for drop in unused]
    return Checkpoint(described, parts, tokenizers, folder, tuple(dropped))


def check_index(path: Path) -> None:
    """Refuse a pipeline with parts that we do not have, before anything large is read or downloaded.

    Raises:
        ModelFileError: it is missing, or names another class.
    """
    if path.parent.is_dir() and not path.is_file():
        raise ModelFileError(
            f"{path.parent} is no model folder: it has no {path.name}; give a folder in diffusers' layout"
        )
    content = read_json(path)
    for name, value in content.items():
        if name.startswith("_") or name in NEEDLESS:
            continue
        kind = value[-1] if isinstance(value, list) and value else value
        if name in CLASSES and kind not in CLASSES[name]:
            raise ModelFileError(f"{path}: {name} is {ascii(kind)[:80]}, expected {' or '.join(CLASSES[name])}")
        if name not in CLASSES and kind is not None and kind is not False:
            raise ModelFileError(f"{path}: it has a part {ascii(name)[:80]}, which no member of Safelight has")
    if absent := [name for name in CLASSES if name not in content]:
        raise ModelFileError(f"{path}: it has no {absent[0]}; give a folder of a whole text-to-image model")


def write_folder(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a model in the diffusers folder layout, in the dtype of its weights, with its preset beside.

    diffusers' `StableDiffusionPipeline.from_pretrained` reads it. Either all of it is there afterwards, or
    nothing.

    Raises:
        OutputError: the disk is full, or `folder` is something else than an earlier model.
        ModelFileError: the checkpoint has no tokenizer, or diffusers has no such network.
    """
    preset, tokenizers = checkpoint.preset, checkpoint.vocabularies()
    latent = preset.height // preset.autoencoder.factor
    described = {
        UNET: configs.unet_json(preset.unet, latent),
        VAE: configs.autoencoder_json(preset.autoencoder, preset.latent_scale, preset.height),
        TEXT: configs.text_json(_tower(preset)),
    }
    layouts = {
        UNET: diffusers.unet_layout(preset.unet),
        VAE: diffusers.autoencoder_layout(preset.autoencoder),
        TEXT: transformers.text_layout(_tower(preset)),
    }
    with staged_folder(Path(folder), INDEX) as staging:
        for part, layout in layouts.items():
            (staging / part).mkdir()
            write_json(staging / part / "config.json", described[part])
            write_tensors(staging / part / f"{STEMS[part][0]}.safetensors", layout.save(checkpoint.parts))
        (staging / TOKENIZER).mkdir()
        write_tokenizer(staging / TOKENIZER, tokenizers[presets.TEXT])
        (staging / SCHEDULER).mkdir()
        schedule = configs.schedule_json(preset)
        write_json(staging / SCHEDULE, schedule)
        write_text(staging / PRESET, preset.to_json())
        write_json(staging / INDEX, _index(str(schedule["_class_name"])))


def _index(scheduler: str) -> dict[str, object]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        SCHEDULER: ["diffusers", scheduler],
        TEXT: ["transformers", "CLIPTextModel"],
        TOKENIZER: ["transformers", "CLIPTokenizer"],
        UNET: ["diffusers", "UNet2DConditionModel"],
        VAE: ["diffusers", "AutoencoderKL"],
    }


def _tower(preset: Preset) -> ClipTextConfig:
    """Of a member with a single text tower."""
    [words] = preset.words
    return words.tower


def _described(folder: Path, tokenizer: Path | None) -> tuple[Preset, dict[str, ClipTokenizer]]:
    """The preset that the folder's own configs describe, and its tokenizers."""
    unet, latent = configs.read_unet(folder / CONFIGS[0])
    autoencoder, scale = configs.read_autoencoder(folder / CONFIGS[1])
    text = configs.read_text(folder / CONFIGS[2])
    words = read_tokenizer(folder / TOKENIZER if tokenizer is None else tokenizer, text)
    text = settled(text, words)
    # Of a folder of unknown shape, only the habits (steps, sampler, guidance) are taken from a preset.
    found = (unet, autoencoder, text)
    known = (p for p in PRESETS.values() if (p.unet, p.autoencoder, _with_marks_of(_tower(p), text)) == found)
    base = next(known, None)
    if base is None:
        name = folder.absolute().name
        base = replace(PRESETS["sd1"], name=name, title=name)
    if latent is not None:
        base = replace(base, width=latent * autoencoder.factor, height=latent * autoencoder.factor)
    base = replace(base, unet=unet, autoencoder=autoencoder, latent_scale=scale).with_towers({presets.TEXT: text})
    return configs.read_schedule(folder / SCHEDULE, base), {presets.TEXT: words}


def _with_marks_of(a: ClipTextConfig, b: ClipTextConfig) -> ClipTextConfig:
    """`a`, but what does not shape the tower (the tokenizer's marks, a projection that it has not) from `b`."""
    return replace(
        a,
        start_token=b.start_token,
        end_token=b.end_token,
        pad_token=b.pad_token,
        projection_width=b.projection_width,
    )


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


def _agree(folder: Path, described: Preset, said: Preset) -> None:
    """The preset that was asked for, or stored, must be the network that the configs describe."""
    text = _with_marks_of(_tower(said), _tower(described))
    compared: list[tuple[str, str, object, object]] = [
        *_fields(CONFIGS[0], described.unet, said.unet),
        *_fields(CONFIGS[1], described.autoencoder, said.autoencoder),
        *_fields(CONFIGS[2], _tower(described), text),
        (CONFIGS[1], "scaling_factor", described.latent_scale, said.latent_scale),
        (SCHEDULE, "the noise schedule", described.schedule, said.schedule),
        (SCHEDULE, "the prediction kind", described.prediction, said.prediction),
    ]
    for name, field, found, wanted in compared:
        if found != wanted:
            raise ModelFileError(
                f"{folder / name} does not fit the preset {said.name}: {field} is {found}, expected {wanted}; "
                f"name another preset, or none and delete {PRESET}"
            )


def _fields(name: str, found: Config, wanted: Config) -> list[tuple[str, str, object, object]]:
    return [(name, f.name, getattr(found, f.name), getattr(wanted, f.name)) for f in fields(found)]


def _weights(folder: Path, part: str) -> tuple[Path, dict[str, Tensor]]:
    path = find_weights(folder, part)
    return path, read_sharded(path) if path.suffix == ".json" else read_tensors(path)
