"""Jobs that take turns: none is lost, few run at a time, and a thread that is not needed goes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.waiting import PATIENCE
from xalen_batch.worker.turns import Turns


def test_all_run_and_no_more_than_may_at_a_time() -> None:
    lock, inside, most, ran = threading.Lock(), 0, 0, []

    def run(id: str) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.002)
        with lock:
            ran.append(id)
            inside -= 1

    turns = Turns(run, 2)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(turns.take, map(str, range(100))))
    assert sorted(ran, key=int) == [str(n) for n in range(100)]
    assert most == 2


def test_what_comes_while_all_are_busy_is_left_to_them_and_waits_once() -> None:
    go, started, ran = threading.Event(), threading.Event(), []

    def run(id: str) -> None:
        started.set()
        go.wait(PATIENCE)
        ran.append(id)

    turns = Turns(run, 1)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(turns.take, "a")
        started.wait(PATIENCE)
        for id in ("b", "c", "b"):
            turns.take(id)
        assert ran == []
        go.set()
        busy.result(10)
    assert ran == ["a", "b", "c"]


def test_one_that_fails_gives_its_turn_back() -> None:
    def run(id: str) -> None:
        raise ValueError(id)

    turns = Turns(run, 1)
    for id in ("a", "b"):
        with pytest.raises(ValueError, match=id):
            turns.take(id)
