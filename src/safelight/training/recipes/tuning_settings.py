"""What fine-tuning can be told, as `settings.py` has it for what is trained from nothing. No torch here, either."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safelight.errors import TrainingError
from safelight.training.config import LoopConfig, option


@dataclass(frozen=True)
class TuningLoop(LoopConfig):
    """One fine-tuning run: `LoopConfig`, as few pictures want it."""

    images: int = 2000
    """Length of the run: images seen, all in all. A resumed run may have more."""
    batch: int = 1
    """Images per batch, over all processes."""
    lr: float = 1e-4
    """Highest learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does after the warm-up."""
    warmup: int = 0
    """Images during which the learning rate rises from zero."""
    ema: float = 0.0
    """Decay per step of the averaged weights, which are then what is saved; 0 keeps no average."""
    save_every: int = 500
    """Images between checkpoints."""


@dataclass(frozen=True)
class TuningData:
    """Which pictures and captions to fine-tune on."""

    data: Path
    """A folder of pictures: with captions beside them (.txt or .caption), in folders named `10_jojo cat` (repeats and
    caption), or with metadata.jsonl or metadata.csv; a .json file of captions and tags among its pictures; or the
    .toml file of a data set that kohya's tools are told of."""
    caption: str | None = None
    """Of pictures that have none."""
    size: int | None = None
    """Side in pixels of the square whose area pictures have at most. Default: what the model draws."""
    square: bool = False
    """Crop all pictures to the square, instead of training each in about its own shape (aspect-ratio buckets)."""
    bucket_step: int | None = None
    """Sides are multiples of so many pixels. Default: 64, or an eighth of a --size below 512."""
    bucket_smallest: int | None = None
    """Shortest side in pixels. Default: 256, or half of a --size below 512."""
    bucket_largest: int | None = None
    """Longest side in pixels. Default: twice --size."""
    no_enlarge: bool = False
    """Leave pictures that are smaller as small as they are."""
    flip: bool = False
    """Mirror every other picture by chance: not for what has a left and a right."""
    shuffle_tags: bool = False
    """Tell the tags of a caption, which commas part, in another order each time."""
    keep_tags: int = 0
    """So many of the first tags stay where they are, and are never left out."""
    tag_dropout: float = 0.0
    """Chance of each other tag to be left out."""

    def __post_init__(self) -> None:
        if self.keep_tags < 0:
            raise TrainingError(f"--keep-tags is {self.keep_tags}: give 0 or more")
        if not 0 <= self.tag_dropout <= 1:
            raise TrainingError(f"--tag-dropout is {self.tag_dropout}: give a share between 0 and 1")
        if self.keep_tags > 0 and not self.shuffle_tags and self.tag_dropout == 0:
            raise TrainingError("--keep-tags keeps tags from --shuffle-tags and --tag-dropout: give one of them, too")


@dataclass(frozen=True)
class TuningSettings:
    """What all fine-tuning can be told."""

    model: str = "tiny"
    """What is fine-tuned: a shipped model, a folder, a file or a hub id."""
    caption_dropout: float = 0.0
    """Share of captions replaced by none."""
    weighting: Literal["none", "min_snr", "clamped_snr"] = "none"
    """How noise levels count: all alike; less where little is to be learned (min-SNR, Hang et al. 2023); or so, but
    with all of pure noise's share."""
    snr_gamma: float = 5.0
    """Signal-to-noise ratio above which a noise level counts less."""
    noise_offset: float = 0.0
    """Noise that is the same all over a channel (0.05 is some), so that very dark and bright pictures are learned."""
    gradient_checkpointing: bool = False
    """Compute blocks twice instead of remembering what they computed: much less memory, a third slower."""
    preview: tuple[str, ...] = ()
    """Prompts to draw now and then, into the folder `previews`."""
    preview_every: int = 500
    """Images seen between previews."""

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise TrainingError(f"--caption-dropout is {self.caption_dropout}: give a share between 0 and 1")
        if not self.snr_gamma > 0:
            raise TrainingError(f"--snr-gamma is {self.snr_gamma}: give a number above 0")
        if not 0 <= self.noise_offset < 1:
            raise TrainingError(f"--noise-offset is {self.noise_offset}: give a number from 0 to below 1")
        if self.preview_every < 1:
            raise TrainingError(f"--preview-every is {self.preview_every}: give at least 1")


