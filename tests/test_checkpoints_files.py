"""Weights files: what is read, what is refused, and what it costs."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_cases import HERE
from safelight.checkpoints.files import read_json, read_sharded, read_tensors
from safelight.errors import ModelFileError

GOLDEN = HERE / "golden" / "files"
WEIGHTS = sorted(path.name for path in GOLDEN.iterdir() if path.suffix != ".npz")
TOLERANCE = {torch.float32: 0.0, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_container_of_the_goldens_is_read(name: str) -> None:
    tensors = read_tensors(GOLDEN / name)
    with np.load(GOLDEN / "expected.npz") as expected:
        keys = [key for key in expected.files if not key.startswith("views.")]
        assert sorted(tensors) == sorted(keys)
        for key in keys:
            wanted, found = torch.from_numpy(expected[key]), tensors[key]
            tolerance = TOLERANCE.get(found.dtype, 0.0)
            assert torch.allclose(found.double(), wanted.double(), rtol=tolerance, atol=tolerance), key


def example() -> dict[str, object]:
    """Strided views of one storage, all dtypes, a scalar, an empty tensor, and things that are no weights."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "state_dict": OrderedDict(
            whole=base,
            transposed=base.t(),
            slice=base[1:3, ::2],
            scalar=torch.tensor(3.5),
            empty=torch.empty(0, 4),
            half=base.half(),
            brain=base.bfloat16(),
            double=base.double(),
            long=torch.arange(5),
            flags=torch.tensor([True, False]),
            bytes=torch.arange(7, dtype=torch.uint8),
            parameter=torch.nn.Parameter(base.clone()),
            step=7,
        ),
        "epoch": 3,
        "global_step": np.int64(12).item(),
        "callbacks": {"x": [1, 2.5, None, ("a", b"b")]},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}],
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_training_checkpoint_gives_its_state_dict_in_both_formats(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.ckpt"
    torch.save(example(), path, _use_new_zipfile_serialization=zipped)
    tensors = read_tensors(path)
    wanted = torch.load(path, weights_only=True)["state_dict"]
    assert tensors.keys() == wanted.keys() - {"step"}
    for key, tensor in tensors.items():
        assert tensor.dtype == wanted[key].dtype
        assert tensor.stride() == wanted[key].stride()
        assert torch.equal(tensor, wanted[key].detach()), key
    del tensors


def test_numpy_scalars_and_unknown_framework_objects_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "best": np.float64(0.5)}, path)
    assert torch.equal(read_tensors(path)["w"], torch.ones(2))


def test_an_untouched_file_is_never_changed_by_writing_to_its_tensors(tmp_path: Path) -> None:
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pt"):
        save = save_file if path.suffix == ".safetensors" else torch.save
        save({"w": torch.zeros(64)}, path)
        before = path.read_bytes()
        read_tensors(path)["w"].fill_(1.0)
        assert path.read_bytes() == before


def test_a_safetensors_file_of_any_name_is_read_and_agrees_with_the_library(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 4), "a": torch.arange(5), "e": torch.empty(0, 2), "s": torch.tensor(1.5)}
    for name in ("a.safetensors", "a.ckpt"):
        save_file(tensors, tmp_path / name)
        found = read_tensors(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], value) for key, value in load_file(tmp_path / name).items())


