"""Every network by the config that describes it: what is registered here can be built, measured and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import nn

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


@lru_cache(maxsize=128)
def shapes_of(config: Config) -> Mapping[str, tuple[int, ...]]:
    """Our name -> shape of every weight of the network that a config describes. Takes no memory for them."""
    with torch.device("meta"):
        network = NETWORKS[type(config)](config)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
