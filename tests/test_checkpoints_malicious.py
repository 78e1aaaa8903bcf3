"""Pickles that try to run code. Nothing runs, whatever they do; the error names the file and what was asked for."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from safelight.checkpoints.files import read_tensors
from safelight.errors import ModelFileError

CANARY = "canary"
SHELL = f"touch {CANARY}"
PYTHON = f"open({CANARY!r}, 'w').close()"

WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "exec",
    "compile",
    "import",
    "socket.connect",
)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> Any:
        return self.reduced


class Stateful:
    """Pickles as a call whose result gets a state."""

    def __init__(self, function: Callable[..., object], args: tuple[object, ...], state: object) -> None:
        self.reduced = (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def call(module: str, name: str, argument: str) -> bytes:
    return b"\x80\x04" + stack_global(module, name) + text(argument) + b"\x85R."


CRAFTED: dict[str, tuple[bytes, str]] = {
    "GLOBAL os.system": (b"cos\nsystem\n" + text(SHELL) + b"\x85R.", "os.system"),
    "GLOBAL posix.system": (b"cposix\nsystem\n" + text(SHELL) + b"\x85R.", "posix.system"),
    "GLOBAL nt.system": (b"cnt\nsystem\n" + text(SHELL) + b"\x85R.", "nt.system"),
    "STACK_GLOBAL os.system": (call("os", "system", SHELL), "os.system"),
    "STACK_GLOBAL builtins.eval": (call("builtins", "eval", PYTHON), "builtins.eval"),
    "STACK_GLOBAL builtins.exec": (call("builtins", "exec", PYTHON), "builtins.exec"),
    "python 2's eval": (b"c__builtin__\neval\n" + text(PYTHON) + b"\x85R.", "__builtin__.eval"),
    "builtins.__import__": (call("builtins", "__import__", "antigravity"), "builtins.__import__"),
    "builtins.getattr": (
        b"\x80\x04" + stack_global("builtins", "getattr") + stack_global("os", "path") + text("x") + b"\x86R.",
        "builtins.getattr",
    ),
    "importlib": (call("importlib", "import_module", "antigravity"), "importlib.import_module"),
    "pkgutil.resolve_name": (call("pkgutil", "resolve_name", "os:system"), "pkgutil.resolve_name"),
    "runpy": (call("runpy", "run_path", "x.py"), "runpy.run_path"),
    "subprocess": (call("subprocess", "getoutput", SHELL), "subprocess.getoutput"),
    "code.interact": (call("code", "interact", ""), "code.interact"),
    "pickle in pickle": (call("pickle", "loads", "x"), "pickle.loads"),
    "pickle's C twin": (call("_pickle", "loads", "x"), "_pickle.loads"),
    "torch.load": (call("torch", "load", "other.pt"), "torch.load"),
    "torch.serialization.load": (call("torch.serialization", "load", "other.pt"), "torch.serialization.load"),
    "torch.storage bytes": (call("torch.storage", "_load_from_bytes", "x"), "torch.storage._load_from_bytes"),
    "torch.hub": (call("torch.hub", "load", "owner/repo"), "torch.hub.load"),
    "torch.jit": (call("torch.jit", "load", "x.pt"), "torch.jit.load"),
    "torch._inductor": (call("torch._inductor.codecache", "compile_file", "x"), "compile_file"),
    "a dotted way through torch": (call("torch", "_utils.os.system", SHELL), "torch._utils.os.system"),
    "a dotted way through OrderedDict": (
        call("collections", "OrderedDict.__init__.__globals__", "x"),
        "collections.OrderedDict.__init__",
    ),
    "a look-alike package": (call("pytorch_lightning_evil", "run", SHELL), "pytorch_lightning_evil.run"),
    "numpy's runner": (call("numpy.testing._private.utils", "runstring", PYTHON), "runstring"),
    "INST": (b"(" + text(SHELL) + b"ios\nsystem\n.", "os.system"),
    "OBJ": (b"(cos\nsystem\n" + text(SHELL) + b"o.", "os.system"),
    "NEWOBJ": (b"\x80\x02cos\nsystem\n" + text(SHELL) + b"\x85\x81.", "os.system"),
    "NEWOBJ_EX": (b"\x80\x04" + stack_global("os", "system") + text(SHELL) + b"\x85}\x92.", "os.system"),
    "names through the memo": (
        b"\x80\x04" + text("os") + b"\x94" + text("system") + b"\x940h\x00h\x01\x93" + text(SHELL) + b"\x85R.",
        "os.system",
    ),
    "a state for a class": (
        b"\x80\x02ccollections\nOrderedDict\n}" + text("__setstate__") + text("x") + b"sb.",
        "sets the state",
    ),
    "a call of a storage type": (b"\x80\x02ctorch\nFloatStorage\nK\x05\x85R.", "calls torch.FloatStorage"),
    "a call of a text": (b"\x80\x02" + text("os.system") + text(SHELL) + b"\x85R.", "calls a str"),
    "the extension registry": (b"\x80\x02\x82\x01)R.", "EXT1"),
    "a buffer from outside": (b"\x80\x05\x97.", "NEXT_BUFFER"),
}


def by_python() -> dict[str, tuple[bytes, str]]:
    """What Python's own pickler writes, in all its protocols."""
    made = {}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for name, thing, said in (
            ("os.system", Call(os.system, SHELL), f"{os.system.__module__}.system"),
            ("eval", Call(eval, PYTHON), "eval"),
            ("state", Stateful(os.system, (SHELL,), {"a": 1}), "system"),
            ("in a dict", {"state_dict": {"w": Call(os.system, SHELL)}}, "system"),
            ("as a key", {Call(os.system, SHELL): 1}, "system"),
            ("torch.load", Call(torch.load, "x"), "torch.serialization.load"),
        ):
            made[f"{name}, protocol {protocol}"] = (pickle.dumps(thing, protocol), said)
    return made


