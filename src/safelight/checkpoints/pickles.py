"""Reads a pickle as data. Nothing in it is ever imported, called or looked up: law 8.

A pickle is a program for a small stack machine. Ours knows the opcodes, and of the things that a program may
ask for by name it knows the few that PyTorch checkpoints are made of; each becomes a plain value. Any other
name ends the reading. Classes of the training frameworks around the weights become `Inert`, of which nothing
is kept.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import ModelFileError

MAX_BYTES = 8 << 20
"""A pickle of the largest checkpoint is 2 MB, without its tensors; more than this is a bomb."""
MAX_OPERATIONS = 400_000
"""A tensor takes about 25: those of SDXL with their averages and an optimizer's two moments are 250,000."""

INERT_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf")
"""Nothing of these is imported; their objects stand beside the weights in the original files."""
_PLAIN_TYPES = (
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset"),
    *("int", "list", "set", "slice", "str", "tuple"),
)
INERT_NAMES = frozenset(
    [
        ("_codecs", "encode"),
        ("argparse", "Namespace"),
        ("collections", "Counter"),
        ("collections", "defaultdict"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("pathlib", "PosixPath"),
        ("torch", "Size"),
        ("torch", "device"),
        ("typing", "Any"),
        *((module, kind) for module in ("builtins", "__builtin__") for kind in _PLAIN_TYPES),
    ]
)


@dataclass(frozen=True)
class Global:
    """A name that the pickle asks for. It stays a name."""

    module: str
    name: str

    def __str__(self) -> str:
        return ascii(f"{self.module}.{self.name}")[1:-1][:120]  # it is printed, and it comes from a stranger


@dataclass(frozen=True)
class Inert:
    """An object that we need nothing of."""

    kind: Global


@dataclass(frozen=True)
class Reference:
    """A persistent id: what stands outside the pickle, here the storage of a tensor."""

    key: object


class Held(dict[object, object]):
    """An object of which nothing is kept but its attributes."""


Call = Callable[[tuple[object, ...]], object]
"""Makes a plain value from the arguments that the pickle gives; raises ValueError or TypeError for bad."""


def read_pickle(
    stream: io.BytesIO, path: Path, calls: dict[tuple[str, str], Call], names: frozenset[tuple[str, str]]
) -> object:
    """One object from the stream, which is left just behind it.

    Args:
        stream: the pickle.
        path: the file that the errors name.
        calls: (module, name) of what may be called -> our own function for it.
        names: (module, name) of what may be mentioned but not called.

    Raises:
        ModelFileError: the pickle is broken, too large, or asks for a name that is not allowed.
    """
    return _Machine(path, calls, names).run(stream)


class _Mark:
    """Where a MARK opcode was."""


_MARK = _Mark()
_VALUES = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg is not None
    and not opcode.stack_before
    and opcode.stack_after
    and opcode.stack_after[0] is not pickletools.anyobject
)
"""Opcodes that carry a plain value: numbers, bytes, text."""
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_SCALARS = (str, bytes, int, float, bool, type(None), Global)