def refused(path: Path) -> str:
    """The one line of the error, which names the file."""
    with pytest.raises(ModelFileError) as caught:
        read_tensors(path)
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line and len(line) < 600, line
    return line


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_truncation_is_refused(tmp_path: Path, name: str) -> None:
    whole = (GOLDEN / name).read_bytes()
    path = tmp_path / name
    for size in sorted({*range(0, 200, 7), *range(200, len(whole), len(whole) // 23), len(whole) - 1}):
        path.write_bytes(whole[:size])
        line = refused(path)
        if path.suffix == ".safetensors" and size > 8:
            assert f"{size:,} bytes" in line


def test_a_truncated_safetensors_file_says_how_long_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(1000)}, path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{size - 100:,} bytes, expected {size:,}" in refused(path)


def test_a_truncated_legacy_file_says_how_long_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{size - 100:,} bytes, expected {size:,}" in refused(path)


@pytest.mark.parametrize("name", WEIGHTS)
def test_flipped_bytes_give_tensors_or_one_typed_error(tmp_path: Path, name: str) -> None:
    whole = (GOLDEN / name).read_bytes()
    path = tmp_path / name
    generator = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(whole)
        for position in generator.integers(0, len(whole), 3):
            broken[position] ^= int(generator.integers(1, 256))
        path.write_bytes(broken)
        try:
            tensors = read_tensors(path)
        except ModelFileError as error:
            assert str(path) in str(error)
        else:
            assert all(isinstance(t, torch.Tensor) for t in tensors.values())


def with_header(path: Path, header: str, data: bytes = b"\0" * 16, length: int | None = None) -> Path:
    text = header.encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
SECOND = '{"dtype":"F32","shape":[2],"data_offsets":[8,16]}'


@pytest.mark.parametrize(
    ("header", "length", "said"),
    [
        (f'{{"a":{ENTRY},"a":{SECOND}}}', None, "'a' twice"),
        (f'{{"a":{ENTRY}}}', 1 << 30, "header of 1,073,741,824 bytes"),
        (f'{{"a":{ENTRY}}}', 1 << 63, "header of"),
        (f'{{"a":{ENTRY}}}', 4000, "truncated"),
        ('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}', None, "corrupted"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', None, "corrupted"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,800]}}', None, "expected"),
        ('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', None, "corrupted"),
        ('{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}', None, "corrupted"),
        ('{"a":{"dtype":"F32","shape":[2]}}', None, "no place"),
        ('{"a":7}', None, "no place"),
        (f'{{"a":{ENTRY}', None, "no JSON"),
        ('{"a":' * 50_000, None, "no JSON"),
        ('{"a":' + "9" * 5000 + "}", None, "no JSON"),
        ('{"__metadata__":{"a":7},"b":' + ENTRY + "}", None, "corrupted"),
        ('{"a":{"dtype":"F32","shape":[99999999999,99999999999],"data_offsets":[0,8]}}', None, "corrupted"),
        (f'{{"a":{ENTRY},"b":{ENTRY}}}', None, "corrupted"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, header: str, length: int | None, said: str) -> None:
    assert said in refused(with_header(tmp_path / "x.safetensors", header, length=length))


def test_what_is_no_weights_file_is_said_to_be_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    assert "git lfs pull" in refused(path)
    path.write_bytes(b"")
    assert "empty" in refused(path)
    for name in ("x.ckpt", "x.safetensors"):
        (tmp_path / name).write_text("<!doctype html><html>Not found</html>")
        refused(tmp_path / name)
    assert "missing" in refused(tmp_path / "nowhere.ckpt")
    (tmp_path / "folder.ckpt").mkdir()
    refused(tmp_path / "folder.ckpt")


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    for content in ({}, {"epoch": 3}, [2.0], torch.ones(2), 7):
        torch.save(content, tmp_path / "x.pt")
        assert "no weights" in refused(tmp_path / "x.pt")


def test_a_packed_zip_a_second_pickle_and_a_double_name_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(100)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good:
        members = {name: good.read(name) for name in good.namelist()}
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert "compressed" in refused(tmp_path / "packed.pt")
    with zipfile.ZipFile(tmp_path / "two.pt", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr("other/data.pkl", members["good/data.pkl"])
    assert "one data.pkl" in refused(tmp_path / "two.pt")
    with zipfile.ZipFile(tmp_path / "twice.pt", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr("good/data.pkl", members["good/data.pkl"])
    assert "no name twice" in refused(tmp_path / "twice.pt")
    with zipfile.ZipFile(tmp_path / "short.pt", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data[:-8] if name == "good/data/0" else data)
    assert "392 bytes, expected 400" in refused(tmp_path / "short.pt")
    with zipfile.ZipFile(tmp_path / "lost.pt", "w") as archive:
        for name, data in members.items():
            if name != "good/data/0":
                archive.writestr(name, data)
    assert "missing" in refused(tmp_path / "lost.pt")


def write_shards(folder: Path, placed: dict[str, str]) -> Path:
    save_file({"a": torch.ones(2)}, folder / "w-1.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "w-2.safetensors")
    index = folder / "w.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return index


def test_shards_are_joined(tmp_path: Path) -> None:
    index = write_shards(tmp_path, {"a": "w-1.safetensors", "b": "w-2.safetensors"})
    assert {k: tuple(t.shape) for k, t in read_sharded(index).items()} == {"a": (2,), "b": (3,)}


@pytest.mark.parametrize(
    "member",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "sub/w-1.safetensors",
        "..\\outside.safetensors",
        "C:w.safetensors",
        "..",
        ".",
        "",
        "w\0.safetensors",
    ],
)
def test_an_index_that_points_outside_its_folder_opens_nothing(tmp_path: Path, member: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"b": torch.zeros(3)}, tmp_path / "outside.safetensors")
    index = write_shards(folder, {"a": "w-1.safetensors", "b": member})
    opened: list[str] = []
    watching = True

    def watch(event: str, args: tuple[object, ...]) -> None:
        if watching and event == "open":
            opened.append(str(args[0]))

    sys.addaudithook(watch)
    with pytest.raises(ModelFileError, match="refused: it names"):
        read_sharded(index)
    watching = False
    assert {Path(name).name for name in opened} <= {index.name}


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path: Path) -> None:
    for placed, said in (
        ({"a": "w-1.safetensors"}, None),
        ({"a": "w-1.safetensors", "b": "w-1.safetensors"}, "lacks b"),
        ({"a": "w-2.safetensors", "b": "w-2.safetensors"}, "lacks a"),
        ({"a": "w-1.safetensors", "c": "w-2.safetensors"}, "has b too"),
        ({"a": "w-1.safetensors", "b": "w-3.safetensors"}, "w-3.safetensors is missing"),
        ({}, "no `weight_map`"),
    ):
        index = write_shards(tmp_path, placed)
        if said is None:
            assert list(read_sharded(index)) == ["a"]
        else:
            with pytest.raises(ModelFileError, match=said):
                read_sharded(index)


def test_json_that_says_a_name_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(ModelFileError, match="'a' twice"):
        read_json(tmp_path / "c.json")


MEASURE = """
import sys
from pathlib import Path
import torch
from safelight.checkpoints.files import read_tensors

def anonymous():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024

small, large = map(Path, sys.argv[1:])
read_tensors(small)
before = anonymous()
tensors = read_tensors(large)
loaded = anonymous()
total = sum(t.sum().item() for t in tensors.values())
print(loaded - before, anonymous() - before, total)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".legacy.pt"])
def test_reading_200_mb_takes_no_memory_of_its_own(tmp_path: Path, ending: str) -> None:
    tensors = {f"w{i}": torch.ones(2_621_440) for i in range(20)}  # 20 x 10 MiB
    for name, content in (("small", {"w": torch.ones(2)}), ("large", tensors)):
        if ending == ".safetensors":
            save_file(content, tmp_path / (name + ending))
        else:
            torch.save(content, tmp_path / (name + ending), _use_new_zipfile_serialization=ending == ".ckpt")
    paths = [str(tmp_path / (name + ending)) for name in ("small", "large")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True, timeout=900
    )
    loaded, used, total = map(float, done.stdout.split())
    assert total == 20 * 2_621_440
    # Legacy data may begin at an odd byte, and is then copied; nothing else ever is.
    if ending != ".legacy.pt":
        assert loaded < 8, f"{loaded:.0f} MiB of 200 were copied on reading"
        assert used < 8, f"{used:.0f} MiB of 200 were copied on use"
    assert used < 210
