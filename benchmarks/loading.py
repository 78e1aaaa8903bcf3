"""How long loading a model takes, and what memory, against diffusers and against the least that it could take.

    pip install '.[test]' && python benchmarks/loading.py                          # 8.6 GB of disk, 10 GB of memory
    python benchmarks/loading.py --dtype float32 --to float32 bfloat16
    python benchmarks/loading.py --preset sdxl --dtype bfloat16                    # 14 GB of disk

Random weights of true size: a folder in diffusers' layout, and a single file in the original one (for which diffusers
needs the configs from the hub, so it is not asked). "least" is `safetensors.torch.load_file` of the same files,
casting, and building the same networks under `torch.device("meta")`. Every loading is a process of its own, in turns;
imports do not count; the files are in the system's cache.

Memory is the peak of the resident memory above that of the process with everything imported, in units of the weights in
the dtype that they are loaded to: once they are loaded, and once every weight was used. 1.0 is what has to be. Of the
files' pages it counts those that are mapped, which the system takes back without writing them when it needs them.
On a GPU (`--device cuda`) it is the most that PyTorch had there at once, and seconds end when all weights are there.
"""

from __future__ import annotations

import json
from pathlib import Path

from measuring import SAFELIGHT, Report, Times, add_device, arguments, devices, middle_half, run, times_faster
from safelight.models.networks import shapes_of
from safelight.presets import PRESETS, Preset
from weights import folder

DTYPES = ("float32", "float16", "bfloat16")
MOST = 1.1
"""The aim for memory while loading, in units of the weights."""

LOAD = """
import json, sys, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[7])
from measuring import peak

who, kind, preset, dtype, device, target = *sys.argv[1:6], Path(sys.argv[6])
path = target / ("folder" if kind == "folder" else "model.safetensors")
if who == "diffusers":
    from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection
    pipeline = StableDiffusionXLPipeline if (path / "text_encoder_2").exists() else StableDiffusionPipeline
    load = lambda: pipeline.from_pretrained(path, torch_dtype=getattr(torch, dtype)).to(device)
    networks = lambda model: [part for part in model.components.values() if isinstance(part, torch.nn.Module)]
else:
    from safetensors.torch import load_file
    import safelight, safelight.tasks.loading
    from safelight.models.networks import NETWORKS
    from safelight.presets import PRESETS

    def load():
        if who == "safelight":
            tokenizer = target / "tokenizer" if kind == "file" else None
            named = preset if kind == "file" else None
            return safelight.load(path, device, dtype, preset=named, tokenizer=tokenizer)
        files, to = [path] if path.is_file() else sorted(path.rglob("*.safetensors")), getattr(torch, dtype)
        found = [{key: x.to(device, to) for key, x in load_file(file).items()} for file in files]
        with torch.device("meta"):
            return found, [NETWORKS[type(config)](config) for config in PRESETS[preset].networks.values()]

    networks = lambda model: list(model.networks.values()) if who == "safelight" else []

if device != "cpu":
    torch.zeros(1, device=device)  # CUDA's own start is neither's
    peak = torch.cuda.max_memory_allocated
before, started = peak(), time.perf_counter()
model = load()
if device != "cpu":
    torch.cuda.synchronize()
seconds, loaded = time.perf_counter() - started, peak() - before
for network in networks(model):
    for parameter in network.parameters():
        parameter.sum()
print(json.dumps({"seconds": seconds, "loaded": loaded, "used": peak() - before}))
"""


def numbers(preset: Preset) -> int:
    """How many weights a member has."""
    total = 0
    for config in preset.networks.values():
        for shape in shapes_of(config).values():
            size = 1
            for side in shape:
                size *= side
            total += size
    return total


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--preset", choices=[n for n, p in PRESETS.items() if p.words and p.autoencoder], default="sd1")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the files")
    parser.add_argument("--to", nargs="+", choices=DTYPES, help="loaded as; default: as they are")
    parser.add_argument("--kinds", nargs="+", choices=("folder", "file"), default=("folder", "file"))
    add_device(parser)
    parser.add_argument("--turns", type=int, default=7, help="how often each is run")
    parser.add_argument("--scratch", type=Path, help="where weights are kept for the next run; default: nowhere")
    options = parser.parse_args()
    report = Report.of(options, "diffusers", "transformers")
    here = str(Path(__file__).resolve().parent)
    count = numbers(PRESETS[options.preset])
    wanted = [options.dtype] if options.to is None else options.to
    rows = [(device, kind, to) for device in devices(options) for kind in options.kinds for to in wanted]
    print(f"{options.preset}, {count:,} weights, in the files {options.dtype}\n")
    print(f"{'':<6}{'':<8}{'to':<10}{'':<11}{'seconds':>9}{'safelight is ... as fast':>32}{'loaded':>9}{'used':>7}")
    with folder(options.preset, options.dtype, options.scratch, file="file" in options.kinds) as weights:
        for device, kind, to in rows:
            size = count * (4 if to == "float32" else 2)
            whos = (SAFELIGHT, "diffusers", "least") if kind == "folder" else (SAFELIGHT, "least")
            found: dict[str, list[dict[str, float]]] = {who: [] for who in whos}
            for turn in range(options.turns + 1):  # the first does not count
                for who in whos if turn % 2 == 0 else reversed(whos):
                    one = json.loads(run(LOAD, who, kind, options.preset, to, device, str(weights), here))
                    found[who] += [one] if turn > 0 else []
            times = {who: Times([one["seconds"] for one in taken]) for who, taken in found.items()}
            for who in whos:
                loaded, used = (max(one[what] for one in found[who]) / size for what in ("loaded", "used"))
                ratios = times_faster(times[SAFELIGHT], times[who])
                low, high = middle_half(ratios)
                faster = "" if who == SAFELIGHT else f"{Times(ratios).median:.1f}x ({low:.1f} to {high:.1f})"
                aim = f"   aim {MOST}" if who == SAFELIGHT else ""
                what = f"{device:<6}{kind:<8}{to:<10}{who:<11}"
                report.add(
                    f"{what}{times[who].median:>9.2f}{faster:>32}{loaded:>9.2f}{used:>7.2f}{aim}",
                    device=device,
                    kind=kind,
                    stored=options.dtype,
                    to=to,
                    contestant=who,
                    seconds=times[who].seconds,
                    times_faster=ratios,
                    loaded=loaded,
                    used=used,
                )


if __name__ == "__main__":
    main()
