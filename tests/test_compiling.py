"""`--compile`: the same numbers, each kind of block compiled once, and nothing of it in the way of what changes blocks.

What is compiled is found by PyTorch's tracer alone, which is quick. That inductor's own code gives the same numbers is
looked at slowly, for one block and for the tiny model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.runtime.cache_dir_utils import cache_dir

import safelight
from adapter_cases import random_lora
from safelight.adapters.hypernetwork_files import write_hypernetwork
from safelight.adapters.hypernetworks import Hypernetwork, HypernetworkConfig, attended_widths
from safelight.adapters.lora import write_lora
from safelight.doors import Conditioning
from safelight.errors import RequestError
from safelight.models.layers import ResnetBlock
from safelight.models.spatial_transformer import TransformerBlock
from safelight.models.unet import UNet
from safelight.tasks import compiling
from safelight.tasks.model import Model
from safelight.tasks.requests import TextToImage
from toy import toy_folder, toy_model

PLAIN = TextToImage(prompt="a red apple", seed=4, steps=2, batch=2, guidance=4.0)


class Traced:
    """A compiler that compiles nothing, and counts what it is given and how often that is asked."""

    def __init__(self) -> None:
        self.graphs = 0
        self.asked = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        self.graphs += 1

        def run(*given: object) -> object:
            self.asked += 1
            return graph(*given)

        return run


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """What was compiled for other tests is none of these."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def plain() -> Model:
    return toy_model()


@pytest.fixture(scope="module")
def folder(plain: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("adapters")
    write_lora(made / "style.safetensors", random_lora(plain.preset), plain.preset)
    hypernetwork = Hypernetwork(attended_widths(plain.unet), HypernetworkConfig())
    for k, parameter in enumerate(hypernetwork.parameters()):
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)) * 0.3)
    write_hypernetwork(made / "bend.pt", hypernetwork)
    return made


@pytest.fixture(scope="module")
def compiled() -> tuple[Model, Traced]:
    model, traced = toy_model(), Traced()
    compiling.compile_blocks(model.unet, traced)
    return model, traced


def drawn(model: Model, **changes: object) -> Tensor:
    """What comes out of the last step."""
    return list(model.steps(PLAIN.changed(**changes)))[-1].x


def asked(unet: UNet, batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, unet.config.in_channels, height, width, generator=generator)
    context = torch.randn(batch, 77, unet.config.context_width or 0, generator=generator)
    with torch.inference_mode():
        y: Tensor = unet(x, torch.full((batch,), 500.0), Conditioning(context=context))
        return y


def off(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.std())


def kinds(network: nn.Module) -> int:
    """Blocks that differ by their class or by the shapes of their weights."""
    blocks = [block for block in network.modules() if isinstance(block, compiling.BLOCKS)]
    return len({(type(block), *(tuple(p.shape) for p in block.parameters())) for block in blocks})


@pytest.mark.slow
def test_each_kind_of_block_is_compiled_once_for_all_sizes_and_batches(
    compiled: tuple[Model, Traced], plain: Model
) -> None:
    model, traced = compiled
    blocks = sum(isinstance(block, compiling.BLOCKS) for block in model.unet.modules())
    for batch, height, width in [(2, 16, 16), (2, 24, 16), (4, 8, 16), (3, 15, 17), (2, 32, 32)]:
        traced.asked = 0
        assert off(asked(model.unet, batch, height, width), asked(plain.unet, batch, height, width)) < 1e-5
        assert traced.asked == blocks, "a block was not compiled"
    assert traced.graphs <= 2 * kinds(model.unet)
    before = traced.graphs
    for batch, height, width in [(2, 40, 24), (6, 16, 24), (5, 9, 11)]:
        asked(model.unet, batch, height, width)
    assert traced.graphs == before, "another size was compiled anew"
    asked(model.unet, 1, 16, 24)
    one = traced.graphs - before
    assert 0 < one <= 2 * kinds(model.unet), "a batch of one is the only one that is compiled for itself"


@pytest.mark.slow
def test_weights_are_asked_for_at_every_call(compiled: tuple[Model, Traced], plain: Model, folder: Path) -> None:
    """A LoRA puts others in their place and takes them off again."""
    model, traced = compiled
    without = drawn(model)
    graphs = traced.graphs
    lora = {"lora": (f"{folder / 'style.safetensors'}:0.8",)}
    assert off(drawn(model, **lora), drawn(plain, **lora)) < 1e-5
    assert off(drawn(model, **lora), without) > 1e-3
    assert torch.equal(drawn(model), without)
    assert traced.graphs == graphs, "a LoRA was compiled anew"


CHANGES: dict[str, dict[str, object]] = {
    "perturbed": {"pag": 3.0},
    "self-attention": {"sag": 0.75},
    "FreeU": {"freeu": (1.5, 1.6, 0.9, 0.2)},
    "deep features kept": {"deep_every": 2},
    "tokens merged": {"merge_tokens": 0.5},
    "one by one": {"one_by_one": True},
    "by windows": {"window": 32},
}