CASES = {**CRAFTED, **by_python()}


def as_zip(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3")


def as_legacy(path: Path, data: bytes) -> None:
    """Behind the honest beginning of a legacy file."""
    good = io.BytesIO()
    torch.save({}, good, _use_new_zipfile_serialization=False)
    stream = io.BytesIO(good.getvalue())
    for _ in range(3):
        pickle.Unpickler(stream).load()
    path.write_bytes(good.getvalue()[: stream.tell()] + data)


def as_bare(path: Path, data: bytes) -> None:
    path.write_bytes(data)


events: list[str] = []
_watching = False


def _watch(event: str, args: tuple[object, ...]) -> None:
    # An import would show that a name was looked up; Python itself imports its text codecs when first used.
    if _watching and event.startswith(WATCHED) and "encodings" not in f"{args}":
        events.append(f"{event} {args}"[:200])


sys.addaudithook(_watch)


@pytest.fixture
def watched() -> Iterator[None]:
    global _watching  # noqa: PLW0603  (an audit hook cannot be taken away)
    events.clear()
    _watching = True
    yield
    _watching = False


@pytest.mark.parametrize("container", [as_zip, as_legacy, as_bare], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", CASES)
def test_nothing_runs_and_the_name_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    watched: None,
    case: str,
    container: Callable[[Path, bytes], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    data, said = CASES[case]
    path = tmp_path / "model.ckpt"
    container(path, data)
    with pytest.raises(ModelFileError) as caught:
        read_tensors(path)
    assert events == []
    assert not (tmp_path / CANARY).exists()
    line = str(caught.value)
    assert str(path) in line and said in line and "\n" not in line, line


def test_the_canary_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above keep from happening does happen in Python's own reader."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(CRAFTED["STACK_GLOBAL os.system"][0])
    assert (tmp_path / CANARY).exists()


def test_a_real_looking_checkpoint_with_one_bad_member_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {"model.diffusion_model.out.2.bias": torch.zeros(4), "hook": Call(os.system, SHELL)}
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "model.ckpt")
    with pytest.raises(ModelFileError, match="system"):
        read_tensors(tmp_path / "model.ckpt")
    assert not (tmp_path / CANARY).exists()


def test_framework_objects_are_inert_even_with_evil_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stubbed package is never imported, so that a function of it is as harmless as a class."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "m.ckpt", "w") as archive:
        archive.writestr("m/data.pkl", call("pytorch_lightning.utilities", "run", SHELL))
    with pytest.raises(ModelFileError, match="no weights"):
        read_tensors(tmp_path / "m.ckpt")
    assert "pytorch_lightning" not in sys.modules
    assert not (tmp_path / CANARY).exists()


BOMBS = {
    "a memo index that would take 32 GB": b"\x80\x02]r\xff\xff\xff\x7f" + b".",
    "a text that says it has 2 GB": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "a frame that says it has 2^60 bytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "a number of a million digits": b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.",
    "tuples of tuples as a key": b"\x80\x02}()" + b"2\x86" * 60 + b"Nu.",
    "a list in a list, a million times": b"\x80\x02" + b"]" * 900_000 + b"a" * 899_999 + b".",
    "nine million nothings": b"\x80\x02" + b"N0" * 4_500_000 + b".",
    "a persistent id of deep tuples": b"\x80\x02)" + b"2\x86" * 60 + b"Q.",
    "a name of deep tuples": b"\x80\x04)" + b"2\x86" * 60 + b"2\x93.",
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x02.",
    "a mark that is not there": b"\x80\x02t.",
    "a memo that is not there": b"\x80\x02h\x07.",
    "a list as a key": b"\x80\x02}]Ns.",
    "items for a number": b"\x80\x02K\x01]Na.",
    "half a pair": b"\x80\x02}(Nu.",
    "text that is no text": b"\x80\x02X\x02\0\0\0\xff\xfe.",
}


@pytest.mark.parametrize("container", [as_zip, as_bare], ids=lambda f: f.__name__)
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_typed_errors_at_once(tmp_path: Path, bomb: str, container: Callable[[Path, bytes], None]) -> None:
    path = tmp_path / "x.ckpt"
    container(path, BOMBS[bomb])
    with pytest.raises(ModelFileError) as caught:
        read_tensors(path)
    assert len(str(caught.value)) < 600


def tensor(storage: bytes, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    def number(n: int) -> bytes:
        return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)

    def numbers(items: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, items)) + b"t"

    args = storage + number(offset) + numbers(shape) + numbers(stride) + b"\x89}"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + args + b"tRs."


def storage(count: int, kind: str = "FloatStorage", word: str = "storage", key: str = "0") -> bytes:
    size = b"\x8a\x09" + count.to_bytes(9, "little", signed=True)
    return b"(" + text(word) + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + size + b"tQ"


@pytest.mark.parametrize(
    "data",
    [
        tensor(storage(4), 0, (5,), (1,)),
        tensor(storage(4), 1, (4,), (1,)),
        tensor(storage(4), -1, (1,), (1,)),
        tensor(storage(4), 0, (2, 2), (4, 1)),
        tensor(storage(4), 0, (-1,), (1,)),
        tensor(storage(4), 3, (2,), (-1,)),
        tensor(storage(4), 0, (1 << 62, 1 << 62), (0, 0)),
        tensor(storage(4), 0, (1,), (1 << 62,)),
        tensor(storage(4), 1 << 62, (0,), (1,)),
        tensor(storage(1 << 60), 0, (4,), (1,)),
        tensor(storage(-1), 0, (0,), (1,)),
        tensor(storage(5), 0, (4,), (1,)),
        tensor(storage(4, key="../../x"), 0, (4,), (1,)),
        tensor(storage(4, word="module"), 0, (4,), (1,)),
        tensor(b"N", 0, (4,), (1,)),
        tensor(b"NQ", 0, (4,), (1,)),
    ],
)
def test_a_tensor_that_reaches_beyond_its_data_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/data/0", b"\0" * 16)
    with pytest.raises(ModelFileError):
        read_tensors(path)


def test_a_crafted_tensor_within_its_data_is_read(tmp_path: Path) -> None:
    """The same craft as above, honest: so that it is the reach that is refused."""
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", tensor(storage(4), 1, (3,), (1,)))
        archive.writestr("x/data/0", struct.pack("<4f", 1, 2, 3, 4))
    assert read_tensors(path)["w"].tolist() == [2.0, 3.0, 4.0]
