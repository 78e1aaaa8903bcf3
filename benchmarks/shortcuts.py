"""What each shortcut costs and gains, in one row: reused deep features, merged tokens, guidance within an interval.

    python benchmarks/shortcuts.py quality    # tiny on prompts never trained on; half an hour
    python benchmarks/shortcuts.py time       # SD 1.5's UNet, random weights, as `safelight.load` has it; 8 GB
    python benchmarks/shortcuts.py previews   # pictures of unfinished latents, against the autoencoder's decoder

Quality is measured as on tiny's model card (`safelight evaluate tiny`), and as the distance to the picture that the
same seed gives without shortcuts: PSNR, and with --lpips FILE (VGG-16's weights and LPIPS') also LPIPS. Gains are of
all steps of one picture. What they ask of the UNet is noted in a walk of tiny's; its arithmetic, counted by
`torch.utils.flop_counter` (a multiplication and an addition are two), and its time are those of SD 1.5's UNet asked the
same. Fewer steps stand beside them as the yardstick: a shortcut that does not beat them is of no use.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import safelight
from measuring import CLOCKS, Report, Times, add_clock, alternate, arguments, taken, times_faster
from safelight.checkpoints.components import read_judge, read_lpips
from safelight.diffusion.samplers import Step
from safelight.doors import Conditioning
from safelight.evaluation.fidelity import psnr
from safelight.evaluation.judging import Marks, Question, look, mark, tally
from safelight.evaluation.prompts import Prompt, held_out_prompts
from safelight.evaluation.tiny import judge_folder
from safelight.models.autoencoder import Autoencoder
from safelight.models.merging import merged_tokens
from safelight.models.networks import unfilled
from safelight.models.packed import FINE_TILES, pack
from safelight.models.preview_decoder import PreviewDecoder, PreviewDecoderConfig
from safelight.models.unet import Deep, UNet
from safelight.presets import PRESETS
from safelight.tasks.model import Model
from safelight.tasks.pictures import to_pixels
from safelight.tasks.previewing import decoded_by, fitted
from safelight.tasks.requests import TextToImage
from weights import FOLDER, folder

ASKED: tuple[Question, ...] = ("object", "ground", "position", "pair")
BATCH = 50
LARGE = PRESETS["sd1"]
"""Whose arithmetic and time are told: at tiny's size every layer has its price, whatever it computes."""
SHORTCUTS: tuple[Mapping[str, object], ...] = (
    {"steps": 10},
    {"steps": 7},
    {"deep_every": 2},
    {"deep_every": 3},
    {"deep_every": 5},
    {"deep_every": 3, "deep_below": 2},
    {"deep_every": 3, "deep_below": 4},
    {"guidance_interval": (0.0, 0.8)},
    {"guidance_interval": (0.2, 0.8)},
    {"guidance_interval": (0.0, 0.5)},
    {"merge_tokens": 0.25},
    {"merge_tokens": 0.5},
    {"deep_every": 3, "guidance_interval": (0.0, 0.8)},
)


@dataclass(frozen=True)
class Asked:
    """One question to the UNet."""

    rows: int
    """2 with guidance."""
    shallow: int | None = None
    """How many joins are asked, what is below them being known; None: all."""
    finds: int | None = None
    """Below how many joins the answer is kept; None: none is."""
    merge: float = 0.0

    @property
    def name(self) -> str:
        said = [f"{self.rows} rows", "whole" if self.shallow is None else f"{self.shallow} joins"]
        return ", ".join([*said, *([f"merged {self.merge:g}"] if self.merge else [])])


def typed(fields: Mapping[str, object]) -> str:
    """A shortcut as it is typed."""
    said = {k: " ".join(map(str, v)) if isinstance(v, tuple) else str(v) for k, v in fields.items()}
    return ", ".join(f"{k.replace('_', '-')} {v}" for k, v in said.items()) if said else "none"


def noted(model: Model, request: TextToImage) -> Counter[Asked]:
    """All that the steps of one picture ask of the UNet."""
    found: Counter[Asked] = Counter()
    merge = 0.0 if request.merge_tokens is None else request.merge_tokens

    def note(unet: nn.Module, given: tuple[object, ...]) -> None:
        x, deep = cast(Tensor, given[0]), cast("Deep | None", given[3] if len(given) > 3 else None)
        known = deep is not None and deep.given is not None
        joins = None if deep is None else deep.joins
        found[Asked(len(x), joins if known else None, None if known else joins, merge)] += 1

    hook = model.unet.register_forward_pre_hook(note)
    list(model.steps(request.changed(prompt="a red apple", batch=1)))
    hook.remove()
    return found


