"""How long the command takes before it says something, and before a first picture is there.

    pip install '.[test]' && python benchmarks/startup.py

Every run is a process of its own. The pictures are drawn from a cold start (of the process; the files may be in the
system's cache), by us and by diffusers, from the same folder with the same number of steps, in turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import safelight
from measuring import alternate, print_machine, ratio

HELP = "from safelight.cli import main; main(['--help'])"
NO_TORCH = f"{HELP}; import sys; sys.exit('torch' in sys.modules)"
DIFFUSERS = """
import sys, torch
from diffusers import StableDiffusionPipeline
folder, prompt, steps, guidance, output = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(folder)
generator = torch.Generator("cpu").manual_seed(7)
picture = pipeline(prompt, num_inference_steps=int(steps), guidance_scale=float(guidance), generator=generator)
picture.images[0].save(output)
"""
PROMPT = "a red apple on a blue background"


def run(*arguments: str) -> None:
    """One process of this Python; its output only if it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)[:200]} failed:\n{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a model that safelight.load takes")
    parser.add_argument("--turns", type=int, default=7, help="how often each is run")
    options = parser.parse_args()
    print_machine("diffusers")

    run("-c", NO_TORCH)
    print("safelight --help does not import torch")
    times = alternate(
        {
            "python, nothing": lambda: run("-c", "pass"),
            "safelight --help": lambda: run("-m", "safelight", "--help"),
            "import torch": lambda: run("-c", "import torch"),
        },
        options.turns,
        warmup=1,
    )
    for name, taken in times.items():
        print(f"  {name:<24}{taken.text(1, 's')}")

    with tempfile.TemporaryDirectory() as temporary:
        folder, output = str(Path(temporary) / "model"), str(Path(temporary) / "out.png")
        model = safelight.load(options.model)
        model.save(folder)
        steps, guidance = str(model.preset.steps), str(model.preset.guidance)
        ours = ("-m", "safelight", "txt2img", PROMPT, "--seed", "7", "--model", folder, "--output", output)
        theirs = ("-c", DIFFUSERS, folder, PROMPT, steps, guidance, output)
        times = alternate({"safelight": lambda: run(*ours), "diffusers": lambda: run(*theirs)}, options.turns, warmup=1)
    size = f"{model.preset.width}x{model.preset.height}"
    print(f"\na picture from a cold start: {options.model}, {size}, {steps} steps, guidance {guidance}")
    for name, taken in times.items():
        print(f"  {name:<24}{taken.text(1, 's')}")
    print(f"  {'safelight / diffusers':<24}{ratio(times['safelight'], times['diffusers'])}")


if __name__ == "__main__":
    main()
