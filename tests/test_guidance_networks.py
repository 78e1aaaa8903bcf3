"""Guidance that reaches into the network, and whole guided walks, against diffusers with the same random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets import unet_2d_blocks
from torch import Tensor

from diffusion_oracles import SD, close, no_noise, walk
from family_oracles import Both, made
from golden_cases import agree, off
from safelight.diffusion.denoiser import Denoise, Denoiser
from safelight.diffusion.guidance import (
    Beside,
    Branch,
    Guidance,
    SelfAttention,
    always,
    guided,
    within,
)
from safelight.diffusion.noise import Noise
from safelight.diffusion.samplers import SAMPLERS, ddim, finish, start
from safelight.diffusion.schedule import Schedule
from safelight.diffusion.sigmas import sigmas
from safelight.doors import Conditioning
from safelight.models.attention_maps import (
    attention_received,
    chosen_attentions,
    identity_attention,
    self_attentions,
)
from safelight.models.freeu import FreeU, freeu
from safelight.models.unet import UNet, UNetConfig

STEPS, BATCH = 4, 2
SIZE = (4, 16, 24)  # so that the middle, at an eighth, is a map of 2 by 3
MEMBERS = ("sd1", "sd2-v")


@pytest.fixture(scope="module", params=MEMBERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return made(request.param, tmp_path_factory.mktemp(request.param))


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


NOISE = draw(BATCH, *SIZE)
COND, UNCOND = draw(BATCH, 7, 24, seed=1), draw(BATCH, 7, 24, seed=2)


def ours(both: Both, make: Callable[[Denoiser[Conditioning], UNet], Denoise]) -> Tensor:
    """The end of a walk of DDIM."""
    schedule = Schedule(both.model.preset.schedule)
    levels = sigmas(schedule, STEPS, "leading", "first")
    unet = both.model.unet
    with torch.inference_mode():
        denoise = make(Denoiser(unet, schedule, both.model.preset.prediction), unet)
        return finish(walk(ddim(denoise, start(NOISE, levels), levels, no_noise))[-1].x, levels)


def theirs(both: Both, pipeline: str, scale: float, layers: Sequence[str] = (), **options: Any) -> Tensor:
    """The same of one of their pipelines. layers: by their names, where attention is perturbed."""
    found = both.theirs(pipeline, "ddim", "leading")
    if layers != ():
        found.set_pag_applied_layers(list(layers))
    latent: Tensor = found(
        prompt_embeds=COND,
        negative_prompt_embeds=UNCOND,
        latents=NOISE,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        width=8 * SIZE[2],
        height=8 * SIZE[1],
        output_type="latent",
        **options,
    ).images
    return latent


def told(context: Tensor) -> Callable[[], Conditioning]:
    return always(Conditioning(context=context))


def pag(denoiser: Denoiser[Conditioning], unet: UNet, scale: float, layers: tuple[str, ...]) -> Beside:
    cond = guided(denoiser, [Branch(told(COND))])
    return Beside(within(lambda: identity_attention(unet, layers), cond), scale)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("layers", [{"mid": "mid_block"}, {"mid": "mid_block", "up_blocks.1": "up_blocks.1"}])
def test_perturbed_attention_guidance(both: Both, scale: float, layers: dict[str, str]) -> None:
    def make(denoiser: Denoiser[Conditioning], unet: UNet) -> Denoise:
        beside = [pag(denoiser, unet, 3.0, tuple(layers.values()))]
        return guided(denoiser, [Branch(told(COND))], told(UNCOND), Guidance(scale), beside=beside)

    expected = theirs(both, "StableDiffusionPAGPipeline", scale, list(layers), pag_scale=3.0)
    plain = theirs(both, "StableDiffusionPipeline", scale)
    assert off(plain, expected) > 0.02, "it is seen"
    agree(f"PAG {scale} {list(layers)}", ours(both, make), expected)


def test_perturbed_attention_guidance_is_rescaled_with_the_rest(both: Both) -> None:
    def make(denoiser: Denoiser[Conditioning], unet: UNet) -> Denoise:
        beside = [pag(denoiser, unet, 2.0, ("mid_block",))]
        return guided(denoiser, [Branch(told(COND))], told(UNCOND), Guidance(5.0, rescale=0.6), beside=beside)

    expected = theirs(both, "StableDiffusionPAGPipeline", 5.0, ["mid"], pag_scale=2.0, guidance_rescale=0.6)
    agree("PAG, rescaled", ours(both, make), expected)


@pytest.mark.slow
def test_rescaled_guidance(both: Both) -> None:
    def make(denoiser: Denoiser[Conditioning], unet: UNet) -> Denoise:
        return guided(denoiser, [Branch(told(COND))], told(UNCOND), Guidance(7.5, rescale=0.7))

    expected = theirs(both, "StableDiffusionPipeline", 7.5, guidance_rescale=0.7)
    assert off(theirs(both, "StableDiffusionPipeline", 7.5), expected) > 0.02
    agree("rescaled", ours(both, make), expected)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_self_attention_guidance(tmp_path: Path, scale: float) -> None:
    """Of a network that predicts noise: elsewhere their pipeline adds up velocities at different x."""
    both = made("sd1", tmp_path)

    def make(denoiser: Denoiser[Conditioning], unet: UNet) -> Denoise:
        attention = SelfAttention(lambda: attention_received(unet), 0.75)
        return guided(denoiser, [Branch(told(COND))], told(UNCOND), Guidance(scale), attention=attention)

    expected = theirs(both, "StableDiffusionSAGPipeline", scale, sag_scale=0.75)
    assert off(theirs(both, "StableDiffusionPipeline", scale), expected) > 0.02
    agree(f"SAG {scale}", ours(both, make), expected)


SETTINGS = FreeU(1.4, 1.6, 0.9, 0.2)


def with_freeu(both: Both, settings: FreeU, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Ours and theirs of one question."""
    t = torch.tensor([500.0, 20.0])
    network = UNet2DConditionModel.from_pretrained(both.folder / "unet").eval()
    network.enable_freeu(s1=settings.s1, s2=settings.s2, b1=settings.b1, b2=settings.b2)
    with torch.inference_mode():
        expected: Tensor = network(latent, t, encoder_hidden_states=COND).sample
        with freeu(both.model.unet, settings):
            return both.model.unet(latent, t, Conditioning(context=COND)), expected


