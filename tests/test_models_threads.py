"""Work in pieces by threads of our own: the same answers, whoever does them, and nothing of it left behind."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from safelight.models.threads import in_pieces


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """On a machine with one processor, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def _ours() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "piece"}


def test_answers_are_in_the_order_of_the_pieces_and_each_is_done_by_a_thread_alone() -> None:
    both = threading.Barrier(2)

    def work(piece: int) -> tuple[int, int, str]:
        if piece < 2:
            both.wait(timeout=60)  # two are at work at once
        time.sleep(0.01 * (piece == 2))
        return piece, torch.get_num_threads(), threading.current_thread().name

    assert in_pieces(work, range(8)) == [(piece, 1, "piece") for piece in range(8)]
    assert torch.get_num_threads() == 2, "as it was"


def test_who_is_free_does_the_next() -> None:
    done: list[int] = []
    late = threading.Event()

    def work(piece: int) -> None:
        if piece == 0:
            assert late.wait(timeout=60)
        done.append(piece)
        if piece == 7:
            late.set()

    in_pieces(work, range(8))
    assert done == [1, 2, 3, 4, 5, 6, 7, 0]


def test_it_is_the_same_team_every_time() -> None:
    in_pieces(str, range(4))
    team = _ours()
    assert len(team) >= 2 and all(thread.daemon for thread in team)
    assert in_pieces(str, "abcd") == list("abcd") and _ours() == team


@pytest.mark.parametrize(("threads", "size", "each"), [(8, 8, 1), (12, 6, 2), (15, 7, 2), (64, 8, 8)])
def test_many_processors_are_shared_out(threads: int, size: int, each: int) -> None:
    """None of twelve is left idle."""
    torch.set_num_threads(threads)
    before = _ours()
    assert set(in_pieces(lambda _: torch.get_num_threads(), range(40))) == {each}
    assert len(_ours() - before) == size and torch.get_num_threads() == threads


def test_one_piece_or_one_thread_is_done_here() -> None:
    here = threading.current_thread()
    assert in_pieces(lambda _: threading.current_thread(), [1]) == [here]
    torch.set_num_threads(1)
    assert in_pieces(lambda _: threading.current_thread(), [1, 2]) == [here, here]
    assert in_pieces(str, []) == []


def test_what_a_piece_raises_is_raised_and_nobody_is_at_work_any_more() -> None:
    begun: list[int] = []

    def work(piece: int) -> None:
        begun.append(piece)
        if piece == 1:
            raise ValueError("this one")
        time.sleep(0.02)

    with pytest.raises(ValueError, match="this one"):
        in_pieces(work, range(1000))
    count = len(begun)
    time.sleep(0.1)
    assert len(begun) == count < 100
    assert in_pieces(str, range(3)) == ["0", "1", "2"]


def test_gradients_are_not_asked_for_and_inference_is_what_it_is_here() -> None:
    x = torch.ones(2, requires_grad=True)
    for inference in (True, False):
        with torch.inference_mode(inference):
            for y in in_pieces(lambda piece: x * piece, range(4)):
                assert not y.requires_grad and y.is_inference() == inference


def test_several_threads_may_ask_at_once() -> None:
    answers: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        torch.set_num_threads(3)
        answers[number] = in_pieces(lambda piece: piece * number, range(50))

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert answers == {number: [piece * number for piece in range(50)] for number in range(6)}


def _in_a_fork() -> None:
    assert in_pieces(str, range(4)) == ["0", "1", "2", "3"]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_has_threads_of_its_own() -> None:
    in_pieces(str, range(4))
    child = multiprocessing.get_context("fork").Process(target=_in_a_fork)
    child.start()
    child.join(timeout=120)
    assert child.exitcode == 0