def question(unet: UNet, asked: Asked, size: int, device: str) -> Callable[[], Tensor]:
    """What puts that question to SD 1.5's UNet, about a picture of size x size pixels."""
    generator, side = torch.Generator().manual_seed(0), size // LARGE.factor
    shapes = ((LARGE.unet.in_channels, side, side), (77, cast(int, LARGE.unet.context_width)))
    x, context = (torch.randn(2, *shape, generator=generator) for shape in shapes)
    x, context, t = (y[: asked.rows].to(device) for y in (x, context, torch.full((2,), 500.0)))
    cond = Conditioning(context=context)  # one for all calls, as in a walk
    known = None
    if asked.shallow is not None:
        whole = Deep(asked.shallow)
        unet(x, t, cond, whole)
        known = whole.found

    def ask() -> Tensor:
        joins = asked.finds if asked.shallow is None else asked.shallow
        deep = None if joins is None else Deep(joins, known)
        with merged_tokens(unet, asked.merge, [1]):
            answer: Tensor = unet(x, t, cond, deep)
        return answer

    return ask


@lru_cache
def flop(asked: Asked, size: int) -> int:
    """Multiplications and additions of a question, counted without doing them."""
    with torch.no_grad():
        ask = question(cast(UNet, unfilled(LARGE.unet)), asked, size, "meta")
        with FlopCounterMode(display=False) as counter:
            ask()
    return int(counter.get_total_flops())


def quality(options: argparse.Namespace) -> None:
    """Tiny with each shortcut, on the same prompts and seeds, beside what it gains."""
    report = Report.of(options)
    model, judge = safelight.load("tiny"), read_judge(judge_folder(None)).eval()
    prompts = held_out_prompts(options.prompts, 0)
    distance = None if options.lpips is None else read_lpips(options.lpips).eval()
    request = model.resolve(TextToImage(prompt="", seed=0))
    requests = {typed(fields): request.changed(**fields) for fields in ({}, *SHORTCUTS)}
    walks = {name: noted(model, asked) for name, asked in requests.items()}
    work = {n: sum(flop(asked, options.size) * k for asked, k in walk.items()) for n, walk in walks.items()}
    walked = taken({n: walking(model, r, options.clock) for n, r in requests.items()}, options.turns)
    print(f"{len(prompts)} prompts, {request.steps} steps of {request.sampler}, guidance {request.guidance}; ", end="")
    print(f"tiny at 64x64 with {torch.get_num_threads()} threads; SD 1.5's UNet at {options.size}x{options.size}\n")
    heads = [*(f"{q} right" for q in ASKED), "PSNR, dB", "worst tenth", *([] if distance is None else ["LPIPS"])]
    heads = ["", *heads[:4], "lost, won", *heads[4:], "tiny, s", "as fast", "SD 1.5, TFLOP", "times less"]
    print(f"| {' | '.join(heads)} |\n|---|{'--:|' * (len(heads) - 1)}")
    whole: list[Image.Image] = []
    before: list[Marks] = []
    for name, asked in requests.items():
        images, marks = drawn(model, asked, prompts, judge)
        same, whole, before = name == "none", whole if whole else images, before if before else marks
        shares = tally(marks)
        far = sorted(min(psnr(a, b), 99.0) for a, b in zip(images, whole, strict=True))
        apart = None if distance is None or same else fmean(lpips(distance, images, whole))
        faster, less = times_faster(walked[name], walked["none"]), work["none"] / work[name]
        row = [f"{100 * shares[q].value:.1f} %" for q in ASKED]
        lost, won = changed(before, marks), changed(marks, before)
        row += [""] * 3 if same else [f"{lost}, {won}", f"{median(far):.1f}", f"{far[len(far) // 10]:.1f}"]
        row += [] if distance is None else ["" if apart is None else f"{apart:.4f}"]
        row += [f"{walked[name].median:.2f}", f"{median(faster):.2f}", f"{work[name] / 1e12:.1f}", f"{less:.2f}"]
        found = {q.replace(" ", "_"): [float(m[q]) for m in marks if q in m] for q in ASKED}
        gains: dict[str, Any] = {"lost": lost, "won": won, "flop": work[name]}
        gains |= {"seconds": walked[name].seconds, "times_faster": faster}
        report.add(f"| {name} | {' | '.join(row)} |", shortcut=name, psnr=far, lpips=apart, **found, **gains)


def changed(some: Sequence[Marks], others: Sequence[Marks]) -> int:
    """In how many pictures the object, or the pair, is right in some, and not in the others."""
    asked: tuple[Question, ...] = ("object", "pair")
    return sum(a.get(q, False) and not b.get(q, False) for a, b in zip(some, others, strict=True) for q in asked)


def walking(model: Model, request: TextToImage, clock: str) -> Callable[[], float]:
    """Seconds of the steps of one picture."""

    def walk() -> float:
        started = CLOCKS[clock]()
        list(model.steps(request.changed(prompt="a red apple", batch=1)))
        return CLOCKS[clock]() - started

    return walk


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


