"""What was measured: for people, for a model card, for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from safelight.evaluation.judging import QUESTIONS, Question
from safelight.evaluation.proportions import Share
from safelight.tasks.requests import TextToImage

GOALS: dict[Question, float] = {"object": 0.85, "ground": 0.95, "position": 0.85, "pair": 0.60}
CURVE: tuple[Question, ...] = ("object", "ground", "position", "pair")
"""Questions that the curve over guidance answers."""


@dataclass(frozen=True)
class Measured:
    """The same questions about three kinds of pictures of the same facts."""

    drawn: Mapping[Question, Share]
    """By the model, from the words."""
    real: Mapping[Question, Share]
    """By the generator of scenes: how often the judge itself is right."""
    rebuilt: Mapping[Question, Share]
    """Of these, after the model's autoencoder was there and back."""


@dataclass(frozen=True)
class Point:
    """One scale of guidance."""

    guidance: float
    shares: Mapping[Question, Share]


@dataclass(frozen=True)
class Report:
    """One measurement."""

    model: str
    weights: str
    """SHA-256 of the model's weights."""
    judge: str
    """SHA-256 of the judge's weights."""
    request: TextToImage
    """Resolved: how the pictures were drawn."""
    prompts: int
    singles: int
    """Prompts with one object; the others have two."""
    measured: Measured
    psnr: float
    """Decibels, mean over the real scenes: what the autoencoder keeps of them."""
    curve: tuple[Point, ...]
    seconds: float

    @property
    def reached(self) -> bool:
        """Whether every goal is."""
        return all(self.measured.drawn[question].reaches(goal) for question, goal in GOALS.items())

    def json(self) -> dict[str, object]:
        """Everything, as JSON has it; shares in 0..1."""
        return {
            "model": self.model,
            "weights_sha256": self.weights,
            "judge_sha256": self.judge,
            "request": self.request.model_dump(exclude={"prompt"}),
            "prompts": self.prompts,
            "singles": self.singles,
            "pairs": self.prompts - self.singles,
            "drawn": {q: _share(s, GOALS.get(q)) for q, s in self.measured.drawn.items()},
            "real": {q: _share(s) for q, s in self.measured.real.items()},
            "rebuilt": {q: _share(s) for q, s in self.measured.rebuilt.items()},
            "psnr": self.psnr if math.isfinite(self.psnr) else None,
            "curve": [{"guidance": p.guidance, **{q: _share(s) for q, s in p.shares.items()}} for p in self.curve],
            "reached": self.reached,
            "seconds": round(self.seconds, 1),
        }

    def text(self) -> str:
        """For a terminal."""
        table = _aligned(self._table())
        parts = [self._heading(), table, self._notes()]
        if self.curve:
            parts.append(f"{self._curve_title()}\n{_aligned(self._curve_table())}")
        parts.append(f"Measured in {_duration(self.seconds)}.")
        return "\n\n".join(parts)

    def markdown(self) -> str:
        """For a model card."""
        parts = [self._heading(), _piped(self._table()), self._notes()]
        if self.curve:
            parts += [self._curve_title(), _piped(self._curve_table())]
        parts.append(
            f"Measured in {_duration(self.seconds)} by `safelight evaluate tiny`. SHA-256 of the model's "
            f"weights: `{self.weights}`; of the judge's: `{self.judge}`."
        )
        return "\n\n".join(parts) + "\n"

    def _heading(self) -> str:
        r = self.request
        return (
            f"{self.model} ({self.weights[:10]}) on {self.prompts} prompts never trained on: {self.singles} with "
            f"one object, {self.prompts - self.singles} with two.\n{r.steps} steps of {r.sampler} "
            f"({r.spacing}), guidance {r.guidance:g}, {r.width}x{r.height}, picture k from seed {r.seed} + k, "
            f"judge {self.judge[:10]}."
        )

    def _notes(self) -> str:
        return (
            "real: the judge on scenes by the generator of the same facts, the most that it can find. rebuilt: "
            "the same\nafter the model's autoencoder was there and back "
            f"({self.psnr:.1f} dB PSNR), about the most that the model can reach."
        )

    def _table(self) -> list[list[str]]:
        rows = [["", "n", "right", "95 % interval", "goal", "reached", "real", "rebuilt"]]
        for question, name in QUESTIONS.items():
            share, goal = self.measured.drawn[question], GOALS.get(question)
            low, high = share.interval
            rows.append(
                [
                    name,
                    str(share.asked),
                    _percent(share),
                    f"{100 * low:.1f} to {100 * high:.1f}" if share.asked else "-",
                    "" if goal is None else f"{100 * goal:.0f} %",
                    "" if goal is None else ("yes" if share.reaches(goal) else "no"),
                    _percent(self.measured.real[question]),
                    _percent(self.measured.rebuilt[question]),
                ]
            )
        return rows

    def _curve_title(self) -> str:
        singles, pairs = self.curve[0].shares["object"].asked, self.curve[0].shares["pair"].asked
        return f"Over guidance, on the first {singles} prompts with one object and {pairs} with two:"

    def _curve_table(self) -> list[list[str]]:
        rows = [["guidance", *CURVE]]
        for point in self.curve:
            mark = "*" if point.guidance == self.request.guidance else ""
            rows.append([f"{point.guidance:g}{mark}", *(_percent(point.shares[q]) for q in CURVE)])
        return rows


def _share(share: Share, goal: float | None = None) -> dict[str, object]:
    low, high = share.interval
    content: dict[str, object] = {
        "right": share.right,
        "asked": share.asked,
        "share": share.value if share.asked else None,
        "interval": [low, high],
    }
    return content if goal is None else content | {"goal": goal, "reached": share.reaches(goal)}


def _percent(share: Share) -> str:
    return f"{100 * share.value:.1f} %" if share.asked else "-"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _aligned(rows: list[list[str]]) -> str:
    """Columns of equal width: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _piped(rows: list[list[str]]) -> str:
    head, *body = rows
    ruler = ["---", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cell.strip() for cell in row)} |" for row in (head, ruler, *body))
