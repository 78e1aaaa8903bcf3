"""How much memory a model of Stable Diffusion 1.x's size takes while it is loaded, and after its first step.

    pip install '.[test]' && python benchmarks/memory.py

Makes random float32 weights (4.3 GB, in a temporary folder), then loads them from a folder in diffusers' layout and
from a single file in the original one, by us and by diffusers, each in a process of its own, one after the other.
Printed is the peak of the resident memory above that of the process with everything imported, in units of the weights'
size: 1.0 is what has to be, 2.0 is everything twice. Weights that are mapped from their file count when they are
touched, so the picture (64x64, one step) is what makes the comparison a fair one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from measuring import print_machine, run

MAKE = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from safetensors.torch import save_file
from safelight.checkpoints import Checkpoint, write_folder
from safelight.checkpoints.layouts import original
from safelight.models.networks import NETWORKS
from safelight.models.tokenizer import END, START, ClipTokenizer
from safelight.presets import PRESETS

kind, target = sys.argv[1], Path(sys.argv[2])
preset = PRESETS["sd1"]
# A vocabulary of the right length; the words in it do not matter here.
plain = [word for word in ClipTokenizer.train([], 514).vocab if word not in (START, END)]
filler = [f"filler{i}" for i in range(preset.networks["text"].vocab_size - len(plain) - 2)]
vocab = {word: i for i, word in enumerate([*plain, *filler, START, END])}
torch.manual_seed(0)
networks = {part: NETWORKS[type(config)](config) for part, config in preset.networks.items()}
parts = {name: dict(network.state_dict()) for name, network in networks.items()}
words = ClipTokenizer(vocab, [])
if kind == "folder":
    write_folder(target, Checkpoint(preset, parts, {"text": words}))
else:
    words.write(target / "tokenizer")
    save_file(original.layout(preset).save(parts), target / "model.safetensors")
print(sum(t.numel() * t.element_size() for tensors in parts.values() for t in tensors.values()))
"""

# Both loaders get what `load` needs in the names that follow; `draw` makes the network touch all of its weights.
SAFELIGHT = {
    "folder": "import safelight, safelight.tasks.loading\nload = lambda: safelight.load(path)",
    "file": "import safelight, safelight.tasks.loading\n"
    "load = lambda: safelight.load(path / 'model.safetensors', tokenizer=path / 'tokenizer')",
}
SAFELIGHT_DRAW = "model.txt2img('a', seed=0, steps=1, sampler='euler', width=64, height=64, guidance=2.0)"
DIFFUSERS = {
    "folder": "import diffusers, transformers\n"
    "from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel\n"
    "from transformers import CLIPTextModel\n"
    "load = lambda: StableDiffusionPipeline.from_pretrained(path)",
}
DIFFUSERS_DRAW = "model('a', num_inference_steps=1, width=64, height=64, guidance_scale=2.0)"
CHILD = """
import json, resource, sys, time
from pathlib import Path
path = Path(sys.argv[1])
{imports}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before, started = peak(), time.perf_counter()
model = load()
loaded, seconds = peak(), time.perf_counter() - started
{draw}
print(json.dumps({{"loaded": loaded - before, "drawn": peak() - before, "seconds": seconds}}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=("folder", "file"), default=("folder", "file"))
    parser.add_argument("--scratch", type=Path, help="where there is room for 4.3 GB; default: the system's choice")
    options = parser.parse_args()
    print_machine("diffusers", "transformers")
    print(f"{'':<28}{'loaded':>10}{'drawn':>10}{'seconds to load':>18}")
    for kind in options.kinds:
        with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
            size = int(run(MAKE, kind, temporary))
            contestants = {"safelight": (SAFELIGHT[kind], SAFELIGHT_DRAW)}
            if kind in DIFFUSERS:  # of a single file it needs the configs from the hub
                contestants["diffusers"] = (DIFFUSERS[kind], DIFFUSERS_DRAW)
            for name, (imports, draw) in contestants.items():
                found = json.loads(run(CHILD.format(imports=imports, draw=draw), temporary))
                loaded, drawn = found["loaded"] / size, found["drawn"] / size
                print(f"{kind:<8}{name:<20}{loaded:>10.2f}{drawn:>10.2f}{found['seconds']:>18.1f}")
    print(f"\nin units of the weights: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
