"""Recipe: the LoRA family, small changes of layers that are trained in place of the layers (Hu et al. 2021)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from safelight.adapters.card import About, Card
from safelight.adapters.kinds import Additive, Kind, LoHa, LoKr, LoRA
from safelight.adapters.lora import Adapter, write_lora
from safelight.adapters.names import adapted
from safelight.adapters.names import layers as layers_of
from safelight.doors import Conditioning
from safelight.errors import RequestError, TrainingError
from safelight.models.networks import Config
from safelight.models.tokenizer import Tokenizing
from safelight.presets.preset import UNET
from safelight.training.config import LoopConfig
from safelight.training.folders import Entry, read_entries
from safelight.training.recipes.foundation import Foundation
from safelight.training.recipes.prior import with_class
from safelight.training.recipes.tuning import Tuning
from safelight.training.recipes.tuning_settings import LoraSettings, TuningData

_INSIDE = r".*\btransformer_blocks\.\d+\."
_TRANSFORMER = r".*\battentions\.\d+\.(proj_in|proj_out|transformer_blocks\..*)"
LAYERS: Mapping[str, str] = {
    "attention": _INSIDE + r"attn\d\..*",
    "transformer": _TRANSFORMER,
    "linear": _TRANSFORMER + r"|.*\bresnets\.\d+\.(time_emb_proj|conv_shortcut)",
    "convolution": _TRANSFORMER + r"|.*\b(resnets|downsamplers|upsamplers)\..*",
}
"""The layers of a UNet by what they are called in the settings; kohya's tools train "transformer"."""
TEXT_LAYERS = r"encoder\.layers\..*"
SLASH = "/"
"""In place of the dot, which PyTorch allows in no module's name."""


class LoraRecipe(Tuning):
    """Kinds of the LoRA family beside layers of a UNet and its text towers, which stay as they are."""

    settings: LoraSettings

    def __init__(self, settings: LoraSettings, data: TuningData, loop: LoopConfig) -> None:
        """Read the pictures, and put a fresh kind beside every layer that is to learn.

        Raises:
            DataError, ModelFileError, TrainingError: as `read_entries`, `Foundation` and `Tuning`; a rank is more than
                a layer can have.
        """
        entries = read_entries(data.data, data.caption)
        foundation = Foundation(settings.model, dtype=torch.bfloat16 if loop.precision == "bf16" else torch.float32)
        self._adapters = _fresh(settings, foundation, torch.Generator().manual_seed(loop.seed))
        super().__init__(settings, data, with_class(settings, entries, loop), foundation, loop)
        self._paces = {
            True: 1.0 if settings.unet_lr is None else settings.unet_lr / loop.lr,
            False: 1.0 if settings.text_lr is None else settings.text_lr / loop.lr,
        }
        self._name = loop.output.absolute().name if settings.name is None else settings.name
        self._about = _about(self._name, settings, data, loop, entries)

    @property
    def trained(self) -> nn.Module:
        return self._adapters

    def pace(self, part: str, parameter: str) -> float:
        """As `Paced.pace`."""
        return self._paces[parameter.startswith(f"{UNET}.")]

    def says(self, captions: Sequence[str]) -> Conditioning:
        learns = self.settings.train_text or self.settings.text_only
        said = self.foundation.says if learns else self.foundation.remembers
        return said(captions)

    @contextmanager
    def acting(self, drawing: bool) -> Iterator[Mapping[str, Tokenizing]]:
        networks: dict[str, nn.Module] = {UNET: self.foundation.unet, **self.foundation.towers}
        attached: list[nn.Module] = []
        try:
            for part, kinds in self._adapters.items():
                assert isinstance(kinds, nn.ModuleDict)
                for name, kind in kinds.items():
                    layer = networks[part].get_submodule(name.replace(SLASH, "."))
                    assert isinstance(kind, Kind)
                    layer.forward = partial(kind, layer=layer)
                    attached.append(layer)
            yield self.foundation.tokenizers
        finally:
            for layer in attached:
                del layer.forward

    def export(self, folder: Path, weights: Mapping[str, nn.Module]) -> None:
        """One file, with kohya's keys and metadata."""
        [adapters] = weights.values()
        assert isinstance(adapters, nn.ModuleDict)
        folder.mkdir(parents=True, exist_ok=True)
        write_lora(
            folder / f"{self._name}.safetensors",
            Adapter(adapter_kinds(adapters), Card(self._name)),
            self.preset,
            self._about,
        )


