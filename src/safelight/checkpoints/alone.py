"""Parts that come in files of their own: used in place of a model's, or for one that lacks them.

An autoencoder, a text encoder, the statistics of CLIP's embeddings: in a file of any naming, in a folder as diffusers
and transformers write it, in a whole model, or on the hub.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from safelight.checkpoints import hub
from safelight.checkpoints.configs import read_autoencoder_as_stated
from safelight.checkpoints.configs.autoencoder import KL
from safelight.checkpoints.configs.clip import TEXT as TEXT_KIND
from safelight.checkpoints.described import CONFIG
from safelight.checkpoints.fields import Fields
from safelight.checkpoints.files import read_json, read_sharded, read_tensors
from safelight.checkpoints.folder import find_weights, weight_names
from safelight.checkpoints.index import INDEX, read_index
from safelight.checkpoints.keys import Drop, Layout, Misfit
from safelight.checkpoints.kinds import KINDS
from safelight.checkpoints.layouts import bert, diffusers, ldm, openclip, original, transformers
from safelight.checkpoints.sorts import AUTOENCODER as AUTOENCODERS
from safelight.checkpoints.sorts import CLIP, MODEL, TEXT, Sort, sort_of
from safelight.checkpoints.sorts import NORMALIZER as NORMALIZERS
from safelight.errors import ModelFileError
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.bert import BertConfig
from safelight.models.clip import ACTIVATIONS, ClipTextConfig
from safelight.models.networks import Config, shapes_of
from safelight.models.normalizer import NormalizerConfig
from safelight.presets import PRESETS
from safelight.presets.conditions import NORMALIZER, TEXT_2
from safelight.presets.conditions import TEXT as TEXT_PART
from safelight.presets.preset import AUTOENCODER

Tower = ClipTextConfig | BertConfig
Weights = dict[str, Tensor]
"""Of one part, by our names; views of the mapped file where it allows it."""
Way = tuple[str, Layout]
"""What stands before all keys of a part in a file, and its layout there."""

_TEXT_SECTION = "text_config"
_ABOVE = "the layer above the states that are attended to"


@dataclass(frozen=True)
class _File:
    """Where a part may be, and what describes it."""

    weights: Path
    config: Path | None
    """config.json of the folder that it was found in, if there is one."""

    def read(self) -> Weights:
        """All tensors."""
        return read_sharded(self.weights) if self.weights.suffix == ".json" else read_tensors(self.weights)


def read_vae(source: str | Path, config: AutoencoderConfig, scale: float | None = None) -> Weights:
    """The weights of an autoencoder.

    Args:
        source: a file of an autoencoder alone, in the original naming (`encoder.down.0...`) or in diffusers', a folder
            of one as diffusers writes it, a whole model in a file or folder, or a hub id of any of the folders.
        config: the shape that it must have, that of the model's own.
        scale: the model's latent scale. Where the folder says that its latents are scaled otherwise, it is refused:
            such autoencoders have the same shape (that of SDXL and SD 1), but another language.

    Raises:
        ModelFileError: there is no such file, or it holds no autoencoder of this shape.
    """
    [file] = _files(source, (AUTOENCODER,), KL)
    if file.config is not None and scale is not None:
        _, stated = read_autoencoder_as_stated(file.config)
        if stated is not None and not math.isclose(stated, scale, rel_tol=1e-3):
            raise ModelFileError(
                f"{file.config}: scaling_factor is {stated}, and the model's latents are scaled by {scale}: give an "
                "autoencoder that was made for it by --vae"
            )
    tensors = file.read()
    _must_be(file.weights, tensors, (AUTOENCODERS, MODEL), "autoencoder", "--vae")
    return _loaded(autoencoder_ways(config, tensors), tensors, file.weights, "autoencoder", "--vae")


def read_texts(sources: Sequence[str | Path], towers: Mapping[str, Tower]) -> dict[str, Weights]:
    """Text encoders by part, each told by its keys and shapes. Of equal towers, the first file is the first.

    Args:
        sources: files of a text encoder alone, as transformers, OpenCLIP or the original code name it, of a whole CLIP
            or a whole model; folders of these; hub ids.
        towers: the shapes that are wanted, by part.

    Raises:
        ModelFileError: a file is missing or damaged, or holds none of these towers, or one that is there already.
    """
    found: dict[str, Weights] = {}
    for source in sources:
        brought: dict[str, Weights] = {}
        nearest: tuple[str, Misfit] | None = None
        for file in _files(source, (TEXT_PART, TEXT_2), TEXT_KIND):
            tensors = file.read()
            _must_be(file.weights, tensors, (TEXT, CLIP, MODEL), "text encoder", "--text-encoder")
            for part, tower in towers.items():
                if part in found or part in brought:
                    continue
                fit = _fit(text_ways(tower, tensors), tensors, str(file.weights))
                if isinstance(fit, Misfit):
                    nearest = (part, fit) if nearest is None or len(fit) < len(nearest[1]) else nearest
                else:
                    _check_tower(file.config, tower)
                    brought[part] = fit
        if not brought:
            wanted = [part for part in towers if part not in found]
            if not wanted or nearest is None:
                raise ModelFileError(
                    f"{source} is one text encoder too many: the model has {len(towers)}; leave it out"
                )
            raise ModelFileError(
                f"{source} does not fit as {nearest[0]}: {nearest[1]}; give the text encoder of this model by "
                "--text-encoder"
            )
        found |= brought
    return found


def read_normalizer(source: str | Path, config: NormalizerConfig) -> Weights:
    """Mean and deviation of CLIP's embeddings.

    Args:
        source: the original's file of the two (`ViT-L-14_stats.th`), one as diffusers writes it, its folder, or a
            model's, or a hub id.

    Raises:
        ModelFileError: there is no such file, or it does not hold two vectors of this width.
    """
    [file] = _files(source, (NORMALIZER,), KL)
    tensors = file.read()
    names = next(
        (n for n in (("mean", "std"), ("0", "1"), tuple(original.STATISTICS.values())) if {*n} <= {*tensors}), ()
    )
    vectors = [tensors[name].detach() for name in names]
    if not vectors or any(vector.numel() != config.width or not vector.is_floating_point() for vector in vectors):
        raise ModelFileError(
            f"{file.weights} does not hold a mean and a deviation of {config.width} numbers each; give the statistics "
            "of this model's embeddings by --normalizer"
        )
    mean, std = (vector.reshape(1, -1) for vector in vectors)
    if not bool((std > 0).all() and std.isfinite().all() and mean.isfinite().all()):
        raise ModelFileError(f"{file.weights} is damaged: a deviation is not above 0; download it again")
    return {"mean": mean, "std": std}


def presets_for(tensors: Mapping[str, Tensor], sort: Sort) -> list[str]:
    """The names of the presets that a part alone fits, which is of this sort."""
    return [name for name, preset in PRESETS.items() if any(_fits(tensors, sort, c) for c in preset.networks.values())]


def _fits(tensors: Mapping[str, Tensor], sort: Sort, config: Config) -> bool:
    fits = False
    match config:
        case AutoencoderConfig() if sort == AUTOENCODERS:
            fits = not isinstance(_fit(autoencoder_ways(config, tensors), tensors), Misfit)
        case ClipTextConfig() | BertConfig() if sort in (TEXT, CLIP):
            fits = not isinstance(_fit(text_ways(config, tensors), tensors), Misfit)
        case NormalizerConfig() if sort == NORMALIZERS:
            fits = all(tensor.numel() == config.width for tensor in tensors.values())
    return fits


def lone_file(source: str | Path) -> tuple[Path, Sort, Mapping[str, Tensor]] | None:
    """A part alone, or what goes on top of a model, in a file or in a folder of its own; None: it is none of these.

    Raises:
        ModelFileError: the file is damaged.
    """
    path = Path(source)
    if path.is_dir() and (path / CONFIG).is_file() and not (path / INDEX).is_file():
        path = next(
            (path / name for kind in (KL, TEXT_KIND) for name in weight_names(KINDS[kind]) if (path / name).is_file()),
            path,
        )
    if not path.is_file():
        return None
    tensors = _File(path, None).read()
    sort = sort_of(tensors)
    return None if sort is None or sort == MODEL else (path, sort, tensors)


# How files name parts


def autoencoder_ways(config: AutoencoderConfig, keys: Collection[str]) -> Iterator[Way]:
    """How a file with these keys may name an autoencoder."""
    for prefix in _before(keys, "decoder.conv_in.weight"):
        if any(key.startswith(prefix + "encoder.down_blocks.") for key in keys):
            if prefix == "":
                yield prefix, diffusers.autoencoder_layout(config, old_names=diffusers.has_old_names(keys))
            continue
        extra = (
            Drop(prefix + "loss.*", "the autoencoder's training loss"),
            Drop(prefix + "model_ema.*", "its running average"),
        )
        yield prefix, Layout({AUTOENCODER: ldm.autoencoder(config, prefix)}, {AUTOENCODER: shapes_of(config)}, extra)


def text_ways(tower: Tower, keys: Collection[str]) -> Iterator[Way]:
    """How a file with these keys may name a text encoder. In a whole model there are several."""
    shapes = {TEXT_PART: shapes_of(tower)}
    if isinstance(tower, BertConfig):
        if "model.embed_tokens.weight" in keys:
            yield "", bert.diffusers_layout(tower)
        for prefix in _before(keys, "token_emb.weight"):
            words = (Drop(prefix + "to_logits.*", "predicts words, which no picture needs"),)
            yield prefix, Layout({TEXT_PART: bert.transformer(tower, prefix)}, shapes, words)
        return
    transformers_mark = "embeddings.token_embedding.weight"
    for prefix in _before(keys, transformers_mark):
        outside = prefix.removesuffix(transformers.PREFIX)
        above = Drop(f"{prefix}encoder.layers.{tower.layers}.*", _ABOVE)
        drops = (*(Drop(outside + drop.pattern, drop.why) for drop in _BESIDE_TEXT), above)
        yield outside, Layout({TEXT_PART: transformers.text(tower, prefix)}, shapes, drops)
    for prefix in _before(keys, "token_embedding.weight"):
        if not prefix.endswith("embeddings."):
            yield prefix, openclip.text_layout(tower, prefix)


_BESIDE_TEXT = (
    *transformers.DROPS,
    *(Drop(pattern, "of CLIP's image tower") for pattern in ("vision_model.*", "visual_projection.*")),
)


def _before(keys: Collection[str], end: str) -> list[str]:
    """What stands before the end of those keys that end so."""
    return sorted(key.removesuffix(end) for key in keys if key.endswith(end))


# Where they are looked for


def _files(source: str | Path, parts: Collection[str], kind: str) -> list[_File]:
    """The files in which parts may be: one, or one for each place in a whole folder.

    kind: a class of such networks, which says how the files of a folder are called.
    """
    path = Path(source)
    if path.is_file():
        return [_File(path, None)]
    if not path.is_dir() and hub.is_hub_id(str(source)):
        path = hub.download_part(str(source), parts, KINDS[kind])
    if not path.is_dir():
        raise ModelFileError(f"{source} is missing; check the path, or give a folder or a hub id (owner/name)")
    if not (path / INDEX).is_file():
        return [_in_folder(path, kind)]
    contents = read_index(path / INDEX)
    places = [place for place in contents.places if place.part in parts]
    if not places:
        raise ModelFileError(
            f"{path / INDEX}: it has no {' or '.join(sorted(parts))}; give the folder of another model"
        )
    return [_in_folder(path / place.folder, contents.kinds[place.folder]) for place in places]


def _in_folder(folder: Path, kind: str) -> _File:
    config = folder / CONFIG
    return _File(find_weights(folder, KINDS[kind]), config if config.is_file() else None)


# What they must be


def _must_be(path: Path, tensors: Mapping[str, Tensor], sorts: Collection[Sort], what: str, option: str) -> None:
    sort = sort_of(tensors)
    if sort not in sorts:
        said = "nothing that Safelight knows" if sort is None else sort.what
        raise ModelFileError(
            f"{path} holds no {what}: it is {said}; give a file of one, or of a whole model, by {option}"
        )


def _check_tower(config: Path | None, tower: Tower) -> None:
    """What shapes do not tell of a text encoder, where a config beside it does."""
    if config is None or isinstance(tower, BertConfig):
        return
    fields = Fields(config, _TEXT_SECTION if _TEXT_SECTION in read_json(config) else None)
    activation, heads = fields.word("hidden_act", "quick_gelu", ACTIVATIONS), fields.whole("num_attention_heads", 8)
    if activation != tower.activation:
        raise fields.bad("hidden_act", activation, f"{tower.activation}, as the model's own text encoder has")
    if heads != tower.heads:
        raise fields.bad("num_attention_heads", heads, f"{tower.heads}, as the model's own text encoder has")


def _loaded(ways: Iterator[Way], tensors: Mapping[str, Tensor], path: Path, what: str, option: str) -> Weights:
    fit = _fit(ways, tensors, str(path))
    if isinstance(fit, Misfit):
        raise ModelFileError(f"{path} does not fit: {fit}; give the {what} of this model by {option}")
    return fit


def _fit(ways: Iterator[Way], tensors: Mapping[str, Tensor], file: str = "") -> Weights | Misfit:
    """The weights by our names, of the first way that fits; or how the nearest differs."""
    nearest: Misfit | None = None
    for prefix, layout in ways:
        inside = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        misfit = layout.misfit(inside)
        if not misfit:
            parts, _ = layout.load(inside, file)
            [weights] = parts.values()
            return weights
        nearest = misfit if nearest is None or len(misfit) < len(nearest) else nearest
    return Misfit((), tuple(tensors), ()) if nearest is None else nearest
