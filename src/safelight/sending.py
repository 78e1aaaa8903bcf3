"""Tensors on their way to the device that computes, for which nobody waits. Every room may import this."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """x on a device. What computes there meets it in the order of the questions; the CPU goes on at once.

    Only what lies in pinned memory of the CPU can travel so. PyTorch keeps that memory until the copy is made.
    """
    if x.device == device or x.device.type != "cpu" or device.type in ("cpu", "mps"):
        return x.to(device, dtype)
    x = x.to(dtype)
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def layout(weight: Tensor, device: torch.device) -> torch.memory_format:
    """How a weight lies where it is computed with: on CUDA, whose fast convolutions read so, channel beside channel."""
    return torch.channels_last if device.type == "cuda" and weight.ndim == 4 else torch.preserve_format
