"""Every network by the config that describes it: what is registered here can be built, measured and loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.bert import Bert, BertConfig
from safelight.models.clip import ClipText, ClipTextConfig, ClipVision, ClipVisionConfig
from safelight.models.depth import Depth, DepthConfig
from safelight.models.labels import Labels, LabelsConfig
from safelight.models.normalizer import Normalizer, NormalizerConfig
from safelight.models.rescaler import Rescaler, RescalerConfig
from safelight.models.unet import UNet, UNetConfig

Config = (
    UNetConfig
    | AutoencoderConfig
    | ClipTextConfig
    | ClipVisionConfig
    | DepthConfig
    | BertConfig
    | LabelsConfig
    | RescalerConfig
    | NormalizerConfig
)

NETWORKS: Mapping[type, type[nn.Module]] = {
    UNetConfig: UNet,
    AutoencoderConfig: Autoencoder,
    ClipTextConfig: ClipText,
    ClipVisionConfig: ClipVision,
    BertConfig: Bert,
    LabelsConfig: Labels,
    RescalerConfig: Rescaler,
    NormalizerConfig: Normalizer,
    DepthConfig: Depth,
}


_DRAWN = frozenset(getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and not name.startswith("_"))


class _Undrawn(TorchFunctionMode):
    """Layers do not draw their first numbers, which on the meta device takes a second and gives none."""

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        given: dict[str, object] = kwargs if isinstance(kwargs, dict) else {}
        if func in _DRAWN:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


_spare: dict[Config, nn.Module] = {}
"""Networks that were made for their shapes: who asks for one gets it, and it is made once for both."""
SPARE = 4
"""How many: those of one model."""


def unfilled(config: Config) -> nn.Module:
    """The network that a config describes, on the meta device: it has shapes, and takes no memory for numbers."""
    spare = _spare.pop(config, None)
    if spare is not None:
        return spare
    with _Undrawn(), torch.device("meta"):
        return NETWORKS[type(config)](config)


@lru_cache(maxsize=128)
def shapes_of(config: Config) -> Mapping[str, tuple[int, ...]]:
    """Our name -> shape of every weight of the network that a config describes. Takes no memory for them."""
    network = _spare[config] = unfilled(config)
    while len(_spare) > SPARE:
        del _spare[next(iter(_spare))]
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