class _Machine:
    """The stack machine. `run` is its whole interface."""

    def __init__(self, path: Path, calls: dict[tuple[str, str], Call], names: frozenset[tuple[str, str]]) -> None:
        self.path, self.calls, self.names = path, calls, names
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def run(self, stream: io.BytesIO) -> object:
        try:
            for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
                if count >= MAX_OPERATIONS:
                    raise ModelFileError(
                        f"{self.path} is refused: its pickle has over {MAX_OPERATIONS:,} operations; ask for a "
                        ".safetensors file"
                    )
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, arg)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
            raise ModelFileError(
                f"{self.path} is corrupted or truncated ({error}); download or copy it again"
            ) from error
        raise ModelFileError(f"{self.path} is truncated: its pickle has no end; download or copy it again")

    def step(self, name: str, arg: object) -> None:
        """Do one opcode."""
        push = self.stack.append
        if name in _VALUES:
            push(arg)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            push(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else _integer(arg)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            push(self.memo[_integer(arg)])
        elif name == "POP":
            self.stack.pop()
        elif name == "POP_MARK":
            self.marked()
        elif name == "DUP":
            push(self.stack[-1])
        elif name in ("BINPERSID", "PERSID"):
            push(Reference(self.stack.pop() if name == "BINPERSID" else arg))
        else:
            self.build(name, arg)

    def build(self, name: str, arg: object) -> None:
        """The opcodes that make and fill containers."""
        push, pop = self.stack.append, self.stack.pop
        if name in ("EMPTY_LIST", "EMPTY_SET"):
            push([])
        elif name == "EMPTY_DICT":
            push({})
        elif name in ("LIST", "FROZENSET"):
            push(self.marked())
        elif name == "TUPLE":
            push(tuple(self.marked()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            push(tuple(reversed([pop() for _ in range(int(name[-1]))])))
        elif name == "DICT":
            push(_fill({}, self.marked()))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            self.fill(list, [pop()] if name == "APPEND" else self.marked())
        elif name in ("SETITEM", "SETITEMS"):
            self.fill(dict, [pop(), pop()][::-1] if name == "SETITEM" else self.marked())
        else:
            self.ask(name, arg)

    def fill(self, kind: type, items: list[object]) -> None:
        """Put items into the container on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, kind) and isinstance(target, list):
            target.extend(items)
        elif isinstance(target, kind) and isinstance(target, dict):
            _fill(target, items)
        elif not isinstance(target, Inert):
            raise ValueError(f"items for a {type(target).__name__}")

    def ask(self, name: str, arg: object) -> None:
        """The opcodes by which other readers run code."""
        push, pop = self.stack.append, self.stack.pop
        if name == "GLOBAL":
            push(self.allowed(*str(arg).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = pop(), pop()
            push(self.allowed(module, attribute))
        elif name == "INST":
            kind = self.allowed(*str(arg).split(" ", 1))
            push(self.called(kind, tuple(self.marked())))
        elif name == "OBJ":
            kind_, *args = self.marked()
            push(self.called(kind_, tuple(args)))
        elif name in ("REDUCE", "NEWOBJ"):
            given = pop()
            push(self.called(pop(), given))
        elif name == "NEWOBJ_EX":
            keywords, given = pop(), pop()
            if keywords:
                raise ValueError("arguments by name")
            push(self.called(pop(), given))
        elif name == "BUILD":
            state, target = pop(), self.stack[-1]
            # The state of an object that we need nothing of. To set that of a name is to change a class.
            if not isinstance(target, Inert | dict):
                raise self.refused(f"sets the state of {_named(target)}")
            if isinstance(target, Held) and isinstance(state, dict):
                target.update(state)
        else:
            raise self.refused(f"uses {name}")

    def marked(self) -> list[object]:
        """Everything above the topmost mark, which goes with it."""
        items: list[object] = []
        while (top := self.stack.pop()) is not _MARK:
            items.append(top)
        items.reverse()
        return items

    def allowed(self, module: object, name: object) -> Global:
        """The name, if a checkpoint may mention it."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name that is no text")
        kind = Global(module, name)
        known = (kind.module, kind.name)
        inert = kind.module.split(".")[0] in INERT_PACKAGES or known in INERT_NAMES
        if not (inert or known in self.calls or known in self.names):
            raise self.refused(f"asks for {kind}")
        return kind

    def called(self, target: object, args: object) -> object:
        """What a call makes: a plain value by our own function, or nothing in particular."""
        if not isinstance(target, Global):
            raise self.refused(f"calls {_named(target)}")
        known = (target.module, target.name)
        if known in self.names:
            raise self.refused(f"calls {target}")
        if not isinstance(args, tuple):
            raise ValueError(f"{target} is called without arguments")
        return self.calls[known](args) if known in self.calls else Inert(target)

    def refused(self, what: str) -> ModelFileError:
        return ModelFileError(
            f"{self.path} is refused, because its pickle {what}, which is no part of a checkpoint and "
            "may run code; ask for a .safetensors file instead"
        )


def _named(value: object) -> str:
    return str(value) if isinstance(value, Global) else f"a {type(value).__name__}"


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError(f"a {type(value).__name__} for a number")
    return value


def _fill(target: dict[object, object], flat: list[object]) -> dict[object, object]:
    """Key, value, key, value... Keys are scalars only: hashing tuples of tuples of tuples takes forever."""
    if len(flat) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        scalars = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(k, _SCALARS) for k in scalars):
            raise ValueError(f"a {type(key).__name__} as a key")
        target[key] = value
    return target
