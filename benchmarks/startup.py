"""From the start of a process: the command's first word, the first step's beginning, and a whole picture.

    pip install '.[test]' && python benchmarks/startup.py                    # the shipped tiny
    python benchmarks/startup.py --preset sd1 --steps 4 --turns 3            # true size, random weights; minutes
    python benchmarks/startup.py step whole --preset sd1 --device cuda

Every run is a process of its own, ours and diffusers' in turns, from the same folder; the files are in the system's
cache. "First step" is what passes before the UNet is called for the first time: imports, loading, reading the prompt.
"Whole" is `safelight txt2img`, from nothing to a picture in a file, with guidance, and the same by diffusers' pipeline.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import safelight
from measuring import SAFELIGHT, Report, add_device, alternate, arguments, devices
from safelight.presets import PRESETS
from weights import FOLDER, folder

HELP = "from safelight.cli import main; main(['--help'])"
NO_TORCH = f"{HELP}; import sys; sys.exit('torch' in sys.modules)"
THEIRS = """
import sys, torch
folder, prompt, steps, guidance, side, device, output = sys.argv[1:]
import json, pathlib
xl = "XL" in json.loads((pathlib.Path(folder) / "model_index.json").read_text())["_class_name"]
if xl:
    from diffusers import StableDiffusionXLPipeline as Pipeline
else:
    from diffusers import StableDiffusionPipeline as Pipeline
pipeline = Pipeline.from_pretrained(folder).to(device)
generator = torch.Generator("cpu").manual_seed(7)
def draw():
    asked = {"num_inference_steps": int(steps), "guidance_scale": float(guidance), "generator": generator}
    return pipeline(prompt, width=int(side), height=int(side), **asked).images[0]
"""
OURS = """
import sys, safelight
folder, prompt, steps, guidance, side, device, output = sys.argv[1:]
model = safelight.load(folder, device)
def draw():
    return model.txt2img(prompt, steps=int(steps), guidance=float(guidance), seed=7, width=int(side), height=int(side))
"""
LEAVE = """
import os, torch
def leave(*inputs):
    if device != "cpu":
        torch.cuda.synchronize()  # the weights are there
    os._exit(0)
{unet}.register_forward_pre_hook(leave)
draw()
sys.exit("the network was never called")
"""
PROMPT = "a red apple on a blue background"
AIMS = {"step": {"diffusers": 3.0}, "whole": {"diffusers": 1.7}}
"""Times as fast as diffusers, at least: of SD 1.5 on two cores, four guided steps."""


def run(*arguments: str) -> None:
    """One process of this Python; its output only if it fails. Packages are compiled, as an installer leaves them."""
    given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=given)
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)[:200]} failed:\n{done.stderr}")


@contextmanager
def model_folder(preset: str, scratch: Path | None) -> Iterator[Path]:
    """The shipped tiny, or random weights of true size."""
    if preset != "tiny":
        with folder(preset, "float32", scratch) as weights:
            yield weights / FOLDER
        return
    with tempfile.TemporaryDirectory() as temporary:
        safelight.load("tiny").save(Path(temporary) / "model")
        yield Path(temporary) / "model"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("whats", nargs="*", default=["word", "step", "whole"], help="of: word, step, whole")
    parser.add_argument(
        "--preset", choices=[n for n, p in PRESETS.items() if p.words and p.autoencoder], default="tiny"
    )
    parser.add_argument("--steps", type=int, help="default: the preset's own")
    parser.add_argument("--size", type=int, help="pixels of a side; default: the preset's own")
    add_device(parser)
    parser.add_argument("--turns", type=int, default=7, help="how often each is run")
    parser.add_argument("--scratch", type=Path, help="where weights are kept for the next run; default: nowhere")
    options = parser.parse_args()
    report = Report.of(options, "diffusers", "transformers")
    preset = PRESETS[options.preset]
    steps = str(preset.steps if options.steps is None else options.steps)
    side = str(preset.width if options.size is None else options.size)
    guidance = str(preset.guidance)
    if "word" in options.whats:
        run("-c", NO_TORCH)
        first = {
            "python, nothing": lambda: run("-c", "pass"),
            "safelight --help": lambda: run("-m", "safelight", "--help"),
            "import torch": lambda: run("-c", "import torch"),
        }
        title = "the command's first word; safelight --help does not import torch   (aim 0.4 s)"
        report.times(title, alternate(first, options.turns, 1))
    here = devices(options)
    with model_folder(options.preset, options.scratch) as model, tempfile.TemporaryDirectory() as temporary:
        for device in here:
            given = (str(model), PROMPT, steps, guidance, side, device, str(Path(temporary) / "out.png"))
            aims = AIMS if (options.preset, device) == ("sd1", "cpu") else {}
            if "step" in options.whats:
                title = f"{preset.title}, {device}, from the start of the process to the first step"
                report.times(title, alternate(to_first_step(given), options.turns, 1), aims=aims.get("step"))
            if "whole" in options.whats:
                how = f"{side}x{side}, {steps} steps, guidance {guidance}"
                title = f"{preset.title}, {device}, a picture from nothing: {how}"
                warmup = 1 if options.preset == "tiny" else 0
                report.times(title, alternate(to_picture(given), options.turns, warmup), aims=aims.get("whole"))


def to_first_step(given: Sequence[str]) -> dict[str, Callable[[], None]]:
    """Processes that end when the UNet is asked for the first time."""
    return {
        SAFELIGHT: lambda: run("-c", OURS + LEAVE.format(unet="model.unet"), *given),
        "diffusers": lambda: run("-c", THEIRS + LEAVE.format(unet="pipeline.unet"), *given),
    }


def to_picture(given: Sequence[str]) -> dict[str, Callable[[], None]]:
    """Processes that end with a picture in a file."""
    model, prompt, steps, guidance, side, device, output = given
    asked = ["--steps", steps, "--guidance", guidance, "--width", side, "--height", side, "--device", device]
    command = ["-m", "safelight", "txt2img", prompt, "--seed", "7", "--model", model, *asked]
    return {
        SAFELIGHT: lambda: run(*command, "--output", output),
        "diffusers": lambda: run("-c", f"{THEIRS}\ndraw().save(output)", *given),
    }


if __name__ == "__main__":
    main()
