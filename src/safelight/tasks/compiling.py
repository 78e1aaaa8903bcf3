"""`--compile`: the blocks that a UNet is made of, compiled once for each kind of them and not for each place.

A whole network takes minutes to compile, and again for every picture size. Its residual and transformer blocks are of
a dozen kinds, by the shapes of their weights; sizes and batches stay open in what is compiled, except a batch of one.
What was compiled is kept in a folder: the next process reads it.

No CUDA graphs: blocks that are recorded one by one would overwrite answers that the other side of the U still waits
for, and each size, batch and adapter would be another recording. No search for the quickest kernels either
("max-autotune"), which takes minutes for each kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from safelight.errors import RequestError
from safelight.models.layers import ResnetBlock, attend, watched
from safelight.models.spatial_transformer import TransformerBlock
from safelight.tasks.machine import cache_folder

Backend = Callable[..., Callable[..., object]]
BLOCKS = (ResnetBlock, TransformerBlock)
"""What is compiled, each alone. What joins them, and changes from member to member, is left as it is."""
KINDS = 64
"""How many kinds of one block there may be: by widths, for a batch of one or more, and in another precision. PyTorch
gives up at 8, without a word, and computes the rest as it is."""
CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The variable by which PyTorch is told where to keep what it compiled."""


def require_compiler(device: torch.device) -> None:
    """Say so before anything is computed if nothing can be compiled for a device.

    Raises:
        RequestError: there is no compiler.
    """
    from torch._inductor import cpp_builder, exc  # noqa: PLC0415  (takes a second, and most do without it)
    from torch.utils._triton import has_triton  # noqa: PLC0415

    mend = "install one and name it by the variable CXX, or leave out --compile"
    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, OSError, RuntimeError) as error:
        raise RequestError(f"--compile needs a C++ compiler, and there is none here: {mend}") from error
    if device.type != "cpu" and not has_triton():
        raise RequestError(f"--compile needs Triton for {device.type}: pip install triton, or leave out --compile")


def keep_compiled() -> None:
    """Have what is compiled kept for the next process: in the user's folder of caches, unless the user said where.

    PyTorch's own place, which it writes into the same variable, is the system's folder for what may be lost any time.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # noqa: PLC0415  (a command without --compile needs none)

    if os.environ.get(CACHE, own := str(Path(default_cache_dir()).absolute())) != own:
        return
    folder = cache_folder("compiled")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to: it is compiled anew, and nothing else is lost
        return
    os.environ[CACHE] = str(folder)


def compile_blocks(network: nn.Module, backend: str | Backend = "inductor") -> None:
    """Have the blocks of a network compiled when they are first asked. Weights are asked for at every call, so that
    adapters, which put others in their place and take them away, need to know nothing of it.

    With gradients, or while something perturbs or watches a block (by hooks, or another attention), it is what it was.
    What has layers of its own, packed for the CPU or rounded to int8, is not to be compiled.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, KINDS)
    for block in network.modules():
        if isinstance(block, BLOCKS):
            compiled = torch.compile(block.forward, backend=backend, dynamic=True, fullgraph=True)
            block._compiled_call_impl = _either(block, compiled)


def _either(block: nn.Module, compiled: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The compiled block where it does the same as the block itself."""
    parts = list(block.modules())

    def answer(*inputs: object, **named: object) -> Tensor:
        if torch.is_grad_enabled() or any(map(_changed, parts)):
            y: Tensor = block._call_impl(*inputs, **named)  # type: ignore[no-untyped-call]
            return y
        return compiled(*inputs, **named)

    return answer


def _changed(part: nn.Module) -> bool:
    return watched(part) or getattr(part, "attending", attend) is not attend
