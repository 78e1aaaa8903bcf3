"""Attention in tiles is exact: next to the softmax in float64; and where it must not be used, it is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from safelight.models import packed, tiled_attention
from safelight.models.layers import attend
from safelight.models.spatial_transformer import Attention
from safelight.models.tiled_attention import Mkl, OneDnn, attend_tiled
from toy import toy_unet


@dataclass
class Counted:
    """Heads that PyTorch attended by, in all pictures."""

    heads: int = 0


@pytest.fixture(autouse=True, params=[Mkl(least=1), OneDnn(least=1)], ids=["mkl", "onednn"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Mkl | OneDnn:
    """Either's, for any number of positions, on any processor."""
    way: Mkl | OneDnn = request.param
    monkeypatch.setattr(tiled_attention, "fast_products", lambda: way)
    return way


@pytest.fixture(autouse=True)
def otherwise(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """Several tiles each way, the last of them smaller."""
    monkeypatch.setattr(tiled_attention, "TILE", (64, 24))
    counted = Counted()

    def attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        counted.heads += heads * len(q)
        return attend(q, k, v, heads)

    monkeypatch.setattr(tiled_attention, "attend", attended)
    with torch.no_grad():
        yield counted


def _given(B: int, L: int, M: int, heads: int, d: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Keys whose mean is far from zero."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, n, heads * d) for n in (L, M, M))
    return q * scale, k * scale + 2, v


def _exact(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return attend(q.double(), k.double(), v.double(), heads)


@pytest.mark.parametrize("d", [8, 40, 160])
@pytest.mark.parametrize(("L", "M"), [(150, 400), (64, 24), (1, 77), (130, 1)])
def test_the_answer_is_softmax_attention(d: int, L: int, M: int, otherwise: Counted) -> None:
    q, k, v = _given(2, L, M, 3, d)
    torch.testing.assert_close(attend_tiled(q, k, v, 3).double(), _exact(q, k, v, 3), rtol=1e-5, atol=3e-6)
    assert not otherwise.heads


@pytest.mark.parametrize("products", [Mkl(least=1)], indirect=True)
@pytest.mark.parametrize("d", [24, 160])
@pytest.mark.parametrize("M", [1, 77, tiled_attention.FEW])
def test_to_few_keys_it_is_too_however_large_scores_are(d: int, M: int, otherwise: Counted) -> None:
    L = tiled_attention.LEAST_TO_FEW
    for scale in (1.0, 30.0):
        q, k, v = _given(2, L, M, 3, d, scale)
        y, exact = attend_tiled(q, k, v, 3), _exact(q, k, v, 3)
        error, pytorchs = (float((x.double() - exact).square().mean().sqrt()) for x in (y, attend(q, k, v, 3)))
        assert error < max(1e-6, 2 * pytorchs), "large scores are as exact as PyTorch has them"
    assert not otherwise.heads
    q[1, 5, 2] = torch.nan
    y = attend_tiled(q, k, v, 3)
    assert not bool(y[1, 5].isfinite().all()) and bool(y[0].isfinite().all())


@pytest.mark.parametrize("products", [Mkl(least=1 << 20)], indirect=True)
def test_few_keys_and_many_queries_are_as_many_as_is_said(otherwise: Counted) -> None:
    L, M = tiled_attention.LEAST_TO_FEW, tiled_attention.FEW
    for queries, keys, left in ((L, M, 0), (L - 1, M, 2), (L, M + 1, 4)):
        attend_tiled(*_given(1, queries, keys, 2, 8), 2)
        assert otherwise.heads == left


@pytest.mark.parametrize(("scale", "left"), [(3.2, 0), (3.6, 1), (6.0, 1)])
def test_scores_as_large_as_they_may_be_have_room(scale: float, left: int, otherwise: Counted) -> None:
    """And large values, too. PyTorch's are larger ones, whose exponentials add up to too much or to infinity."""
    torch.manual_seed(0)
    k = scale * torch.randn(1, 3000, 16).sign()
    q = scale * k[:, :40].sign()
    scores = (q @ (k - k.mean(dim=1, keepdim=True)).transpose(1, 2) / 4).double()
    assert (float(scores.exp().sum(dim=2).amax()) > tiled_attention.MOST) == bool(left)
    assert (float(scores.amax()) > 88.7) == (scale == 6.0)
    for count, v in enumerate((torch.full((1, 3000, 16), 6e4), torch.randn(1, 3000, 16)), start=1):
        torch.testing.assert_close(attend_tiled(q, k, v, 1).double(), _exact(q, k, v, 1), rtol=2e-5, atol=1e-5)
        assert otherwise.heads == count * left


def test_only_heads_whose_scores_may_be_too_large_are_left_to_pytorch(otherwise: Counted) -> None:
    q, k, v = _given(2, 150, 70, 5, 16)
    q[1, 130, 48:64] *= 100
    y = attend_tiled(q, k, v, 5)
    assert otherwise.heads == 1, "the fourth of the second picture, for one of its queries"
    exact, theirs = _exact(q, k, v, 5), attend(q, k, v, 5)
    torch.testing.assert_close(y[1, :, 48:64], theirs[1, :, 48:64])
    exact[1, :, 48:64] = y[1, :, 48:64]
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=3e-6)


def test_a_picture_does_not_depend_on_the_others_of_its_batch() -> None:
    q, k, v = _given(3, 130, 170, 3, 24)
    q = q * torch.tensor([1.0, 30.0, 0.1])[:, None, None]
    together = attend_tiled(q, k, v, 3)
    for b in range(3):
        alone = slice(b, b + 1)
        assert torch.equal(together[alone], attend_tiled(q[alone], k[alone], v[alone], 3))


@pytest.mark.parametrize("of", range(3))
def test_what_is_not_finite_stays_so(of: int) -> None:
    given = list(_given(1, 60, 70, 2, 16))
    given[of][0, 3, 1] = torch.nan
    assert not bool(attend_tiled(given[0], given[1], given[2], 2).isfinite().all())


def test_few_positions_wide_heads_gradients_and_other_dtypes_are_attended_to_as_ever(
    otherwise: Counted, products: Mkl | OneDnn, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = _given(1, 60, 70, 2, 16)
    attend_tiled(q, k, v, 2)
    assert not otherwise.heads
    with torch.enable_grad():
        assert attend_tiled(q, k, v.clone().requires_grad_(), 2).requires_grad
    attend_tiled(q.bfloat16(), k.bfloat16(), v.bfloat16(), 2)
    assert otherwise.heads == 2 * 2, "the one with gradients and the one in bfloat16"
    for least, widest, keys, left in ((60, 16, 60, 0), (61, 16, 70, 2), (60, 16, 59, 2), (60, 15, 60, 2)):
        otherwise.heads = 0
        monkeypatch.setattr(tiled_attention, "WIDEST", widest)
        monkeypatch.setattr(tiled_attention, "fast_products", lambda least=least: replace(products, least=least))
        attend_tiled(q, k[:, :keys], v[:, :keys], 2)
        assert otherwise.heads == left
    otherwise.heads = 0
    monkeypatch.setattr(tiled_attention, "WIDEST", 16)
    monkeypatch.setattr(tiled_attention, "fast_products", lambda: None)
    assert torch.equal(attend_tiled(q, k, v, 2), attend(q, k, v, 2))
    assert otherwise.heads == 2, "on other processors"


def test_a_packed_unet_attends_so_and_no_longer_when_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SMALLEST", 0)
    unet = toy_unet()
    watched, *others = (part for part in unet.modules() if isinstance(part, Attention))
    watched.attending = _exact
    packed.pack(unet)
    assert watched.attending is _exact and others and all(part.attending is attend_tiled for part in others)
    packed.unpack(unet)
    assert watched.attending is _exact and all(part.attending is attend for part in others)
