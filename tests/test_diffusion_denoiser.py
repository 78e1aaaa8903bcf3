"""The denoiser, its loss and guidance: against the original code, and against each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_oracles import (
    SD,
    close,
    ldm_network,
    scheduler_network,
    sgm_network,
    whole_t_network,
)
from golden_cases import golden
from safelight.diffusion.denoiser import Denoiser, Prediction
from safelight.diffusion.guidance import classifier_free, conditioned, keep_known
from safelight.diffusion.schedule import Schedule
from safelight.doors import Conditioning

SCHEDULE = Schedule(SD)
NOTHING = Conditioning()


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("quantize", [False, True])
def test_k_diffusion_wrapper(prediction: Prediction, quantize: bool) -> None:
    data = golden("k_diffusion/compvis_denoiser")
    network = whole_t_network if quantize else scheduler_network
    denoiser = Denoiser(network, SCHEDULE, prediction)
    x, sigma, noise = data["x"], data["sigma"], data["loss_noise"]
    name = f"quantize_{quantize}"
    close(denoiser(x, sigma, NOTHING), data[f"{prediction}_denoised_{name}"], 5e-6)
    close(denoiser.loss(x, noise, sigma, NOTHING), data[f"{prediction}_loss_{name}"], 5e-6)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_generative_models_wrapper(prediction: Prediction) -> None:
    data = golden("sgm/denoiser")
    # Over there sigma becomes the nearest one of the table first.
    nearest = (data["sig2"][:, None].double() - SCHEDULE.sigmas).abs().argmin(dim=1)
    sigma = SCHEDULE.sigma(nearest)
    cond = Conditioning(context=data["c_crossattn"], vector=data["c_vector"])
    close(
        Denoiser(sgm_network, SCHEDULE, prediction)(data["x"], sigma, cond),
        data[f"denoised_{prediction}"],
        5e-6,
    )


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_latent_diffusion_losses(prediction: Prediction) -> None:
    data = golden("training/ldm_p_losses")
    buffers = golden(f"schedules/ddpm_buffers_{prediction}")
    cond = Conditioning(context=data["cond"])
    denoiser = Denoiser(ldm_network, SCHEDULE, prediction)
    x0, noise, sigma = data["x_start"], data["noise"], SCHEDULE.sigma(data["t"])
    losses = denoiser.loss(x0, noise, sigma, cond)
    bound = denoiser.loss(x0, noise, sigma, cond, weight=buffers["lvlb_weights"][data["t"]])
    case = f"{prediction}.l2.elbo0.5.logvar0"
    close(losses.mean(), data[f"{case}:train/loss_simple"], 5e-6)
    close(bound.mean(), data[f"{case}:train/loss_vlb"], 5e-6)
    close(losses.mean() + 0.5 * bound.mean(), data[case], 5e-6)


def perfect(kind: Prediction, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """What a network that knows the answer says (Salimans & Ho 2022, appendix D)."""
    s = sigma.view(-1, 1, 1, 1)
    alpha = 1 / torch.sqrt(1 + s**2)
    return {"eps": noise, "x0": x0, "v": alpha * noise - alpha * s * x0}[kind]


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_a_perfect_network_gives_back_the_clean_latent_and_no_loss(prediction: Prediction) -> None:
    x0, noise = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    sigma = torch.tensor([0.03, 0.5, 1.0, 3.0, 14.6])
    answer = perfect(prediction, x0, noise, sigma)

    def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        torch.testing.assert_close(t, SCHEDULE.t(sigma))
        expected = (x0 + sigma.view(-1, 1, 1, 1) * noise) / torch.sqrt(1 + sigma**2).view(-1, 1, 1, 1)
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)
        return answer

    denoiser = Denoiser(network, SCHEDULE, prediction)
    close(denoiser(x0 + sigma.view(-1, 1, 1, 1) * noise, sigma, NOTHING), x0, 2e-6)
    assert float(denoiser.loss(x0, noise, sigma, NOTHING).max()) < 1e-11


def test_one_sigma_for_all_is_a_sigma_for_each() -> None:
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    kinds: tuple[Prediction, ...] = ("eps", "v", "x0")
    for kind in kinds:
        denoiser = Denoiser(scheduler_network, SCHEDULE, kind)
        close(denoiser(x, torch.tensor(2.5), NOTHING), denoiser(x, torch.full((3,), 2.5), NOTHING), 1e-6)


def test_the_network_sees_its_own_dtype_and_whole_timesteps_in_float32() -> None:
    seen: list[tuple[torch.dtype, torch.dtype, list[float]]] = []

    def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        seen.append((x.dtype, t.dtype, t.tolist()))
        return x

    x = torch.randn(2, 4, 3, 3)
    denoiser = Denoiser(network, SCHEDULE, "eps", torch.bfloat16)
    sigma = SCHEDULE.sigma(torch.tensor([981, 1]))
    assert denoiser(x, sigma, NOTHING).dtype == torch.float32
    assert denoiser.loss(x, x, sigma, NOTHING).dtype == torch.float32
    for dtype, t_dtype, t in seen:
        assert (dtype, t_dtype) == (torch.bfloat16, torch.float32)
        assert t == pytest.approx([981, 1], abs=1e-5)


def test_the_loss_trains_and_weighs() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    denoiser = Denoiser(lambda x, t, cond: x * scale, SCHEDULE, "v")
    x0, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(2)).unbind(0)
    sigma = torch.tensor([0.1, 1.0, 10.0])
    plain = denoiser.loss(x0, noise, sigma, NOTHING)
    weighted = denoiser.loss(x0, noise, sigma, NOTHING, weight=torch.tensor([0.0, 1.0, 3.0]))
    assert plain.shape == (3,)
    torch.testing.assert_close(weighted, plain * torch.tensor([0.0, 1.0, 3.0]))
    (slope,) = torch.autograd.grad(plain.sum(), scale)
    assert float(slope.abs()) > 0


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="eps, v or x0"):
        Denoiser(scheduler_network, SCHEDULE, "noise")  # type: ignore[arg-type]  # that is the point


def conditions() -> tuple[Tensor, Conditioning, Conditioning]:
    data = golden("samplers_ldm/ddim_10_cfg7.5")
    return data["x_T"], Conditioning(context=data["cond"]), Conditioning(context=data["uncond"])


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 7.5, -2.0])
@pytest.mark.parametrize("sigma", [torch.tensor(3.0), torch.tensor([3.0, 0.7])])
def test_guidance_is_the_formula_in_one_call(scale: float, sigma: Tensor) -> None:
    x, cond, uncond = conditions()
    calls: list[int] = []

    def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        calls.append(len(x))
        return ldm_network(x, t, cond)

    denoiser = Denoiser(network, SCHEDULE, "eps")
    got = classifier_free(denoiser, cond, uncond, scale)(x, sigma)
    assert calls == [2 * len(x)]
    u, c = denoiser(x, sigma, uncond), denoiser(x, sigma, cond)
    close(got, u + scale * (c - u), 2e-6)


def test_scale_one_costs_one_call_with_the_condition_alone() -> None:
    x, cond, uncond = conditions()
    calls: list[int] = []

    def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        calls.append(len(x))
        return ldm_network(x, t, cond)

    denoiser = Denoiser(network, SCHEDULE, "eps")
    got = classifier_free(denoiser, cond, uncond, 1.0)(x, torch.tensor(2.0))
    assert calls == [len(x)]
    assert torch.equal(got, conditioned(denoiser, cond)(x, torch.tensor(2.0)))


def test_guidance_that_is_not_a_number_is_refused() -> None:
    _, cond, uncond = conditions()
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            classifier_free(Denoiser(ldm_network, SCHEDULE, "eps"), cond, uncond, wrong)


def test_keep_known_answers_known_under_the_mask_and_the_network_elsewhere() -> None:
    x, cond, _ = conditions()
    denoise = conditioned(Denoiser(ldm_network, SCHEDULE, "eps"), cond)
    known, sigma = torch.full_like(x, 0.25), torch.tensor(2.0)
    mask = torch.zeros(2, 1, 6, 5)
    mask[:, :, :3] = 1
    got = keep_known(denoise, known, mask)(x, sigma)
    assert torch.equal(got[:, :, :3], known[:, :, :3])
    assert torch.equal(got[:, :, 3:], denoise(x, sigma)[:, :, 3:])
