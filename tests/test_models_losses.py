"""What the autoencoder is trained by, against the original training code's numbers."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from golden_cases import agree, golden, off, weight, weights
from safelight.models.discriminator import PatchDiscriminator
from safelight.models.lpips import LPIPS
from safelight.training.losses import adaptive_weight, hinge, reconstruction

KL = "training/kl_lpips_disc_hinge"
KL_WEIGHT, ADVERSARIAL_WEIGHT = 1e-6, 0.5


def lpips(case: str, within: str) -> LPIPS:
    network = LPIPS()
    fixed = {k: v for k, v in network.state_dict().items() if k.startswith("scaling_layer.")}
    network.load_state_dict(weights(case, within=within) | fixed, strict=True)
    return network.eval().requires_grad_(False)


def test_lpips() -> None:
    data, network = golden("training/lpips"), lpips("training/lpips", "")
    agree("lpips", network(data["x"], data["y"]), data["lpips"])
    for i, feature in enumerate(network.net(network.scaling_layer(data["x"]))):
        found = torch.stack([feature.double().mean(), feature.double().std()])
        agree(f"VGG, resolution {i}", found, data[f"vgg_feat_mean_std.{i}"])
    assert network(data["x"], data["x"]).abs().max() == 0


@cache
def perceptual() -> LPIPS:
    return lpips(KL, "perceptual_loss.")


def discriminator() -> PatchDiscriminator:
    """In eval mode, as recorded: the statistics of its batch norms are 0 and 1."""
    network = PatchDiscriminator()
    untouched = {k: v for k, v in network.state_dict().items() if "running" in k or "num_batches" in k}
    network.load_state_dict(weights(KL, within="discriminator.") | untouched, strict=True)
    return network.eval().requires_grad_(False)


def recorded_picture(data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The picture that the recorded decoder gives, and the weight of its last layer."""
    last = weight("last.weight", (3, 8, 3, 3)).requires_grad_()
    return conv2d(data["h"], last, weight("last.bias", (3,)), padding=1).tanh(), last


def test_the_autoencoders_loss() -> None:
    """Step 150 of a training whose discriminator comes in at 100, as the recipe puts it together."""
    data, critic = golden(KL), discriminator()
    decoded, last = recorded_picture(data)
    mean, logvar = data["moments"].chunk(2, dim=1)
    parts = reconstruction(data["x"], decoded, mean, logvar.clamp(-30, 20), perceptual(), 1.0)
    generator = -critic(decoded).mean()

    log = {name: data[f"gs150.opt0.train/{name}"] for name in ("rec_loss", "kl_loss", "g_loss", "nll_loss")}
    pixels_per_picture = data["x"][0].numel()
    agree("reconstruction", parts.absolute_and_perceptual / pixels_per_picture, log["rec_loss"])
    agree("KL", parts.kl, log["kl_loss"])
    agree("generator", generator, log["g_loss"])

    # The original learns one log-variance s of all pixels besides: exp(-s) rec + s. Ours has s = 0.
    s = data["gs150.opt0.train/logvar"]
    nll = parts.absolute_and_perceptual / s.exp() + s * pixels_per_picture
    agree("negative log-likelihood", nll, log["nll_loss"])
    weight_of_critic = ADVERSARIAL_WEIGHT * adaptive_weight(nll, generator, last)
    agree("adaptive weight", weight_of_critic, data["gs150.opt0.train/d_weight"])
    total = nll + KL_WEIGHT * parts.kl + weight_of_critic * generator
    agree("total", total, data["gs150.opt0"])
    agree("total before the discriminator", nll + KL_WEIGHT * parts.kl, data["gs50.opt0"])


def test_the_discriminators_loss() -> None:
    data, critic = golden(KL), discriminator()
    decoded, _ = recorded_picture(data)
    real, fake = critic(data["x"]), critic(decoded)
    agree("logits of the real", real.mean(), data["gs150.opt1.train/logits_real"])
    agree("logits of the decoded", fake.mean(), data["gs150.opt1.train/logits_fake"])
    agree("hinge", hinge(real, fake), data["gs150.opt1"])


def test_the_balance_has_a_ceiling_and_no_gradient() -> None:
    last = torch.ones(2, 2, requires_grad=True)
    found = adaptive_weight(1e9 * last.sum(), last.sum(), last)
    assert found == 1e4
    assert not found.requires_grad
    assert adaptive_weight(0 * last.sum(), last.sum(), last) == 0
    even = adaptive_weight(3 * last.sum(), last.sum(), last)
    assert float(even) == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("fault", ["square", "no perceptual", "mean over pixels"])
def test_a_wrong_loss_would_be_seen(fault: str) -> None:
    data = golden(KL)
    decoded, _ = recorded_picture(data)
    right = data["gs150.opt0.train/rec_loss"]
    distance = {"square": (data["x"] - decoded).square()}.get(fault, (data["x"] - decoded).abs())
    wrong = distance.mean()
    if fault != "no perceptual":
        wrong = wrong + perceptual()(data["x"], decoded).mean()
    if fault == "mean over pixels":
        wrong = wrong / data["x"][0].numel()
    assert off(wrong, right) > 1e-2
