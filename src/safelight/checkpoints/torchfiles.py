"""PyTorch's own containers (`.ckpt`, `.pt`, `.pth`, `.bin`), memory-mapped, without running what is in them.

Since PyTorch 1.6 a file is an uncompressed zip: `NAME/data.pkl` describes the tensors, `NAME/data/KEY` are
their bytes. Before, it was a row of pickles with the bytes behind them. Both are mapped, so that a tensor
takes no memory of its own.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, cast

import torch
from torch import Tensor

from safelight.checkpoints.pickles import MAX_BYTES, MAX_OPERATIONS, Call, Global, Held, Reference, read_pickle
from safelight.errors import ModelFileError

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<26xHH")
_DIRECTORY = struct.Struct("<4s8xI6x")
"""The end of a zip: its mark, the size of the list of its members, and more."""
_DIRECTORY_64 = struct.Struct("<4s36xQ8x")
"""The same of a large zip. It and a locator of 20 bytes stand before the former."""
_ENCRYPTED = 0x1
MAX_DIRECTORY = 4 << 20
"""The list of the largest checkpoint's tensors takes 0.5 MB: more only keeps its reader busy."""
MAX_ELEMENTS = 1 << 40
MAX_DEPTH = 6
"""Dictionaries in dictionaries that tensors are looked for in."""

STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_NAMES = frozenset(
    [("torch", name) for name in STORAGES] + [("torch", str(d).split(".")[1]) for d in STORAGES.values()]
)


@dataclass(frozen=True)
class Storage:
    """The bytes of one or more tensors, by their key in the file."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as the pickle describes it: a strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch(path: Path) -> dict[str, Tensor]:
    """All tensors of a PyTorch checkpoint, mapped: `state_dict` if there is one, else the file's own dict.

    What is not a tensor (step counters, callbacks) is left out. Of dictionaries and lists within each other, where
    there is no tensor further up, the names are joined by dots: `string_to_param.*`, `768.0.linear.weight`.

    Raises:
        ModelFileError: the file is broken, holds no weights, or asks for anything that may run code.
    """
    root, tensor = open_torch(path)
    if isinstance(root, dict) and isinstance(root.get("state_dict"), dict):
        root = root["state_dict"]
    records = {str(k): v for k, v in root.items() if isinstance(v, TensorRecord)} if isinstance(root, dict) else {}
    if not records:
        records = dict(_within(path, root))
    if not records:
        raise ModelFileError(f"{path} holds no weights; give a file with a dict of tensors or a `state_dict`")
    return {key: tensor(record) for key, record in records.items()}


def open_torch(path: Path) -> tuple[object, Callable[[TensorRecord], Tensor]]:
    """All that a PyTorch file says: the object in it, with records for tensors, and what maps the tensor of a record.

    The object is of dictionaries, lists, tuples and plain values, which a stranger wrote: any of them may be missing,
    of another kind, or contain itself.

    Raises:
        ModelFileError: as `read_torch`, but for a file without weights.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == ZIP_MAGIC
    root, place = _read_zip(path) if is_zip else _read_legacy(path)
    mapped = _map(path)
    return root, lambda record: _tensor(path, mapped, record, place(record.storage))


def _within(path: Path, root: object) -> Iterator[tuple[str, TensorRecord]]:
    """The tensors in dictionaries and lists, by the names on the way to them."""
    waiting, seen = [("", root, 0)] if isinstance(root, dict | list | tuple) else [], 0
    while waiting:
        name, value, depth = waiting.pop()
        seen += 1
        if seen > MAX_OPERATIONS:  # a pickle may name the same list twice in each of many lists
            raise ModelFileError(f"{path} is refused: over {MAX_OPERATIONS:,} values; ask for a .safetensors file")
        if isinstance(value, TensorRecord):
            yield name, value
        elif isinstance(value, dict | list | tuple) and depth < MAX_DEPTH:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            before = f"{name}." if name else ""
            waiting += [(f"{before}{key}", item, depth + 1) for key, item in reversed(list(items))]