@dataclass(frozen=True)
class PriorSettings(TuningSettings):
    """How what is taught is kept from taking the place of all that is like it (prior preservation)."""

    class_prompt: str | None = None
    """What the thing is one of ("a cat"): the model's own pictures of that are trained on, too, so that it keeps what
    it knew. Without one of --class-prompt, --class-prompts and --class-data, nothing does that."""
    class_prompts: Path | None = None
    """A file of such prompts instead, one a line, drawn in turn: the more kinds of things, grounds and places it names,
    the more is kept."""
    class_data: Path | None = None
    """Where pictures of the class are, with captions as in --data; of --class-prompt or --class-prompts, those missing
    are drawn there. Default: `class` in the output folder."""
    class_images: int = 100
    """How many pictures of the class there are to be, where prompts are given."""
    class_guidance: float = 1.0
    """How strongly those are drawn to their prompts. 1, none, is how a model learned them: pictures drawn with more
    teach it to draw so by itself, and guidance then comes on top."""
    prior_weight: float = 1.0
    """How much pictures of the class count beside the others, as many of which are seen."""
    class_caption_dropout: float = 0.0
    """Share of the captions of the class replaced by none: what guidance leads away from is kept, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.class_caption_dropout <= 1:
            told = f"--class-caption-dropout is {self.class_caption_dropout}: give a share between 0 and 1"
            raise TrainingError(told)
        if self.class_prompt is not None and self.class_prompts is not None:
            raise TrainingError("--class-prompt and --class-prompts are two ways to say one thing: give one of them")
        if not math.isfinite(self.class_guidance):
            raise TrainingError(f"--class-guidance is {self.class_guidance}: give a number, like 1")
        if self.class_images < 1:
            raise TrainingError(f"--class-images is {self.class_images}: give at least 1")
        if not self.prior_weight >= 0:
            raise TrainingError(f"--prior-weight is {self.prior_weight}: give a number that is 0 or more")


@dataclass(frozen=True)
class AdapterSettings(PriorSettings):
    """The same, for what changes a model from outside, so that the model as it was can be asked, too."""

    class_target: Literal["noise", "model"] = "noise"
    """What pictures of the class teach: the noise that is in them, as the others do; or what the model answers without
    what is trained (Li & Hoiem 2016, "Learning without Forgetting"), which forgets less, for a forward pass more."""


@dataclass(frozen=True)
class DreamBoothSettings(PriorSettings):
    """The whole network, taught a thing from a few pictures without forgetting its class (Ruiz et al. 2023)."""

    train_text: bool = False
    """Train the text towers, too."""
    text_lr: float | None = None
    """Learning rate of the text towers. Default: --lr."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rate("text_lr", self.text_lr)
        if self.text_lr is not None and not self.train_text:
            raise TrainingError("--text-lr is of the text towers, which are not trained: add --train-text")


