"""Rounded attention: next to its closed form in float64, next to the softmax; and where it must not be used."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.models import int8, rounded_attention, int8_products
from safelight.models.attention_maps import attending_by
from safelight.models.rounded_attention import attend_rounded
from safelight.models.layers import attend
from safelight.models.spatial_transformer import Attention
from toy import toy_unet

Numbers = NDArray[np.float64]
pytestmark = pytest.mark.skipif(
    not (int8_products.supported() and rounded_attention.multiplies_bfloat16()),
    reason="this processor does it in float32",
)


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few keys, and several tiles each way, the last of them smaller."""
    monkeypatch.setattr(rounded_attention, "LEAST", 1)
    monkeypatch.setattr(rounded_attention, "TILE", (64, 96))
    with torch.no_grad():
        yield


def _given(B: int, L: int, M: int, heads: int, d: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keys whose mean is far from zero."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, n, heads * d) for n in (L, M, M))
    return q * scale, k * scale + 2, v


def _decibels(y: Tensor, wanted: Tensor) -> float:
    return float(20 * torch.log10(wanted.std() / (y.double() - wanted).std()))


def _rounded_queries(q: Numbers) -> Numbers:
    least, largest = min(q.min(), 0.0), max(q.max(), 0.0)
    scale = (largest - least) / 255
    zero = np.round(-least / scale)
    understood: Numbers = (np.round(q / scale + zero) - zero) * scale
    return understood


def _rounded_keys(k: Numbers) -> Numbers:
    k = k - k.mean(axis=0)
    scales = np.abs(k).max(axis=1, keepdims=True) / int8_products.HIGHEST
    understood: Numbers = np.round(k / scales) * scales
    return understood


def _closed_form(q: Numbers, k: Numbers, v: Numbers) -> Numbers:
    """One head: weights in straight lines between powers of two."""
    scores = _rounded_queries(q) @ _rounded_keys(k).T / math.sqrt(q.shape[1]) / math.log(2)
    whole = np.floor(scores)
    weights = 2.0**whole * (1 + scores - whole)
    answer: Numbers = weights @ v / weights.sum(axis=1, keepdims=True)
    return answer


@pytest.mark.parametrize("d", [8, 40, 64, 80, 160])
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_the_answer_is_that_of_its_formula(d: int, scale: float) -> None:
    """But for bfloat16 of weights and values, and which of two whole numbers is nearer."""
    q, k, v = _given(1, 150, 200, 1, d, scale)
    wanted = torch.from_numpy(_closed_form(*(x[0].double().numpy() for x in (q, k, v))))
    assert _decibels(attend_rounded(q, k, v, 1)[0], wanted) > 40


@pytest.mark.parametrize(("scale", "least"), [(0.3, 34), (1.0, 31), (2.0, 27)])
def test_the_answer_is_nearly_softmax_attention(scale: float, least: float) -> None:
    q, k, v = _given(2, 300, 500, 3, 40, scale)
    wanted = attend(*(x.double() for x in (q, k, v)), 3)
    assert _decibels(attend_rounded(q, k, v, 3), wanted) > least


def test_where_one_key_has_all_the_weight_its_value_comes_out() -> None:
    q, k, v = torch.eye(64)[None] * 30, torch.eye(64)[None] * 30, torch.randn(1, 64, 64)
    torch.testing.assert_close(attend_rounded(q, k, v, 1), v, atol=0, rtol=2**-7)


def test_a_picture_does_not_depend_on_the_others_of_its_batch() -> None:
    q, k, v = _given(3, 130, 170, 2, 24, 1.0)
    q = q * torch.tensor([1.0, 3.0, 0.1])[:, None, None]
    together = attend_rounded(q, k, v, 2)
    for b in range(3):
        alone = slice(b, b + 1)
        assert torch.equal(together[alone], attend_rounded(q[alone], k[alone], v[alone], 2))


def test_a_head_whose_scores_may_be_too_large_is_exact_and_the_others_are_not() -> None:
    q, k, v = _given(1, 60, 70, 2, 16, 1.0)
    q[:, :, 16:] *= 100
    y, exact = attend_rounded(q, k, v, 2), attend(q, k, v, 2)
    torch.testing.assert_close(y[:, :, 16:], exact[:, :, 16:], atol=1e-4, rtol=1e-4)
    assert 25 < _decibels(y[:, :, :16], exact[:, :, :16]) < 60


def test_large_values_have_room() -> None:
    """Where all scores are as large as they may be."""
    q, k = torch.full((1, 40, 16), 3.0), torch.randn(1, 3000, 16).sign() * 5
    v = torch.full((1, 3000, 16), 6e4)
    torch.testing.assert_close(attend_rounded(q, k, v, 1), v[:, :40], rtol=0.02, atol=0)


@pytest.mark.parametrize("of", range(3))
def test_what_is_not_finite_stays_so(of: int) -> None:
    given = list(_given(1, 60, 70, 2, 16, 1.0))
    given[of][0, 3, 1] = torch.nan
    assert not bool(attend_rounded(given[0], given[1], given[2], 2).isfinite().all())


def test_few_keys_and_gradients_are_attended_to_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = _given(2, 60, 70, 2, 16, 1.0)
    exact = attend(q, k, v, 2)
    with torch.enable_grad():
        y = attend_rounded(q, k, v.requires_grad_(), 2)
        assert torch.equal(y, exact) and y.requires_grad
    monkeypatch.setattr(rounded_attention, "LEAST", 71)
    assert torch.equal(attend_rounded(q, k, v.detach(), 2), exact)


def test_a_rounded_unet_attends_so_but_for_what_stands_in_for_it() -> None:
    """And does again when that is gone."""
    unet = toy_unet()
    int8.quantise(unet, {})
    attentions = {name: part for name, part in unet.named_modules() if isinstance(part, Attention)}
    assert attentions and all(part.attending is attend_rounded for part in attentions.values())
    with attending_by(attentions, attend):
        assert all(part.attending is attend for part in attentions.values())
    assert all(part.attending is attend_rounded for part in attentions.values())
