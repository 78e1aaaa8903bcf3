"""What the UNet and the autoencoder are both made of.

Shapes: B batch, C channels, H W height and width, T width of the time embedding.
Parameter names are those of the diffusers files, the ones that most tools speak.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attending = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(q (B, L, C), k and v (B, M, C), heads) -> (B, L, C): `attend`, or what stands in for it."""


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, conv, twice, around a skip (He et al. 2015); the time embedding is added between the two.

    Args:
        eps: of the group norms: 1e-5 in the UNet, 1e-6 in the autoencoder.
        time_width: T, or None for a block that knows no time (autoencoder).
        scale_shift: the time embedding scales and shifts what the second norm gives, instead of being added before it
            (Dhariwal & Nichol 2021, sec. 3, "adaptive group normalization").
        resample: the block is also the way to the next resolution (BigGAN's, ibid.): both its skip and what its first
            convolution sees are halved by averaging ("down") or doubled by repeating ("up").
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        groups: int,
        eps: float,
        time_width: int | None = None,
        scale_shift: bool = False,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm1 = nn.GroupNorm(groups, channels_in, eps)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        told = 2 * channels_out if scale_shift else channels_out
        self.time_emb_proj = None if time_width is None else nn.Linear(time_width, told)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = None if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, time: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """x (B, C, H, W), time (B, T) after its SiLU -> (B, C', H', W').

        H' and W' are H and W, unless the block halves them (rounding down) or doubles them (or makes them `size`).
        """
        h = activated(self.norm1, x)
        if self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        elif self.resample == "up":
            x, h = doubled(x, size), doubled(h, size)
        h = self.conv1(h)
        if self.time_emb_proj is not None and time is not None:
            told = self.time_emb_proj(time)[:, :, None, None]  # (B, C' or 2C', 1, 1)
            if self.scale_shift:
                scale, shift = told.chunk(2, dim=1)
                h = F.silu(self.norm2(h) * (1 + scale) + shift)
            else:
                h = activated(self.norm2, h + told)
        else:
            h = activated(self.norm2, h)
        h = self.conv2(h)
        skip: Tensor = x if self.conv_shortcut is None else self.conv_shortcut(x)
        y: Tensor = skip + h
        return y


def activated(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm and its SiLU, which takes no memory of its own where nobody else can have the norm's answer."""
    h: Tensor = norm(x)
    return F.silu(h, inplace=not (h.requires_grad or watched(norm)))


def inferring(x: Tensor, weight: Tensor) -> bool:
    """Whether float32 is asked for on the CPU, and nobody wants gradients."""
    here = x.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    return here and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))


def repeated(x: Tensor, like: Tensor) -> Tensor:
    """As often as another has its rows: (B, ...) for (nB, ...) -> (nB, ...)."""
    times = len(like) // len(x)
    return x if times == 1 else torch.cat([x] * times)  # which keeps channels last, as `repeat` does not


def watched(layer: nn.Module) -> bool:
    """Whether somebody looks at what a layer is given, or at its answer."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


class Downsample(nn.Module):
    """Halves H and W by a strided convolution.

    The autoencoder pads right and below only (`symmetric=False`), the UNet on all sides; with an odd size the former
    rounds down and the latter up.
    """

    def __init__(self, channels: int, *, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        y: Tensor = self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = DoublingConv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), or `size` where the skip to be joined was of odd size."""
        y: Tensor = self.conv(doubled(x, size))
        return y


