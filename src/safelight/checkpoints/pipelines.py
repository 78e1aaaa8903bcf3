"""diffusers' pipelines: what is in their folders, by one table that reading, writing and downloading go by.

A pipeline and the networks in its folders decide what a member is told by. The table goes both ways: a member is
written as the first pipeline whose folders hold its networks and would be read as told by the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from safelight.checkpoints.configs import SCHEDULERS
from safelight.checkpoints.configs.autoencoder import KL, VQ, VQ_SCALE
from safelight.checkpoints.configs.bert import BERT
from safelight.checkpoints.configs.clip import NORMALIZER as NORMALIZER_KIND
from safelight.checkpoints.configs.clip import TEXT as TEXT_KIND
from safelight.checkpoints.configs.clip import TEXT_PROJECTED, VISION_PROJECTED
from safelight.checkpoints.configs.depth import DEPTH as DEPTH_KIND
from safelight.checkpoints.configs.unet import CONDITIONAL, UNCONDITIONAL
from safelight.checkpoints.kinds import class_of
from safelight.diffusion.schedule import ScheduleConfig
from safelight.errors import ModelFileError
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.bert import BertConfig
from safelight.models.clip import ClipTextConfig, ClipVisionConfig
from safelight.models.depth import DepthConfig
from safelight.models.networks import Config
from safelight.models.normalizer import NormalizerConfig
from safelight.models.unet import UNetConfig
from safelight.presets import PRESETS, Preset
from safelight.presets.conditions import (
    DEPTH,
    NORMALIZER,
    TEXT,
    TEXT_2,
    VISION,
    Boxes,
    Condition,
    DepthMap,
    HiddenPicture,
    Label,
    LabelMap,
    Numbers,
    SeenPicture,
    SmallPicture,
    Words,
)
from safelight.presets.preset import AUTOENCODER, UNET

ZEROS, AESTHETIC, MOST_NOISE = "force_zeros_for_empty_prompt", "requires_aesthetics_score", "max_noise_level"
LOW_RES_SCHEDULER, NOISING_SCHEDULER = "low_res_scheduler", "image_noising_scheduler"
FEATURE_EXTRACTOR = "feature_extractor"
CLIP_WORDS, BERT_WORDS = ("CLIPTokenizer", "CLIPTokenizerFast"), ("BertTokenizer", "BertTokenizerFast")
"""Classes of vocabularies."""
WRITTEN_AS = "0.42.1"
"""The version of diffusers whose files ours are like; some of its pipelines read none that state no version."""
NOTHING = [None, None]
"""What model_index.json says of a part that is not there."""


@dataclass(frozen=True)
class Flag:
    """A field of model_index.json that says how a pipeline is told something."""

    default: int
    of: Callable[[Preset], int]
    """What it is for a member. A truth is a whole number, too."""


FLAGS: Mapping[str, Flag] = {
    ZEROS: Flag(True, lambda preset: any(words.zeros for words in preset.words)),
    AESTHETIC: Flag(False, lambda preset: any(isinstance(c, Numbers) and c.aesthetic for c in preset.conditions)),
    MOST_NOISE: Flag(350, lambda preset: max(c.most for c in preset.conditions if isinstance(c, SmallPicture))),
}


@dataclass(frozen=True)
class Told:
    """What the files of a pipeline say of how it is told something."""

    networks: Mapping[str, Config]
    """By part."""
    noises: Mapping[str, ScheduleConfig]
    """By folder: the schedules that conditions are put under noise by."""
    flags: Mapping[str, int]

    @property
    def unet(self) -> UNetConfig:
        """The network that is told."""
        unet = self.networks[UNET]
        assert isinstance(unet, UNetConfig)
        return unet

    @property
    def latent_channels(self) -> int:
        """Of what is drawn."""
        autoencoder = self.networks.get(AUTOENCODER)
        return autoencoder.latent_channels if isinstance(autoencoder, AutoencoderConfig) else self.unet.out_channels

    def tower(self, part: str = TEXT) -> ClipTextConfig | BertConfig:
        """A text tower."""
        tower = self.networks[part]
        assert isinstance(tower, ClipTextConfig | BertConfig)
        return tower


@dataclass(frozen=True)
class Place:
    """A folder inside a model's."""

    folder: str
    part: str
    """The network in it, or the text tower whose vocabulary is in it."""
    kinds: tuple[str, ...]
    """Classes that model_index.json may name for it."""
    optional: bool = False


