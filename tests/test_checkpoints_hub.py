"""Hub ids, against a server in this test that plays the hub. Nothing leaves the machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoint_cases import toy_checkpoint
from safelight.checkpoints import write_folder
from safelight.checkpoints.hub import is_hub_id
from safelight.presets import PRESETS
from toy_family import filled, toy_preset

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories are folders. What was asked for is in `asked`."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root = root
        self.asked: list[str] = []
        self.cut: str | None = None
        """A file of which only half is sent."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, *, body: bool) -> None:
        """/OWNER/NAME/resolve/REVISION/FILE, and the repository's description."""
        parts = self.path.split("?")[0].strip("/").split("/")
        if body:
            self.server.asked.append("/".join(parts[4:]))
        if len(parts) < 5 or parts[2] != "resolve":
            self.fail(404, "EntryNotFound")
            return
        folder = self.server.root / parts[0] / parts[1]
        file = folder / "/".join(parts[4:])
        if parts[1] == "gated":
            self.fail(403, "GatedRepo")
        elif parts[1] == "broken":
            self.fail(500, "InternalError")
        elif not folder.is_dir():
            self.fail(401, "RepoNotFound")
        elif parts[3] not in ("main", COMMIT):
            self.fail(404, "RevisionNotFound")
        elif not file.is_file():
            self.fail(404, "EntryNotFound")
        else:
            self.send_file(file, body=body)

    def send_file(self, file: Path, *, body: bool) -> None:
        data = file.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if file.name == self.server.cut else data)
            self.close_connection = file.name == self.server.cut


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    write_folder(tmp_path / "hub/toy/model", toy_checkpoint())
    server = Hub(tmp_path / "hub")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


READ = """
import sys
from safelight.checkpoints import read
from safelight.errors import ModelFileError
for name in sys.argv[1:]:
    try:
        found = read(*name.split("@")[:1], revision=(name.split("@") + ["main"])[1])
        print("read", found.preset.name, sum(t.numel() for p in found.parts.values() for t in p.values()))
    except ModelFileError as error:
        print("error", error)
"""


READ_VAE = """
import sys
from safelight.checkpoints import read
from safelight.checkpoints.alone import read_vae
from safelight.errors import ModelFileError
preset = read(sys.argv[1]).preset
for name in sys.argv[2:]:
    try:
        found = read_vae(name, preset.autoencoder, preset.latent_scale)
        print("vae", sum(t.numel() for t in found.values()))
    except ModelFileError as error:
        print("error", error)
"""


