"""Bad files, given as models of the family in every layout: one typed error at once, and nothing happens beside.

What is wrong with a file is one table, what it is wrong with another; each of the one is tried with each of the other.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import safelight
from checkpoint_cases import sparse_file
from folder_cases import REFUSED
from safelight.checkpoints import read, write_folder
from safelight.checkpoints.layouts import original
from safelight.errors import ModelFileError
from safelight.models.networks import shapes_of
from safelight.presets import PRESETS
from safelight.tasks.model import Model
from test_checkpoints_family import file as real_file
from toy_family import filled, toy_preset

TOYS = {name: toy_preset(preset) for name, preset in PRESETS.items()}
MEMBERS = ("sd1", "sd2-depth", "sdxl", "unclip-h", "x4-upscaler", "ldm-text", "ldm-class", "ldm-celeba", "tiny")
"""One for each kind of networks and doors."""

MENDS = ("; check", "; download", "; give", "; ask for", "; say", "; use", "; choose", "; compared", ": give")
"""How every message goes on after what is wrong."""


# What happens beside

_events: list[tuple[str, str]] = []
_watching = False
_RUN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "pty.spawn")


def _watch(event: str, args: tuple[object, ...]) -> None:
    if _watching and (event == "open" or event in _RUN):
        _events.append((event, str(args[0])))


sys.addaudithook(_watch)


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """Gather what is opened and run meanwhile. (An audit hook cannot be taken away.)"""
    global _watching  # noqa: PLW0603
    _events.clear()
    _watching = True
    try:
        yield _events
    finally:
        _watching = False


def refused(source: Path, root: Path, *said: str, preset: str | None = None) -> str:
    """The one line that reading such a source gives, without a look at anything else under `root`."""
    shapes_of.cache_clear()
    with watched() as events, pytest.raises(ModelFileError) as caught:
        read(source, preset=None if preset is None else TOYS[preset])
    line = str(caught.value)
    assert str(source) in line and "\n" not in line and len(line) < 700, line
    assert any(mend in line for mend in MENDS), line
    for word in said:
        assert word in line, line
    assert not [event for event in events if event[0] != "open"]
    opened = [Path(name) for event, name in events if event == "open" and name.startswith(str(root))]
    assert all(path == source or source in path.parents for path in opened), opened
    return line


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], bytes]]:
    """A loaded model, mapped from its file; it draws the same before all that follows, and after."""
    folder = tmp_path_factory.mktemp("living") / "model"
    write_folder(folder, filled(TOYS["sd1"]))
    model: Model = safelight.load(folder)
    ask = safelight.TextToImage(prompt="a dog", seed=5)

    def draw() -> bytes:
        return model.draw(ask)[0].tobytes()

    before = draw()
    yield draw
    assert draw() == before, "a model that was loaded before is another after bad files were read"


@pytest.fixture(autouse=True)
def _among_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Original files are found out among the members at toy size."""
    monkeypatch.setattr("safelight.checkpoints.detect.PRESETS", TOYS)


# Every layout, with every thing that may be wrong with its weights

Break = Callable[[dict[str, Tensor]], str]
"""Spoils tensors; gives what the error must name."""


def wrong_shape(tensors: dict[str, Tensor]) -> str:
    key = next(key for key in tensors if key.endswith("conv_out.bias") or key.endswith("out.2.bias"))
    tensors[key] = torch.zeros(len(tensors[key]) + 1)
    return key


def missing_key(tensors: dict[str, Tensor]) -> str:
    key = sorted(key for key in tensors if "norm" in key or "in_layers" in key)[0]
    del tensors[key]
    return key


def extra_key(tensors: dict[str, Tensor]) -> str:
    key = f"{next(iter(tensors)).rpartition('.')[0]}.surplus"
    tensors[key] = torch.zeros(1)
    return key


def whole_numbers(tensors: dict[str, Tensor]) -> str:
    key = next(key for key in tensors if key.endswith(("conv_out.bias", "out.2.bias")))
    tensors[key] = tensors[key].to(torch.int64)
    return key


def odd_name(tensors: dict[str, Tensor]) -> str:
    tensors["model.diffusion_model.\n\x1b[31m"] = torch.zeros(1)
    return "model.diffusion_model.\\n\\x1b"


BREAKS: tuple[Break, ...] = (wrong_shape, missing_key, extra_key, whole_numbers, odd_name)


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.contiguous().clone() for key, tensor in tensors.items()}


def original_tensors(name: str) -> dict[str, Tensor]:
    return whole(original.save(TOYS[name], filled(TOYS[name]).parts))