@dataclass(frozen=True)
class Pipeline:
    """What is in the folder of a pipeline."""

    places: tuple[Place, ...]
    told: Callable[[Told], tuple[Condition, ...]]
    """What the networks are told by."""
    vocabularies: tuple[Place, ...] = ()
    noises: tuple[str, ...] = ()
    """Folders of schedules, beside that of the scheduler."""
    flags: tuple[str, ...] = ()
    """Those of `FLAGS` that it has."""
    stated: Mapping[str, object] = field(default_factory=dict)
    """What it demands in its model_index.json beside: of parts that no member has, mostly."""
    schedulers: tuple[str, ...] = ()
    """The only ones that it computes rightly with; none named: all."""
    scale: Callable[[], float] | None = None
    """The only latent scale that it computes with, whatever its autoencoder's config says."""
    sized: bool = True
    """Whether its pictures have the size that the UNet's config says, and not that of a picture that is given."""

    def holds(self, preset: Preset) -> bool:
        """Whether its folders hold a member's networks, and say that they are told by the same."""
        networks, noises = preset.networks, dict(_noises(preset))
        places = {place.part: place for place in self.places}
        needed = {place.part for place in self.places if not place.optional}
        if not needed <= networks.keys() <= places.keys() or noises.keys() != set(self.noises):
            return False
        if any(class_of(config) not in places[part].kinds for part, config in networks.items()):
            return False
        flags = {name: FLAGS[name].of(preset) for name in self.flags}
        return self.told(Told(networks, noises, flags)) == preset.conditions


def _noises(preset: Preset) -> Iterator[tuple[str, ScheduleConfig]]:
    for condition in preset.conditions:
        if isinstance(condition, SmallPicture) and condition.schedule is not None:
            yield LOW_RES_SCHEDULER, condition.schedule
        elif isinstance(condition, SeenPicture):
            yield NOISING_SCHEDULER, condition.schedule


def noises_of(preset: Preset) -> Mapping[str, ScheduleConfig]:
    """By folder: the schedules that a member's conditions are put under noise by."""
    return dict(_noises(preset))


def _words(told: Told) -> tuple[Condition, ...]:
    return (Words(told.tower()),)


def _nothing(told: Told) -> tuple[Condition, ...]:
    return ()


def _hidden(told: Told) -> tuple[Condition, ...]:
    """Pipelines that inpaint take networks, too, that are shown no hole."""
    return () if told.unet.in_channels == told.latent_channels else (HiddenPicture(),)


def _depth(told: Told) -> tuple[Condition, ...]:
    network = told.networks[DEPTH]
    assert isinstance(network, DepthConfig)
    return (*_words(told), DepthMap(network))


def _enlarging(told: Told) -> tuple[Condition, ...]:
    return (*_words(told), SmallPicture(told.noises[LOW_RES_SCHEDULER], told.flags[MOST_NOISE]))


def _seeing(told: Told) -> tuple[Condition, ...]:
    tower, normalizer = told.networks[VISION], told.networks[NORMALIZER]
    assert isinstance(tower, ClipVisionConfig)
    assert isinstance(normalizer, NormalizerConfig)
    return (*_words(told), SeenPicture(tower, normalizer, told.noises[NOISING_SCHEDULER]))


def _xl(told: Told) -> tuple[Condition, ...]:
    zeros = bool(told.flags[ZEROS])
    second = Words(told.tower(TEXT_2), TEXT_2, states="penultimate", pooled=True, zeros=zeros)
    numbers = Numbers(aesthetic=bool(told.flags.get(AESTHETIC, False)))
    if TEXT not in told.networks:
        return (second, numbers)
    return (Words(told.tower(), states="penultimate", zeros=zeros), second, numbers)


_UNET, _PLAIN_UNET = Place("unet", UNET, (CONDITIONAL,)), Place("unet", UNET, (UNCONDITIONAL,))
_VAE, _VQVAE = Place("vae", AUTOENCODER, (KL,)), Place("vqvae", AUTOENCODER, (VQ, KL))
_TEXT, _TEXT_2 = Place("text_encoder", TEXT, (TEXT_KIND,)), Place("text_encoder_2", TEXT_2, (TEXT_PROJECTED,))
_TOKENIZER, _TOKENIZER_2 = Place("tokenizer", TEXT, CLIP_WORDS), Place("tokenizer_2", TEXT_2, CLIP_WORDS)
_DDIM, _DDPM = SCHEDULERS["ddim"].class_name, SCHEDULERS["ddpm"].class_name

_NO_CHECKER: Mapping[str, object] = {FEATURE_EXTRACTOR: NOTHING, "safety_checker": NOTHING}

_STABLE = Pipeline(
    (_UNET, _VAE, _TEXT), _words, (_TOKENIZER,), stated={**_NO_CHECKER, "requires_safety_checker": False}
)
_XL = Pipeline(
    (_UNET, _VAE, replace(_TEXT, optional=True), _TEXT_2),
    _xl,
    (replace(_TOKENIZER, optional=True), _TOKENIZER_2),
    flags=(ZEROS,),
)
_XL_OF_PICTURES = replace(_XL, flags=(ZEROS, AESTHETIC))