def ask(hub_url: str, cache: Path, *names: str, offline: bool = False, code: str = READ) -> list[str]:
    """`read` in a process of its own: huggingface_hub looks at its environment once."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    environment = {
        **kept,
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "3",
        "HF_HUB_ETAG_TIMEOUT": "3",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env=environment,
        cwd=cache.parent,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(names) - (code != READ), done.stdout
    return lines


def count() -> int:
    return sum(t.numel() for part in toy_checkpoint().parts.values() for t in part.values())


def test_a_model_is_downloaded_once_with_only_the_files_that_are_needed(hub: Hub, tmp_path: Path) -> None:
    model = hub.root / "toy/model"
    for name in (
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "v1-5-pruned.ckpt",
        "safety_checker/model.safetensors",
        "README.md",
    ):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"never wanted")
    cache = tmp_path / "cache"
    assert ask(hub.url, cache, "toy/model") == [f"read toy {count()}"]
    needed = {str(p.relative_to(model)) for p in model.rglob("*") if p.is_file() and p.read_bytes() != b"never wanted"}
    assert set(hub.asked) == needed
    assert len(hub.asked) == len(needed), "a file was downloaded twice"

    hub.asked.clear()
    assert ask(hub.url, cache, "toy/model") == [f"read toy {count()}"]
    assert hub.asked == []
    assert ask(hub.url, cache, "toy/model", offline=True) == [f"read toy {count()}"]
    hub.shutdown()
    hub.server_close()
    assert ask(hub.url, cache, "toy/model") == [f"read toy {count()}"], "the hub is down, the model is in the cache"


def test_what_is_downloaded_is_what_the_pipeline_has(hub: Hub, tmp_path: Path) -> None:
    made = filled(toy_preset(PRESETS["unclip-l"]))
    model = hub.root / "toy/varying"
    write_folder(model, made)
    total = sum(t.numel() for part in made.parts.values() for t in part.values())
    assert ask(hub.url, tmp_path / "cache", "toy/varying") == [f"read {made.preset.name} {total}"]
    there = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert there - set(hub.asked) == {"feature_extractor/preprocessor_config.json"}
    assert "image_noising_scheduler/scheduler_config.json" in hub.asked
    (model / "image_normalizer/diffusion_pytorch_model.safetensors").unlink()
    (line,) = ask(hub.url, tmp_path / "another", "toy/varying")
    assert "toy/varying has no weights in image_normalizer" in line


def test_shards_bin_and_half_precision_are_downloaded_where_there_is_nothing_else(hub: Hub, tmp_path: Path) -> None:
    model = hub.root / "toy/model"
    unet = model / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(unet)
    torch.save({k: tensors[k] for k in list(tensors)[::2]}, model / "unet/diffusion_pytorch_model-00001-of-00002.bin")
    torch.save(
        {k: tensors[k] for k in list(tensors)[1::2]},
        model / "unet/diffusion_pytorch_model-00002-of-00002.bin",
    )
    names = [f"diffusion_pytorch_model-0000{1 + i % 2}-of-00002.bin" for i in range(len(tensors))]
    index = {"weight_map": dict(zip(tensors, names, strict=True))}
    (model / "unet/diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))
    unet.unlink()
    vae = model / "vae/diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_suffix(".fp16.safetensors"))
    assert ask(hub.url, tmp_path / "cache", "toy/model") == [f"read toy {count()}"]


def test_an_autoencoder_alone_and_that_of_a_whole_model_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    """As stabilityai/sd-vae-ft-mse is: its files are at the root, in more than one kind."""
    model, lone = hub.root / "toy/model", hub.root / "toy/vae"
    shutil.copytree(model / "vae", lone)
    torch.save(load_file(lone / "diffusion_pytorch_model.safetensors"), lone / "diffusion_pytorch_model.bin")
    shutil.copytree(model, tmp_path / "here")
    numbers = sum(t.numel() for t in toy_checkpoint().parts["autoencoder"].values())
    sources = ("toy/vae", "toy/model", "toy/nowhere", "toy/vae.safetensors")
    found = ask(hub.url, tmp_path / "cache", str(tmp_path / "here"), *sources, code=READ_VAE)
    assert found[:2] == [f"vae {numbers}"] * 2
    assert "toy/nowhere is neither a path here nor a repository" in found[2]
    assert "toy/vae.safetensors is missing" in found[3]
    weights = [name for name in hub.asked if name.endswith((".safetensors", ".bin"))]
    assert weights == ["diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    offline = ask(hub.url, tmp_path / "cache", str(tmp_path / "here"), "toy/vae", offline=True, code=READ_VAE)
    assert offline == [f"vae {numbers}"]


def test_an_index_on_the_hub_that_points_outside_is_refused(hub: Hub, tmp_path: Path) -> None:
    model = hub.root / "toy/model"
    (model / "unet/diffusion_pytorch_model.safetensors").unlink()
    index = model / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}}))
    (line,) = ask(hub.url, tmp_path / "cache", "toy/model")
    assert "is refused: it names '../vae/" in line


def test_every_failure_is_one_line(hub: Hub, tmp_path: Path) -> None:
    (hub.root / "toy/gated").mkdir()
    (hub.root / "toy/broken").mkdir()
    (hub.root / "toy/single").mkdir()
    (hub.root / "toy/single/model.ckpt").write_bytes(b"x")
    write_folder(hub.root / "toy/partial", toy_checkpoint())
    (hub.root / "toy/partial/vae/diffusion_pytorch_model.safetensors").unlink()
    write_folder(hub.root / "toy/other", toy_checkpoint())
    (hub.root / "toy/other/model_index.json").write_text('{"unet": ["diffusers", "FluxTransformer2DModel"]}')
    write_folder(hub.root / "toy/flux", toy_checkpoint())
    (hub.root / "toy/flux/model_index.json").write_text('{"_class_name": "FluxPipeline", "vae": ["diffusers", "X"]}')
    cases = {
        "toy/nothing": "neither a path here nor a repository on the hub",
        "toy/gated": "is gated",
        "toy/broken": "it answered 500",
        "toy/single": "has no model_index.json",
        "toy/partial": "no weights in vae",
        "toy/other": "FluxTransformer2DModel",
        "toy/flux": "_class_name is 'FluxPipeline'",
        "toy/model@nowhere": "has no revision 'nowhere'",
        "toy/a..b": "nor a hub id",
    }
    for line, (name, said) in zip(ask(hub.url, tmp_path / "cache", *cases), cases.items(), strict=True):
        assert line.startswith("error"), name
        assert said in line, (name, line)
        assert name.split("@")[0] in line.replace("--", "/"), line


def test_no_connection_and_an_empty_cache_are_one_line(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"
    (line,) = ask(closed, tmp_path / "cache", "toy/model")
    assert "the hub cannot be reached" in line and "HF_ENDPOINT" in line
    (line,) = ask(closed, tmp_path / "cache", "toy/model", offline=True)
    assert "HF_HUB_OFFLINE is set" in line


def test_a_download_that_breaks_off_is_one_line_and_is_mended_by_another_try(hub: Hub, tmp_path: Path) -> None:
    hub.cut = "diffusion_pytorch_model.safetensors"
    (line,) = ask(hub.url, tmp_path / "cache", "toy/model")
    assert line.startswith("error toy/model could not be downloaded"), line
    hub.cut = None
    assert ask(hub.url, tmp_path / "cache", "toy/model") == [f"read toy {count()}"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("runwayml/stable-diffusion-v1-5", True),
        ("a/b", True),
        ("CompVis/stable_diffusion.v1", True),
        ("name", False),
        ("a/b/c", False),
        ("./a", False),
        ("../a", False),
        ("/a/b", False),
        ("a/", False),
        ("a b/c", False),
        ("a/b\n", False),
        ("https://x.org/a", False),
        ("", False),
    ],
)
def test_what_can_be_a_hub_id(text: str, wanted: bool) -> None:
    assert is_hub_id(text) is wanted
