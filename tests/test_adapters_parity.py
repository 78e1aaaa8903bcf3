"""The same LoRA on the same model, here and in diffusers: the networks say the same, whatever the names in the file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapter_cases import draw, random_lora
from family_oracles import Both, made
from golden_cases import off
from safelight.adapters.lora import Adapter, Strength, changes, read_lora, write_lora
from safelight.adapters.patching import patched
from safelight.doors import Conditioning
from safelight.models.clip import ClipText, ClipTextConfig
from safelight.models.layers import sinusoids
from toy_family import SIZE_WIDTH

PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd2-v": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}
TOWERS = {"text": "text_encoder", "text_2": "text_encoder_2"}
ALIKE = 1e-4
Said = Mapping[str, Tensor]


@pytest.fixture(scope="module", params=PIPELINES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return made(request.param, tmp_path_factory.mktemp(request.param))


def pipeline_of(both: Both) -> Any:
    """diffusers' pipeline of the member."""
    name = next(pipeline for preset, pipeline in PIPELINES.items() if preset == both.model.preset.name)
    found = getattr(diffusers, name).from_pretrained(both.folder)
    found.set_progress_bar_config(disable=True)
    return found


def inputs(both: Both) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """x, t, context, pooled words, sizes."""
    config = both.model.preset.unet
    assert config.context_width is not None
    x, context = draw(2, 4, 8, 8), draw(2, 7, config.context_width, seed=1)
    if config.vector_width is None:
        return x, torch.tensor([11.0, 800.0]), context, None, None
    pooled = draw(2, config.vector_width - 6 * SIZE_WIDTH, seed=2)
    return x, torch.tensor([11.0, 800.0]), context, pooled, torch.tensor([[64.0, 64, 0, 8, 64, 32]] * 2)


def ids_of(both: Both, part: str) -> Tensor:
    tower = both.model.preset.networks[part]
    assert isinstance(tower, ClipTextConfig)
    ids = torch.randint(0, tower.vocab_size - 2, (2, tower.context_length), generator=torch.Generator().manual_seed(5))
    ids[:, 0], ids[:, 9:] = tower.start_token, tower.end_token
    return ids


@torch.no_grad()
def ours(both: Both, adapters: list[tuple[Adapter, Strength]]) -> Said:
    """What the networks say with adapters on them."""
    model, found = both.model, {}
    x, t, context, pooled, sizes = inputs(both)
    vector = None
    if pooled is not None and sizes is not None:
        vector = torch.cat([pooled, sinusoids(sizes.flatten(), SIZE_WIDTH).view(2, -1)], dim=1)
    with ExitStack() as stack:
        for part in ("unet", *(words.part for words in model.preset.words)):
            stack.enter_context(patched(model.networks[part], changes(adapters, part)))
        found["unet"] = model.networks["unet"](x, t, Conditioning(context, vector))
        for words in model.preset.words:
            tower = model.networks[words.part]
            assert isinstance(tower, ClipText)
            found[words.part] = tower(ids_of(both, words.part)).last
    return found


@torch.no_grad()
def theirs(both: Both, pipeline: Any) -> Said:
    """The same of diffusers' networks."""
    x, t, context, pooled, sizes = inputs(both)
    added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
    found = {"unet": pipeline.unet(x, t, context, added_cond_kwargs=added).sample}
    for words in both.model.preset.words:
        tower = getattr(pipeline, TOWERS[words.part])
        found[words.part] = tower(ids_of(both, words.part)).last_hidden_state
    return found


def agree(both: Both, adapters: list[tuple[Adapter, Strength]], pipeline: Any, parts: tuple[str, ...] = ()) -> None:
    plain, mine, other = ours(both, []), ours(both, adapters), theirs(both, pipeline)
    for part in mine:
        error, moved = off(mine[part], other[part]), off(mine[part], plain[part])
        print(f"{both.model.preset.name}, {part}: off by {error:.1e}, moved by {moved:.2f}")
        assert error <= ALIKE, f"{part} is off by {error:.1e}"
        assert moved > 0.02 or (parts and part not in parts), f"the LoRA hardly changes {part}"


def loaded(both: Both, path: Path) -> Any:
    pipeline = pipeline_of(both)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
    return pipeline


@pytest.mark.parametrize("convolutions", [False, True], ids=["attention", "convolutions"])
def test_what_we_write_does_the_same_in_diffusers(both: Both, convolutions: bool, tmp_path: Path) -> None:
    """kohya's names. (Of DoRAs under these names diffusers leaves out `dora_scale`; it reads its own, below.)"""
    small, path = both.model.preset, tmp_path / "ours.safetensors"
    adapter = random_lora(small, convolutions=convolutions)
    write_lora(path, adapter, small)
    agree(both, [(read_lora(path, small), Strength())], loaded(both, path))


