"""Memory and time of decoding and encoding large pictures: at once, and in strips.

    pip install '.[test]' && python benchmarks/decode.py            # up to 1024x1024: 8 GB of memory, some minutes
    python benchmarks/decode.py --tasks decode --sizes 2048 --ways strips         # 4 GB; ten minutes on two cores

The autoencoder of a model, Stable Diffusion 1's with random weights (83,653,863 parameters, float32) if nothing else is
asked for, as `safelight.load` has it; each picture in a process of its own, one after the other. Memory is the peak of
the resident memory above that of the process with the weights in it. The difference is the largest one between the two
ways, of pixels in [-1, 1] or of the latent's mean, for a smooth latent or picture and for noise: 1/255 of a picture is
0.0078.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from measuring import Report, arguments, run
from safelight.presets import PRESETS
from weights import FOLDER, folder

ONE = """
import json, sys, time
from pathlib import Path
import torch
import safelight
from safelight.models import strips
sys.path.insert(0, sys.argv[1])
from measuring import peak

task, way, kind, size, model, target = *sys.argv[2:5], int(sys.argv[5]), safelight.load(sys.argv[6]), Path(sys.argv[7])
strips.MOST_AT_ONCE = sys.maxsize if way == "whole" else 0
torch.manual_seed(0)
channels, side = (4, size // model.preset.factor) if task == "decode" else (3, size)
if kind == "noise":
    x = torch.randn(1, channels, side, side)
else:
    coarse = torch.randn(1, channels, 5, 5)
    x = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)
do = model.to_pixels if task == "decode" else model.to_latent
with torch.inference_mode():
    do(x[:, :, :64, :64] if task == "encode" else x[:, :, :8, :8])  # the first call reads the weights
    before, started = peak(), time.perf_counter()
    y = do(x)
seconds, most = time.perf_counter() - started, peak()
torch.save(y.clone(), target)
print(json.dumps({"gigabytes": (most - before) / 1e9, "seconds": seconds}))
"""

DIFFERENCE = """
import sys
import torch
a, b = (torch.load(path) for path in sys.argv[1:])
print(float((a - b).abs().max()))
"""

HERE = str(Path(__file__).resolve().parent)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=("decode", "encode"), default=("decode", "encode"))
    parser.add_argument("--ways", nargs="+", choices=("whole", "strips"), default=("whole", "strips"))
    parser.add_argument("--kinds", nargs="+", choices=("smooth", "noise"), default=("smooth", "noise"))
    parser.add_argument("--sizes", nargs="+", type=int, default=(512, 768, 1024), help="sides of square pictures")
    parser.add_argument(
        "--preset", choices=[name for name, preset in PRESETS.items() if preset.autoencoder], default="sd1"
    )
    parser.add_argument("--scratch", type=Path, help="where weights are kept for the next run; default: nowhere")
    options = parser.parse_args()
    report = Report.of(options)
    print(f"{'':<8}{'size':>6}{'input':>9}{'way':>9}{'GB':>8}{'seconds':>10}{'difference':>13}")
    with folder(options.preset, "float32", options.scratch) as weights, tempfile.TemporaryDirectory() as temporary:
        model = str(weights / FOLDER)
        for task in options.tasks:
            for size in options.sizes:
                for kind in options.kinds:
                    paths = []
                    for way in options.ways:
                        paths.append(str(Path(temporary) / f"{way}.pt"))
                        found = json.loads(run(ONE, HERE, task, way, kind, str(size), model, paths[-1]))
                        line = f"{task:<8}{size:>6}{kind:>9}{way:>9}{found['gigabytes']:>8.2f}{found['seconds']:>10.1f}"
                        off = float(run(DIFFERENCE, *paths)) if len(paths) > 1 else None
                        said = "" if off is None else f"{off:>13.1e}"
                        report.add(line + said, task=task, size=size, input=kind, way=way, difference=off, **found)


if __name__ == "__main__":
    main()
