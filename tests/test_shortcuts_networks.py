"""Less work inside the network: the deep part reused between steps, and tokens merged, against definitions of others.

DeepCache is compared with diffusers' UNet that computes everything, and into which what came from below at an earlier
step is put by hooks. Token merging is compared with the authors' own functions (tomesd) inside diffusers' UNet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any
from unittest import mock

import pytest
import tomesd.merge
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffusion_oracles import SD, no_noise, walk
from golden_cases import agree, off
from safelight.checkpoints.configs import unet_json
from safelight.diffusion.denoiser import Denoise
from safelight.diffusion.guidance import Branch, Guidance, always, guided
from safelight.diffusion.noise import Noise
from safelight.diffusion.reusing import Reusing
from safelight.diffusion.samplers import SAMPLERS, finish, start
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import sigmas
from safelight.doors import Conditioning
from safelight.models import merging
from safelight.models.merging import matched, mergeable_level, merged_tokens
from safelight.models.unet import Deep, UNet, UNetConfig

CONFIG = UNetConfig(
    channels=(16, 32, 48), transformer_depth=(2, 1, 0), heads=(2, 4, 4), context_width=24, norm_groups=8
)
SIZE, BATCH = (4, 12, 10), 2


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


COND, UNCOND = draw(BATCH, 7, 24, seed=1), draw(BATCH, 7, 24, seed=2)


@pytest.fixture(scope="module")
def both() -> tuple[UNet, UNet2DConditionModel]:
    torch.manual_seed(0)
    ours = UNet(CONFIG).eval().requires_grad_(False)
    theirs = UNet2DConditionModel.from_config(unet_json(CONFIG, SIZE[1])).eval().requires_grad_(False)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


class FromBelow:
    """What comes from below into one join of diffusers' UNet, kept or replaced."""

    def __init__(self, theirs: UNet2DConditionModel, joins: int) -> None:
        resnets = [resnet for block in theirs.up_blocks for resnet in block.resnets]
        place = len(resnets) - joins
        widths = [0] * len(resnets)
        outer = [c for c in reversed(CONFIG.channels) for _ in range(CONFIG.blocks_per_level + 1)]
        widths = [outer[0], *outer[:-1]]  # what the block before it gives
        self.width, self.kept, self.replaces = widths[place], torch.empty(0), False
        self.hook = resnets[place].register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.replaces:
            self.kept = inputs[0][:, : self.width].clone()
            return None
        return (torch.cat([self.kept, inputs[0][:, self.width :]], dim=1), *inputs[1:])


@pytest.mark.parametrize("joins", range(1, CONFIG.joins + 1))
def test_the_shallow_part_is_the_whole_with_what_came_from_below_before(both: Any, joins: int) -> None:
    ours, theirs = both
    x, later = draw(BATCH, *SIZE, seed=3), draw(BATCH, *SIZE, seed=4)
    t, then = torch.tensor([700.0, 300.0]), torch.tensor([650.0, 200.0])
    deep = Deep(joins)
    first = ours(x, t, Conditioning(context=COND), deep)
    assert torch.equal(first, ours(x, t, Conditioning(context=COND))), "to be asked for the deep part changes nothing"
    below = FromBelow(theirs, joins)
    try:
        agree("whole", first, theirs(x, t, COND).sample)
        agree("from below", deep.found, below.kept)
        below.replaces = True
        expected = theirs(later, then, COND).sample
    finally:
        below.hook.remove()
    again = Deep(joins, deep.found)
    answer = ours(later, then, Conditioning(context=COND), again)
    agree(f"reused at {joins}", answer, expected)
    assert again.found is deep.found
    assert off(answer, ours(later, then, Conditioning(context=COND))) > 1e-3, "it is seen"


def test_the_deep_part_is_not_computed(both: Any) -> None:
    ours, _ = both
    x, t, cond = draw(BATCH, *SIZE), torch.tensor([700.0, 300.0]), Conditioning(context=COND)
    ours(x, t, cond, deep := Deep(2))
    asked = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: asked.append(name))
        for name, module in ours.named_modules()
        if name.endswith("conv1")
    ]
    ours(x, t, cond, Deep(2, deep.found))
    for hook in hooks:
        hook.remove()
    assert asked == ["down_blocks.0.resnets.0.conv1", *(f"up_blocks.2.resnets.{i}.conv1" for i in (1, 2))]


def network(unet: UNet, joins: int, count: list[str]) -> Callable[..., tuple[Tensor, Tensor]]:
    def ask(x: Tensor, t: Tensor, cond: Conditioning, known: Tensor | None) -> tuple[Tensor, Tensor]:
        count.append("whole" if known is None else "shallow")
        deep = Deep(joins, known)
        answer = unet(x, t, cond, deep)
        assert deep.found is not None
        return answer, deep.found

    return ask


