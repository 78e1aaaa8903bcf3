"""The same random weights for every contestant: a model of true size, written once to a folder and to a file.

    python benchmarks/weights.py --preset sd1 --dtype float32 /somewhere

Numbers are as large as in a network that has just been made: matrices have a variance of 1 / (their inputs), norms
multiply by about 1. So nothing overflows and nothing becomes so small that processors slow down over it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from safelight.checkpoints import Checkpoint, write_folder
from safelight.checkpoints.layouts import original
from safelight.models.clip import ClipTextConfig
from safelight.models.networks import shapes_of
from safelight.models.tokenizer import END, START, ClipTokenizer
from safelight.presets import PRESETS, Preset

FOLDER, FILE, WORDS = "folder", "model.safetensors", "tokenizer"


def number(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """The weight of that name, float32."""
    x = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        scale = 0.02 if "embedding" in name and "linear" not in name else float(x[0].numel()) ** -0.5
        return x.mul_(scale)
    return x.mul_(0.02) if name.endswith("bias") else x.mul_(0.1).add_(1)


def parts_of(preset: Preset, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """Every weight of a member."""
    generator = torch.Generator().manual_seed(0)
    return {
        part: {name: number(name, shape, generator).to(dtype) for name, shape in shapes_of(config).items()}
        for part, config in preset.networks.items()
    }


def vocabulary(size: int) -> ClipTokenizer:
    """So many words; which ones does not matter here."""
    plain = [word for word in ClipTokenizer.train([], 514).vocab if word not in (START, END)]
    filler = [f"filler{i}" for i in range(size - len(plain) - 2)]
    return ClipTokenizer({word: i for i, word in enumerate([*plain, *filler, START, END])}, [])


def write(preset: Preset, dtype: torch.dtype, target: Path, *, file: bool) -> None:
    """A folder in diffusers' layout, with `file` a single file in the original layout beside it."""
    parts = parts_of(preset, dtype)
    towers = {words.part: words.tower for words in preset.words}
    words = {part: vocabulary(tower.vocab_size) for part, tower in towers.items() if isinstance(tower, ClipTextConfig)}
    target.mkdir(parents=True, exist_ok=True)
    if file:
        save_file(original.layout(preset).save(parts), target / FILE)
        next(iter(words.values())).write(target / WORDS)
    write_folder(target / FOLDER, Checkpoint(preset, parts, words))


@contextmanager
def folder(preset: str, dtype: str, scratch: Path | None, *, file: bool = False) -> Iterator[Path]:
    """Where the weights are: under `scratch` they stay for the next run, else they are there for this one only.

    They are made by a process of its own, whose memory is given back.
    """
    with tempfile.TemporaryDirectory() as temporary:
        target = (Path(temporary) if scratch is None else scratch) / f"{preset}-{dtype}"
        if not (target / FOLDER).exists() or (file and not (target / FILE).exists()):
            asked = ["--preset", preset, "--dtype", dtype, *(["--file"] if file else []), str(target)]
            subprocess.run([sys.executable, str(Path(__file__).resolve()), *asked], check=True)
        yield target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="sd1")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--file", action="store_true", help="a single file in the original layout, too")
    options = parser.parse_args()
    write(PRESETS[options.preset], getattr(torch, options.dtype), options.target, file=options.file)


if __name__ == "__main__":
    main()