@pytest.mark.parametrize("size", [(24, 40), (16, 16), (13, 9), (8, 8)], ids=str)
def test_freeu(both: Both, size: tuple[int, int]) -> None:
    latent = draw(BATCH, 4, *size, seed=3)
    got, expected = with_freeu(both, SETTINGS, latent)
    with torch.inference_mode():
        plain = both.model.unet(latent, torch.tensor([500.0, 20.0]), Conditioning(context=COND))
    assert off(plain, expected) > 0.02
    agree(f"FreeU {size}", got, expected)


def test_freeu_in_the_second_version_weighs_by_the_mean_over_channels(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their network, by the published formula: alpha = (b - 1) (m - min m) / (max m - min m) + 1, per picture."""

    def published(level: int, x: Tensor, kept: Tensor, **said: float) -> tuple[Tensor, Tensor]:
        if level > 1:
            return x, kept
        x, b = x.clone(), said[f"b{level + 1}"]
        for picture in x:
            mean = picture.mean(dim=0)
            picture[: len(picture) // 2] *= (b - 1) * (mean - mean.min()) / (mean.max() - mean.min()) + 1
        return x, unet_2d_blocks_filter(kept, 1, said[f"s{level + 1}"])

    unet_2d_blocks_filter = diffusers.utils.torch_utils.fourier_filter
    latent = draw(BATCH, *SIZE, seed=3)
    before, _ = with_freeu(both, SETTINGS, latent)
    monkeypatch.setattr(unet_2d_blocks, "apply_freeu", published)
    got, expected = with_freeu(both, FreeU(1.4, 1.6, 0.9, 0.2, version=2), latent)
    assert off(before, expected) > 1e-3
    agree("FreeU, version 2", got, expected)


# What a change leaves behind: nothing

CONTEXTLESS = UNetConfig(
    channels=(16, 32), transformer_depth=(0, 1), heads=(1, 2), context_width=None, norm_groups=8, blocks_per_level=1
)
TEXTUAL = UNetConfig(
    channels=(16, 32), transformer_depth=(1, 2), heads=(2, 4), context_width=24, norm_groups=8, blocks_per_level=1
)


def network(config: UNetConfig, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(config).eval().requires_grad_(False)


CHANGES: dict[str, Callable[[UNet], AbstractContextManager[object]]] = {
    "identity attention": lambda unet: identity_attention(unet, ("mid_block", "up_blocks")),
    "watched attention": attention_received,
    "FreeU": lambda unet: freeu(unet, FreeU()),
    "FreeU 2": lambda unet: freeu(unet, FreeU(version=2)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("config", [CONTEXTLESS, TEXTUAL], ids=["positions", "transformers"])
def test_a_change_goes_without_a_trace(config: UNetConfig, change: str) -> None:
    unet = network(config)
    tensors = {name: (tensor, tensor.clone()) for name, tensor in unet.state_dict(keep_vars=True).items()}
    cond = Conditioning(context=None if config.context_width is None else COND)
    x, t = draw(BATCH, 4, 8, 12), torch.tensor([3.0, 700.0])
    with torch.inference_mode():
        before = unet(x, t, cond)
        with pytest.raises(KeyError), CHANGES[change](unet):
            changed = unet(x, t, cond)
            assert torch.equal(before, changed) == (change == "watched attention")
            assert changed.isfinite().all()
            raise KeyError
        assert torch.equal(unet(x, t, cond), before)
    for name, tensor in unet.state_dict(keep_vars=True).items():
        assert tensor is tensors[name][0] and torch.equal(tensor, tensors[name][1])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in unet.modules())
    assert not any("attending" in name or "joining" in name for name in unet.state_dict())


def test_ones_are_no_freeu() -> None:
    unet = network(TEXTUAL)
    x, t = draw(BATCH, 4, 8, 12), torch.tensor([3.0, 700.0])
    for version in (1, 2):
        with freeu(unet, FreeU(1.0, 1.0, 1.0, 1.0, version)):  # type: ignore[arg-type]  # a Literal in a loop
            got = unet(x, t, Conditioning(context=COND))
        close(got, unet(x, t, Conditioning(context=COND)), 1e-5)
    for wrong in ({"b1": -1.0}, {"s2": float("nan")}, {"version": 3}):
        with pytest.raises(ValueError, match="FreeU's"):
            FreeU(**wrong)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("config", [CONTEXTLESS, TEXTUAL], ids=["positions", "transformers"])
def test_attention_that_is_received_is_one_on_average(config: UNetConfig) -> None:
    unet = network(config)
    cond = Conditioning(context=None if config.context_width is None else COND)
    with attention_received(unet) as seen:
        with pytest.raises(RuntimeError, match="not been asked"):
            seen()
        unet(draw(BATCH, 4, 9, 12), torch.tensor([3.0, 700.0]), cond)
    assert seen().shape == (BATCH, 1, 5, 6) and seen().dtype == torch.float32
    torch.testing.assert_close(seen().mean(dim=(1, 2, 3)), torch.ones(BATCH))
    assert float(seen().std()) > 1e-3


def test_layers_are_chosen_by_the_beginning_of_their_names() -> None:
    unet = network(TEXTUAL)
    everything = self_attentions(unet)
    assert len(everything) == 1 + 2 + 1 + 2 * 2 + 2 * 1  # down: 1 and 2 deep; middle; up: 2 of 2 deep, 2 of 1 deep
    assert list(chosen_attentions(unet, ("mid_block",))) == ["mid_block.attentions.0.transformer_blocks.0.attn1"]
    assert len(chosen_attentions(unet, ("up_blocks.0", "up_blocks.0.attentions.1", "mid_block"))) == 5
    for wrong in ("mid", "up_blocks.2", "", "conv_in"):
        with pytest.raises(ValueError, match=r"choose among .*mid_block"):
            chosen_attentions(unet, (wrong,))


def test_attention_to_the_context_alone_is_not_to_oneself() -> None:
    config = UNetConfig(
        channels=(16, 32),
        transformer_depth=(1, 1),
        heads=(2, 4),
        context_width=24,
        norm_groups=8,
        blocks_per_level=1,
        context_only=(0, 1),
    )
    assert [name.split(".")[0] for name in self_attentions(network(config))] == ["mid_block"]


# With every sampler

UNETS = network(TEXTUAL)
NETWORKED: dict[str, Callable[[Denoiser[Conditioning], float], Denoise]] = {
    "perturbed attention": lambda denoiser, s: guided(
        denoiser, [Branch(told(COND))], told(UNCOND), Guidance(3.0), beside=[pag(denoiser, UNETS, s, ("mid_block",))]
    ),
    "self-attention": lambda denoiser, s: guided(
        denoiser,
        [Branch(told(COND))],
        told(UNCOND),
        Guidance(3.0),
        attention=SelfAttention(lambda: attention_received(UNETS), s),
    ),
    "FreeU": lambda denoiser, s: within(
        lambda: freeu(UNETS, FreeU()) if s > 0 else torch.inference_mode(),
        guided(denoiser, [Branch(told(COND))], told(UNCOND), Guidance(3.0)),
    ),
}


@pytest.mark.parametrize("case", NETWORKED)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_perturbation_with_every_sampler(sampler: str, case: str) -> None:
    schedule, entry = Schedule(SD), SAMPLERS[sampler]
    levels = sigmas(schedule, 3, entry.spacing, entry.ends_at)

    def drawn(make: Callable[[Denoiser[Conditioning]], Denoise]) -> Tensor:
        noise = Noise([0, 1], (4, 8, 8))
        with torch.inference_mode():
            denoise = make(Denoiser(UNETS, schedule, "eps"))
            return walk(entry.function(denoise, start(noise(), levels), levels, noise))[-1].x

    on = drawn(lambda denoiser: NETWORKED[case](denoiser, 2.0))
    assert on.shape == (BATCH, 4, 8, 8) and bool(on.isfinite().all())
    off_ = drawn(lambda denoiser: NETWORKED[case](denoiser, 0.0))
    plain = drawn(lambda denoiser: guided(denoiser, [Branch(told(COND))], told(UNCOND), Guidance(3.0)))
    assert torch.equal(off_, plain), "what is off is not there"
    assert float((on - off_).abs().max()) > 1e-4, "what is on is seen"
