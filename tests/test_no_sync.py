"""Between the first step and the last nobody waits for the device that computes.

Proven without one: tensors on the "meta" device have no numbers, so that whoever reads one fails; and every copy from
the CPU must be one that is not waited for. What is on the CPU (noise levels, seeds, drawn noise) may be read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import safelight
from safelight.diffusion.samplers import SAMPLERS
from safelight.errors import RequestError
from safelight.models.networks import unfilled
from safelight.tasks import walk as walking
from safelight.tasks.model import Model
from safelight.tasks.precision import careful, looked_at_later
from safelight.tasks.request import Request

META = torch.device("meta")
READS = {"dpm_adaptive": "it measures its own errors, and chooses its steps by them"}
"""Samplers that must look at numbers."""
REQUESTS: dict[str, dict[str, Any]] = {
    "guided": {},
    "one by one": {"one_by_one": True},
    "CFG++": {"cfg_pp": True, "guidance": 0.6},
    "rescaled": {"guidance_rescale": 0.7},
    "thresholded": {"threshold": 0.99},
    "projected": {"apg": (0.0, 2.5, -0.5)},
    "perpendicular": {"perp_neg": 1.0, "negative_prompt": "grey"},
    "in an interval": {"guidance_interval": (0.2, 0.8)},
    "perturbed": {"pag": 2.0},
    "self-attention": {"sag": 0.75},
    "FreeU": {"freeu": (1.5, 1.6, 0.9, 0.2)},
    "deep features kept": {"deep_every": 2},
    "tokens merged": {"merge_tokens": 0.5},
    "by windows": {"window": 32},
    "changing words": {"prompt": "a red [apple:pear:0.5] AND a blue sky"},
    "noise added": {"sampler": "euler", "s_churn": 1.0},
}


class NoMaking(TorchFunctionMode):
    """Fails where a tensor is made on the device of numbers from Python, which is a copy that is waited for."""

    def __torch_function__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **({} if kwargs is None else kwargs))
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            assert made.device.type == "cpu", "somebody waits for numbers from Python"
        return made


class NoCopying(TorchDispatchMode):
    """Fails where the CPU would wait for the device: by a number that is read, or a copy that is waited for."""

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        given = {} if kwargs is None else kwargs
        tensors = [x for x in (*args, *given.values()) if isinstance(x, Tensor)]
        if func is torch.ops.aten._to_copy.default:
            to = given.get("device")
            if to is not None and torch.device(to) != args[0].device and not given.get("non_blocking"):
                raise AssertionError(f"somebody waits for a copy from {args[0].device} to {to}")
        elif func is torch.ops.aten.copy_.default and args[0].device != args[1].device:
            waits = not (given.get("non_blocking") or (len(args) > 2 and args[2]))
            assert not waits or args[1].ndim == 0, "somebody waits for a copy"
        elif func is torch.ops.aten._local_scalar_dense.default or "nonzero" in str(func):
            assert all(x.device.type == "cpu" for x in tensors), f"{func} waits for its answer"
        return func(*args, **given)


@contextmanager
def unwaited() -> Iterator[None]:
    with NoMaking(), NoCopying():
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    """The tiny model without its numbers."""
    tiny = safelight.load("tiny")
    networks = {part: unfilled(config) for part, config in tiny.preset.networks.items()}
    return Model(tiny.preset, networks, tiny.tokenizers)


def begun(model: Model, request: Request) -> Iterator[Any]:
    """The steps of a request, all of it prepared."""
    steps = model.steps(request)
    next(steps)  # what is told is encoded before it, and may be waited for
    return steps


def walked(model: Model, count: int = 3, **asked: Any) -> int:
    """How many steps behind the first were made without waiting; of many more."""
    given = {"prompt": "a red apple", "seed": 1, "steps": 6 * count, "batch": 2, "guidance": 4.0} | asked
    steps = begun(model, safelight.TextToImage(width=64, height=64, **given))
    with unwaited():
        made = sum(1 for _ in islice(steps, count))
    steps.close()  # type: ignore[attr-defined]
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - set(READS)))
def test_no_sampler_waits_for_the_device(model: Model, name: str) -> None:
    assert walked(model, sampler=name) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_no_guidance_waits_for_the_device(model: Model, name: str) -> None:
    assert walked(model, **REQUESTS[name]) == 3


def test_the_samplers_that_read_numbers_are_those_that_must(model: Model) -> None:
    for name in READS:
        with pytest.raises((NotImplementedError, RuntimeError, AssertionError)):
            walked(model, sampler=name)


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: torch.randn(3).to(x.device) * x,
        lambda x: torch.tensor([1.0, 2.0, 3.0], device=x.device) * x,
        lambda x: x.new_tensor([1.0, 2.0, 3.0]) * x,
        lambda x: x.cpu(),
        torch.nonzero,
    ],
)
def test_waiting_would_be_seen(waits: Any) -> None:
    x = torch.empty(3, device=META)
    with pytest.raises((NotImplementedError, RuntimeError, AssertionError)), unwaited():
        waits(x)


# What is looked at later is found, and mended.


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU taken for a device that is not waited for."""
    monkeypatch.setattr(walking, "far", lambda device: True)


REQUEST = safelight.TextToImage(prompt="a red apple", seed=1, steps=6, sampler="euler_a", guidance=1.0)


def spoilt(model: Model, numbers: range, by: float) -> Any:
    """The UNet's answers of these numbers are multiplied by something; returns what ends it."""
    asked = itertools.count()
    return model.unet.register_forward_hook(lambda _, __, y: y * by if next(asked) in numbers else y)


def test_steps_are_the_same_whether_they_are_looked_at_at_once_or_later(far: None) -> None:
    model = safelight.load("tiny")
    later = [step.x for step in model.steps(REQUEST)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walking, "far", lambda device: False)
        at_once = [step.x for step in model.steps(REQUEST)]
    assert len(later) == len(at_once) == 6
    assert all(torch.equal(a, b) for a, b in zip(later, at_once, strict=True))


def test_what_was_too_large_is_made_again_from_that_step_on(far: None) -> None:
    model = safelight.load("tiny", dtype="float16")
    right = [step.x for step in model.steps(REQUEST)]
    hook = spoilt(model, range(3, 4), float("inf"))
    steps = list(model.steps(REQUEST))
    hook.remove()
    assert [step.index for step in steps] == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert not steps[3].x.isfinite().all()
    assert torch.equal(steps[-1].x, right[-1])
    assert model.draw(REQUEST)[0].size == (64, 64)


def test_numbers_that_are_none_are_said_with_their_step(far: None) -> None:
    model = safelight.load("tiny")
    hook = spoilt(model, range(3, 100), float("nan"))
    with pytest.raises(RequestError, match=r"step 1 .*--dtype float32"):  # of the second walk, whose answers all are
        list(model.steps(REQUEST))
    hook.remove()


def test_the_first_answer_of_a_network_is_looked_at_at_once() -> None:
    network, finite = nn.Linear(1, 1).half(), []
    ask = lambda dtype: network(torch.ones(1, 1, dtype=dtype))  # noqa: E731
    with looked_at_later(finite):
        careful(network, ask)
        assert finite == []
        careful(network, ask)
    assert [bool(one) for one in finite] == [True]
    careful(network, ask)
    assert len(finite) == 1
