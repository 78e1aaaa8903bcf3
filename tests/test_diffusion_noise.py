"""The noise of a picture is its own, whatever batch it is in."""

from __future__ import annotations

import pytest
import torch

from safelight.diffusion.noise import Noise
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


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_walk_in_a_batch_is_the_walk_alone(name: str) -> None:
    """Bitwise, if the denoiser treats each picture alone: no sampler mixes pictures or their noise."""
    entry = SAMPLERS[name]
    levels = sigmas(Schedule(ScheduleConfig()), 6, entry.spacing, entry.ends_at)

    def draw(seeds: list[int]) -> torch.Tensor:
        noise = Noise(seeds, SHAPE)
        x = start(noise(), levels)
        for step in entry.function(lambda x, s: x / (1 + s * s), x, levels, noise):
            x = step.x
        return x

    together = draw([3, 4, 5])
    for k in range(3):
        assert torch.equal(together[k], draw([3 + k])[0])