@pytest.mark.parametrize("broken", BREAKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", MEMBERS)
def test_a_spoiled_single_file_is_one_line(
    tmp_path: Path, living: Callable[[], bytes], name: str, ending: str, broken: Break
) -> None:
    tensors, path = original_tensors(name), tmp_path / f"x{ending}"
    key = broken(tensors)
    save_file(tensors, path) if ending == ".safetensors" else torch.save({"state_dict": tensors, "epoch": 3}, path)
    line = refused(path, tmp_path, key)
    assert "fits no known preset" in line
    assert "does not fit" in refused(path, tmp_path, key, preset=name)


@pytest.mark.parametrize("broken", BREAKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", [name for name in MEMBERS if name not in REFUSED])
def test_a_spoiled_folder_is_one_line(tmp_path: Path, living: Callable[[], bytes], name: str, broken: Break) -> None:
    folder = tmp_path / "x"
    write_folder(folder, filled(TOYS[name]))
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    key = broken(tensors)
    save_file(tensors, weights)
    refused(folder, tmp_path, str(weights), key)


@pytest.mark.parametrize("size", [0, 5, 100, 0.3, 0.9, -1])
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", MEMBERS[:3])
def test_a_truncated_single_file_is_one_line(tmp_path: Path, name: str, ending: str, size: float) -> None:
    tensors, path = original_tensors(name), tmp_path / f"x{ending}"
    save_file(tensors, path) if ending == ".safetensors" else torch.save(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * size) if 0 < size < 1 else int(size)])
    refused(path, tmp_path)


@pytest.mark.parametrize("name", [name for name in MEMBERS if name not in REFUSED])
def test_every_truncated_file_of_a_folder_is_one_line(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "x"
    write_folder(folder, filled(TOYS[name]))
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name in (
            "safelight.json",
            "special_tokens_map.json",
            "tokenizer_config.json",
            "preprocessor_config.json",
        ):
            continue
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        if path.name not in ("merges.txt", "vocab.txt") or len(data) > 20:
            refused(folder, tmp_path, path.name)
        path.write_bytes(data)
    read(folder)


# What is no model at all


def header(path: Path, text: bytes, length: int | None = None, size: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)
    if size is not None:
        with path.open("r+b") as file:
            file.truncate(size)  # a hole: it takes no room on the disk


ENTRY = b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


def _many(count: int) -> bytes:
    return b"".join(b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' % i for i in range(count))


def _bomb(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)


def _shell(path: Path) -> None:
    _bomb(path, b"\x80\x04cposix\nsystem\nX\x05\x00\x00\x00touch\x85R.")


def _deep(path: Path) -> None:
    value: object = [torch.ones(1)]
    for _ in range(5):
        value = [value] * 60
    torch.save(value, path)


def _crowded(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(90_000):
            archive.writestr(f"a/data/{i:06d}", b"")


def save(*keys: str, shape: tuple[int, ...] = (2, 320)) -> Callable[[Path], None]:
    return lambda path: save_file({key: torch.ones(shape) for key in keys}, path)


def _inversion(path: Path) -> None:
    words = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(3, 768))})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": words, "step": 7, "name": "x"}, path)


def _hypernetwork(path: Path) -> None:
    layers = OrderedDict({"linear.0.weight": torch.ones(4, 2), "linear.0.bias": torch.ones(4)})
    torch.save({768: (layers, layers), 320: (layers, layers), "step": 7, "activation_func": "relu"}, path)


