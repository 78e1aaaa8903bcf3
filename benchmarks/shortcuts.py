"""What each shortcut gains and costs, side by side: reused deep features, merged tokens, guidance within an interval.

    python benchmarks/shortcuts.py quality    # tiny on prompts never trained on: what the judge finds, how far off
    python benchmarks/shortcuts.py time       # a guided step of SD 1.5's UNet with random weights; 5 GB of memory
    python benchmarks/shortcuts.py previews   # pictures of unfinished latents, against the autoencoder's decoder

Quality is measured as on tiny's model card (`safelight evaluate tiny`), and as the distance to the picture that the
same seed gives without shortcuts: PSNR, and with --lpips FILE (VGG-16's weights and LPIPS') also LPIPS. With random
weights only times mean something: that of a step is the mean over a walk, from its kinds of network calls.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import torch
from PIL import Image
from torch import Tensor

import safelight
from measuring import Report, Times, alternate, arguments
from safelight.checkpoints.components import read_judge, read_lpips
from safelight.diffusion.samplers import Step
from safelight.doors import Conditioning
from safelight.evaluation.fidelity import psnr
from safelight.evaluation.judging import Marks, Question, look, mark, tally
from safelight.evaluation.prompts import Prompt, held_out_prompts
from safelight.evaluation.tiny import judge_folder
from safelight.models.autoencoder import Autoencoder
from safelight.models.merging import merged_tokens
from safelight.models.preview_decoder import PreviewDecoder, PreviewDecoderConfig
from safelight.models.unet import Deep, UNet
from safelight.presets import PRESETS
from safelight.tasks.model import Model
from safelight.tasks.pictures import to_pixels
from safelight.tasks.previewing import decoded_by, fitted
from safelight.tasks.requests import TextToImage

ASKED: tuple[Question, ...] = ("object", "ground", "position", "pair")
BATCH = 50


@dataclass(frozen=True)
class Shortcut:
    """What is asked, and what of a walk is computed."""

    fields: Mapping[str, object]
    every: int = 1
    below: int = 1
    merge: float = 0.0
    guided: float = 1.0
    """Share of the steps."""

    @property
    def name(self) -> str:
        """As it is typed."""
        return " ".join(f"{k.replace('_', '-')} {_typed(v)}" for k, v in self.fields.items())


def _typed(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


SHORTCUTS = (
    *(Shortcut({"deep_every": n}, every=n) for n in (2, 3, 5)),
    *(Shortcut({"merge_tokens": ratio}, merge=ratio) for ratio in (0.25, 0.5)),
    *(Shortcut({"guidance_interval": (a, b)}, guided=b - a) for a, b in ((0.0, 0.8), (0.2, 0.8), (0.0, 0.5))),
    Shortcut({"deep_every": 3, "guidance_interval": (0.0, 0.8)}, every=3, guided=0.8),
    *(Shortcut({"deep_every": 3, "deep_below": d}, every=3, below=d) for d in (2, 4)),
)


def quality(options: argparse.Namespace) -> None:
    """Tiny with each shortcut, on the same prompts and seeds."""
    report = Report.of(options)
    model, judge = safelight.load("tiny"), read_judge(judge_folder(None)).eval()
    prompts = held_out_prompts(options.prompts, 0)
    distance = None if options.lpips is None else read_lpips(options.lpips).eval()
    request = model.resolve(TextToImage(prompt="", seed=0))
    heads = ("", *(f"{q} right" for q in ASKED), "PSNR, dB", "worst tenth", *([] if distance is None else ["LPIPS"]))
    print(f"{len(prompts)} prompts, {request.steps} steps of {request.sampler}, guidance {request.guidance}\n")
    print(f"| {' | '.join(heads)} |\n|---|{'--:|' * (len(heads) - 1)}")
    whole: list[Image.Image] = []
    for shortcut in (Shortcut({}), *SHORTCUTS):
        if shortcut.below > model.preset.unet.joins:
            continue
        images, marks = drawn(model, request.changed(**shortcut.fields), prompts, judge)
        whole = whole if whole else images
        shares = tally(marks)
        row: list[str] = [f"{100 * shares[q].value:.1f} %" for q in ASKED]
        far = sorted(min(psnr(a, b), 99.0) for a, b in zip(images, whole, strict=True))
        same = not shortcut.fields
        row += ["", ""] if same else [f"{median(far):.1f}", f"{far[len(far) // 10]:.1f}"]
        apart = None if distance is None or same else fmean(lpips(distance, images, whole))
        row += [] if distance is None else ["" if apart is None else f"{apart:.4f}"]
        name = "none" if same else shortcut.name
        found = {q.replace(" ", "_"): shares[q].value for q in ASKED}
        report.add(f"| {name} | {' | '.join(row)} |", shortcut=name, psnr=far, lpips=apart, **found)


def drawn(
    model: Model, request: TextToImage, prompts: Sequence[Prompt], judge: torch.nn.Module
) -> tuple[list[Image.Image], list[Marks]]:
    """Picture k from seed k, and what the judge finds in it."""
    images: list[Image.Image] = []
    for first in range(0, len(prompts), BATCH):
        some = prompts[first : first + BATCH]
        words = [prompt.words for prompt in some]
        images += model.draw(request.changed(seed=first, batch=len(some)), prompts=words)
    seen = look(judge, images)  # type: ignore[arg-type]
    return images, [mark(prompt.facts, one) for prompt, one in zip(prompts, seen, strict=True)]


@torch.inference_mode()
def lpips(distance: torch.nn.Module, images: Sequence[Image.Image], others: Sequence[Image.Image]) -> list[float]:
    """One distance for each pair."""
    return [float(distance(to_pixels(a), to_pixels(b))) for a, b in zip(images, others, strict=True)]


@torch.inference_mode()
def times(options: argparse.Namespace) -> None:
    """The kinds of network calls that walks are made of, in turns, and what walks of them take."""
    report = Report.of(options)
    preset = PRESETS["sd1"]
    torch.manual_seed(0)
    unet = UNet(preset.unet).eval()
    side = options.size // preset.factor
    x, context = torch.randn(2, 4, side, side), torch.randn(2, 77, 768)
    cond, t = Conditioning(context=context), torch.full((2,), 500.0)
    belows = sorted({shortcut.below for shortcut in SHORTCUTS})
    known = {}
    for below in belows:
        unet(x, t, cond, deep := Deep(below))
        known[below] = deep.found

    def merging(ratio: float) -> Callable[[], object]:
        def call() -> Tensor:
            with merged_tokens(unet, ratio, [1]):
                return unet(x, t, cond)

        return call

    calls: dict[str, Callable[[], object]] = {
        "guided": lambda: unet(x, t, cond),
        "unguided": lambda: unet(x[:1], t[:1], Conditioning(context=context[:1])),
        **{f"merged {ratio:g}": merging(ratio) for ratio in (0.25, 0.5)},
        **{f"shallow {b}": lambda b=b: unet(x, t, cond, Deep(b, known[b])) for b in belows},
        "shallow 1 unguided": lambda: unet(
            x[:1], t[:1], Conditioning(context=context[:1]), Deep(1, known[1][:1] if known[1] is not None else None)
        ),
    }
    found = alternate(calls, options.turns, warmup=1)
    print(f"SD 1.5's UNet, {options.size}x{options.size}, float32, {torch.get_num_threads()} threads\n")
    for name, taken in found.items():
        report.add(f"  {name:<20}{taken.text(1, 's')}", call=name, seconds=taken.seconds)
    print("\n| shortcut | mean step, s | times as fast |\n|---|--:|--:|")
    for shortcut in SHORTCUTS:
        mean = [step(found, shortcut, turn) for turn in range(options.turns)]
        gain = [a / b for a, b in zip(found["guided"].seconds, mean, strict=True)]
        report.add(
            f"| {shortcut.name} | {median(mean):.2f} | {median(gain):.2f} |",
            shortcut=shortcut.name,
            seconds=mean,
            gain=gain,
        )


def step(found: Mapping[str, Times], shortcut: Shortcut, turn: int) -> float:
    """Seconds of a step of a long walk with a shortcut, of the calls as they were in one turn."""

    def call(name: str) -> float:
        return found[name].seconds[turn]

    whole = call(f"merged {shortcut.merge:g}") if shortcut.merge else call("guided")
    without = call("unguided")
    if shortcut.every > 1:
        often = 1 / shortcut.every
        whole = often * whole + (1 - often) * call(f"shallow {shortcut.below}")
        without = often * without + (1 - often) * call("shallow 1 unguided")
    return shortcut.guided * whole + (1 - shortcut.guided) * without


@torch.inference_mode()
def previews(options: argparse.Namespace) -> None:
    """How long previews take beside the decoder, and how near those of tiny are to it."""
    report = Report.of(options)
    model = safelight.load("tiny")
    planes, latent = fitted(model), torch.randn(1, 4, 16, 16)
    kinds: dict[str, Callable[[Tensor], object]] = {
        "decoder": model.to_pixels,
        "preview decoder": model._previews.show,
        "planes": planes,
    }
    calls: dict[str, Callable[[], object]] = {name: lambda f=f: f(latent) for name, f in kinds.items()}
    _shown(report, "tiny, 64x64", alternate(calls, options.turns * 10))

    steps: list[Step] = []
    prompts = held_out_prompts(options.prompts, 0)[:BATCH]
    request = TextToImage(prompt="", seed=0, batch=len(prompts))
    steps = list(model.steps(request, prompts=[prompt.words for prompt in prompts]))
    print(f"\nPSNR of previews to what the decoder shows, {len(prompts)} pictures, dB:")
    print(f"\n| after step | {' | '.join(list(kinds)[1:])} |\n|---|{'--:|' * (len(kinds) - 1)}")
    for one in (steps[len(steps) // 4], steps[len(steps) // 2], steps[-1]):
        shown = {name: pixels_of(f, one.denoised) for name, f in kinds.items()}
        far = {name: decibels(shown[name], shown["decoder"]) for name in list(kinds)[1:]}
        cells = " | ".join(f"{value:.1f}" for value in far.values())
        report.add(f"| {one.index + 1} of {len(steps)} | {cells} |", step=one.index + 1, **far)

    _large(report, options)


def _large(report: Report, options: argparse.Namespace) -> None:
    """The same at SD 1.5's size, where only times mean something."""
    preset = PRESETS["sd1"]
    assert preset.autoencoder is not None
    torch.manual_seed(0)
    side = options.size // preset.factor
    large = torch.randn(1, 4, side, side)
    autoencoder = Autoencoder(preset.autoencoder).eval()
    shapes = {
        "TAESD's shape": PreviewDecoderConfig(),
        "our default shape": PreviewDecoderConfig(width=16, blocks=(2,), pixels=preset.factor),
    }
    decoders = {name: decoded_by(PreviewDecoder(shape).eval()) for name, shape in shapes.items()}
    calls = {
        "decoder": lambda: autoencoder.decode(large),
        **{name: lambda f=f: f(large) for name, f in decoders.items()},
        "planes": lambda: _plane_like(large, preset.factor),
    }
    print()
    _shown(report, f"SD 1.5's size, {options.size}x{options.size}", alternate(calls, options.turns, warmup=1))