def _read_zip(path: Path) -> tuple[object, Callable[[Storage], int]]:
    """The pickled object, and the position in the file of each storage."""
    size = path.stat().st_size
    if (listed := _directory_size(path, size)) > MAX_DIRECTORY:
        raise ModelFileError(
            f"{path} is refused: a zip whose list has {listed:,} bytes, where no checkpoint's has over "
            f"{MAX_DIRECTORY:,}; ask for a .safetensors file"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            pickles = [m for m in members if m.filename.split("/", 1)[-1] == "data.pkl"]
            if len({m.filename for m in members}) != len(members) or len(pickles) != 1:
                raise ModelFileError(
                    f"{path} is not a PyTorch checkpoint: its zip must have one data.pkl, no name twice; give another"
                )
            if pickles[0].file_size > MAX_BYTES:
                raise ModelFileError(
                    f"{path} is refused: its data.pkl is over {MAX_BYTES:,} bytes; ask for a .safetensors file"
                )
            _plain(path, pickles[0])
            folder = pickles[0].filename.removesuffix("data.pkl")
            order = {m.filename: m for m in members}.get(f"{folder}byteorder")
            if order is not None:
                _plain(path, order)
            if order is not None and archive.read(order) != b"little":
                raise ModelFileError(f"{path} was written on a big-endian machine; convert it there to .safetensors")
            stream = io.BytesIO(archive.read(pickles[0]))
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, OSError) as error:
        raise ModelFileError(
            f"{path} is truncated or corrupted at {size:,} bytes ({error}); download or copy it again"
        ) from error

    by_name = {m.filename: m for m in members}

    def place(storage: Storage) -> int:
        member = by_name.get(f"{folder}data/{storage.key}")
        if member is None:
            raise ModelFileError(f"{path} is corrupted: its tensor data {storage.key!r} is missing")
        _plain(path, member)
        wanted = storage.count * storage.dtype.itemsize
        if member.file_size < wanted:
            raise ModelFileError(
                f"{path} is corrupted: tensor data {storage.key!r} has {member.file_size:,} bytes, expected {wanted:,}"
            )
        with path.open("rb") as file:
            file.seek(member.header_offset)
            header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(ZIP_MAGIC):
            raise ModelFileError(f"{path} is corrupted: no header before tensor data {storage.key!r}")
        name, extra = _LOCAL_HEADER.unpack(header)
        return int(member.header_offset + _LOCAL_HEADER.size + name + extra)

    return read_pickle(stream, path, _calls(), _NAMES), place


def _directory_size(path: Path, size: int) -> int:
    """How large a zip says that the list of its members is; 0 where it says nothing, which its reader will refuse."""
    with path.open("rb") as file:
        file.seek(max(size - 20 - _DIRECTORY_64.size - _DIRECTORY.size - 0xFFFF, 0))  # behind it may stand a comment
        tail = file.read()
    mark, last = b"PK\x05\x06", len(tail) - _DIRECTORY.size
    at = last if tail.startswith(mark, max(last, 0)) else tail.rfind(mark)
    if at < 0 or at > last:
        return 0
    _, listed = _DIRECTORY.unpack_from(tail, at)
    before = at - 20 - _DIRECTORY_64.size
    if before >= 0 and tail.startswith(b"PK\x06\x06", before):
        _, listed = _DIRECTORY_64.unpack_from(tail, before)
    return int(listed)