VAE, BLOCK = "encoder.down.0.block.0.norm1.weight", "transformer_blocks.0.attn1.processor"
FILES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a header that says a key twice": ("safetensors", lambda p: header(p, b'{"a":%b,"a":%b}' % (ENTRY, ENTRY)), "'a'"),
    "the last of 20,000 keys twice": (
        "safetensors",
        lambda p: header(p, b"{%b%b" % (_many(20_000), b'"x":0,"x":1}')),
        "'x'",
    ),
    "a header of 1 GB": ("safetensors", lambda p: header(p, b'{"a":', 1 << 30, (1 << 30) + 99), "1,073,741,824 bytes"),
    "a header of a million lists": (
        "safetensors",
        lambda p: header(p, b'{"a":[%b[]]}' % (b"[]," * 1_000_000)),
        "values",
    ),
    "a header of 500,000 lists": ("safetensors", lambda p: header(p, b'{"a":[%b[]]}' % (b"[]," * 250_000)), "no place"),
    "a header of deep lists": ("safetensors", lambda p: header(p, b'{"a":' + b"[" * 200_000), "no JSON"),
    "a pickle that runs a shell": ("ckpt", _shell, "posix.system"),
    "a pickle of nothings": ("ckpt", lambda p: _bomb(p, b"\x80\x02" + b"N0" * 3_900_000 + b"."), "operations"),
    "a pickle of lists in lists": (
        "ckpt",
        lambda p: _bomb(p, b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b"."),
        "oper",
    ),
    "a pickle of 24 MB": ("ckpt", lambda p: _bomb(p, b"\x80\x02" + b"N0" * 12_000_000 + b"."), "bytes"),
    "a pickle of lists that share their items": ("ckpt", _deep, "values"),
    "a zip of too many files": ("ckpt", _crowded, "list"),
    "kohya's LoRA": (
        "safetensors",
        save("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"),
        "a LoRA, not a model; give the model that it was made for, and this beside it by --lora",
    ),
    "kohya's LoRA of text": ("safetensors", save("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha"), "a LoRA"),
    "PEFT's LoRA": ("safetensors", save("unet.mid_block.attentions.0.proj_in.lora_A.weight"), "a LoRA"),
    "diffusers' older LoRA": (
        "safetensors",
        save(f"unet.mid_block.attentions.0.{BLOCK}.to_q_lora.down.weight"),
        "a LoRA",
    ),
    "diffusers' LoRA of processors": (
        "bin",
        lambda p: torch.save({f"{BLOCK}.to_q_lora.up.weight": torch.ones(2)}, p),
        "a LoRA",
    ),
    "a LoKr": ("safetensors", save("lycoris_mid_block_proj_in.lokr_w1"), "a LoRA"),
    "A1111's textual inversion": ("pt", _inversion, "--embedding"),
    "diffusers' textual inversion": ("safetensors", save("<cat>", shape=(768,)), "a textual inversion"),
    "SDXL's textual inversion": ("safetensors", save("clip_l", "clip_g"), "a textual inversion"),
    "a hypernetwork": ("pt", _hypernetwork, "--hypernetwork"),
    "a ControlNet": ("safetensors", save("control_model.input_blocks.0.0.weight"), "a ControlNet, not a model"),
    "diffusers' ControlNet": (
        "safetensors",
        save("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.time_emb_proj.weight"),
        "a ControlNet",
    ),
    "an autoencoder": (
        "safetensors",
        save(VAE),
        "an autoencoder alone; give a whole model, and this beside it by --vae",
    ),
    "an autoencoder of a whole file": ("safetensors", save(f"first_stage_model.{VAE}"), "--vae"),
    "diffusers' autoencoder": ("safetensors", save("encoder.down_blocks.0.resnets.0.norm1.weight"), "--vae"),
    "transformers' text encoder": (
        "safetensors",
        save("text_model.embeddings.token_embedding.weight"),
        "--text-encoder",
    ),
    "OpenCLIP's text encoder": ("safetensors", save("token_embedding.weight", "ln_final.bias"), "--text-encoder"),
    "a text encoder of a whole file": (
        "safetensors",
        save("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"),
        "a text encoder alone",
    ),
    "a whole CLIP": ("safetensors", save("token_embedding.weight", "visual.conv1.weight"), "a whole CLIP"),
    "a UNet": ("safetensors", save("down_blocks.0.resnets.0.time_emb_proj.weight"), "a UNet alone"),
    "statistics of embeddings": ("th", lambda p: torch.save((torch.zeros(768), torch.ones(768)), p), "--normalizer"),
    "something else": ("safetensors", save("fc.weight"), "fc.weight"),
}


@pytest.mark.parametrize("case", FILES)
def test_what_is_no_model_is_one_line(tmp_path: Path, living: Callable[[], bytes], case: str) -> None:
    ending, write, said = FILES[case]
    path = tmp_path / f"x.{ending}"
    write(path)
    refused(path, tmp_path, said)
    if ending == "safetensors":  # the same, called another member's file, and as a part of a folder
        refused(path, tmp_path, said, preset="sdxl")


@pytest.mark.parametrize("member", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "C:x"])
def test_an_index_that_points_outside_its_folder_is_one_line(tmp_path: Path, member: str) -> None:
    folder = tmp_path / "x"
    write_folder(folder, filled(TOYS["sdxl"]))
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    shutil.move(weights, tmp_path / "outside.safetensors")
    index = weights.with_suffix(".safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, member)}))
    refused(folder, tmp_path, str(index), member)


# At their true size


@pytest.mark.slow
@pytest.mark.parametrize("broken", [wrong_shape, missing_key, extra_key], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["sd_v1_full_ema", "sdxl_base", "sd_v2_depth", "ldm_layout2img_openimages256"])
def test_a_spoiled_file_of_true_size_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, broken: Break
) -> None:
    monkeypatch.setattr("safelight.checkpoints.detect.PRESETS", PRESETS)
    tensors = real_file(name)
    key = broken(tensors)
    sparse_file(tmp_path / "x.safetensors", tensors)
    refused(tmp_path / "x.safetensors", tmp_path, key)