def by_peft(both: Both, folder: Path, *, dora: bool = False, rslora: bool = False) -> tuple[Path, Any]:
    """A file that diffusers writes, of LoRAs that PEFT made, with alpha in its metadata; and the pipeline with them."""
    pipeline, layers, configs = pipeline_of(both), {}, {}
    for part in ("unet", *(words.part for words in both.model.preset.words)):
        network = pipeline.unet if part == "unet" else getattr(pipeline, TOWERS[part])
        wanted = ["to_q", "to_k", "to_v", "to_out.0"] if part == "unet" else ["q_proj", "k_proj", "v_proj", "out_proj"]
        config = peft.LoraConfig(
            r=4, lora_alpha=6, use_dora=dora, use_rslora=rslora, init_lora_weights=False, target_modules=wanted
        )
        network.add_adapter(config, "mine")
        for i, (name, parameter) in enumerate(network.named_parameters()):
            if "lora_" in name and "magnitude" not in name:
                with torch.no_grad():
                    parameter.copy_(draw(*parameter.shape, seed=i, scale=0.15))
        layers[part] = peft.get_peft_model_state_dict(network, adapter_name="mine")
        configs[part] = network.peft_config["mine"].to_dict()
    names = {"unet": "unet", **TOWERS}
    pipeline.save_lora_weights(
        folder,
        **{f"{names[part]}_lora_layers": found for part, found in layers.items()},
        **{f"{names[part]}_lora_adapter_metadata": found for part, found in configs.items()},
    )
    return folder / "pytorch_lora_weights.safetensors", pipeline


@pytest.mark.parametrize("how", ["plain", "dora", "rslora"])
def test_what_diffusers_writes_does_the_same_here(both: Both, how: str, tmp_path: Path) -> None:
    path, maker = by_peft(both, tmp_path, dora=how == "dora", rslora=how == "rslora")
    adapters = [(read_lora(path, both.model.preset), Strength())]
    agree(both, adapters, maker)
    if how != "dora":  # whose lengths transformers 5 forgets when it reads them for a text tower
        agree(both, adapters, loaded(both, path))


def _old(key: str) -> str:
    """diffusers 0.20 to 0.22."""
    key = re.sub(r"\.lora_A\.weight$", ".lora.down.weight", re.sub(r"\.lora_B\.weight$", ".lora.up.weight", key))
    return key if key.startswith("unet.") else key.replace(".lora.", ".lora_linear_layer.")


def _processors(key: str) -> str:
    """Before 0.20: of the UNet alone."""
    key = _old(key).removeprefix("unet.").replace("to_out.0.", "to_out.")
    return re.sub(r"\.(to_[qkv]|to_out)\.lora\.", r".processor.\1_lora.", key)


@pytest.mark.parametrize("rename", [_old, _processors], ids=["old", "processors"])
def test_files_of_older_diffusers_do_the_same(both: Both, rename: Callable[[str], str], tmp_path: Path) -> None:
    new = load_file(by_peft(both, tmp_path)[0])
    wanted = {key: value for key, value in new.items() if rename is _old or key.startswith("unet.")}
    path, named = tmp_path / "old.safetensors", tmp_path / "named.safetensors"
    save_file({rename(key): value for key, value in wanted.items()}, path)
    # diffusers of today reads the oldest files only with the name of the part before each key.
    save_file({("" if rename is _old else "unet.") + rename(key): value for key, value in wanted.items()}, named)
    parts = ("unet", "text", "text_2") if rename is _old else ("unet",)
    pipeline = loaded(both, named)
    for file in (path, named):
        agree(both, [(read_lora(file, both.model.preset), Strength())], pipeline, parts)


def test_two_at_once_with_strengths_of_their_own(both: Both, tmp_path: Path) -> None:
    small, pipeline, read = both.model.preset, pipeline_of(both), []
    for i, name in enumerate(("one", "other")):
        path = tmp_path / f"{name}.safetensors"
        write_lora(path, random_lora(small, seed=i, convolutions=i == 1, scale=0.4), small)
        read.append(read_lora(path, small))
        pipeline.load_lora_weights(tmp_path, weight_name=path.name, adapter_name=name)
    strengths = [Strength(0.5, 0.8), Strength(-0.4, 0.6)]
    towers = [TOWERS[words.part] for words in small.words]
    weights = [{"unet": s.unet, **dict.fromkeys(towers, s.text)} for s in strengths]
    pipeline.set_adapters(["one", "other"], weights)
    agree(both, list(zip(read, strengths, strict=True)), pipeline)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    diffusers.utils.logging.set_verbosity_error()
    yield
    diffusers.utils.logging.set_verbosity_warning()