def reusing(unet: UNet, levels: Tensor, every: int, joins: int = 1, count: list[str] | None = None) -> Reusing[Any]:
    asks = network(unet, joins, [] if count is None else count)
    return Reusing(asks, Schedule(SD), "eps", torch.float32, levels=levels, every=every)


def steered(denoiser: Reusing[Any], batched: bool = True, rows: slice = slice(None)) -> Denoise:
    cond, uncond = (Conditioning(context=c[rows]) for c in (COND, UNCOND))
    return guided(denoiser, [Branch(always(cond))], always(uncond), Guidance(4.0, batched=batched))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("every", "joins"), [(1, 1), (2, 1), (3, 1), (3, 4)])
def test_a_guided_walk_is_the_papers(both: Any, every: int, joins: int, batched: bool) -> None:
    """Steps 0, N, 2N, ... are whole (their eq. 8, uniform), for both sides of guidance; the rest reuse."""
    ours, theirs = both
    schedule, steps = Schedule(SD), 7
    levels = sigmas(schedule, steps, "leading", "first")
    x = start(draw(BATCH, *SIZE), levels)
    asked: list[str] = []
    denoise = steered(reusing(ours, levels, every, joins, asked), batched)
    found = walk(SAMPLERS["ddim"].function(denoise, x, levels, no_noise))[-1].x
    calls = 1 if batched else 2
    assert asked.count("whole") == -(-steps // every) * calls
    assert len(asked) == steps * calls

    below = FromBelow(theirs, joins)
    step = iter(range(steps))

    def whole(x: Tensor, sigma: Tensor) -> Tensor:
        """Their network, all of it at each step, in one batch."""
        level = float(sigma)
        below.replaces = next(step) % every != 0
        given = torch.cat([x, x]) * (1 + level * level) ** -0.5
        t = torch.full((2 * BATCH,), schedule.t(level))
        u, c = (torch.cat([x, x]) - level * theirs(given, t, torch.cat([UNCOND, COND])).sample).chunk(2)
        return u + 4.0 * (c - u)

    try:
        expected = walk(SAMPLERS["ddim"].function(whole, x, levels, no_noise))[-1].x
    finally:
        below.hook.remove()
    agree(f"every {every}", finish(found, levels), finish(expected, levels))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_asks_the_deep_part_less_often(both: Any, name: str) -> None:
    ours, _ = both
    levels = sigmas(Schedule(SD), 12, "trailing", SAMPLERS[name].ends_at)
    x, asked = start(draw(BATCH, *SIZE), levels), list[str]()
    noise = Noise(list(range(BATCH)), SIZE)
    noise()
    denoise = steered(reusing(ours, levels, 3, 1, asked))
    for step in islice(SAMPLERS[name].function(denoise, x, levels, noise), 40):  # an adaptive one may go on for long
        assert bool(step.x.isfinite().all())
    assert asked.count("whole") <= 0.6 * len(asked), (asked.count("whole"), len(asked))


def test_pictures_at_levels_of_their_own_are_as_alone(both: Any) -> None:
    ours, _ = both
    levels = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.0])
    x = draw(BATCH, *SIZE)
    asked = [(8.0, 8.0), (4.0, 2.0), (2.0, 1.0), (1.0, 1.0), (0.5, 0.9)]
    together = steered(reusing(ours, levels, 2))
    answers = [together(x, torch.tensor(sigma)) for sigma in asked]
    for k in range(BATCH):
        rows = slice(k, k + 1)
        alone = steered(reusing(ours, levels, 2), rows=rows)
        for sigma, answer in zip(asked, answers, strict=True):
            agree(f"picture {k} at {sigma[k]}", answer[rows], alone(x[rows], torch.tensor(sigma[k])))


def test_what_is_told_something_new_is_asked_whole(both: Any) -> None:
    ours, _ = both
    levels = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])
    asked = list[str]()
    denoiser = reusing(ours, levels, 4, 1, asked)
    first, second = Conditioning(context=COND), Conditioning(context=UNCOND)
    for cond in (first, first, second, first, second):
        denoiser(draw(BATCH, *SIZE), torch.tensor(4.0), cond)
    assert asked == ["whole", "shallow", "whole", "shallow", "shallow"]
    again = reusing(ours, levels, 4, 1, asked)
    again(draw(BATCH, *SIZE), torch.tensor(4.0), first)
    assert asked[-1] == "whole", "another walk has a memory of its own"


# Token merging


