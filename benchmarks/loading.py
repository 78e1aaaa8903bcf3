"""How long loading a model of Stable Diffusion 1.x's or XL's size takes, against the least that it could take.

    pip install '.[test]' && python benchmarks/loading.py
    python benchmarks/loading.py --preset sdxl --dtype float16      # 6.9 GB of disk

Makes random weights in a temporary folder: a folder in diffusers' layout, and a single file in the original one. The
least is `safetensors.torch.load_file` of the same files, and building the same networks under
`torch.device("meta")`. Every
loading is a process of its own, in turns; imports do not count; the files are in the system's cache.

Memory is the peak of the resident memory above that of the process with everything imported, once every weight was
used, less the size of the weights in the dtype that they are loaded to, and in units of it. Of the files' pages it
counts those that are mapped, which the system takes back without writing them when it needs them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from measuring import Times, print_machine, ratio, run

MAKE = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from safelight.checkpoints import Checkpoint, write_folder
from safelight.checkpoints.layouts import original
from safelight.models.networks import NETWORKS
from safelight.models.tokenizer import END, START, ClipTokenizer
from safelight.presets import PRESETS

preset, dtype, target = PRESETS[sys.argv[1]], getattr(torch, sys.argv[2]), Path(sys.argv[3])
# A vocabulary of the right length; the words in it do not matter here.
plain = [word for word in ClipTokenizer.train([], 514).vocab if word not in (START, END)]
filler = [f"filler{i}" for i in range(preset.words[0].tower.vocab_size - len(plain) - 2)]
words = ClipTokenizer({word: i for i, word in enumerate([*plain, *filler, START, END])}, [])
parts = {}
for part, config in preset.networks.items():
    with torch.device("meta"):
        network = NETWORKS[type(config)](config)
    parts[part] = {key: torch.randn(x.shape, dtype=dtype) * 0.02 for key, x in network.state_dict().items()}
write_folder(target / "folder", Checkpoint(preset, parts, {words_of.part: words for words_of in preset.words}))
save_file(original.layout(preset).save(parts), target / "model.safetensors")
words.write(target / "tokenizer")
print(sum(x.numel() for tensors in parts.values() for x in tensors.values()))
"""

LOAD = """
import json, resource, sys, time
from pathlib import Path
import torch
from safetensors.torch import load_file
import safelight, safelight.tasks.loading
from safelight.models.networks import NETWORKS
from safelight.presets import PRESETS

who, kind, preset, dtype, target = *sys.argv[1:5], Path(sys.argv[5])
path = target / ("folder" if kind == "folder" else "model.safetensors")

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

def least():
    files, to = [path] if path.is_file() else sorted(path.rglob("*.safetensors")), getattr(torch, dtype)
    found = [{key: x.to(to) for key, x in load_file(file).items()} for file in files]
    with torch.device("meta"):
        return found, [NETWORKS[type(config)](config) for config in PRESETS[preset].networks.values()]

def ours():
    tokenizer = target / "tokenizer" if kind == "file" else None
    named = preset if kind == "file" else None
    return safelight.load(path, "cpu", dtype, preset=named, tokenizer=tokenizer)

before, started = peak(), time.perf_counter()
model = least() if who == "least" else ours()
seconds = time.perf_counter() - started
if who == "ours":
    for part in model.networks.values():
        for parameter in part.parameters():
            parameter.sum()
print(json.dumps({"seconds": seconds, "bytes": peak() - before}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="sd1")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the files")
    parser.add_argument("--to", nargs="+", choices=("float32", "float16"), help="loaded as; default: as they are")
    parser.add_argument("--turns", type=int, default=7, help="how often each is run")
    parser.add_argument("--scratch", type=Path, help="where there is room for the weights twice; default: the system's")
    options = parser.parse_args()
    print_machine()
    print(f"{'':<10}{'to':<10}{'least, s':>10}{'ours, s':>10}{'ratio':>10}{'':<24}{'memory above the weights':>26}")
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        numbers = int(run(MAKE, options.preset, options.dtype, temporary))
        for kind in ("folder", "file"):
            for to in options.to if options.to is not None else [options.dtype]:
                found: dict[str, list[dict[str, float]]] = {"least": [], "ours": []}
                for turn in range(options.turns + 1):  # the first does not count
                    for who in sorted(found, reverse=turn % 2 == 0):
                        one = json.loads(run(LOAD, who, kind, options.preset, to, temporary))
                        found[who] += [one] if turn > 0 else []
                least, ours = (Times([one["seconds"] for one in taken]) for taken in found.values())
                weights = numbers * (4 if to == "float32" else 2)
                above = max(one["bytes"] for one in found["ours"]) / weights - 1
                print(
                    f"{kind:<10}{to:<10}{least.median:>10.2f}{ours.median:>10.2f}{ratio(ours, least):<34}{above:>26.1%}"
                )
    print(f"\n{numbers:,} weights, in the files {options.dtype}")


if __name__ == "__main__":
    main()
