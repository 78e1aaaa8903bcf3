"""Work in pieces, each done by a thread alone, by whichever is free.

PyTorch shares every single product and sum out equally among its threads, and all of them wait for the slowest, some
thousand times in a network's answer. Where processors are not equally fast at the time, as with cores of two kinds, or
where others are at work on the machine, much of that is waiting.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Barrier, Lock, Thread
from typing import TypeVar

import torch

A = TypeVar("A")
P = TypeVar("P")

MOST = 8
"""Threads at once: Python, which runs in one at a time, keeps no more of them busy. With more processors each has
several of PyTorch's."""


class Team:
    """Threads that wait for work; the program's end does not wait for them."""

    def __init__(self, threads: int) -> None:
        """threads: of PyTorch's, among all of them."""
        self.tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        each = math.ceil(threads / MOST)
        size = threads // each
        ready = Barrier(size + 1)

        def wait_for_work() -> None:
            torch.get_num_threads()  # the first question sets it to what the process has; it is this thread's own then
            torch.set_num_threads(each)
            ready.wait()
            while True:
                self.tasks.get()()

        for _ in range(size):
            Thread(target=wait_for_work, name="piece", daemon=True).start()
        ready.wait()
        torch.set_num_threads(threads)  # what threads begin with from now on

    def do(self, work: Callable[[P], A], piece: P) -> Future[A]:
        """Have a piece done when somebody is free; without gradients."""
        done: Future[A] = Future()
        inference = torch.is_inference_mode_enabled()

        def task() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                with torch.inference_mode(inference), torch.no_grad():
                    done.set_result(work(piece))
            except BaseException as error:  # raised again where the answer is asked for
                done.set_exception(error)

        self.tasks.put(task)
        return done


_teams: dict[int, Team] = {}
_lock = Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_teams.clear)  # there they do not run


def in_pieces(work: Callable[[P], A], pieces: Sequence[P]) -> list[A]:
    """The answers to some pieces of work, in their order; nothing in them is to ask for gradients.

    Raises:
        Exception: what a piece of work raised; pieces that nobody had begun are left, and nobody is at work any more.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(pieces) < 2:
        return [work(piece) for piece in pieces]
    with _lock:
        if threads not in _teams:
            _teams[threads] = Team(threads)
    answers = [_teams[threads].do(work, piece) for piece in pieces]
    try:
        return [answer.result() for answer in answers]
    except BaseException:
        for answer in answers:
            answer.cancel()
        wait(answers)
        raise
