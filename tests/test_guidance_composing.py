"""Guidance put together: what is asked and how often, several conditions, and every wrapper with every sampler.

The denoisers are those of Gaussians. Of two with the same deviation the difference is affine in the mean, so guidance
from mean u to mean c by a scale is the denoiser of mean u + scale (c - u): everything here has a closed form.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from diffusion_oracles import SD, close, walk
from guidance_oracles import Gaussian, branch, gaussian, say
from safelight.diffusion.denoiser import Denoise
from safelight.diffusion.guidance import (
    UNGUIDED,
    Beside,
    Branch,
    Guidance,
    Projection,
    SelfAttention,
    Window,
    always,
    classifier_free,
    conditioned,
    guided,
    keep_known,
    multi_diffusion,
    windows,
    within,
)
from safelight.diffusion.guidance.self_attention import blurred
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import SAMPLERS
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import sigmas
from safelight.doors import Conditioning

SIGMA = torch.tensor(1.3)
U, C1, C2, NEGATIVE, EMPTY = -0.4, 1.0, 0.5, -1.1, 0.2
SIZE = (4, 8, 6)


def latent(seed: int = 0) -> Tensor:
    return torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(seed)) * 2


X = latent()


def as_before(denoiser: Gaussian, cond: Conditioning, uncond: Conditioning, scale: float) -> Tensor:
    """Classifier-free guidance in three lines, as it has always been computed here."""
    u, c = denoiser(torch.cat([X, X]), SIGMA, Conditioning.stack([uncond, cond])).chunk(2)
    return torch.lerp(u, c, scale)


# What is asked


@pytest.mark.parametrize("scale", [0.0, 1.5, 7.5, -2.0])
def test_plain_guidance_is_the_same_to_the_bit(scale: float) -> None:
    denoiser = Gaussian()
    got = guided(denoiser, [branch(C1)], always(say(U)), Guidance(scale))(X, SIGMA)
    assert torch.equal(got, as_before(denoiser, say(C1), say(U), scale))
    assert torch.equal(got, classifier_free(denoiser, say(C1), say(U), scale)(X, SIGMA))
    assert denoiser.asked == [4, 4, 4]


def test_one_after_the_other_is_the_same_in_smaller_batches() -> None:
    denoiser = Gaussian()
    got = guided(denoiser, [branch(C1), branch(C2, 0.5)], always(say(U)), Guidance(3.0, batched=False))(X, SIGMA)
    assert denoiser.asked == [2, 2, 2]
    together = guided(denoiser, [branch(C1), branch(C2, 0.5)], always(say(U)), Guidance(3.0))(X, SIGMA)
    assert denoiser.asked == [2, 2, 2, 6]
    close(got, together, 1e-6)


def test_without_guidance_only_the_condition_is_asked() -> None:
    denoiser = Gaussian()
    for guidance in (UNGUIDED, Guidance(batched=False), Guidance(perp_neg=1.0), Guidance(apg=Projection())):
        got = guided(denoiser, [branch(C1)], always(say(U)), guidance, empty=always(say(EMPTY)))(X, SIGMA)
        assert torch.equal(got, gaussian(X, SIGMA, C1))
    assert denoiser.asked == [2] * 4


def test_the_same_object_is_asked_once() -> None:
    denoiser, same = Gaussian(), say(U)
    guidance = Guidance(4.0, perp_neg=1.0)
    got = guided(denoiser, [branch(C1)], always(same), guidance, empty=always(same))(X, SIGMA)
    assert denoiser.asked == [4]
    close(got, gaussian(X, SIGMA, U + 4 * (C1 - U)), 1e-6)


def test_contexts_of_other_lengths_are_asked_one_after_the_other() -> None:
    denoiser = Gaussian()
    longer = Branch(always(say(C1, tokens=6)))
    got = guided(denoiser, [longer], always(say(U)), Guidance(4.0))(X, SIGMA)
    assert denoiser.asked == [2, 2]
    close(got, gaussian(X, SIGMA, U + 4 * (C1 - U)), 1e-6)


def test_conditions_are_stacked_anew_only_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    stacked: list[int] = []
    stack = Conditioning.stack

    def noted(parts: list[Conditioning], *, same_pictures: bool = False) -> Conditioning:
        stacked.append(len(parts))
        return stack(parts, same_pictures=same_pictures)

    monkeypatch.setattr(Conditioning, "stack", noted)
    now = [say(C1)]
    run = guided(Gaussian(), [Branch(lambda: now[0])], always(say(U)), Guidance(2.0))
    for _ in range(3):
        close(run(X, SIGMA), gaussian(X, SIGMA, U + 2 * (C1 - U)), 1e-6)
    assert stacked == [2]
    now[0] = say(C2)  # [c1:c2:when]
    for _ in range(3):
        close(run(X, SIGMA), gaussian(X, SIGMA, U + 2 * (C2 - U)), 1e-6)
    assert stacked == [2, 2]


def test_a_sigma_for_each_picture() -> None:
    levels = torch.tensor([0.5, 3.0])
    got = guided(Gaussian(), [branch(C1)], always(say(U)), Guidance(4.0, rescale=0.3))(X, levels)
    for k in range(2):
        alone = guided(Gaussian(), [Branch(always(say(C1, 1)))], always(say(U, 1)), Guidance(4.0, rescale=0.3))
        close(got[k : k + 1], alone(X[k : k + 1], levels[k]), 1e-6)


@pytest.mark.parametrize("scale", [Guidance(4.0), Guidance(0.7, cfg_pp=True)], ids=["CFG", "CFG++"])
def test_an_interval_a_scale_and_a_momentum_for_each_picture(scale: Guidance) -> None:
    """Samplers that choose their steps ask at other sigmas for every picture."""
    guidance = replace(scale, interval=(0.4, 2.0), apg=Projection(0.5, 3.0, -0.6), rescale=0.3)
    steps = torch.tensor([5.0, 1.0, 0.5, 0.1])

    def answers(k: slice) -> list[Tensor]:
        n = len(X[k])
        run = guided(Gaussian(), [Branch(always(say(C1, n)))], always(say(U, n)), guidance, levels=steps)
        asked = torch.tensor([[5.0, 1.5], [1.9, 1.0], [1.0, 0.3], [0.5, 0.1]])
        return [run(X[k], sigma[k]) for sigma in asked]

    together = answers(slice(0, 2))
    for k in range(2):
        for one, both in zip(answers(slice(k, k + 1)), together, strict=True):
            close(one, both[k : k + 1], 1e-6)
    assert torch.equal(together[0][:1], gaussian(X[:1], torch.tensor(5.0), C1))
    assert not torch.equal(together[1][:1], gaussian(X[:1], torch.tensor(1.9), C1))


# Several conditions


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_weights_add_up_as_and_does(scale: float) -> None:
    run = guided(Gaussian(), [branch(C1, 0.8), branch(C2, -0.3)], always(say(U)), Guidance(scale))
    close(run(X, SIGMA), gaussian(X, SIGMA, U + scale * (0.8 * (C1 - U) - 0.3 * (C2 - U))), 2e-6)


def test_weights_that_add_up_to_one_need_no_unconditional_answer() -> None:
    denoiser = Gaussian()
    got = guided(denoiser, [branch(C1, 0.3), branch(C2, 0.7)])(X, SIGMA)
    assert denoiser.asked == [4]
    close(got, gaussian(X, SIGMA, 0.3 * C1 + 0.7 * C2), 1e-6)
    guided(denoiser, [branch(C1, 0.3), branch(C2, 0.6)], always(say(U)))(X, SIGMA)
    assert denoiser.asked == [4, 6]


def test_each_region_has_its_prompt() -> None:
    left, all_over = torch.zeros(1, 1, *SIZE[1:]), 0.25
    left[..., :3] = 1
    branches = [branch(C1, mask=left), branch(C2, all_over)]
    share = left / (left + all_over)  # 0.8 where both act
    for scale in (1.0, 4.0):
        got = guided(Gaussian(), branches, always(say(U)), Guidance(scale))(X, SIGMA)
        mean = share * C1 + (1 - share) * C2
        close(got, gaussian(X, SIGMA, U + scale * (mean - U)), 2e-6)
    denoiser = Gaussian()
    guided(denoiser, branches)(X, SIGMA)
    assert denoiser.asked == [4]


def test_what_cannot_be_joined_is_refused() -> None:
    left = torch.zeros(1, 1, *SIZE[1:])
    left[..., :3] = 1
    with pytest.raises(ValueError, match="in no region"):
        guided(Gaussian(), [branch(C1, mask=left)])
    with pytest.raises(ValueError, match="above 0"):
        guided(Gaussian(), [branch(C1, mask=left), branch(C2, -1.0)])
    with pytest.raises(ValueError, match="at least one"):
        guided(Gaussian(), [])
    with pytest.raises(ValueError, match="finite"):
        guided(Gaussian(), [branch(C1, float("nan"))])


# Guidance


def test_outside_the_interval_only_the_condition_is_asked_and_answered() -> None:
    denoiser = Gaussian()
    run = guided(denoiser, [branch(C1)], always(say(U)), Guidance(4.0, interval=(0.5, 2.0), rescale=0.5))
    for sigma, size in ((0.5, 2), (0.51, 4), (2.0, 4), (2.01, 2)):
        level = torch.tensor(sigma, dtype=torch.float64)
        denoiser.asked.clear()
        got = run(X, level)
        assert denoiser.asked == [size], sigma
        assert (size == 2) == torch.equal(got, gaussian(X, level, C1))


def test_autoguidance_takes_the_place_of_the_unconditional_answer() -> None:
    denoiser, weak = Gaussian(), Gaussian()
    run = guided(denoiser, [branch(C1)], None, Guidance(2.5), weaker=conditioned(weak, say(C2)))
    close(run(X, SIGMA), gaussian(X, SIGMA, C2 + 2.5 * (C1 - C2)), 1e-6)
    assert (denoiser.asked, weak.asked) == ([2], [2])


def test_further_guidance_stands_beside() -> None:
    denoiser, weak = Gaussian(), Gaussian()
    beside = [Beside(conditioned(weak, say(C2)), 3.0), Beside(conditioned(weak, say(NEGATIVE)), 0.0)]
    run = guided(denoiser, [branch(C1)], always(say(U)), Guidance(2.0), beside=beside)
    close(run(X, SIGMA), gaussian(X, SIGMA, U + 2 * (C1 - U) + 3 * (C1 - C2)), 2e-6)
    alone = guided(denoiser, [branch(C1)], beside=beside)
    close(alone(X, SIGMA), gaussian(X, SIGMA, C1 + 3 * (C1 - C2)), 2e-6)
    assert denoiser.asked == [4, 2], "no answer is computed twice"
    assert weak.asked == [2, 2], "and none that does not count"


def test_the_perpendicular_negative_goes_from_what_says_nothing() -> None:
    """Told three means, all differences are parallel: nothing of the negative remains."""
    denoiser = Gaussian()
    guidance = Guidance(4.0, perp_neg=1.0)
    run = guided(denoiser, [branch(C1)], always(say(NEGATIVE)), guidance, empty=always(say(EMPTY)))
    close(run(X, SIGMA), gaussian(X, SIGMA, EMPTY + 4 * (C1 - EMPTY)), 2e-6)
    assert denoiser.asked == [6]


def test_projected_guidance_with_everything_kept_is_classifier_free() -> None:
    run = guided(Gaussian(), [branch(C1)], always(say(U)), Guidance(4.0, apg=Projection(eta=1.0)))
    close(run(X, SIGMA), gaussian(X, SIGMA, U + 4 * (C1 - U)), 2e-6)


def test_momentum_begins_anew_with_every_run() -> None:
    def run() -> Denoise:
        guidance = Guidance(4.0, apg=Projection(momentum=-0.7, norm=2.0))
        return guided(Gaussian(), [branch(C1)], always(say(U)), guidance)

    first, again = run(), run()
    one = first(X, SIGMA)
    assert torch.equal(again(X, SIGMA), one)
    assert not torch.equal(first(X, SIGMA), one)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    guidance = Guidance(4.0, apg=Projection(momentum=-0.5, norm=3.0), rescale=0.5, threshold=0.9, perp_neg=1.0)

    def run(x: Tensor) -> Tensor:
        n = len(x)
        told = guided(
            Gaussian(), [Branch(always(say(C1, n)))], always(say(U, n)), guidance, empty=always(say(EMPTY, n))
        )
        return told(told(x, SIGMA), SIGMA)

    assert torch.equal(run(X)[1:], run(X[1:]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Guidance(float("inf")), "finite"),
        (lambda: Guidance(interval=(2.0, 1.0)), "interval"),
        (lambda: Guidance(rescale=1.1), "0 to 1"),
        (lambda: Guidance(threshold=0.0), "percentile"),
        (lambda: Guidance(threshold=0.9, threshold_reach=0.0), "reach"),
        (lambda: Guidance(perp_neg=float("nan")), "finite"),
        (lambda: Projection(momentum=1.0), "momentum"),
        (lambda: Projection(norm=0.0), "length"),
        (lambda: Beside(lambda x, s: x, float("nan")), "finite"),
        (lambda: guided(Gaussian(), [branch(C1)], None, Guidance(2.0)), "unconditional"),
        (lambda: guided(Gaussian(), [branch(C1, 0.5)]), "unconditional"),
        (lambda: guided(Gaussian(), [branch(C1)], always(say(U)), Guidance(2.0, perp_neg=1.0)), "says nothing"),
        (lambda: guided(Gaussian(), [branch(C1)], always(say(U)), Guidance(0.6, cfg_pp=True)), "levels"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()


# Self-attention guidance, without a network: the attention is given


@contextmanager
def attended() -> Iterator[Callable[[], Tensor]]:
    """The left half of a map of 4 by 2 receives more than its share."""
    yield lambda: torch.tensor([1.5, 0.5]).expand(2, 1, 4, 2)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_self_attention_guidance_in_its_own_terms(scale: float) -> None:
    """eps + s (eps(x) - eps(x~)), where x~ is the blurred x0 under the very noise of x (Hong et al. 2023)."""
    denoiser, mean = Gaussian(), U if scale != 1.0 else C1
    within_watch: list[int] = []

    @contextmanager
    def watch() -> Iterator[Callable[[], Tensor]]:
        before = len(denoiser.asked)
        with attended() as tell:
            yield tell
        within_watch.append(len(denoiser.asked) - before)

    run = guided(denoiser, [branch(C1)], always(say(U)), Guidance(scale), attention=SelfAttention(watch, 0.75, 1.0))
    got = run(X, SIGMA)
    assert denoiser.asked == [2] * (2 if scale == 1.0 else 3)
    assert within_watch == [1], "only the one whose attention counts is watched"

    def eps(x: Tensor, mean: float) -> Tensor:
        return (x - gaussian(x, SIGMA, mean)) / SIGMA

    clean = gaussian(X, SIGMA, mean)
    mask = torch.zeros_like(X)
    mask[..., :3] = 1
    degraded = clean * (1 - mask) + blurred(clean, 1.0) * mask + SIGMA * eps(X, mean)
    whole = eps(X, U + scale * (C1 - U)) + 0.75 * (eps(X, mean) - eps(degraded, mean))
    close(got, X - SIGMA * whole, 3e-6)


# Windows


def test_windows_cover_everything_and_end_at_the_edge() -> None:
    found = windows((8, 11), (4, 4), (4, 3))
    assert [(w.top, w.left) for w in found] == [(0, 0), (0, 3), (0, 6), (0, 7), (4, 0), (4, 3), (4, 6), (4, 7)]
    assert windows((4, 4), (4, 4), (1, 1)) == [Window(0, 0, 4, 4)]
    for size, window, stride in (((4, 4), (5, 4), (1, 1)), ((4, 4), (2, 2), (3, 1)), ((4, 4), (2, 2), (0, 1))):
        with pytest.raises(ValueError, match=r"must follow|does not fit"):
            windows(size, window, stride)


def test_multi_diffusion_averages_what_the_windows_say() -> None:
    """Each window has a mean of its own: at a place it is the mean of those that see it (eq. 5)."""
    size, window, stride = SIZE[1:], (4, 4), (3, 2)

    def one(part: Window) -> Denoise:
        return conditioned(Gaussian(), say(part.top + part.left / 10))

    got = multi_diffusion(one, size, window, stride)(X, SIGMA)
    for row in range(size[0]):
        for column in range(size[1]):
            seen = [a + b / 10 for a in (0, 3, 4) for b in (0, 2) if a <= row < a + 4 and b <= column < b + 4]
            mean = sum(seen) / len(seen)
            close(got[..., row, column], gaussian(X, SIGMA, mean)[..., row, column], 2e-6, f"{row} {column}")
    with pytest.raises(ValueError, match="made for"):
        multi_diffusion(one, size, window, stride)(X[..., 1:], SIGMA)


# Every wrapper with every sampler

LEVELS = 6


def patterned() -> Gaussian:
    """Of means that differ from place to place: else guidance would be the same number everywhere."""
    return Gaussian(torch.linspace(0.2, 1.8, SIZE[2]))


@dataclass(frozen=True)
class Case:
    """A wrapper that is on, and the same that is off. Names of what it is about: fields and arguments, or functions."""

    about: tuple[str, ...]
    on: Callable[[Tensor], Denoise]
    off: Callable[[Tensor], Denoise]


def run_of(guidance: Guidance, **others: object) -> Callable[[Tensor], Denoise]:
    def run(levels: Tensor) -> Denoise:
        return guided(
            patterned(),
            [branch(C1)],
            always(say(U)),
            guidance,
            empty=always(say(EMPTY)),
            levels=levels,
            **others,  # type: ignore[arg-type]  # each case gives what is meant
        )

    return run


def plain(levels: Tensor) -> Denoise:
    return classifier_free(patterned(), say(C1), say(U), 3.0)


CFG = Guidance(3.0)
OTHER = conditioned(patterned(), say(C2))
MASK = torch.linspace(0, 1, SIZE[1]).view(1, 1, -1, 1).expand(1, 1, *SIZE[1:])
CASES = {
    "scale": Case(("scale", "guidance"), run_of(CFG), lambda levels: conditioned(patterned(), say(C1))),
    "one after the other": Case(("batched",), run_of(replace(CFG, batched=False)), run_of(CFG)),
    "CFG++": Case(("cfg_pp", "levels"), run_of(Guidance(0.8, cfg_pp=True)), run_of(replace(CFG, cfg_pp=False))),
    "interval": Case(
        ("interval",), run_of(replace(CFG, interval=(1.0, 5.0))), run_of(replace(CFG, interval=(0.0, 1e9)))
    ),
    "perpendicular": Case(("perp_neg", "empty"), run_of(replace(CFG, perp_neg=0.7)), run_of(CFG)),
    "projected": Case(("apg",), run_of(replace(CFG, apg=Projection(0.0, 5.0, -0.5))), run_of(CFG)),
    "rescaled": Case(("rescale",), run_of(replace(CFG, rescale=0.7)), run_of(replace(CFG, rescale=0.0))),
    "thresholded": Case(("threshold",), run_of(replace(CFG, threshold=0.9)), run_of(replace(CFG, threshold=None))),
    "thresholded pixels": Case(
        ("threshold_reach",), run_of(replace(CFG, threshold=0.9, threshold_reach=1.0)), run_of(CFG)
    ),
    "autoguidance": Case(("weaker",), run_of(CFG, weaker=OTHER), run_of(CFG, weaker=None)),
    "beside": Case(("beside",), run_of(CFG, beside=[Beside(OTHER, 2.0)]), run_of(CFG, beside=[Beside(OTHER, 0.0)])),
    "self-attention": Case(
        ("attention",),
        run_of(CFG, attention=SelfAttention(attended)),
        run_of(CFG, attention=SelfAttention(attended, 0.0)),
    ),
    "several": Case(
        ("Branch",),
        lambda levels: guided(patterned(), [branch(C1), branch(C2, 0.5)], always(say(U)), CFG),
        lambda levels: guided(patterned(), [branch(C1, 1.0)], always(say(U)), CFG),
    ),
    "regions": Case(
        ("Branch",),
        lambda levels: guided(patterned(), [branch(C1, mask=MASK), branch(C2, 0.5)], always(say(U)), CFG),
        lambda levels: guided(patterned(), [branch(C1, mask=torch.ones_like(MASK))], always(say(U)), CFG),
    ),
    "windows": Case(
        ("multi_diffusion",),
        lambda levels: multi_diffusion(lambda w: conditioned(Gaussian(), say(w.top / 4)), SIZE[1:], (4, 4), (2, 2)),
        lambda levels: multi_diffusion(lambda w: plain(levels), SIZE[1:], SIZE[1:], (1, 1)),
    ),
    "known": Case(
        ("keep_known",),
        lambda levels: keep_known(plain(levels), latent(3), MASK),
        lambda levels: keep_known(plain(levels), latent(3), torch.zeros_like(MASK)),
    ),
    "within": Case(("within",), lambda levels: within(attended, OTHER), lambda levels: within(attended, plain(levels))),
}


def drawn(name: str, make: Callable[[Tensor], Denoise]) -> Tensor:
    """The end of a walk of a sampler on what is made."""
    entry = SAMPLERS[name]
    levels = sigmas(Schedule(SD), LEVELS, entry.spacing, entry.ends_at)
    noise = Noise([0, 1], SIZE)
    x = noise() * float(levels[0])
    return walk(entry.function(make(levels), x, levels, noise))[-1].x


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_wrapper_with_every_sampler(sampler: str, case: str) -> None:
    on = drawn(sampler, CASES[case].on)
    assert on.shape == (2, *SIZE) and bool(on.isfinite().all())
    off = drawn(sampler, CASES[case].off)
    if case == "scale":
        assert torch.equal(off, drawn(sampler, lambda levels: conditioned(patterned(), say(C1))))
    else:
        assert torch.equal(off, drawn(sampler, plain)), "what is off is not there"
    if case == "one after the other":
        close(on, off, 1e-4)
    else:
        assert float((on - off).abs().max()) > 1e-3, "what is on is seen"


def test_no_wrapper_is_left_out() -> None:
    arguments = inspect.signature(guided).parameters
    options = {field.name for field in fields(Guidance)} | set(arguments) - {"denoiser", "branches", "uncond"}
    about = {name for case in CASES.values() for name in case.about}
    assert options - about == set()
