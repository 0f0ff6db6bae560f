"""Poison detection over random histories of crashes: by poison lines and by other causes."""

from collections import Counter
from dataclasses import dataclass, field
from math import ceil
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xalen_batch.models.tasks import SUSPECT_CRASHES
from xalen_batch.pipeline.poison import ALONE_CRASHES, PARTS, AfterCrash, after_crash, parts


@dataclass(eq=False)
class Task:
    left: list[int]
    crashes: int = 0

    @property
    def is_suspect(self) -> bool:
        return self.crashes >= SUSPECT_CRASHES


@dataclass
class World:
    """Workers that run the tasks of one batch.

    `poison`: lines that crash their worker. `outages`: crashes by other causes, still to come.
    """

    pending: list[Task]
    workers: int
    poison: frozenset[int]
    outages: int
    chance: Random
    running: dict[int, list[Task]] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    succeeded: set[int] = field(default_factory=set)
    sent: Counter[int] = field(default_factory=Counter)
    crashes: int = 0

    def run(self) -> None:
        self.running = {worker: [] for worker in range(self.workers)}
        while self.pending or any(self.running.values()):
            worker = self.chance.randrange(self.workers)
            act = self.chance.choice(
                [self.claim, self.answer, self.answer, self.hand_back, self.outage]
            )
            act(worker)

    def claim(self, worker: int) -> None:
        if not self.pending or any(task.is_suspect for task in self.running[worker]):
            return
        task = self.pending.pop(0)
        if task.is_suspect:
            if self.running[worker]:
                # A suspect waits until nothing else runs here.
                self.pending.insert(0, task)
                return
            task.crashes += 1
        self.running[worker].append(task)
        self.sent.update(task.left)

    def answer(self, worker: int) -> None:
        """One line in flight ends, or crashes its worker."""
        if not self.running[worker]:
            return
        task = self.chance.choice(self.running[worker])
        line = self.chance.choice(task.left)
        if line in self.poison:
            self.die(worker)
            return
        task.left.remove(line)
        self.succeeded.add(line)
        if not task.left:
            self.running[worker].remove(task)

    def hand_back(self, worker: int) -> None:
        """Sometimes hand a task back, as a worker does while a circuit breaker is open."""
        if self.running[worker] and self.chance.random() < 0.1:
            task = self.running[worker].pop()
            task.crashes -= task.is_suspect
            self.sent.subtract(task.left)
            self.pending.append(task)

    def outage(self, worker: int) -> None:
        alone = [
            worker
            for worker, tasks in self.running.items()
            if tasks and tasks[0].is_suspect and len(tasks[0].left) == 1
        ]
        # A crash does most harm where a single line runs.
        if alone and self.chance.random() < 0.5:
            worker = alone[0]
        if self.outages and self.running[worker]:
            self.outages -= 1
            self.die(worker)

    def die(self, worker: int) -> None:
        self.crashes += 1
        for task in self.running[worker]:
            task.crashes += not task.is_suspect
            match after_crash(task.crashes, len(task.left)):
                case AfterCrash.FAIL:
                    self.failed.update(task.left)
                case AfterCrash.SPLIT:
                    self.pending.extend(
                        Task(list(part), SUSPECT_CRASHES) for part in parts(task.left)
                    )
                case AfterCrash.RETRY:
                    self.pending.append(task)
        self.running[worker] = []


@st.composite
def worlds(draw: st.DrawFn, *, poison: int, outages: int) -> World:
    """`poison`: the most poison lines of a world."""
    size, tasks = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    lines = range(size * tasks)
    return World(
        [Task(list(lines[size * n : size * (n + 1)])) for n in range(tasks)],
        workers=draw(st.integers(1, 3)),
        poison=draw(st.frozensets(st.sampled_from(lines), max_size=poison)),
        outages=outages,
        chance=Random(draw(st.integers(0, 2**32))),
    )


def splits(lines: int) -> int:
    """How often a task is split until one of its lines is alone."""
    count = 0
    while lines > 1:
        lines, count = ceil(lines / PARTS), count + 1
    return count


@given(worlds(poison=4, outages=0))
def test_poison_lines_fail_and_no_other_does(world: World) -> None:
    lines = {line for task in world.pending for line in task.left}
    world.run()
    assert world.failed == world.poison
    assert world.succeeded == lines - world.poison


@given(worlds(poison=1, outages=0))
def test_one_poison_line_crashes_few_workers_and_resends_its_neighbours_a_few_times(
    world: World,
) -> None:
    deepest = splits(len(world.pending[0].left))
    world.run()
    assert world.crashes <= SUSPECT_CRASHES + deepest + ALONE_CRASHES
    for line in world.succeeded:
        assert world.sent[line] <= SUSPECT_CRASHES + deepest + 1


@settings(max_examples=300)
@given(worlds(poison=4, outages=ALONE_CRASHES - 1))
def test_fewer_than_three_outages_fail_no_line_but_poison(world: World) -> None:
    world.run()
    assert world.failed <= world.poison


@settings(max_examples=300)
@given(worlds(poison=0, outages=SUSPECT_CRASHES + ALONE_CRASHES - 1))
def test_four_outages_fail_no_line(world: World) -> None:
    world.run()
    assert not world.failed


@pytest.mark.parametrize("lines", [1, 2, 7, 8, 9, 500])
def test_the_parts_are_the_lines_in_their_order_and_about_equal(lines: int) -> None:
    found = parts(range(lines))
    assert [line for part in found for line in part] == list(range(lines))
    assert len(found) == min(PARTS, lines)
    assert max(map(len, found)) - min(map(len, found)) <= 1