def _plain(path: Path, member: zipfile.ZipInfo) -> None:
    """PyTorch never packs or encrypts; what is packed cannot be mapped, and may be a bomb."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
        raise ModelFileError(
            f"{path} is refused: {member.filename} is compressed or encrypted; unpack and zip it with -0"
        )


def _read_legacy(path: Path) -> tuple[object, Callable[[Storage], int]]:
    """The format before PyTorch 1.6: magic number, version, machine, object, storage keys, then the bytes."""
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(MAX_BYTES))
    storages: dict[str, Storage] = {}
    calls = _calls(storages)
    magic, protocol, machine, root, keys = (read_pickle(stream, path, calls, _NAMES) for _ in range(5))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not isinstance(keys, list):
        raise ModelFileError(f"{path} is not a checkpoint: neither safetensors nor PyTorch; give a weights file")
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ModelFileError(f"{path} was written on a big-endian machine; convert it there to .safetensors")

    size, position, places = path.stat().st_size, stream.tell(), {}
    with path.open("rb") as file:
        for key in keys:
            if not isinstance(key, str) or key not in storages:
                raise ModelFileError(f"{path} is corrupted: it has data that no tensor uses; download or copy it again")
            file.seek(position)
            head = file.read(8)
            count = int.from_bytes(head, "little", signed=True)
            places[key] = position + 8
            position += 8 + count * storages[key].dtype.itemsize
            if len(head) < 8 or count != storages[key].count or position > size:
                raise ModelFileError(
                    f"{path} is truncated or corrupted at tensor data {key!r}: {size:,} bytes, expected {position:,}"
                )

    def place(storage: Storage) -> int:
        if storage.key not in places:
            raise ModelFileError(f"{path} is corrupted: its tensor data {storage.key!r} is missing")
        return places[storage.key]

    return root, place


def _calls(storages: dict[str, Storage] | None = None) -> dict[tuple[str, str], Call]:
    """Our own functions for all that a checkpoint calls; `storages` gathers what its tensors stand on."""

    def tensor(args: tuple[object, ...]) -> TensorRecord:
        record = _record(args)
        if storages is not None:
            storages[record.storage.key] = record.storage
        return record

    return {
        ("collections", "OrderedDict"): _ordered,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch.nn.modules.container", "ParameterDict"): lambda _: Held(),
    }


def _ordered(args: tuple[object, ...]) -> dict[object, object]:
    if args in ((), ([],)):
        return {}
    raise ValueError("an OrderedDict with contents as arguments")


def _parameter(args: tuple[object, ...]) -> object:
    data, _, _ = args
    if not isinstance(data, TensorRecord):
        raise ValueError("a parameter that is no tensor")
    return data


def _record(args: tuple[object, ...]) -> TensorRecord:
    """Arguments of `_rebuild_tensor_v2`: storage, offset, shape, stride, and what we need nothing of."""
    reference, offset, shape, stride = args[:4]
    storage = _storage(reference)
    if not (isinstance(offset, int) and _sizes(shape) and _sizes(stride) and len(shape) == len(stride)):
        raise ValueError("a tensor of no shape")
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    elements = math.prod(shape)
    if not 0 <= offset <= MAX_ELEMENTS or elements > MAX_ELEMENTS or (elements > 0 and last >= storage.count):
        raise ValueError(f"a tensor that reaches to {last} of {storage.count} elements")
    return TensorRecord(storage, offset, shape, stride)


def _sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(isinstance(n, int) and 0 <= n <= MAX_ELEMENTS for n in value)


def _storage(reference: object) -> Storage:
    """The persistent id of a storage: ("storage", type, key, device, number of elements)."""
    if not isinstance(reference, Reference) or not isinstance(reference.key, tuple):
        raise ValueError("a tensor without data")
    word, kind, key, _, count, *view = reference.key
    if word != "storage" or not isinstance(kind, Global) or kind.name not in STORAGES or not isinstance(key, str):
        raise ValueError("tensor data of unknown type")
    if any(v is not None for v in view) or not isinstance(count, int) or not 0 <= count <= MAX_ELEMENTS:
        raise ValueError("tensor data of impossible size")
    return Storage(key, STORAGES[kind.name], count)


def _map(path: Path) -> torch.UntypedStorage:
    """The whole file, mapped copy-on-write: what is never touched takes no memory."""
    return cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(path), False, path.stat().st_size))


def _tensor(path: Path, mapped: torch.UntypedStorage, record: TensorRecord, start: int) -> Tensor:
    dtype = record.storage.dtype
    stop = start + record.storage.count * dtype.itemsize
    if stop > mapped.nbytes():
        raise ModelFileError(f"{path} is truncated: {mapped.nbytes():,} bytes, expected at least {stop:,}")
    bytes_ = mapped[start:stop]
    if start % dtype.itemsize:
        bytes_ = bytes_.clone()  # unaligned: legacy files only, and their small tensors mostly
    return torch.empty(0, dtype=dtype).set_(bytes_, record.offset, record.shape, record.stride)
