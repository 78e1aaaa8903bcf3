"""Rounded attention: next to its closed form in float64, next to the softmax; and where it must not be used."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from safelight.models import int8, rounded_attention
from safelight.models.attention_maps import attending_by
from safelight.models.layers import attend
from safelight.models.rounded_attention import attend_rounded
from safelight.models.spatial_transformer import Attention
from toy import toy_unet

pytestmark = pytest.mark.skipif(not rounded_attention.multiplies_bfloat16(), reason="this processor does it in float32")


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few scores, and several tiles each way, the last of them smaller; more than are added up in bfloat16."""
    monkeypatch.setattr(rounded_attention, "LEAST", 1)
    monkeypatch.setattr(rounded_attention, "TILE", (64, 24))
    monkeypatch.setattr(rounded_attention, "AT_ONCE", 1)
    with torch.no_grad():
        yield


def _given(B: int, L: int, M: int, heads: int, d: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keys whose mean is far from zero."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, n, heads * d) for n in (L, M, M))
    return q * scale, k * scale + 2, v


def _decibels(y: Tensor, wanted: Tensor) -> float:
    return float(20 * torch.log10(wanted.std() / (y.double() - wanted).std()))


def _bfloat16(x: Tensor) -> Tensor:
    """What is left of float64."""
    return x.bfloat16().double()


def _closed_form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head: scores in 128ths of a power of two; weights in straight lines between powers of two."""
    q, k, v = (x.double() for x in (q, k, v))
    parts = 128 / (math.log(2) * math.sqrt(q.shape[1]))
    scores = _bfloat16(_bfloat16(q * parts) @ _bfloat16(k - k.mean(dim=0)).T).trunc() / 128
    whole = scores.floor()
    weights = 2.0**whole * (1 + scores - whole)
    return weights @ _bfloat16(v) / weights.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("d", [8, 40, 64, 80, 160])
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_the_answer_is_that_of_its_formula(d: int, scale: float) -> None:
    """But for sums in bfloat16, and which of two of its numbers is nearer."""
    q, k, v = _given(1, 150, 400, 1, d, scale)
    assert _decibels(attend_rounded(q, k, v, 1)[0], _closed_form(q[0], k[0], v[0])) > 42


@pytest.mark.parametrize(("scale", "least"), [(0.3, 34), (1.0, 33), (2.0, 30)])
def test_the_answer_is_nearly_softmax_attention(scale: float, least: float) -> None:
    q, k, v = _given(2, 300, 500, 3, 40, scale)
    wanted = attend(*(x.double() for x in (q, k, v)), 3)
    assert _decibels(attend_rounded(q, k, v, 3), wanted) > least


@pytest.mark.parametrize("heads", [1, 4])
def test_heads_together_answer_as_each_alone(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the sum in which the last bit of a bfloat16 is rounded."""
    q, k, v = _given(1, 60, 70, 4, 16, 1.0)
    alone = attend_rounded(q, k, v, 4)
    monkeypatch.setattr(rounded_attention, "AT_ONCE", heads * 60 * 24)
    torch.testing.assert_close(attend_rounded(q, k, v, 4), alone, rtol=0, atol=2e-2)


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


def test_few_scores_and_gradients_are_attended_to_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = _given(2, 60, 70, 2, 16, 1.0)
    exact = attend(q, k, v, 2)
    with torch.enable_grad():
        y = attend_rounded(q, k, v.requires_grad_(), 2)
        assert torch.equal(y, exact) and y.requires_grad
    monkeypatch.setattr(rounded_attention, "LEAST", 2 * 60 * 70 + 1)
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