@pytest.mark.parametrize("name", [*CHANGES, "hypernetwork"])
def test_what_changes_or_watches_blocks_works_the_same(
    compiled: tuple[Model, Traced], plain: Model, folder: Path, name: str
) -> None:
    model, traced = compiled
    changes = CHANGES.get(name, {"hypernetwork": (f"{folder / 'bend.pt'}:0.7",)})
    without = drawn(model)
    assert off(drawn(model, **changes), drawn(plain, **changes)) < 1e-5
    graphs = traced.graphs
    drawn(model, **changes)
    assert torch.equal(drawn(model), without)
    assert traced.graphs == graphs, "what was changed is compiled again and again"


def test_with_gradients_it_is_what_it_was(compiled: tuple[Model, Traced]) -> None:
    model, traced = compiled
    block = next(block for block in model.unet.modules() if isinstance(block, TransformerBlock))
    width, told = block.norm1.weight.numel(), block.attn2.to_k.in_features
    x = torch.randn(2, 5, width, requires_grad=True)
    traced.asked = 0
    block(x, torch.randn(2, 3, told)).sum().backward()
    assert x.grad is not None and traced.asked == 0


@pytest.mark.slow
def test_networks_that_come_and_go_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = Traced()
    blocks = compiling.compile_blocks
    monkeypatch.setattr("safelight.tasks.loading.compile_blocks", lambda network: blocks(network, traced))
    where = toy_folder(tmp_path / "toy")
    frugal = safelight.load(where, low_memory=True, compile=True)
    request = TextToImage(prompt="a red apple", seed=5, batch=2)
    ours = frugal.draw(request)
    graphs = traced.graphs
    assert graphs > 0
    assert frugal.draw(request)[0].tobytes() == ours[0].tobytes()
    assert traced.graphs == graphs
    whole = safelight.load(where).draw(request)
    assert max(abs(a - b) for a, b in zip(ours[0].tobytes(), whole[0].tobytes(), strict=True)) <= 1


@pytest.mark.slow
def test_inductors_block_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiling.CACHE, str(tmp_path))
    torch.manual_seed(0)
    block = ResnetBlock(16, 32, groups=4, eps=1e-5, time_width=8).requires_grad_(False)
    x, time = torch.randn(2, 16, 9, 7), torch.randn(2, 8)
    doubled = nn.Parameter(block.conv1.weight * 2, requires_grad=False)
    with torch.inference_mode():
        right = block(x, time)
        compiling.compile_blocks(block)
        assert off(block(x, time), right) < 1e-4
        block.conv1.weight = doubled
        assert off(block(x, time), block._call_impl(x, time)) < 1e-4
        assert off(block(x, time), right) > 1e-2
    assert any(tmp_path.rglob("*")), "nothing is kept for the next process"


def test_without_a_compiler_it_is_said_before_anything_is_read(tmp_path: Path) -> None:
    here = os.environ | {"CXX": "no-such-compiler", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "safelight", "txt2img", "x", "--compile", "--model", str(tmp_path / "none")]
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "--compile needs a C++ compiler" in line and "CXX" in line


def test_int8_is_not_compiled() -> None:
    with pytest.raises(RequestError, match="leave out --compile"):
        safelight.load("tiny", "cpu", "int8", compile=True)


def test_what_was_compiled_is_kept_where_the_user_keeps_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(compiling.CACHE, "said")
    compiling.keep_compiled()
    assert os.environ[compiling.CACHE] == "said"
    monkeypatch.delenv(compiling.CACHE)
    compiling.keep_compiled()
    assert os.environ[compiling.CACHE] == str(tmp_path / "safelight" / "compiled")
    monkeypatch.delenv(compiling.CACHE)
    assert cache_dir() == os.environ[compiling.CACHE] != str(tmp_path / "safelight" / "compiled")  # PyTorch's own words
    compiling.keep_compiled()
    assert os.environ[compiling.CACHE] == str(tmp_path / "safelight" / "compiled")
    monkeypatch.delenv(compiling.CACHE)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # cannot hold a folder
    compiling.keep_compiled()
    assert compiling.CACHE not in os.environ


@pytest.mark.slow
def test_the_second_process_finds_what_the_first_compiled(tmp_path: Path) -> None:
    code = """
import sys, torch, safelight
from torch._dynamo.utils import counters
model, plain = safelight.load("tiny", "cpu", compile=True), safelight.load("tiny", "cpu")
request = safelight.TextToImage(prompt="a red apple", seed=1, steps=2)
ours, right = ([*one.steps(request)][-1].x for one in (model, plain))
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
print(float((ours - right).abs().max() / right.std()))
"""
    here = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    here.pop(compiling.CACHE, None)
    found: list[Any] = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True, check=True)
        hits, misses, difference = done.stdout.split()
        assert float(difference) < 1e-4
        found.append((int(hits), int(misses)))
    assert found[0][1] > 0 and found[1] == (found[0][1] + found[0][0], 0)
