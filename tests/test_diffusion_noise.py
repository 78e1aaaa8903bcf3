"""The noise of a picture is its own, whatever batch it is in."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from safelight.diffusion.noise import BrownianPath, Noise
from safelight.diffusion.samplers import SAMPLERS, start
from safelight.diffusion.schedule import Schedule, ScheduleConfig
from safelight.diffusion.sigmas import sigmas

SHAPE = (4, 6, 5)


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 1, 2**64 - 1, -1])
def test_the_first_draw_is_the_formula(seed: int) -> None:
    expected = torch.randn(SHAPE, generator=torch.Generator("cpu").manual_seed(seed))
    assert torch.equal(Noise([seed], SHAPE)()[0], expected)


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_every_draw_of_a_picture_is_that_of_the_picture_alone(batch: int) -> None:
    seed = 11
    together = Noise(range(seed, seed + batch), SHAPE)
    alone = [Noise([seed + k], SHAPE) for k in range(batch)]
    for _ in range(4):
        draw = together()
        assert draw.shape == (batch, *SHAPE) and draw.dtype == torch.float32
        for k, single in enumerate(alone):
            assert torch.equal(draw[k], single()[0])


def test_draws_and_seeds_differ_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    noise = Noise([0, 1], SHAPE)
    first, second = noise(), noise()
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(Noise([0], SHAPE)()[0], first[0])
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        Noise([], SHAPE)


LEVELS = [14.6, 9.0, 8.9, 2.5, 0.7, 0.31, 0.3, 0.05, 0.02]


def test_a_brownian_path_has_independent_standard_normal_increments() -> None:
    path = BrownianPath(5, (200, 200))
    draws = torch.stack([path.between(s, s_next).flatten() for s, s_next in pairwise(LEVELS)])
    torch.testing.assert_close(torch.cov(draws), torch.eye(len(draws)), rtol=0, atol=0.03)  # a standard error is 0.005
    assert float(draws.mean(dim=1).abs().max()) < 0.02
    assert float((draws.abs() < 0.6745).double().mean()) == pytest.approx(0.5, abs=0.01)  # the middle half of a normal


def test_the_parts_of_a_brownian_path_sum_to_the_whole() -> None:
    path = BrownianPath(5, SHAPE)

    def change(s: float, s_next: float) -> torch.Tensor:
        return path.between(s, s_next).double() * (s_next**-2 - s**-2) ** 0.5

    for low in range(len(LEVELS) - 1):
        for high in range(low + 1, len(LEVELS)):
            parts = sum(change(*pair) for pair in pairwise(LEVELS[low : high + 1]))
            whole = change(LEVELS[low], LEVELS[high])
            torch.testing.assert_close(parts, whole, rtol=0, atol=2e-6 / LEVELS[high])


def test_a_brownian_path_is_its_seed_whatever_was_asked_before_and_beside() -> None:
    pairs = [(a, b) for i, a in enumerate(LEVELS) for b in LEVELS[i + 1 :]]
    together = Noise([3, 4], SHAPE)
    asked = {pair: together.between(*pair) for pair in pairs}
    again = Noise([4], SHAPE)
    for pair in reversed(pairs):
        assert asked[pair].shape == (2, *SHAPE) and asked[pair].dtype == torch.float32
        assert torch.equal(again.between(*pair)[0], asked[pair][1])
    assert not torch.equal(asked[pairs[0]][0], asked[pairs[0]][1])
    assert torch.equal(together()[0], Noise([3], SHAPE)()[0]), "the path takes nothing from the other draws"
    far = Noise([-1, 2**64 - 1, 0, 1], SHAPE).between(2.0, 1.0)
    assert len({row.numpy().tobytes() for row in far}) == 3, "-1 and 2^64 - 1 are one seed, all others differ"


@pytest.mark.parametrize(
    ("s", "s_next"), [(1.0, 1.0), (1.0, 2.0), (1.0, 0.0), (float("inf"), 1.0), (float("nan"), 1.0)]
)
def test_a_brownian_path_only_goes_down_and_never_to_0(s: float, s_next: float) -> None:
    with pytest.raises(ValueError, match="goes from a noise level down"):
        BrownianPath(0, SHAPE).between(s, s_next)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_walk_in_a_batch_is_the_walk_alone(name: str) -> None:
    """Bitwise, if the denoiser treats each picture alone: no sampler mixes pictures or their noise."""
    entry = SAMPLERS[name]
    levels = sigmas(Schedule(ScheduleConfig()), 6, entry.spacing, entry.ends_at)

    def draw(seeds: list[int]) -> torch.Tensor:
        noise = Noise(seeds, SHAPE)
        x = start(noise(), levels)
        for step in entry.function(lambda x, s: x / (1 + s * s).view(-1, 1, 1, 1), x, levels, noise):
            x = step.x
        return x

    together = draw([3, 4, 5])
    for k in range(3):
        assert torch.equal(together[k], draw([3 + k])[0])
