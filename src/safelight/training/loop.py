"""The one training loop: every recipe is trained by `train`.

A run is a function of (recipe, settings): batch i and its random numbers follow from (seed, i), so a
checkpoint needs weights, moments, averages and one counter to continue bit by bit.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from safelight.errors import OutputError, TrainingError
from safelight.memory import keep_memory
from safelight.training.batches import batches, on_device, pinned
from safelight.training.config import LoopConfig
from safelight.training.parts import AVERAGE, MEND, OPTIMIZER, WEIGHTS, Part
from safelight.training.progress import Progress, make_accelerator
from safelight.training.recipe import Keeping, Paced, Recipe, Shown, Turn
from safelight.training.stopping import Stop
from safelight.training.store import REJECTED, Found, State, Store, read_state, read_tensors, require_same_run

if TYPE_CHECKING:
    from accelerate import Accelerator

B = TypeVar("B")
__all__ = ["LoopConfig", "Recipe", "Turn", "require_free", "train"]

MOST_BAD_IN_A_ROW = 5
CHECKPOINTS, LOGS, EXPORT = "checkpoints", "logs", ".export.part"


def train(recipe: Recipe[B], config: LoopConfig) -> None:
    """Train until `config.images` have been seen, and write the model into `config.output`.

    Exits the process with 143 after SIGTERM and 130 after SIGINT, once the step is finished and saved.

    Raises:
        TrainingError: the output folder holds another run; the checkpoint is of other settings; losses or
            gradients are not finite 5 times in a row.
        OutputError: a checkpoint or the model could not be written; earlier checkpoints are whole.
        SafelightError: the extra `train` is not installed.
    """
    accelerator = make_accelerator(config.device)
    if config.batch % accelerator.num_processes != 0:
        raise TrainingError(
            f"batch {config.batch} cannot be divided among {accelerator.num_processes} processes: give a multiple"
        )
    store = Store(config.output / CHECKPOINTS, config.keep)
    run = _Run(recipe, config, accelerator, store)
    run.begin()
    with (
        Stop() as stop,
        Progress(
            config.output / LOGS,
            first=min(run.images, config.images),
            total=config.images,
            every=config.log_every,
            shown=accelerator.is_main_process,
        ) as progress,
    ):
        run.go(stop, progress)
    run.finish()


class _Run(Generic[B]):
    """A run in progress: the parts and the counters that a checkpoint holds."""

    def __init__(self, recipe: Recipe[B], config: LoopConfig, accelerator: Accelerator, store: Store) -> None:
        self.recipe, self.config, self.accelerator, self.store = recipe, config, accelerator, store
        self.device: torch.device = accelerator.device
        if self.device.type == "cpu":
            keep_memory()  # of one step for the next
        self.rank: int = accelerator.process_index
        self.processes: int = accelerator.num_processes
        self.parts = {
            name: Part(
                name,
                module.to(self.device).train(),
                config,
                partial(recipe.pace, name) if isinstance(recipe, Paced) else None,
            )
            for name, module in recipe.parts.items()
        }
        self.micro = self.skipped = self.bad_in_a_row = 0
        self.saved: Path | None = None
        self.generator = torch.Generator("cpu")
        self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")

    @property
    def images(self) -> int:
        """Seen so far."""
        return self.micro * self.config.batch

    # Beginning

    def begin(self) -> None:
        """Take possession of the output folder, and continue from its newest valid checkpoint if asked to."""
        if self.config.resume:
            found = self.store.find()
            if found.path is not None:
                self._restore(found.path)
        else:
            require_free(self.config.output)
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        if self.accelerator.is_main_process:
            try:
                self.config.output.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(
                    f"{self.config.output} cannot be made ({error.strerror}): choose another --output"
                ) from error
            self.store.clean()
            if self.config.resume:
                self._say_where_from(found)
                self.store.set_aside(found.rejected)
        if self.processes > 1:
            for part in self.parts.values():
                for tensor in (*part.module.parameters(), *part.module.buffers()):
                    torch.distributed.broadcast(tensor.data, 0)

    def _restore(self, path: Path) -> None:
        state = read_state(path)
        require_same_run(path, state, self.config, self.processes)
        tensors = read_tensors(path)
        for name, part in self.parts.items():
            part.restore(tensors, state.ema_updates.get(name, 0))
        strangers = {key.partition("/")[0] for key in tensors[WEIGHTS]} - self.parts.keys()
        if strangers:
            raise TrainingError(f"{path} also trains {min(strangers)}: {MEND}")
        if isinstance(self.recipe, Keeping):
            self.recipe.load_state_dict(state.recipe)
        self.micro, self.skipped, self.bad_in_a_row = state.micro, state.skipped, state.bad_in_a_row
        self.saved = path

    def _say_where_from(self, found: Found) -> None:
        for path, fault in found.rejected:
            _say(f"rejected checkpoint {path} ({fault}): it is renamed {REJECTED}{path.name}")
        if found.path is None:
            _say(f"nothing to resume in {self.store.folder}: the run begins")
        else:
            _say(f"resuming from {found.path}, after {self.images} images")

    # The steps

    def go(self, stop: Stop, progress: Progress) -> None:
        """Step until enough images are seen; save now and then, at the end, and on a signal."""
        config = self.config
        last = math.ceil(config.images / config.step_images) * config.accumulate
        with batches(self._make, self.micro, last, config.workers) as source:
            while self.micro < last:
                self._show()
                before, lr = self.images, config.rate(self.images)
                loss = self._step(source, lr, progress)
                progress.step(min(self.images, config.images), loss, lr, self.skipped)
                if self._asked_to_stop(stop):
                    self._save()
                    progress.say(f"stopped by signal {stop.signal}; continue with --resume from {self.saved}")
                    self._leave()
                    sys.exit(stop.exit_code)
                if before // config.save_every < self.images // config.save_every:
                    self._save()
        self._show()
        self._save()

    def _show(self) -> None:
        """What the model that would be written now can do, by the first process."""
        if self.images == 0 or not isinstance(self.recipe, Shown) or not self.accelerator.is_main_process:
            return
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.averaged())
            self.recipe.show(self.images, self.config.step_images)

    def _make(self, index: int) -> B:
        """This process' share of a batch; all shares together are the batch of a single process."""
        size = self.config.batch // self.processes
        batch = self.recipe.batch(index * self.processes + self.rank, size)
        return pinned(batch) if self.device.type == "cuda" else batch

    def _step(self, source: Iterator[B], lr: float, progress: Progress) -> float:
        """One step of every part's weights; the first part's loss, averaged over the accumulated batches."""
        config, share = self.config, 1 / self.config.accumulate
        losses: dict[str, Tensor] = {}
        logs: list[Turn] = []
        shown: float | None = None
        bad: str | None = None
        for k in range(config.accumulate):
            batch = on_device(next(source), self.device)
            for turn in self._turns(batch):
                part, loss = self.parts[turn.part], turn.loss * share
                # A loss may reach through other parts, which it must not train.
                own = part.parameters if len(self.parts) > 1 else None
                torch.autograd.backward(loss, inputs=own)
                earlier = losses.get(turn.part)
                losses[turn.part] = loss.detach() if earlier is None else earlier + loss.detach()
                logs.append(turn)
                if k == config.accumulate - 1:
                    value, norm = self._agreed(part, losses[turn.part])
                    shown = value if shown is None else shown
                    if math.isfinite(value) and math.isfinite(norm):
                        part.step(lr, norm)
                        for done in logs:
                            if done.part == part.name:
                                progress.note(part.name, done.log)
                        progress.note(part.name, {"gradient_norm": norm})
                    else:
                        bad = part.name
            self.micro += 1
        self._end_step(bad)
        return math.nan if shown is None else shown

    def _turns(self, batch: B) -> Iterator[Turn]:
        """The recipe's turns in the precision asked for; their random numbers depend on the batch alone."""
        seed = _key(self.config.seed, self.micro, self.rank)
        self.generator.manual_seed(seed)
        torch.default_generator.manual_seed(seed)  # for dropout, which takes no generator
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        turns = self.recipe.turns(batch, self.generator, self.images)
        while True:
            with self.autocast:
                turn = next(turns, None)
            if turn is None:
                return
            yield turn

    def _agreed(self, part: Part, loss: Tensor) -> tuple[float, float]:
        """Loss and gradient norm, both over all processes. The step's only wait for the device."""
        if self.processes > 1:
            loss = self._averaged(part, loss)
        value, norm = torch.stack([loss.float(), part.gradient_norm()]).tolist()
        return value, norm

    def _averaged(self, part: Part, loss: Tensor) -> Tensor:
        """Average gradients and loss over the processes, in one message."""
        for parameter in part.parameters:
            if parameter.grad is None:  # here, but perhaps not elsewhere: messages must have one length
                parameter.grad = torch.zeros_like(parameter)
        gradients = part.gradients()
        flat = torch.cat([*(g.reshape(-1) for g in gradients), loss.float().reshape(1)])
        torch.distributed.all_reduce(flat)
        flat /= self.processes
        *pieces, mean = torch.split(flat, [*(g.numel() for g in gradients), 1])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(pieces, gradients, strict=True)])
        return mean.reshape(())

    def _end_step(self, bad: str | None) -> None:
        """Forget gradients; after a bad step undo what it left in statistics, and count it."""
        for part in self.parts.values():
            part.forget_gradients()
            if bad is None:
                part.keep_buffers()
            else:
                part.restore_buffers()
        if bad is None:
            self.bad_in_a_row = 0
            return
        self.skipped += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row == MOST_BAD_IN_A_ROW:
            raise TrainingError(
                f"loss or gradient of {bad} was not finite in {MOST_BAD_IN_A_ROW} steps in a row, at image "
                f"{self.images}: train anew with a lower --lr; {self._last_good()}"
            )

    def _asked_to_stop(self, stop: Stop) -> bool:
        """Whether any process got a signal: all must leave after the same step."""
        if self.processes > 1:
            mine = torch.tensor([stop.signal], device=self.device)
            stop.signal = int(self.accelerator.gather(mine).max())
        return stop.signal != 0

    # The end

    def _save(self) -> None:
        """A checkpoint of now, unless there is one.

        Raises:
            TrainingError: the weights themselves are not finite.
            OutputError: it could not be written.
        """
        if self.saved is not None and int(self.saved.name) == self.images:
            return
        for part in self.parts.values():
            if not part.is_finite():
                raise TrainingError(
                    f"weights of {part.name} are not finite at image {self.images}: "
                    f"train anew with a lower --lr; {self._last_good()}"
                )
        if self.accelerator.is_main_process:
            tensors: dict[str, dict[str, Tensor]] = {WEIGHTS: {}, AVERAGE: {}, OPTIMIZER: {}}
            for part in self.parts.values():
                for file, content in part.tensors().items():
                    tensors[file].update(content)
            self.store.save(self.images, {k: v for k, v in tensors.items() if v}, self._state())
        self.saved = self.store.path(self.images)
        self.accelerator.wait_for_everyone()

    def _state(self) -> State:
        return State(
            micro=self.micro,
            skipped=self.skipped,
            bad_in_a_row=self.bad_in_a_row,
            images=self.config.images,
            processes=self.processes,
            ema_updates={n: p.ema.updates for n, p in self.parts.items() if p.ema is not None},
            recipe=self.recipe.state_dict() if isinstance(self.recipe, Keeping) else {},
            settings=self.config.fixed(),
        )

    def _last_good(self) -> str:
        if self.saved is None:
            return "no checkpoint had been saved yet"
        return f"the last good checkpoint is {self.saved}"

    def finish(self) -> None:
        """Write the model into the output folder, the weights before the small files that name them.

        Raises:
            OutputError: it could not be written; the checkpoints are whole, and --resume tries again.
        """
        if self.accelerator.is_main_process:
            output = self.config.output
            weights = {name: part.exported.eval() for name, part in self.parts.items()}
            staging = output / EXPORT
            shutil.rmtree(staging, ignore_errors=True)
            try:
                self.recipe.export(staging, weights)
                files = sorted(p for p in staging.rglob("*") if p.is_file())
                for path in sorted(files, key=lambda p: (p.suffix == ".json", -len(p.parts))):
                    target = output / path.relative_to(staging)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(target)
            except OSError as error:
                raise OutputError(
                    f"the model could not be written to {output} ({error.strerror}): make room, and --resume"
                ) from error
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            _say(f"{output} holds the model, after {self.images} images ({self.skipped} steps skipped)")
        self._leave()

    def _leave(self) -> None:
        """The main process goes last: others still waiting in a barrier would take its absence for a crash."""
        if self.processes == 1:
            return
        word = torch.zeros(1, device=self.device)
        if self.rank > 0:
            torch.distributed.send(word, 0)
            return
        for other in range(1, self.processes):
            torch.distributed.recv(word, other)


def require_free(output: Path) -> None:
    """Refuse a folder that holds a run or a model: worth calling before long preparations, too.

    Raises:
        TrainingError: it does.
    """
    runs = Store(output / CHECKPOINTS, keep=1).all()
    if runs:
        raise TrainingError(
            f"{output} already holds a run, at {int(runs[-1].name)} images: "
            "continue it with --resume, or choose another folder with --output"
        )
    if any(output.glob("*.json")):
        raise TrainingError(f"{output} already holds a model: choose another folder with --output")


def _key(*numbers: int) -> int:
    """A seed that differs for different numbers, and looks random (BLAKE2b), below 2^63."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
