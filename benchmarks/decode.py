"""Memory and time of decoding and encoding large pictures: at once, and in strips.

    pip install '.[test]' && python benchmarks/decode.py            # up to 1024x1024: 5 GB of memory, some minutes
    python benchmarks/decode.py --sizes 2048 --ways strips          # 3.5 GB; an hour where the cores are few and slow

Stable Diffusion's autoencoder with random weights (83,653,863 parameters, float32), each picture in a process of its
own, one after the other. Memory is the peak of the resident memory above that of the process with the weights in it.
The difference is the largest one between the two ways, of pixels in [-1, 1] or of the latent's mean, for a smooth
latent or picture and for noise: 1/255 of a picture is 0.0078.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from measuring import Report, arguments, run

ONE = """
import json, resource, sys, time
from pathlib import Path
import torch
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.strips import decode_in_strips, encode_in_strips

task, way, kind, size, target = *sys.argv[1:4], int(sys.argv[4]), Path(sys.argv[5])
unit = 1 if sys.platform == "darwin" else 1024
torch.manual_seed(0)
autoencoder = Autoencoder(AutoencoderConfig()).eval().requires_grad_(False)
channels, side = (4, size // 8) if task == "decode" else (3, size)
if kind == "noise":
    x = torch.randn(1, channels, side, side)
else:
    coarse = torch.randn(1, channels, 5, 5)
    x = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)
ways = {
    ("decode", "whole"): autoencoder.decode,
    ("decode", "strips"): lambda z: decode_in_strips(autoencoder, z),
    ("encode", "whole"): lambda pixels: autoencoder.encode(pixels)[0],
    ("encode", "strips"): lambda pixels: encode_in_strips(autoencoder, pixels)[0],
}
with torch.inference_mode():
    ways[task, way](x[:, :, :64, :64] if task == "encode" else x[:, :, :8, :8])  # the first call makes kernels
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, time.perf_counter()
    y = ways[task, way](x)
seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
torch.save(y.clone(), target)
print(json.dumps({"gigabytes": (peak - before) / 1e9, "seconds": seconds}))
"""

DIFFERENCE = """
import sys
import torch
a, b = (torch.load(path) for path in sys.argv[1:])
print(float((a - b).abs().max()))
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=("decode", "encode"), default=("decode", "encode"))
    parser.add_argument("--ways", nargs="+", choices=("whole", "strips"), default=("whole", "strips"))
    parser.add_argument("--kinds", nargs="+", choices=("smooth", "noise"), default=("smooth", "noise"))
    parser.add_argument("--sizes", nargs="+", type=int, default=(512, 768, 1024), help="sides of square pictures")
    options = parser.parse_args()
    report = Report.of(options)
    print(f"{'':<8}{'size':>6}{'input':>9}{'way':>9}{'GB':>8}{'seconds':>10}{'difference':>13}")
    with tempfile.TemporaryDirectory() as temporary:
        for task in options.tasks:
            for size in options.sizes:
                for kind in options.kinds:
                    paths = []
                    for way in options.ways:
                        paths.append(str(Path(temporary) / f"{way}.pt"))
                        found = json.loads(run(ONE, task, way, kind, str(size), paths[-1]))
                        line = f"{task:<8}{size:>6}{kind:>9}{way:>9}{found['gigabytes']:>8.2f}{found['seconds']:>10.1f}"
                        off = float(run(DIFFERENCE, *paths)) if len(paths) > 1 else None
                        said = "" if off is None else f"{off:>13.1e}"
                        report.add(line + said, task=task, size=size, input=kind, way=way, difference=off, **found)


if __name__ == "__main__":
    main()
