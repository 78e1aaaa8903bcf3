"""The self-attentions of a UNet: which there are, what stands in for them for a time, and how they are watched.

Both kinds of change are context managers that put nothing into the network's tensors, cost nothing when they are not
entered, and leave the network as it was whatever happens inside. They act on the network itself: within one, whoever
asks it meets the change, so enter it around a single question.

Shapes: B batch, C channels, L positions, h w size of the level that is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from safelight.models.layers import Attending, PositionAttention, attend, heads_apart
from safelight.models.spatial_transformer import Attention, SpatialTransformer, TransformerBlock
from safelight.models.unet import UNet

MIDDLE = ("mid_block",)
"""The layers that perturbed and self-attention guidance choose unless told otherwise."""


def self_attentions(unet: UNet) -> dict[str, Attention | PositionAttention]:
    """Every attention of a picture to itself, by its name within the network, in the order of the network."""
    found: dict[str, Attention | PositionAttention] = {}
    for name, module in unet.named_modules():
        if isinstance(module, PositionAttention):
            found[name] = module
        elif isinstance(module, TransformerBlock) and not module.context_only:
            found[f"{name}.attn1"] = module.attn1
    return found


def chosen_attentions(unet: UNet, layers: Sequence[str]) -> dict[str, Attention | PositionAttention]:
    """Those whose names begin with one of `layers`.

    Args:
        layers: dotted beginnings of names: "mid_block", "up_blocks.1", "down_blocks.2.attentions.0".

    Raises:
        ValueError: a layer has no self-attention, or there is none of that name.
    """
    found = self_attentions(unet)
    chosen: dict[str, Attention | PositionAttention] = {}
    for layer in layers:
        below = {name: module for name, module in found.items() if f"{name}.".startswith(f"{layer}.")}
        if below == {}:
            blocks = sorted({".".join(name.split(".attentions.")[0].split(".")[:2]) for name in found})
            raise ValueError(f"there is no self-attention in {layer!r}: choose among {', '.join(blocks)}")
        chosen |= below
    return chosen


@contextmanager
def attending_by(modules: Mapping[str, Attention | PositionAttention], attending: Attending) -> Iterator[None]:
    """Within it these layers attend by another function."""
    before = [(module, module.attending) for module in modules.values()]
    try:
        for module, _ in before:
            module.attending = attending
        yield
    finally:
        for module, old in before:
            module.attending = old


def _identity(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention whose map is the identity: every position sees only itself."""
    return v


@contextmanager
def identity_attention(unet: UNet, layers: Sequence[str] = MIDDLE) -> Iterator[None]:
    """Within it the self-attentions of some layers are the identity (perturbed attention: Ahn et al. 2024, sec. 4).

    Args:
        layers: as in `chosen_attentions`.

    Raises:
        ValueError: a layer has no self-attention, or there is none of that name.
    """
    with attending_by(chosen_attentions(unet, layers), _identity):
        yield


@contextmanager
def attention_received(unet: UNet) -> Iterator[Callable[[], Tensor]]:
    """Within it the first self-attention of the middle is watched; what the network answers is the same to the bit.

    Yields:
        A function that tells of the network's last answer how much attention each position received:
        (B, 1, h, w) float32, the mean over the heads of the map's columns, summed (Hong et al. 2023, sec. 4).
        It is 1 on average.
    """
    middle = unet.mid_block.attentions[0]
    assert isinstance(middle, PositionAttention | SpatialTransformer)
    name, first = next(iter(chosen_attentions(unet, MIDDLE).items()))
    received: list[Tensor] = []
    size: list[torch.Size] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        size[:] = [inputs[0].shape[-2:]]

    def watched(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        received[:] = [_received(q, k, heads)]
        return attend(q, k, v, heads)

    def tell() -> Tensor:
        if received == []:
            raise RuntimeError("the network has not been asked yet")
        return received[0].reshape(-1, 1, *size[0])

    hook = middle.register_forward_pre_hook(look)
    try:
        with attending_by({name: first}, watched):
            yield tell
    finally:
        hook.remove()


def _received(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """The attention that each position receives from all: q and k (B, L, C) -> (B, L), float32."""
    q, k = heads_apart(q.float(), heads), heads_apart(k.float(), heads)
    shares = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)  # (B, heads, L, L)
    return shares.mean(dim=1).sum(dim=1)
