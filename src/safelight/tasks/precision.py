"""Half precision ends at 65504 (float16). Layers that go beyond are computed in float32, those and no others.

A network is asked in its own precision, and all that this costs is one look at the answer. If that is not finite, the
network is asked again with every layer watched. A layer whose answer is not finite, although what it was given is,
answers again in float32. If what it was given is not finite either, answers before it were too large together: the
terms of a sum, or queries and keys. Then the last layer before it has to answer in float32 from the beginning, so that
the sum is one in float32 too. What was found is remembered for as long as the network lives.

To look at an answer is to wait for the device that it is on. A walk over many steps can have it done later
(`looked_at_later`), from the second answer of a network on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)
ROUNDS = 8
"""How often a network is asked again, at most, before all of it is in float32: once for each sum that was too large."""
TOGETHER = ("to_q", "to_k", "to_v")
"""Layers of an attention, which must answer in one dtype."""

Ask = Callable[[torch.dtype], Tensor]
Args = tuple[object, ...]
Kwargs = dict[str, object]


class PrecisionWarning(UserWarning):
    """Layers of a network are computed in float32 from now on."""


@dataclass(frozen=True)
class Upcast:
    """What of a network is computed in float32."""

    layers: tuple[str, ...] = ()
    """By name, in the order in which it was found out."""
    whole: bool = False
    """All of it: the layers were not enough."""


_known: WeakKeyDictionary[nn.Module, Upcast] = WeakKeyDictionary()
"""Of networks that have given a finite answer."""
_later: ContextVar[list[Tensor] | None] = ContextVar("later", default=None)


@contextmanager
def looked_at_later(finite: list[Tensor]) -> Iterator[None]:
    """Within it `careful` looks only at a network's first answer, and puts down for the others if they are finite.

    Args:
        finite: is given a () bool for each of them, on the answer's device.
    """
    token = _later.set(finite)
    try:
        yield
    finally:
        _later.reset(token)


def careful(network: nn.Module, ask: Ask) -> Tensor:
    """The answer of `ask(dtype)`, which runs the network on inputs of that dtype; finite wherever float32 is.

    The first layer that went beyond the network's precision is named in a `PrecisionWarning`, once. Weights are in
    float32 only while the network is asked, and are the very tensors of before afterwards. If single layers do not
    help, all of the network is asked in float32; if that does not help either, its answer is returned as it is, and
    nothing is remembered.

    Args:
        network: whose parameters are all of one dtype.

    Returns:
        The answer, in the network's dtype or in float32.
    """
    dtype = next(network.parameters()).dtype
    if dtype not in HALF:
        return ask(dtype)
    known, later = upcast(network), _later.get()
    if later is not None and network in _known:
        with in_float32(network) if known.whole else mixed(network, known.layers):
            answer = ask(torch.float32 if known.whole else dtype)
        later.append(torch.isfinite(answer).all())
        return answer
    if not known.whole:
        with mixed(network, known.layers):
            answer = ask(dtype)
        if _finite(answer):
            _known[network] = known
            return answer
        layers, found = _search(network, lambda: ask(dtype), known.layers)
        if found is not None:
            _known[network] = Upcast(layers)
            if new := layers[len(known.layers) :]:
                _say(network, new, "it is" if len(new) == 1 else f"it and {len(new) - 1} more are", dtype)
            return found
        _say(network, layers, "all of it is", dtype)
        known = Upcast(layers, whole=True)
    with in_float32(network):
        answer = ask(torch.float32)
    if _finite(answer):
        _known[network] = known
    return answer


def upcast(network: nn.Module) -> Upcast:
    """What of a network is known to need float32."""
    return _known.get(network, Upcast())


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Its weights in float32; afterwards the very tensors that were there."""
    before = [(parameter, parameter.data) for parameter in network.parameters()]
    try:
        for parameter, data in before:
            # Of the two kinds of tensors, made in this mode or not, one cannot take the place of the other.
            with torch.inference_mode(parameter.is_inference()):
                parameter.data = data.float()
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


