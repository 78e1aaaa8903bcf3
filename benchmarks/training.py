"""A step of training, ours against diffusers' with PEFT: its time, and the memory of the process.

    pip install '.[test]' && python benchmarks/training.py --whats lora          # 8 GB of memory
    python benchmarks/training.py --whats full --checkpointing                   # 20 GB of memory
    python benchmarks/training.py --preset tiny --turns 5 --steps 20

Ours are the recipes of `safelight train lora` and `safelight train dreambooth` in the loop that trains them, from two
pictures in a folder; theirs is the step of diffusers' example scripts. Both: float32, batch 1, AdamW, the gradient's
norm clipped at 1, the mean squared error of the noise; LoRA of rank 16 on the queries, keys, values and outputs of all
attentions. Latents and words are encoded beforehand on both sides (their scripts can encode them at every step, and
keep the networks that do it), so theirs begins with what it needs. Each run is a process of its own, in strict turns;
the first step of each does not count. Memory is the peak of the process, everything in it counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from measuring import SAFELIGHT, Report, Times, add_clock, add_device, arguments, devices
from safelight.presets import PRESETS
from weights import FOLDER, folder

DIFFUSERS = "diffusers"
RANK, ALPHA, LR, CLIP = 16, 16, 1e-4, 1.0
AIM = 1.0
"""Times as fast, and of the peer's memory."""


def one(
    who: str, what: str, weights: Path, size: int, steps: int, clock: str, device: str, *, checkpointing: bool
) -> dict[str, object]:
    """Train for some steps in a process of its own: `seconds` of each, `peak` in bytes, and the `losses`."""
    side = Path(__file__).with_name("training_sides.py")
    given = [who, what, str(weights / FOLDER), str(size), str(steps), clock, device, str(int(checkpointing))]
    done = subprocess.run([sys.executable, str(side), *given], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{who} could not train:\n{done.stderr}")
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = arguments(__doc__)
    add_clock(parser)
    add_device(parser)
    parser.add_argument("--whats", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, on both sides")
    parser.add_argument("--preset", choices=[name for name in PRESETS if name in ("sd1", "tiny")], default="sd1")
    parser.add_argument("--size", type=int, help="pixels of a side; default: the preset's own")
    parser.add_argument("--steps", type=int, default=3, help="of each process, beside the first")
    parser.add_argument("--turns", type=int, default=3, help="processes of each")
    parser.add_argument("--who", nargs="+", choices=(SAFELIGHT, DIFFUSERS), default=(SAFELIGHT, DIFFUSERS))
    parser.add_argument("--scratch", type=Path, help="where weights are kept for the next run; default: nowhere")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    size = preset.width if options.size is None else options.size
    report = Report.of(options, "diffusers", "peft")
    with folder(options.preset, "float32", options.scratch) as weights:
        for device, what in [(device, what) for device in devices(options) for what in options.whats]:
            seconds: dict[str, list[float]] = {who: [] for who in options.who}
            peaks: dict[str, list[int]] = {who: [] for who in options.who}
            for turn in range(options.turns):
                for who in options.who if turn % 2 == 0 else reversed(options.who):
                    asked = (who, what, weights, size, options.steps, options.clock, device)
                    found = one(*asked, checkpointing=options.checkpointing)
                    assert isinstance(found["seconds"], list) and isinstance(found["peak"], int)
                    print(f"  {who}: {found}", file=sys.stderr, flush=True)
                    seconds[who] += found["seconds"]
                    peaks[who].append(found["peak"])
            how = ", gradient checkpointing" if options.checkpointing else ""
            title = f"{preset.title}: {what}, {size}x{size}, batch 1, float32, {device}, {options.clock} clock{how}"
            aims = {DIFFUSERS: AIM} if (options.preset, device) == ("sd1", "cpu") else None
            times = {who: Times(taken) for who, taken in seconds.items()}
            report.times(title, times, "s" if max(t.median for t in times.values()) > 0.5 else "ms", aims)
            gigabytes = {who: median(found) / 1e9 for who, found in peaks.items()}
            for who, gb in gigabytes.items():
                share = gb / gigabytes[DIFFUSERS] if DIFFUSERS in gigabytes else None
                said = "" if share is None or who == DIFFUSERS else f", {share:.2f} of diffusers'   aim {AIM:.2f}"
                report.add(f"  {who:<26}{gb:9.2f} GB{said}", what=title, contestant=who, peak=peaks[who], share=share)
            print()


if __name__ == "__main__":
    main()