def choice_of(size: tuple[int, int], seeds: tuple[int, ...]) -> Tensor:
    shape = (size[0] // 2, size[1] // 2)
    return torch.stack([torch.randint(4, shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


@contextmanager
def chosen(choice: Tensor) -> Iterator[None]:
    """Within it tomesd's choice by chance is ours (h/2, w/2)."""
    with mock.patch.object(tomesd.merge.torch, "randint", lambda *_, **__: choice[..., None]):
        yield


def their_merge(x: Tensor, size: tuple[int, int], ratio: float, choice: Tensor) -> tuple[Any, Any]:
    h, w = size
    with chosen(choice):
        merge, unmerge = tomesd.merge.bipartite_soft_matching_random2d(
            x, w, h, 2, 2, int(h * w * ratio), False, torch.Generator()
        )
    return merge, unmerge


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (2, 3)])
def test_matching_is_the_authors(size: tuple[int, int], ratio: float) -> None:
    length = size[0] * size[1]
    x, values, choice = draw(3, length, 16), draw(3, length, 5, seed=1), choice_of(size, (5, 6, 7))
    ours = matched(x, size, ratio, choice)
    for k in range(3):  # theirs has one choice for a batch
        merge, unmerge = their_merge(x[k : k + 1], size, ratio, choice[k])
        merged = merge(values[k : k + 1])
        assert ours.merged(values)[k : k + 1].shape == merged.shape
        agree(f"{size} {ratio}", ours.handed_back(ours.merged(values))[k : k + 1], unmerge(merged))


def test_a_level_without_squares_is_left_as_it_is() -> None:
    x = draw(2, 5, 3)
    merge = matched(x, (1, 5), 0.75, choice_of((1, 5), (1, 2)))
    assert torch.equal(merge.handed_back(merge.merged(x)), x)


def test_equal_positions_are_merged_without_loss() -> None:
    """Squares of one value each: three quarters can go, and every position gets its own value back."""
    values = draw(1, 4 * 5, 6).view(1, 4, 5, 6)
    x = values.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    merge = matched(x, (8, 10), 0.75, choice_of((8, 10), (1,)))
    assert merge.rows.shape == (1, 20)
    agree("handed back", merge.handed_back(merge.merged(x)), x)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_a_network_whose_tokens_are_merged_is_theirs(both: Any, ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' UNet with the authors' functions around its finest self-attentions, metric and place as in theirs."""
    ours, theirs = both
    x, t = draw(BATCH, *SIZE, seed=3), torch.tensor([700.0, 300.0])
    choices: list[Tensor] = []

    def recording(metric: Tensor, size: tuple[int, int], ratio: float, choice: Tensor) -> merging.Merge:
        choices.append(choice)
        return matched(metric, size, ratio, choice)

    monkeypatch.setattr(merging, "matched", recording)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with merged_tokens(ours, ratio, [11]):
        found = ours(x, t, Conditioning(context=COND))
    sides = (theirs.down_blocks[0], theirs.up_blocks[2])
    blocks = [block for side in sides for attention in side.attentions for block in attention.transformer_blocks]
    assert len(choices) == len(blocks) == 2 * (2 + 3)
    assert all(torch.equal(choice[0], choice[1]) for choice in choices), "rows of one seed meet the same"
    hooks = []
    for block, choice in zip(blocks, choices, strict=True):
        made: list[Any] = []

        def look(_: nn.Module, inputs: tuple[Any, ...], made: list[Any] = made, choice: Tensor = choice) -> None:
            made[:] = their_merge(inputs[0], SIZE[1:], ratio, choice[0])

        hooks += [
            block.register_forward_pre_hook(look),
            block.attn1.register_forward_pre_hook(lambda _, inputs, made=made: (made[0](inputs[0]), *inputs[1:])),
            block.attn1.register_forward_hook(lambda _, __, y, made=made: made[1](y)),
        ]
    expected = theirs(x, t, COND).sample
    for hook in hooks:
        hook.remove()
    agree(f"merged {ratio}", found, expected)
    plain = ours(x, t, Conditioning(context=COND))
    assert off(found, plain) > 1e-3, "it is seen"
    agree("afterwards", plain, theirs(x, t, COND).sample)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_nothing_merged_is_the_same_to_the_bit(both: Any) -> None:
    ours, _ = both
    x, t, cond = draw(BATCH, *SIZE), torch.tensor([700.0, 300.0]), Conditioning(context=COND)
    with merged_tokens(ours, 0.0, [1, 2]):
        found = ours(x, t, cond)
    assert torch.equal(found, ours(x, t, cond))


def test_the_finest_level_that_attends_to_itself_is_merged(both: Any) -> None:
    assert mergeable_level(CONFIG) == 0
    assert mergeable_level(UNetConfig(context_only=(0, 1))) == 2
    assert mergeable_level(UNetConfig(context_width=None)) is None
    for ratio in (-0.1, 0.8, float("nan")):
        with pytest.raises(ValueError, match=r"from 0 to 0\.75"), merged_tokens(both[0], ratio, [1]):
            pass
