"""A trained module together with its optimizer and its averaged twin."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from safelight.errors import TrainingError
from safelight.training.config import LoopConfig
from safelight.training.ema import Ema

WEIGHTS, AVERAGE, OPTIMIZER = "weights", "ema", "optimizer"
"""The three files of tensors in a checkpoint."""
FUSED = ("cpu", "cuda", "mps", "xpu")
STEP = "step"
OTHERWISE = ("row_var", "col_var", "absmax1", "absmax2", "qmap1", "qmap2")
"""What Adafactor keeps of a matrix in place of moments of its shape, and 8-bit AdamW beside them."""
PACE = "pace"
MEND = "resume with the settings that the run began with"


class Part:
    """One entry of `Recipe.parts` in training.

    The optimizer is AdamW (Loshchilov & Hutter 2019), the same with moments of 8 bits, or Adafactor (Shazeer & Stern
    2018). Weight decay goes to matrices and kernels only.

    pace: a parameter's learning rate as a factor of the loop's; None: all learn at that.
    """

    def __init__(
        self, name: str, module: nn.Module, config: LoopConfig, pace: Callable[[str], float] | None = None
    ) -> None:
        self.name, self.module, self.clip = name, module, config.clip
        self.names = [n for n, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        if not self.parameters:
            raise TrainingError(f"part {name} has nothing to train: give it parameters that require gradients")
        self._eight_bit = config.optimizer == "adamw8bit"
        self.optimizer = self._optimizer(config, (lambda _: 1.0) if pace is None else pace)
        self.ema = Ema(module, config.ema) if config.ema > 0 else None
        self._buffers = list(module.buffers())
        self._good_buffers = [b.clone() for b in self._buffers]

    def _optimizer(self, config: LoopConfig, pace: Callable[[str], float]) -> torch.optim.Optimizer:
        """One group for each pace and weight decay."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((pace(name), decay), []).append(parameter)
        listed: list[dict[str, Any]] = [
            {"params": parameters, "weight_decay": decay, PACE: factor}
            for (factor, decay), parameters in groups.items()
        ]
        if self._eight_bit:
            return _eight_bit(listed, config)
        if config.optimizer == "adafactor":
            return torch.optim.Adafactor(listed, lr=config.lr)
        fused = self.parameters[0].device.type in FUSED
        return torch.optim.AdamW(listed, lr=config.lr, betas=config.betas, fused=fused)

    @property
    def exported(self) -> nn.Module:
        """The averaged twin where there is one."""
        return self.module if self.ema is None else self.ema.module

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the module has the averaged weights, if there are some; afterwards its own, the very tensors."""
        pairs = [] if self.ema is None else list(zip(self.module.modules(), self.ema.module.modules(), strict=True))

        def change() -> None:
            for one, other in pairs:
                one._parameters, other._parameters = other._parameters, one._parameters

        change()
        try:
            yield
        finally:
            change()

    def gradients(self) -> list[Tensor]:
        """Of the parameters that have one."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        """L2 norm of the whole gradient, scalar; not finite if any entry is not."""
        return torch.nn.utils.get_total_norm(self.gradients())

    def step(self, lr: float, norm: float) -> None:
        """Clip the gradient of that norm (Pascanu et al. 2013); move the weights, then the averaged ones."""
        if 0 < self.clip < norm:
            torch._foreach_mul_(self.gradients(), self.clip / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group[PACE]
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()

    def forget_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def keep_buffers(self) -> None:
        """Remember statistics such as batch norm's after a good step."""
        if self._buffers:
            torch._foreach_copy_(self._good_buffers, self._buffers)

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Undo what the forward pass of a bad step wrote into them."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._good_buffers)

    def is_finite(self) -> bool:
        """Whether all weights, averages and statistics are finite numbers."""
        modules = [self.module] if self.ema is None else [self.module, self.ema.module]
        tensors = [t for m in modules for t in m.state_dict().values() if t.is_floating_point()]
        return bool(torch.stack([torch.isfinite(t).all() for t in tensors]).all())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps of this part: file -> key -> tensor."""
        kept = {WEIGHTS: self._keyed(self.module.state_dict()), OPTIMIZER: self._keyed(self._moments())}
        if self.ema is not None:
            kept[AVERAGE] = self._keyed(self.ema.module.state_dict())
        return kept

    def _keyed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"{self.name}/{key}": tensor for key, tensor in tensors.items()}

    def _moments(self) -> dict[str, Tensor]:
        return {
            # A checkpoint holds no tensor twice, and the maps of 8-bit AdamW are one for all.
            f"{name}/{kind}": torch.as_tensor(value).clone() if self._eight_bit else value
            for name, parameter in zip(self.names, self.parameters, strict=True)
            for kind, value in self.optimizer.state.get(parameter, {}).items()
        }

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], ema_updates: int) -> None:
        """Take what `tensors` gave, bit by bit.

        Raises:
            TrainingError: a key or shape is not this part's.
        """
        _fill(self._keyed(self.module.state_dict()), self._own(tensors[WEIGHTS]), WEIGHTS)
        if self.ema is not None:
            _fill(self._keyed(self.ema.module.state_dict()), self._own(tensors[AVERAGE]), AVERAGE)
            self.ema.updates = ema_updates
        self.keep_buffers()
        moments = self._own(tensors[OPTIMIZER])
        for name, parameter in zip(self.names, self.parameters, strict=True):
            prefix = f"{self.name}/{name}/"
            found = {k.removeprefix(prefix): moments.pop(k) for k in list(moments) if k.startswith(prefix)}
            if found:  # a parameter that never had a gradient has no moments
                self.optimizer.state[parameter] = dict(self._placed(parameter, found))
        if moments:
            raise TrainingError(f"the checkpoint's optimizer has {min(moments)}, which this run does not train")

    def _own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: t for k, t in tensors.items() if k.startswith(f"{self.name}/")}

    def _placed(self, parameter: Tensor, found: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor | int]]:
        for kind, value in found.items():
            if kind == STEP:
                yield kind, int(value) if self._eight_bit else value.to(parameter.device)
                continue
            if kind in OTHERWISE:
                yield kind, value.to(parameter.device, copy=True)
                continue
            if value.shape != parameter.shape:
                raise TrainingError(
                    f"the checkpoint's optimizer has {kind} of shape {tuple(value.shape)} for a parameter of "
                    f"shape {tuple(parameter.shape)}: {MEND}"
                )
            # The parameter's own memory layout: the fused kernel walks over both in parallel.
            yield kind, torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _eight_bit(groups: list[dict[str, Any]], config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW whose moments have 8 bits each and a scale for every 256 (Dettmers et al. 2022); small ones stay whole.

    Raises:
        TrainingError: bitsandbytes is not installed.
    """
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that kernels which nobody asks for are not there
    try:
        optim = import_module("bitsandbytes.optim")  # an extra
    except ModuleNotFoundError as error:
        raise TrainingError("--optimizer adamw8bit needs bitsandbytes: pip install 'safelight[8bit]'") from error
    finally:
        logging.disable(silenced)
    made: torch.optim.Optimizer = optim.AdamW8bit(groups, lr=config.lr, betas=config.betas)
    return made


def _fill(own: Mapping[str, Tensor], stored: Mapping[str, Tensor], file: str) -> None:
    """Copy stored into own, which must have the very same keys and shapes."""
    for key in sorted(own.keys() ^ stored.keys()):
        where = "lacks" if key in own else "has an unknown"
        raise TrainingError(f"the checkpoint's {file} file {where} {key}: {MEND}")
    for key, tensor in own.items():
        if tensor.shape != stored[key].shape:
            raise TrainingError(
                f"the checkpoint has {key} of shape {tuple(stored[key].shape)}, this run {tuple(tensor.shape)}: {MEND}"
            )
        tensor.copy_(stored[key])
