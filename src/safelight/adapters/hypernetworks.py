"""Hypernetworks, as AUTOMATIC1111's web UI has them: small networks that bend what keys and values are made of.

For each width of what a UNet attends to, to a context or to itself, there is one for keys and one for values:
x + strength * linear(x). The attention's own layers stay as they are, and so do all tensors of the network.

Shapes: B batch, L tokens or positions, D width of what is attended to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from safelight.adapters.origin import CONTEXTS, Origin
from safelight.errors import ModelFileError, RequestError
from safelight.models.spatial_transformer import Attention
from safelight.models.unet import UNet

LINEAR = "linear"
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardshrink": nn.Hardshrink,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "leakyrelu": nn.LeakyReLU,
    "logsigmoid": nn.LogSigmoid,
    "mish": nn.Mish,
    "prelu": nn.PReLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "rrelu": nn.RReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softshrink": nn.Softshrink,
    "softsign": nn.Softsign,
    "swish": nn.Hardswish,  # so the web UI
    "tanh": nn.Tanh,
    "tanhshrink": nn.Tanhshrink,
}
"""By the web UI's names, which are PyTorch's in small letters. With `LINEAR` there is none between the layers."""
_OVER_THE_BATCH = "it is taken over the batch there, so that a picture would depend on its neighbours"
UNUSABLE: Mapping[str, str] = {
    "softmax": _OVER_THE_BATCH,
    "softmin": _OVER_THE_BATCH,
    "logsoftmax": _OVER_THE_BATCH,
    "softmax2d": _OVER_THE_BATCH,
    "glu": "it halves the width, and no layer fits behind it",
    "threshold": "it needs numbers that no file has",
    "multiheadattention": "it needs numbers that no file has",
}
"""What the web UI lists beside those, and why nobody can have used it."""

Initialisation = Literal["normal", "xavier-uniform", "xavier-normal", "kaiming-uniform", "kaiming-normal"]
INITIALISATIONS: tuple[Initialisation, ...] = get_args(Initialisation)
NORMAL_STD = 0.01

DROPOUT = 0.3
"""Where the web UI has dropout, unless a file says otherwise."""
LARGEST_FACTOR = 64.0
MOST_LAYERS = 32
WIDEST = 1 << 13
KEYS, VALUES = "k", "v"


class Layer(NamedTuple):
    """One of the layers in a row."""

    kind: str
    """`LINEAR`, an activation, "norm" or "dropout"."""
    before: int
    """Width of what goes in."""
    behind: int
    """Width of what comes out."""
    chance: float = 0.0
    """Of dropout."""


@dataclass(frozen=True)
class HypernetworkConfig:
    """The shape of all networks of one hypernetwork."""

    structure: tuple[float, ...] = (1.0, 2.0, 1.0)
    """Widths from the first layer's input to the last one's output, as factors of D; both ends are 1."""
    activation: str = LINEAR
    """One of `ACTIVATIONS`, or `LINEAR`."""
    activate_output: bool = False
    """Whether there is one behind the last layer, too."""
    norm: bool = False
    """Whether a LayerNorm stands behind each layer and its activation."""
    dropout: tuple[float, ...] = ()
    """Chance to drop behind the layer that makes each width of the structure, in training; () is none."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            ValueError: in one line, what is wrong.
        """
        s, d = self.structure, self.dropout
        if not (2 <= len(s) <= MOST_LAYERS + 1 and s[0] == s[-1] == 1):
            raise ValueError(f"a structure has 1 at both ends and at most {MOST_LAYERS} layers, unlike {_short(s)}")
        if not all(math.isfinite(factor) and 0 < factor <= LARGEST_FACTOR for factor in s):
            raise ValueError(
                f"the factors of a structure are above 0 and at most {LARGEST_FACTOR:g}, unlike {_short(s)}"
            )
        if self.activation in UNUSABLE:
            raise ValueError(f"the activation {self.activation!r} cannot be used: {UNUSABLE[self.activation]}")
        if self.activation != LINEAR and self.activation not in ACTIVATIONS:
            known = ", ".join((LINEAR, *ACTIVATIONS))
            raise ValueError(f"there is no activation {self.activation[:40]!r}: it is one of {known}")
        if d and not (len(d) == len(s) and all(0 <= chance < 1 for chance in d) and d[0] == d[-1] == 0):
            raise ValueError(f"dropout is a number from 0 to 1 for each width, 0 at both ends, unlike {_short(d)}")

    def layers(self, width: int) -> Iterator[Layer]:
        """What stands in a row for a width D.

        Raises:
            ValueError: a layer would have no width.
        """
        widths = [int(width * factor) for factor in self.structure]
        if min(widths) < 1:
            raise ValueError(f"the structure {_short(self.structure)} leaves nothing of a width of {width}")
        for i in range(len(widths) - 1):
            before, behind = widths[i], widths[i + 1]
            yield Layer(LINEAR, before, behind)
            if self.activation != LINEAR and (i < len(widths) - 2 or self.activate_output):
                yield Layer(self.activation, behind, behind)
            if self.norm:
                yield Layer("norm", behind, behind)
            if self.dropout and self.dropout[i + 1] > 0:
                yield Layer("dropout", behind, behind, self.dropout[i + 1])

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """The names and shapes of the weights for a width, as every file has them: `linear.N.weight`."""
        found: dict[str, tuple[int, ...]] = {}
        for n, layer in enumerate(self.layers(width)):
            if layer.kind in (LINEAR, "norm"):
                found[f"linear.{n}.weight"] = (layer.behind, layer.before)[: 2 if layer.kind == LINEAR else 1]
                found[f"linear.{n}.bias"] = (layer.behind,)
            elif layer.kind == "prelu":
                found[f"linear.{n}.weight"] = (1,)
        return found


def standard_dropout(structure: Sequence[float], last: bool = False) -> tuple[float, ...]:
    """Where the web UI drops if it is only told to: behind each inner layer, and the last but one if it is asked."""
    return (0.0, *[DROPOUT] * (len(structure) - 3), DROPOUT if last else 0.0, 0.0)[-len(structure) :]


class Bend(nn.Module):
    """x + strength * linear(x), in float32."""

    def __init__(self, width: int, config: HypernetworkConfig) -> None:
        super().__init__()
        self.linear = nn.Sequential(*map(_made, config.layers(width)))

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """(B, L, D) of any dtype -> (B, L, D) of the same."""
        full = x.float()
        y: Tensor = full + strength * self.linear(full)
        return y.to(x.dtype)


def _made(layer: Layer) -> nn.Module:
    match layer.kind:
        case "linear":
            return nn.Linear(layer.before, layer.behind)
        case "norm":
            return nn.LayerNorm(layer.behind)
        case "dropout":
            return nn.Dropout(layer.chance)
        case kind:
            return ACTIVATIONS[kind]()


class Hypernetwork(nn.Module):
    """A pair of networks for each width that they act on. Its parameters are what training changes."""

    def __init__(
        self,
        widths: Iterable[int],
        config: HypernetworkConfig | None = None,
        *,
        initialisation: Initialisation = "normal",
        origin: Origin | None = None,
        file: Path | None = None,
    ) -> None:
        """Build the networks; `initialise` fills them.

        Args:
            widths: of what the attentions of a UNet see: `attended_widths`.
            config: None: the defaults.
            initialisation: how it is or was begun.
            origin: where it comes from, for the record.
            file: that it was read from.

        Raises:
            ValueError: a layer would have no width.
        """
        super().__init__()
        self.config = HypernetworkConfig() if config is None else config
        self.initialisation: Initialisation = initialisation
        self.origin, self.file = Origin() if origin is None else origin, file
        self.pairs = nn.ModuleDict(
            {
                str(width): nn.ModuleDict({KEYS: Bend(width, self.config), VALUES: Bend(width, self.config)})
                for width in sorted(set(widths))
            }
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """That there are networks for, ascending."""
        return tuple(int(width) for width in self.pairs)

    def bend(self, width: int, of: Literal["k", "v"]) -> Bend:
        """The network for keys, or for values, of a width."""
        return cast(Bend, cast(nn.ModuleDict, self.pairs[str(width)])[of])

    def initialise(self, generator: torch.Generator | None = None, *, zero_last: bool = False) -> None:
        """Draw the weights as the web UI does, by `initialisation`: norms are always normal, and biases 0.

        Args:
            zero_last: what stands last of each network then begins at zero, as a LoRA's second matrix does (Hu et al.
                2021, sec. 4.1): it changes nothing yet, and what stands last learns at full pace from the first step.

        Raises:
            ValueError: an activation stands last, which may pass no gradient at zero.
        """
        if zero_last and self.config.activate_output and not self.config.norm and self.config.activation != LINEAR:
            raise ValueError("what ends in an activation cannot begin as nothing: many learn nothing from there")
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                how = "normal" if isinstance(module, nn.LayerNorm) else self.initialisation
                _draw(module.weight, how, self.config.activation, generator)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if zero_last and isinstance(module, Bend):
                nn.init.zeros_([m for m in module.linear if isinstance(m, nn.Linear | nn.LayerNorm)][-1].weight)


def _draw(weight: Tensor, how: Initialisation, activation: str, generator: torch.Generator | None) -> None:
    slope: Literal["leaky_relu", "relu"] = "leaky_relu" if activation == "leakyrelu" else "relu"
    match how:
        case "normal":
            nn.init.normal_(weight, std=NORMAL_STD, generator=generator)
        case "xavier-uniform":
            nn.init.xavier_uniform_(weight, generator=generator)
        case "xavier-normal":
            nn.init.xavier_normal_(weight, generator=generator)
        case "kaiming-uniform":
            nn.init.kaiming_uniform_(weight, nonlinearity=slope, generator=generator)
        case "kaiming-normal":
            nn.init.kaiming_normal_(weight, nonlinearity=slope, generator=generator)


# At work


def attended_widths(unet: nn.Module) -> tuple[int, ...]:
    """The widths of all that a UNet attends to, to a context and to itself, ascending."""
    return tuple(sorted({attention.to_k.in_features for attention in _attentions(unet)}))


def require_fits(hypernetwork: Hypernetwork, unet: UNet, model: str) -> tuple[int, ...]:
    """Refuse a hypernetwork of another family.

    Args:
        model: what the model is called, for the message.

    Returns:
        The widths of it that this network never sees: the web UI makes files for several families at once.

    Raises:
        ModelFileError: it is of another family.
        RequestError: the network attends to no context.
    """
    mine, met, context = hypernetwork.widths, attended_widths(unet), unet.config.context_width
    if not met or context is None:
        raise RequestError(f"{model} attends to nothing that is said: it has no use for a hypernetwork")
    strange = tuple(width for width in mine if width not in met)
    if not strange or (context in mine and all(width in CONTEXTS for width in strange)):
        return strange
    name = next((name for name in (hypernetwork.file, hypernetwork.origin.name) if name is not None), "in memory")
    families = " or ".join(CONTEXTS[width] for width in strange if width in CONTEXTS)
    raise ModelFileError(
        f"the hypernetwork {name} is of {families if families else 'another family'}: it is for the widths "
        f"{', '.join(map(str, mine))}, and {model} attends to {', '.join(map(str, met))}; use one that was made for it"
    )


@contextmanager
def bent(unet: nn.Module, hypernetworks: Sequence[tuple[Hypernetwork, float]]) -> Iterator[None]:
    """Within it a UNet's keys and values are made of what the hypernetworks give, one behind the other.

    No tensor is touched, and afterwards the network is as it was whatever happens inside. It acts on the network
    itself: within it, whoever asks it meets the change.

    Args:
        hypernetworks: each with its strength: 1.0 as it was trained, 0.0 nothing. On the device of the network.
    """
    with ExitStack() as stack:
        for attention in _attentions(unet):
            width = attention.to_k.in_features
            acting = [(one, strength) for one, strength in hypernetworks if width in one.widths and strength != 0]
            if not acting:
                continue
            keys = [(one.bend(width, "k"), strength) for one, strength in acting]
            values = [(one.bend(width, "v"), strength) for one, strength in acting]
            stack.callback(attention.to_k.register_forward_pre_hook(_bending(keys)).remove)
            stack.callback(attention.to_v.register_forward_pre_hook(_bending(values)).remove)
        yield


def _bending(bends: Sequence[tuple[Bend, float]]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def bend(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (x,) = inputs
        for one, strength in bends:
            x = one(x, strength)
        return (x,)

    return bend


def _attentions(unet: nn.Module) -> Iterator[Attention]:
    return (module for module in unet.modules() if isinstance(module, Attention))


def _short(numbers: Sequence[float]) -> str:
    return f"{list(numbers[:8])}"[:100]