def adapter_kinds(adapters: nn.ModuleDict) -> dict[str, dict[str, Kind]]:
    """By part and layer."""
    found: dict[str, dict[str, Kind]] = {}
    for part, kinds in adapters.items():
        assert isinstance(kinds, nn.ModuleDict)
        found[part] = {name.replace(SLASH, "."): kind for name, kind in kinds.items() if isinstance(kind, Kind)}
    return found


def _fresh(settings: LoraSettings, foundation: Foundation, generator: torch.Generator) -> nn.ModuleDict:
    """A kind for every layer that is to learn, by part and layer: changing nothing yet."""
    parts = adapted(foundation.preset.networks)
    wanted: dict[str, str] = {}
    if not settings.text_only:
        default = "convolution" if settings.kind == "locon" else "transformer"
        wanted[UNET] = LAYERS[default if settings.layers is None else settings.layers]
    if settings.train_text or settings.text_only:
        if not set(foundation.towers) <= set(parts):
            raise TrainingError(f"the text tower of {settings.model} is no CLIP: leave out --train-text")
        wanted |= dict.fromkeys(foundation.towers, TEXT_LAYERS)
    networks: dict[str, nn.Module] = {UNET: foundation.unet, **foundation.towers}
    found = nn.ModuleDict()
    for part, pattern in wanted.items():
        found[part] = nn.ModuleDict(
            {
                name.replace(".", SLASH): _kind(settings, part, name, networks[part], shape, generator)
                for name, shape in _matching(parts[part], pattern)
            }
        )
    return found


def _matching(config: Config, pattern: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in layers_of(config).items():
        if len(shape) > 1 and re.fullmatch(pattern, name):
            yield name, shape


def _kind(
    settings: LoraSettings,
    part: str,
    name: str,
    network: nn.Module,
    shape: tuple[int, ...],
    generator: torch.Generator,
) -> Kind:
    rank, alpha, mend = settings.rank, settings.alpha, "--rank"
    if max(shape[2:], default=1) > 1:
        if settings.convolution_rank is not None:
            rank, mend = settings.convolution_rank, "--convolution-rank"
        alpha = alpha if settings.convolution_alpha is None else settings.convolution_alpha
    alpha = float(rank) if alpha is None else alpha
    made: Additive
    try:
        match settings.kind:
            case "loha":
                made = LoHa.fresh(shape, rank, alpha, generator)
            case "lokr":
                made = LoKr.fresh(shape, rank, alpha, generator, factor=settings.factor)
            case _:
                made = LoRA.fresh(shape, rank, alpha, generator)
    except RequestError as error:
        raise TrainingError(f"{part}'s layer {name}: {error}; give a smaller {mend}") from error
    if settings.kind == "dora":
        made.decompose(network.get_submodule(name).weight)  # type: ignore[arg-type]  # every layer with a shape has one
    return made.requires_grad_(True)


def _about(name: str, settings: LoraSettings, data: TuningData, loop: LoopConfig, entries: Sequence[Entry]) -> About:
    """How it was trained, in kohya's words."""
    tags = Counter(tag.strip() for entry in entries for tag in entry.caption.split(",") if tag.strip())
    said = {
        "ss_sd_model_name": Path(settings.model).name,
        "ss_learning_rate": loop.lr,
        "ss_unet_lr": loop.lr if settings.unet_lr is None else settings.unet_lr,
        "ss_text_encoder_lr": loop.lr if settings.text_lr is None else settings.text_lr,
        "ss_num_train_images": sum(entry.repeats for entry in entries),
        "ss_steps": -(-loop.images // loop.step_images),
        "ss_batch_size_per_device": loop.batch,
        "ss_gradient_accumulation_steps": loop.accumulate,
        "ss_gradient_checkpointing": settings.gradient_checkpointing,
        "ss_lr_scheduler": loop.schedule,
        "ss_optimizer": loop.optimizer,
        "ss_max_grad_norm": loop.clip,
        "ss_mixed_precision": "bf16" if loop.precision == "bf16" else "no",
        "ss_min_snr_gamma": settings.snr_gamma if settings.weighting == "min_snr" else None,
        "ss_noise_offset": settings.noise_offset if settings.noise_offset > 0 else None,
        "ss_caption_dropout_rate": settings.caption_dropout,
        "ss_shuffle_caption": data.shuffle_tags,
        "ss_keep_tokens": data.keep_tags,
        "ss_caption_tag_dropout_rate": data.tag_dropout,
        "ss_enable_bucket": not data.square,
        "ss_bucket_no_upscale": data.no_enlarge,
        "ss_seed": loop.seed,
        "ss_tag_frequency": json.dumps({Path(data.data).name: dict(tags.most_common())}),
    }
    return About(name, trigger=settings.trigger, training={key: str(value) for key, value in said.items()})