@dataclass(frozen=True)
class LoraSettings(AdapterSettings):
    """A small change of some layers, in a file of its own (Hu et al. 2021; Yeh et al. 2024; Liu et al. 2024)."""

    kind: Literal["lora", "locon", "loha", "lokr", "dora"] = "lora"
    """How a layer's change is made of smaller matrices: their product; the same for convolutions, too; element by
    element of two products; Kronecker's; or the product, and the length of each row by itself."""
    rank: int = 16
    """Of the matrices: how much can be learned, and how large the file is."""
    alpha: float | None = None
    """The change is scaled by alpha / rank. Default: the rank."""
    convolution_rank: int | None = None
    """The rank for 3x3 convolutions. Default: --rank."""
    convolution_alpha: float | None = None
    """Their alpha. Default: --alpha as it is, or that rank."""
    layers: Literal["attention", "transformer", "linear", "convolution"] | None = None
    """Which layers of the UNet: of its attentions; all of its transformers, with feed-forward; every linear one; or the
    convolutions, too. Default: transformer, and for locon convolution."""
    train_text: bool = False
    """Train the text towers' layers, too."""
    text_only: bool = False
    """Train those alone, and none of the UNet."""
    text_lr: float | None = None
    """Learning rate of the text towers' layers. Default: --lr."""
    unet_lr: float | None = None
    """Learning rate of the UNet's layers. Default: --lr."""
    factor: int = -1
    """Of lokr: the size of the first factor; -1 makes both about as large."""
    name: str | None = None
    """What the file is called. Default: as the output folder."""
    trigger: str | None = None
    """The words that call for what is taught: for the file's metadata."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "convolution_rank"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise TrainingError(f"{option(name)} is {getattr(self, name)}: give at least 1")
        for name in ("alpha", "convolution_alpha"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise TrainingError(f"{option(name)} is {getattr(self, name)}: give a number above 0")
        if self.factor == 0 or self.factor < -1:
            raise TrainingError(f"--factor is {self.factor}: give a size above 0, or -1")
        if self.factor != -1 and self.kind != "lokr":
            raise TrainingError(f"--factor is for --kind lokr: leave it out for {self.kind}")
        if self.text_lr is not None and not (self.train_text or self.text_only):
            raise TrainingError("--text-lr is of the text towers, which are not trained: add --train-text")
        require_rate("text_lr", self.text_lr)
        require_rate("unet_lr", self.unet_lr)
        require_name("--name", self.name)


def require_rate(name: str, rate: float | None) -> None:
    """Refuse a learning rate that is none.

    Raises:
        TrainingError: it is given, and not above 0.
    """
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise TrainingError(f"{option(name)} is {rate}: give a number above 0")


def require_name(said: str, name: str | None) -> None:
    """Refuse the name of a file that would not be in the output folder.

    Raises:
        TrainingError: it is given, and is no plain name.
    """
    if name is not None and (not name.strip() or name.startswith(".") or set(name) & set('/\\:*?"<>|\0\n')):
        raise TrainingError(f"{said} {name!r} is no name of a file in the output folder: give a plain one")


@dataclass(frozen=True)
class InversionLoop(TuningLoop):
    """One run of textual inversion: `TuningLoop`, for a few vectors that nothing pulls to zero."""

    lr: float = 5e-3
    """Highest learning rate."""
    weight_decay: float = 0.0
    """Of the vectors."""


@dataclass(frozen=True)
class InversionSettings(TuningSettings):
    """A new word: vectors for a text tower, and nothing else changed (Gal et al. 2023)."""

    placeholder: str = "<new>"
    """The word that is taught, which must be in every caption; it is what the file is called, but for < and >."""
    initial: str | None = None
    """Words whose vectors the new ones begin as. Default: vectors by chance, about as long as others."""
    vectors: int = 1
    """How many the word has: each takes one of a prompt's 75 tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vectors < 1:
            raise TrainingError(f"--vectors is {self.vectors}: give at least 1")
        require_name("--placeholder", self.file)

    @property
    def file(self) -> str:
        """What the file is called."""
        return self.placeholder.strip("<>")


@dataclass(frozen=True)
class HypernetworkSettings(AdapterSettings):
    """Small networks that bend what keys and values are made of, as AUTOMATIC1111's web UI has them."""

    structure: tuple[float, ...] = (1.0, 2.0, 1.0)
    """Widths from the first layer's input to the last one's output, as factors of what is attended to."""
    widths: tuple[int, ...] = ()
    """Widths of what is attended to that are bent, the web UI's "modules": the words' (768 in SD 1) bends what is said,
    the others what the picture sees of itself. Default: all of the UNet's."""
    activation: str = "linear"
    """Between the layers; linear is none."""
    activate_output: bool = False
    """Have one behind the last layer, too."""
    layer_norm: bool = False
    """Have a norm behind each layer."""
    dropout: tuple[float, ...] = ()
    """Chance to drop in training, for each width of the structure, 0 at both ends."""
    initialisation: Literal["normal", "xavier-uniform", "xavier-normal", "kaiming-uniform", "kaiming-normal"] = "normal"
    """How the layers begin."""
    zero_last: bool = False
    """Begin the last layer of each network at zero instead, so that nothing is changed at first. Made for another
    --initialisation than normal, whose first layers are near zero, too."""
    name: str | None = None
    """What the file is called. Default: as the output folder."""
    file_format: Literal["pt", "safetensors"] = "pt"
    """The web UI reads pt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_name("--name", self.name)