def times(options: argparse.Namespace) -> None:
    """The questions that walks are made of, put to SD 1.5's UNet in turns, and what walks of them take."""
    report = Report.of(options)
    tiny = safelight.load("tiny")
    request = tiny.resolve(TextToImage(prompt="", seed=0))
    requests = {typed(fields): request.changed(**fields) for fields in ({}, *SHORTCUTS)}
    walks = {name: noted(tiny, asked) for name, asked in requests.items()}
    prompts = held_out_prompts(options.pictures, 0)
    far = nearness(tiny, requests, prompts)
    kinds = sorted({asked for walk in walks.values() for asked in walk}, key=lambda asked: asked.name)
    with folder(LARGE.name, "float32", options.scratch) as weights, torch.inference_mode():
        unet = safelight.load(weights / FOLDER, "cpu").unet
        calls = {asked.name: question(unet, asked, options.size, "cpu") for asked in kinds}
        found = alternate(calls, options.turns, warmup=1)
    print(f"SD 1.5's UNet at {options.size}x{options.size}, float32, {torch.get_num_threads()} threads: one call")
    for name, one in found.items():
        report.add(f"  {name:<24}{one.text(1, 's')}", call=name, seconds=one.seconds)
    print(f"\n{request.steps} steps of {request.sampler} made of them; PSNR is tiny's, of {len(prompts)} pictures\n")
    print("| | a step, s | all steps, s | times as fast | PSNR, dB |\n|---|--:|--:|--:|--:|")
    plain = walk_of(walks["none"], found, options.turns)
    for name, walk in walks.items():
        whole = walk_of(walk, found, options.turns)
        gain, steps = times_faster(whole, plain), cast(int, requests[name].steps)
        cells = f"{whole.median / steps:.2f} | {whole.median:.0f} | {median(gain):.2f} | {far.get(name, '')}"
        report.add(f"| {name} | {cells} |", shortcut=name, seconds=whole.seconds, times_faster=gain)


def walk_of(walk: Counter[Asked], found: Mapping[str, Times], turns: int) -> Times:
    """Seconds of a walk, of the calls as they were in each turn."""
    return Times([sum(found[asked.name].seconds[turn] * n for asked, n in walk.items()) for turn in range(turns)])


def nearness(model: Model, requests: Mapping[str, TextToImage], prompts: Sequence[Prompt]) -> dict[str, str]:
    """The median PSNR of a model's pictures to those without a shortcut, of all but "none"."""
    words = [prompt.words for prompt in prompts]
    images = {n: model.draw(r.changed(batch=len(words)), prompts=words) for n, r in requests.items()}
    plain = images.pop("none")
    return {n: f"{median(psnr(a, b) for a, b in zip(found, plain, strict=True)):.1f}" for n, found in images.items()}


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
    calls: dict[str, Callable[[], object]] = {name: partial(f, latent) for name, f in kinds.items()}
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
    assert LARGE.autoencoder is not None
    torch.manual_seed(0)
    side = options.size // LARGE.factor
    large = torch.randn(1, 4, side, side)
    autoencoder = Autoencoder(LARGE.autoencoder).eval().requires_grad_(False)
    pack(autoencoder, tiles=FINE_TILES)  # as `safelight.load` has it
    shapes = {
        "TAESD's shape": PreviewDecoderConfig(),
        "our default shape": PreviewDecoderConfig(width=16, blocks=(2,), pixels=LARGE.factor),
    }
    decoders = {name: decoded_by(PreviewDecoder(shape).eval()) for name, shape in shapes.items()}
    calls: dict[str, Callable[[], object]] = {
        "decoder": lambda: autoencoder.decode(large),
        **{name: partial(f, large) for name, f in decoders.items()},
        "planes": lambda: _plane_like(large, LARGE.factor),
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
    for name, one in found.items():
        part = median(a / b for a, b in zip(whole, one.seconds, strict=True))
        line = "" if name == "decoder" else f"   1/{part:.0f} of the decoder's"
        report.add(f"  {name:<20}{one.text(1e-3, 'ms')}{line}", what=what, kind=name, seconds=one.seconds)


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
    add_clock(parser)
    parser.add_argument("--prompts", type=int, default=500, help="of quality; of previews 50 at most")
    parser.add_argument("--pictures", type=int, default=16, help="of time: how many of tiny's the PSNR is of")
    parser.add_argument("--turns", type=int, default=3, help="how often is measured")
    parser.add_argument("--size", type=int, default=512, help="of SD 1.5's pictures: pixels on a side")
    parser.add_argument("--scratch", type=Path, help="where weights are kept for the next run; default: nowhere")
    parser.add_argument("--lpips", type=Path, help="weights for LPIPS, as `train autoencoder --perceptual` takes them")
    options = parser.parse_args()
    started = time.perf_counter()
    {"quality": quality, "time": times, "previews": previews}[options.what](options)
    print(f"\nMeasured in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
