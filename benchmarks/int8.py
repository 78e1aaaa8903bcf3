"""What `--precision int8` costs in quality: how far the UNet's answer is from float32's, step by step.

    python benchmarks/int8.py                                       # the shipped tiny; a minute
    python benchmarks/int8.py --scores 1                            # with its attention, too small for that, rounded
    python benchmarks/int8.py --preset sd1 --steps 8 --prompts 1    # SD 1.5's size, random weights; 9 GB, minutes

Along the walks that float32 takes, both are asked the same at every step, guided. Decibels are those of the answer's
deviation over that of the difference: 20 dB are a tenth, 40 dB a hundredth. Of trained weights also: how near the
pictures are that are drawn with the one and with the other from the same noise (PSNR; 1/255 of difference is 48 dB).
What a judge says of such pictures: `safelight evaluate tiny --precision int8`. How fast it is: `networks.py unet
--dtype int8`.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import safelight
from measuring import Report, arguments
from safelight.doors import Conditioning
from safelight.models import rounded_attention
from safelight.tasks.loading import shipped
from weights import FOLDER, folder

PROMPTS = (
    "a cat on a red background", "a rooster on a blue background", "a key, green background", "a ship on the left",
    "a yellow background with a fish", "a horse and a star", "an umbrella above a cup", "a bicycle",
)  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--preset", default="tiny", help="a shipped model with its own weights, another with random ones"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help=f"at most {len(PROMPTS)}")
    parser.add_argument("--scratch", type=Path, help="where weights are kept for the next run; default: nowhere")
    parser.add_argument(
        "--scores", type=int, default=rounded_attention.LEAST, help="of a picture, from which on attention is rounded"
    )
    options = parser.parse_args()
    rounded_attention.LEAST = options.scores
    trained = options.preset in shipped()
    report = Report.of(options)
    warnings.simplefilter("ignore")
    with nullcontext() if trained else folder(options.preset, "float32", options.scratch) as weights:
        source = options.preset if weights is None else weights / FOLDER
        exact, rounded = safelight.load(source, "cpu"), safelight.load(source, "cpu", "int8")
        found: dict[int, list[float]] = defaultdict(list)
        near = []
        for seed, prompt in enumerate(PROMPTS[: options.prompts]):
            request = safelight.TextToImage(prompt=prompt, seed=seed, steps=options.steps)
            beside = compared(exact, rounded, found)
            picture = exact.draw(request)[0] if trained else list(exact.steps(request))[-1]
            beside.remove()
            if isinstance(picture, Image.Image):
                near.append(psnr(picture, rounded.draw(request)[0]))
    for step, heard in found.items():
        report.add(f"step {step + 1:3d}   {mean(heard):5.1f} dB   (least {min(heard):.1f})", step=step, decibels=heard)
    if near:
        report.add(f"pictures   {mean(near):5.1f} dB   (least {min(near):.1f})", what="pictures", decibels=near)


def compared(
    exact: safelight.Model, rounded: safelight.Model, found: dict[int, list[float]]
) -> torch.utils.hooks.RemovableHandle:
    """Ask the other, too, whatever the first is asked, until this is removed."""
    step = 0

    def ask(unet: nn.Module, asked: tuple[Tensor, Tensor, Conditioning, object], answer: Tensor) -> None:
        nonlocal step
        other = rounded.unet(*asked)
        found[step].append(float(20 * torch.log10(answer.std() / (answer - other).std())))
        step += 1

    return exact.unet.register_forward_hook(ask)


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Of 255, in decibels."""
    a, b = (np.asarray(image, dtype=np.float64) for image in (one, other))
    return float(20 * np.log10(255 / np.sqrt(np.mean((a - b) ** 2))))


if __name__ == "__main__":
    main()