def _plane_like(latent: Tensor, factor: int) -> Tensor:
    """As much work as `fitted` gives: its numbers do not change the time."""
    mixed = torch.einsum("kc, bchw -> bkhw", torch.ones(3, latent.shape[1]), latent)
    return torch.nn.functional.interpolate(mixed, scale_factor=factor, mode="bilinear")


def _shown(report: Report, what: str, found: Mapping[str, Times]) -> None:
    print(f"{what}, {torch.get_num_threads()} threads")
    whole = found["decoder"].seconds
    for name, taken in found.items():
        part = median(a / b for a, b in zip(whole, taken.seconds, strict=True))
        line = "" if name == "decoder" else f"   1/{part:.0f} of the decoder's"
        report.add(f"  {name:<20}{taken.text(1e-3, 'ms')}{line}", what=what, kind=name, seconds=taken.seconds)


def pixels_of(show: Callable[[Tensor], object], latents: Tensor) -> Tensor:
    """One by one, as a user sees them."""
    pictures = [show(one) for one in torch.split(latents, 1)]
    return torch.cat([p for p in pictures if isinstance(p, Tensor)]).clamp(-1, 1)


def decibels(one: Tensor, other: Tensor) -> float:
    """Mean PSNR of pictures in [-1, 1]."""
    errors = (one - other).square().mean(dim=(1, 2, 3)).clamp_min(1e-12)
    return float((-10 * torch.log10(errors / 4)).mean())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("what", choices=("quality", "time", "previews"))
    parser.add_argument("--prompts", type=int, default=200, help="of quality")
    parser.add_argument("--turns", type=int, default=3, help="of time and previews")
    parser.add_argument("--size", type=int, default=512, help="of time and previews: pixels on a side")
    parser.add_argument("--lpips", type=Path, help="weights for LPIPS, as `train autoencoder --perceptual` takes them")
    options = parser.parse_args()
    started = time.perf_counter()
    {"quality": quality, "time": times, "previews": previews}[options.what](options)
    print(f"\nMeasured in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