class DoublingConv(nn.Conv2d):
    """The 3x3 convolution behind `doubled`, which can do both at once with 4/9 of the multiplications."""

    def forward(self, x: Tensor, both: bool = False) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W); with `both`, x is what is still to be doubled: -> (B, C', 2H, 2W)."""
        if not both:
            return super().forward(x)
        y = self.doubled(x)
        if y is None:
            bias = None if self.bias is None else self.bias.repeat(4)
            y = interleaved(F.conv2d(x, kernels_of_doubled(self.weight).to(x.dtype), bias, padding=1))
        return y

    def doubled(self, x: Tensor) -> Tensor | None:
        """The same with `both`, where that is the faster way; None: it is not."""
        return None


def kernels_of_doubled(weight: Tensor) -> Tensor:
    """Kernels that see of each pixel of a doubled picture only one: (N, C, 3, 3) -> (4N, C, 2, 2), float32.

    Of the nine pixels that a kernel sees, at most four are different: the weights of equal ones are added up first, in
    four ways, for the four pixels that come of each. This is the same but for rounding.
    """
    by_row = _sums_of_equal(weight.float(), dim=2)
    return torch.cat([kernel for rows in by_row for kernel in _sums_of_equal(rows, dim=3)])


def _sums_of_equal(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Of three weights in a row two, for the first and for the second pixel of a pair."""
    before, here, behind = weight.unbind(dim)
    return torch.stack((before, here + behind), dim), torch.stack((before + here, behind), dim)


def interleaved(four: Tensor) -> Tensor:
    """What these kernels answer to a picture with a border of one pixel, put together: (B, 4N, H + 1, W + 1) ->
    (B, N, 2H, 2W), in the same order of memory.
    """
    B, C, H, W = four.shape[0], four.shape[1] // 4, four.shape[2] - 1, four.shape[3] - 1
    in_order = torch.contiguous_format if four.is_contiguous() else torch.channels_last
    y = torch.empty((B, C, 2 * H, 2 * W), dtype=four.dtype, device=four.device, memory_format=in_order)
    for part, (p, q) in zip(four.chunk(4, dim=1), itertools.product(range(2), repeat=2), strict=True):
        # One row and column more than of x: the second pixel of a pair begins one further than the first.
        y[:, :, p::2, q::2] = part[:, :, p : p + H, q : q + W]
    return y


def doubled(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Nearest neighbour, (B, C, H, W) -> (B, C, 2H, 2W), or to `size`."""
    if size is None:
        size = (2 * x.shape[-2], 2 * x.shape[-1])
    return F.interpolate(x, size=size, mode="nearest")


class PositionAttention(nn.Module):
    """Self-attention over all positions of a picture, around a skip.

    Single-headed inside the autoencoder; in a UNet without a context it stands where others have a transformer
    (Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, sec. 3).

    Args:
        eps: of the group norm: 1e-5 in the UNet, 1e-6 in the autoencoder.
    """

    attending: Attending
    """How queries, keys and values become an answer; what perturbs or watches the network puts another here."""

    def __init__(self, width: int, *, groups: int, eps: float, heads: int = 1) -> None:
        super().__init__()
        self.attending = attend
        self.heads = heads
        self.group_norm = nn.GroupNorm(groups, width, eps)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        y = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, h*w, C)
        y = self.to_out[0](self.attending(self.to_q(y), self.to_k(y), self.to_v(y), self.heads))
        out: Tensor = x + y.transpose(1, 2).reshape(x.shape)
        return out


def look_up(table: nn.Embedding, ids: Tensor, taught: Tensor | None = None) -> Tensor:
    """The vectors of tokens: ids (B, L) -> (B, L, D).

    Args:
        taught: (n, D), what stands behind the end of the table: the vectors of ids from `num_embeddings` on (textual
            inversion: Gal et al. 2023, sec. 4). The table is neither copied nor changed; gradients reach both.
    """
    own = table.num_embeddings
    if taught is None:
        rows: Tensor = table(ids)
        return rows
    rows = table(ids.clamp_max(own - 1))
    return torch.where((ids < own)[..., None], rows, taught.to(rows)[(ids - own).clamp_min(0)])


def heads_apart(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads * d) -> (B, heads, L, d)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1): q (B, L, C), k and v (B, M, C) -> (B, L, C)."""
    q, k, v = (heads_apart(x, heads) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return y.transpose(1, 2).flatten(2)


def sinusoids(
    t: Tensor, width: int, *, longest_period: float = 10_000.0, shift: int = 0, sines_first: bool = False
) -> Tensor:
    """Sinusoidal embedding of t (B,), which may be fractional: [cos, sin] -> (B, width), float32.

    Vaswani et al. 2017, sec. 3.5, with the cosine half first and frequencies longest_period ** (-i / (width / 2)).
    Ho et al. 2020 have the sines first, and divide i by width / 2 - 1, a `shift` of 1.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    # In the original's order of operations: at t = 999 one bit of a frequency is 3e-5 of an angle.
    frequencies = torch.exp(-math.log(longest_period) * steps / (half - shift))
    angles = t.float()[:, None] * frequencies[None]  # (B, half)
    halves = [angles.cos(), angles.sin()]
    return torch.cat(halves[::-1] if sines_first else halves, dim=-1)
