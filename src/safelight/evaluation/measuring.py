"""Draw what was asked for, show it to the judge, count."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from PIL import Image

from safelight.errors import RequestError
from safelight.evaluation.fidelity import psnr
from safelight.evaluation.judging import Marks, Seen, look, mark, tally
from safelight.evaluation.prompts import SHOWN, Prompt, first_of_each, held_out_prompts, real_scene
from safelight.evaluation.report import CURVE, Measured, Point, Report
from safelight.models.judge import Judge
from safelight.tasks.model import Model
from safelight.tasks.request import MAX_PIXELS
from safelight.tasks.requests import TextToImage
from safelight.tasks.resolve import needed
from safelight.training.scenes import render

Watch = Callable[[int], None]
"""Called with how many more pictures are done."""
LARGEST_BATCH = 50
SHEET_SEEDS = 16


@dataclass(frozen=True)
class Plan:
    """What is to be measured. None: as the model likes it best."""

    prompts: int = 500
    """How many; 3 of 5 name one object, the others two."""
    guidance: tuple[float, ...] = ()
    """Scales of the curve."""
    curve: int = 100
    """Prompts of each kind at each point of the curve."""
    steps: int | None = None
    sampler: str | None = None
    seed: int = 0
    """Of prompts and noise: picture k is drawn from seed + k."""

    def __post_init__(self) -> None:
        if self.curve < 1:
            raise RequestError(f"{self.curve} prompts make no curve: give --curve 1 or more")


class Measuring:
    """One measurement of a model by a judge. `count` says how many pictures it takes.

    Raises RequestError for what the model cannot draw, or too few or too many prompts.
    """

    def __init__(self, model: Model, judge: Judge, plan: Plan, watch: Watch) -> None:
        self.model, self.judge, self.plan, self.watch = model, judge, plan, watch
        self.prompts = held_out_prompts(plan.prompts, plan.seed)
        self.chosen = first_of_each(self.prompts, plan.curve)
        self.request = model.resolve(TextToImage(prompt="", seed=plan.seed, steps=plan.steps, sampler=plan.sampler))
        for scale in plan.guidance:  # a wrong one is refused now and not after minutes of drawing
            self.request.changed(guidance=scale)
        pixels = needed(self.request.width) * needed(self.request.height)
        self.batch = max(1, min(LARGEST_BATCH, MAX_PIXELS // pixels))

    @property
    def guidance(self) -> float:
        """At which the table is measured."""
        return needed(self.request.guidance)

    @property
    def count(self) -> int:
        """Pictures to draw or to send through the autoencoder. A point at the table's guidance costs none."""
        points = sum(scale != self.guidance for scale in self.plan.guidance)
        return 2 * len(self.prompts) + points * len(self.chosen)

    def run(self, judge_sha256: str) -> Report:
        """Measure everything. Raises RequestError when the model's pictures are not finite."""
        started = time.perf_counter()
        drawn = self._draw(range(len(self.prompts)), self.guidance)
        real, rebuilt, fidelity = self._real_and_rebuilt()
        points = []
        for scale in self.plan.guidance:
            same = scale == self.guidance
            shares = tally([drawn[i] for i in self.chosen] if same else self._draw(self.chosen, scale))
            points.append(Point(scale, {question: shares[question] for question in CURVE}))
        return Report(
            model=self.model.identity.name,
            weights=self.model.identity.sha256,
            judge=judge_sha256,
            request=self.request,
            prompts=len(self.prompts),
            singles=sum(len(prompt.facts.objects) == 1 for prompt in self.prompts),
            measured=Measured(tally(drawn), tally(real), tally(rebuilt)),
            psnr=fidelity,
            curve=tuple(points),
            seconds=time.perf_counter() - started,
        )

    def _draw(self, indices: Sequence[int], scale: float) -> list[Marks]:
        """The marks of these prompts, each drawn from its own seed whatever the others are."""
        marks: list[Marks] = []
        for run in runs(indices, self.batch):
            prompts = [self.prompts[i] for i in run]
            request = self.request.changed(seed=self.plan.seed + run[0], batch=len(run), guidance=scale)
            images = self.model.draw(request, prompts=[prompt.words for prompt in prompts])
            marks += self._marks(prompts, images)
            self.watch(len(run))
        return marks

    def _real_and_rebuilt(self) -> tuple[list[Marks], list[Marks], float]:
        """Marks of scenes as the generator draws them: how far the judge can be trusted; and of the same after
        the model's autoencoder was there and back: the best that a model in its latent space can do.
        """
        real: list[Marks] = []
        rebuilt: list[Marks] = []
        distances = []
        size = (needed(self.request.width), needed(self.request.height))
        for run in runs(range(len(self.prompts)), self.batch):
            prompts = [self.prompts[i] for i in run]
            scenes = [real_scene(p, i, self.plan.seed, max(size)) for p, i in zip(prompts, run, strict=True)]
            images = [render(scene).resize(size) for scene in scenes]
            back = [self.model.decode(self.model.encode(image))[0] for image in images]
            real += self._marks(prompts, images)
            rebuilt += self._marks(prompts, back)
            distances += [psnr(a, b) for a, b in zip(images, back, strict=True)]
            self.watch(len(run))
        return real, rebuilt, fmean(distances)

    def _marks(self, prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> list[Marks]:
        verdicts: list[Seen] = look(self.judge, images)
        return [mark(prompt.facts, verdict) for prompt, verdict in zip(prompts, verdicts, strict=True)]


def runs(indices: Sequence[int], longest: int) -> list[list[int]]:
    """Ascending indices cut into runs without gaps: a batch draws from seeds that follow one another."""
    found: list[list[int]] = []
    for i in indices:
        if found and found[-1][-1] == i - 1 and len(found[-1]) < longest:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def shown(model: Model, plan: Plan) -> list[tuple[str, list[Image.Image]]]:
    """The pictures of a contact sheet: every prompt of `SHOWN` with seeds 0 to 15, as they come."""
    return [
        (
            words,
            model.draw(TextToImage(prompt=words, seed=0, batch=SHEET_SEEDS, steps=plan.steps, sampler=plan.sampler)),
        )
        for words, _ in SHOWN
    ]