PIPELINES: Mapping[str, Pipeline] = {
    "StableDiffusionPipeline": _STABLE,
    "StableDiffusionImg2ImgPipeline": _STABLE,
    "StableDiffusionInpaintPipeline": replace(
        _STABLE,
        told=lambda told: (*_words(told), *_hidden(told)),
    ),
    "StableDiffusionDepth2ImgPipeline": Pipeline(
        (_UNET, _VAE, _TEXT, Place("depth_estimator", DEPTH, (DEPTH_KIND,))),
        _depth,
        (_TOKENIZER,),
        sized=False,
    ),
    "StableDiffusionUpscalePipeline": Pipeline(
        (_UNET, _VAE, _TEXT),
        _enlarging,
        (_TOKENIZER,),
        noises=(LOW_RES_SCHEDULER,),
        flags=(MOST_NOISE,),
        stated={**_NO_CHECKER, "watermarker": NOTHING},
        scale=lambda: PRESETS["x4-upscaler"].latent_scale,
        sized=False,
    ),
    "StableUnCLIPImg2ImgPipeline": Pipeline(
        (
            *(_UNET, _VAE, _TEXT, Place("image_encoder", VISION, (VISION_PROJECTED,))),
            Place("image_normalizer", NORMALIZER, (NORMALIZER_KIND,)),
        ),
        _seeing,
        (_TOKENIZER,),
        noises=(NOISING_SCHEDULER,),
    ),
    "StableDiffusionXLPipeline": _XL,
    "StableDiffusionXLImg2ImgPipeline": _XL_OF_PICTURES,
    "StableDiffusionXLInpaintPipeline": replace(_XL_OF_PICTURES, told=lambda told: (*_xl(told), *_hidden(told))),
    "LDMTextToImagePipeline": Pipeline(
        (_UNET, _VQVAE, Place("bert", TEXT, (BERT,))),
        _words,
        (Place("tokenizer", TEXT, BERT_WORDS),),
        schedulers=(_DDIM,),
    ),
    "LDMSuperResolutionPipeline": Pipeline(
        (_PLAIN_UNET, _VQVAE),
        lambda told: (SmallPicture(),),
        schedulers=(_DDIM,),
        scale=lambda: VQ_SCALE,
        sized=False,
    ),
    "LDMPipeline": Pipeline((_PLAIN_UNET, _VQVAE), _nothing, schedulers=(_DDIM,)),
    "DDIMPipeline": Pipeline((_PLAIN_UNET,), _nothing, schedulers=(_DDIM,)),
    "DDPMPipeline": Pipeline((_PLAIN_UNET,), _nothing, schedulers=(_DDPM,)),
}
"""By class name. Of those that hold a member, the first is written that can do with its sampler, or else the first."""


def pipeline_for(preset: Preset) -> tuple[str, Pipeline]:
    """The pipeline that a member is written as, and its name.

    Raises:
        ModelFileError: diffusers has none.
    """
    holding = [(name, pipeline) for name, pipeline in PIPELINES.items() if pipeline.holds(preset)]
    if not holding:
        raise ModelFileError(
            f"diffusers has no pipeline for {preset.name}: it knows no {_unknown(preset)}; keep its original file"
        )
    sampler = SCHEDULERS.get(preset.sampler, SCHEDULERS["ddim"]).class_name
    able = [(name, pipeline) for name, pipeline in holding if not pipeline.schedulers or sampler in pipeline.schedulers]
    name, pipeline = (able if able else holding)[0]
    if pipeline.scale is not None and pipeline.scale() != preset.latent_scale:
        raise ModelFileError(
            f"diffusers cannot draw with {preset.name}: its {name} knows no latent scale but {pipeline.scale()}, "
            f"and this one's is {preset.latent_scale}; keep its original file"
        )
    return name, pipeline


def _unknown(preset: Preset) -> str:
    for condition in preset.conditions:
        match condition:
            case Boxes():
                return "layouts by boxes"
            case LabelMap():
                return "semantic maps"
            case Label():
                return "latent diffusion by classes"
            case HiddenPicture(style="latent"):
                return "holes as latent diffusion shows them"
            case _:
                pass
    told = ", ".join(condition.kind for condition in preset.conditions)
    return f"such networks that are told {told if told else 'nothing'}"


def misfit(told: Told, conditions: tuple[Condition, ...]) -> tuple[str, object, object] | None:
    """What of the UNet does not fit what it is told by: field of its config.json, what it is, and what it must be."""
    unet, latent = told.unet, told.latent_channels
    words = [condition for condition in conditions if isinstance(condition, Words)]
    pooled = [w.tower.projection_width for w in words if w.pooled and isinstance(w.tower, ClipTextConfig)]
    stacked, vector, classes = 0, sum(pooled), None
    for condition in conditions:
        match condition:
            case HiddenPicture():
                stacked += latent + 1
            case DepthMap():
                stacked += 1
            case SmallPicture():
                stacked += 3
                classes = None if condition.schedule is None else condition.schedule.steps
            case SeenPicture():
                vector += 2 * condition.tower.projection_width
            case Numbers():
                vector += (5 if condition.aesthetic else 6) * (0 if unet.size_width is None else unet.size_width)
            case _:
                pass
    wanted: tuple[tuple[str, object, object], ...] = (
        ("out_channels", unet.out_channels, latent),
        ("in_channels", unet.in_channels, latent + stacked),
        ("cross_attention_dim", unet.context_width, sum(w.tower.width for w in words) if words else None),
        ("projection_class_embeddings_input_dim", unet.vector_width, vector if vector else None),
        ("num_class_embeds", unet.classes, classes),
    )
    return next((fact for fact in wanted if fact[1] != fact[2]), None)