@contextmanager
def mixed(network: nn.Module, layers: tuple[str, ...]) -> Iterator[None]:
    """The weights of some layers in float32; each layer casts what it is given to the dtype of its own weights."""
    with ExitStack() as stack:
        for name in layers:
            stack.enter_context(in_float32(network.get_submodule(name)))
        if layers:
            _cast_inputs(network, stack)
        yield


def _cast_inputs(network: nn.Module, stack: ExitStack) -> None:
    def cast(layer: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        dtype = next(layer.parameters()).dtype
        return tuple(_in(x, dtype) for x in args), kwargs

    for layer in _layers(network).values():
        stack.callback(layer.register_forward_pre_hook(cast, with_kwargs=True).remove)


def _search(
    network: nn.Module, ask: Callable[[], Tensor], layers: tuple[str, ...]
) -> tuple[tuple[str, ...], Tensor | None]:
    """The layers that must be in float32, those known first, and the answer with them; None: they are not enough."""
    for _ in range(ROUNDS):
        watch = _Watch(layers)
        try:
            with watch.on(network):
                answer = ask()
            if _finite(answer):
                return tuple(watch.layers), answer
            culprits = watch.last()  # what is done behind the last layer was too much
        except _TooLate as late:
            culprits = late.culprits
        new = [name for name in culprits if name not in watch.layers]
        layers = (*watch.layers, *new)
        if not new:
            break
    return layers, None


class _TooLate(Exception):  # noqa: N818  (no error: it asks for another round)
    """A layer cannot mend its answer. The culprits, if any, would have to be in float32 from the beginning."""

    def __init__(self, culprits: tuple[str, ...]) -> None:
        super().__init__()
        self.culprits = culprits


class _Watch:
    """Sees every layer's answer, and has it given again in float32 where that is needed."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        self.layers = list(layers)
        """In float32 from the beginning, and then those that turned out to need it."""
        self._before: str | None = None
        self._given: tuple[Args, Kwargs] = ((), {})
        self._stack = ExitStack()

    @contextmanager
    def on(self, network: nn.Module) -> Iterator[None]:
        """Watch a network while it is asked."""
        with self._stack as stack:
            for name, layer in _layers(network).items():
                stack.callback(layer.register_forward_pre_hook(self._keep, with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(self._look(name)).remove)
            for name in self.layers:
                stack.enter_context(in_float32(network.get_submodule(name)))
            _cast_inputs(network, stack)  # behind `_keep`, which keeps what is not cast yet
            yield

    def last(self) -> tuple[str, ...]:
        """The layer that answered last, with those that must be of one dtype with it."""
        return () if self._before is None else _together(self._before)

    def _keep(self, _: nn.Module, args: Args, kwargs: Kwargs) -> None:
        self._given = (args, kwargs)

    def _look(self, name: str) -> Callable[[nn.Module, Args, object], object]:
        def look(layer: nn.Module, _: Args, answer: object) -> object:
            (args, kwargs), self._given = self._given, ((), {})
            if not _finite(answer):
                if not all(map(_finite, args)):
                    raise _TooLate(self.last())
                if name in self.layers or len(_together(name)) > 1:
                    raise _TooLate(_together(name))
                self.layers.append(name)
                self._stack.enter_context(in_float32(layer))  # it may be asked again in this round
                answer = layer.forward(*(_in(x, torch.float32) for x in args), **kwargs)
                if not _finite(answer):
                    raise _TooLate(())
            self._before = name
            return answer

        return look


def _together(name: str) -> tuple[str, ...]:
    parent, _, own = name.rpartition(".")
    return tuple(f"{parent}.{other}" for other in TOGETHER) if own in TOGETHER else (name,)


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """What has weights and no parts, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if name and not any(True for _ in module.children()) and any(True for _ in module.parameters())
    }


def _in(x: object, dtype: torch.dtype) -> object:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def _finite(x: object) -> bool:
    return not (isinstance(x, Tensor) and x.is_floating_point()) or bool(torch.isfinite(x).all())


def _say(network: nn.Module, layers: tuple[str, ...], what: str, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    place = f"{type(network).__name__}'s {layers[0]}" if layers else type(network).__name__
    warnings.warn(f"{place} went beyond {name}: {what} computed in float32", PrecisionWarning, stacklevel=3)
