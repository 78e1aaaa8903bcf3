"""`--low-memory` on a GPU: in which order weights come and go, without one.

`Networks` is tried with a carrier that only writes down what it is told; `Carrier` itself with streams that do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import safelight
from safelight.tasks import carrying
from safelight.tasks.carrying import Carrier
from safelight.tasks.model import Model
from safelight.tasks.parts import Networks
from safelight.tasks.pictures import to_data_uri
from toy import toy_folder

REQUEST = safelight.TextToImage(prompt="a red apple", seed=5, steps=3)


class Written:
    """A carrier that brings networks at once, and writes down what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.there: set[str] = set()
        self.most = 0

    def begin(self, part: str, make: Callable[[], nn.Module]) -> Future[nn.Module]:
        self.told.append(f"begin {part}")
        assert part not in self.there
        self.there.add(part)
        self.most = max(self.most, len(self.there))
        coming: Future[nn.Module] = Future()
        coming.set_result(make())
        return coming

    def end(self, part: str, coming: Future[nn.Module]) -> nn.Module:
        self.told.append(f"end {part}")
        return coming.result()

    def drop(self, part: str, coming: Future[nn.Module]) -> None:
        self.told.append(f"drop {part}")
        self.there.remove(part)

    def back(self, part: str) -> None:
        self.told.append(f"back {part}")
        self.there.remove(part)


def carried(folder: Path) -> tuple[Model, Written]:
    model, carrier = safelight.load(folder, "cpu", low_memory=True), Written()
    networks = model.networks
    model.networks = Networks(networks._makers, networks.device, networks.dtype, frees=True, carrier=carrier)
    return model, carrier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("model") / "toy")


def test_the_unet_comes_while_the_words_are_read_and_the_autoencoder_in_the_last_step(folder: Path) -> None:
    model, carrier = carried(folder)
    steps: list[int] = []
    pictures = model.draw(REQUEST, lambda step: carrier.told.append(f"step {step.index}"))
    assert steps == []
    assert carrier.told == [
        "begin text",
        "begin unet",
        "end text",
        "back text",
        "end unet",
        "step 0",
        "step 1",
        "begin autoencoder",
        "step 2",
        "back unet",
        "end autoencoder",
        "back autoencoder",
    ]
    assert carrier.there == set() and carrier.most == 2, "one part more than is asked"
    assert pictures[0].tobytes() == safelight.load(folder, "cpu").draw(REQUEST)[0].tobytes()


def test_a_walk_of_one_step_expects_its_end_from_the_beginning(folder: Path) -> None:
    model, carrier = carried(folder)
    model.draw(REQUEST.changed(steps=1, spacing="trailing", sampler="euler"))
    assert carrier.told.index("begin autoencoder") < carrier.told.index("end unet")
    assert carrier.there == set()


def test_what_was_expected_and_never_asked_is_let_go(folder: Path) -> None:
    model, carrier = carried(folder)
    for _ in model.steps(REQUEST):
        pass
    assert carrier.told[-2:] == ["back unet", "drop autoencoder"]
    assert carrier.there == set()
    steps = model.steps(REQUEST)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert carrier.there == set()


def test_a_request_that_fails_leaves_nothing_behind(folder: Path) -> None:
    model, carrier = carried(folder)
    with pytest.raises(RuntimeError, match="no more"):
        model.draw(REQUEST, lambda step: (_ for _ in ()).throw(RuntimeError("no more")))
    assert carrier.there == set()


def test_a_picture_that_is_begun_with_is_encoded_first(folder: Path) -> None:
    model, carrier = carried(folder)
    picture = safelight.load(folder, "cpu").draw(REQUEST)[0]
    request = safelight.ImageToImage(prompt="a red apple", seed=5, steps=4, image=to_data_uri(picture))
    model.draw(request)
    assert carrier.told[:5] == ["begin autoencoder", "end autoencoder", "begin text", "begin unet", "end text"]
    assert carrier.there == set()


# The carrier


class Streams:
    """What a GPU's streams are told, in order; and whose turn it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.now = self.stream("main")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.stream("side"))
        monkeypatch.setattr(torch.cuda, "Event", lambda: Happening(self))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.now)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(carrying, "pinned", self.pin)

        def copy_(x: Tensor, y: Tensor, non_blocking: bool) -> Tensor:
            return self.copy(x, y, non_blocking)

        monkeypatch.setattr(Tensor, "copy_", copy_)
        monkeypatch.setattr(torch, "empty_like", self.empty)
        self._copy = torch.ops.aten.copy_.default
        self._empty = torch.ops.aten.empty_like.default

    def stream(self, name: str) -> Stream:
        return Stream(name, self)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        yield
        self.now = before

    def pin(self, x: Tensor, device: torch.device) -> Tensor:
        self.told.append("pin")
        return x.clone()

    def empty(self, x: Tensor, device: torch.device) -> Tensor:
        self.told.append(f"{self.now.name} allocates")
        y: Tensor = self._empty(x)
        return y.fill_(float("nan"))

    def copy(self, x: Tensor, y: Tensor, non_blocking: bool) -> Tensor:
        assert non_blocking
        self.told.append(f"{self.now.name} copies")
        copied: Tensor = self._copy(x, y)
        return copied


class Stream:
    def __init__(self, name: str, streams: Streams) -> None:
        self.name, self._streams = name, streams

    def wait_stream(self, other: Stream) -> None:
        self._streams.told.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: Happening) -> None:
        self._streams.told.append(f"{self.name} waits for what {event.of} did")


class Happening:
    def __init__(self, streams: Streams) -> None:
        self.of = ""

    def record(self, stream: Stream) -> None:
        self.of = stream.name


def test_copies_are_made_beside_and_waited_for_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(nn.Linear(2, 3))
        return made[-1]

    streams = Streams(monkeypatch)
    carrier = Carrier(torch.device("cpu"))
    coming = carrier.begin("part", make)
    coming.result()
    sent = [*["main allocates"] * 2, "side waits for main", *["side copies"] * 2]
    assert streams.told == ["pin", "pin", *sent], "memory of the stream that uses it; its old work is waited for"
    streams.told.clear()
    network = carrier.end("part", coming)
    assert streams.told == ["main waits for what side did"], "before the network is asked, and nobody else"
    host = dict(carrier._kept["part"][1])
    there = dict(network.named_parameters())
    assert all(torch.equal(there[name], x) and there[name] is not x for name, x in host.items())
    carrier.back("part")
    assert all(x.data_ptr() == host[name].data_ptr() for name, x in network.named_parameters())
    streams.told.clear()
    assert carrier.end("part", carrier.begin("part", make)) is network, (
        "the network is the same, and so what is known of it"
    )
    assert len(made) == 1 and streams.told == [*sent, "main waits for what side did"]
    streams.told.clear()
    unused = carrier.begin("part", make)
    unused.result()
    carrier.drop("part", unused)
    assert streams.told[-1] == "main waits for what side did", "its memory is for others only then"
