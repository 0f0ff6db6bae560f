"""Who is blamed for a lost worker, over histories of losses: lines that kill, workers that die of
something else, in any order.
"""

from collections import Counter
from dataclasses import dataclass, field
from math import ceil
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xalen_batch.models.tasks import SUSPECT_LOSSES
from xalen_batch.pipeline.poison import ALONE_LOSSES, PARTS, Verdict, parts, verdict


@dataclass(eq=False)
class Task:
    left: list[int]
    losses: int = 0

    @property
    def is_suspect(self) -> bool:
        return self.losses >= SUSPECT_LOSSES


@dataclass
class World:
    """Some workers over the tasks of a batch.

    `poison`: lines that kill whoever runs them. `outages`: losses that are still to come.
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
    lost: int = 0

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
                # It would wait for those.
                self.pending.insert(0, task)
                return
            task.losses += 1
        self.running[worker].append(task)
        self.sent.update(task.left)

    def answer(self, worker: int) -> None:
        """A line that is in flight ends, or takes the worker down."""
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
        """In good order, as when a backend is left alone; now and then."""
        if self.running[worker] and self.chance.random() < 0.1:
            task = self.running[worker].pop()
            task.losses -= task.is_suspect
            self.sent.subtract(task.left)
            self.pending.append(task)

    def outage(self, worker: int) -> None:
        alone = [
            worker
            for worker, tasks in self.running.items()
            if tasks and tasks[0].is_suspect and len(tasks[0].left) == 1
        ]
        # Where it does most harm.
        if alone and self.chance.random() < 0.5:
            worker = alone[0]
        if self.outages and self.running[worker]:
            self.outages -= 1
            self.die(worker)

    def die(self, worker: int) -> None:
        self.lost += 1
        for task in self.running[worker]:
            task.losses += not task.is_suspect
            match verdict(task.losses, len(task.left)):
                case Verdict.FAIL:
                    self.failed.update(task.left)
                case Verdict.CUT:
                    self.pending.extend(
                        Task(list(part), SUSPECT_LOSSES) for part in parts(task.left)
                    )
                case Verdict.AGAIN:
                    self.pending.append(task)
        self.running[worker] = []


@st.composite
def worlds(draw: st.DrawFn, *, poison: int, outages: int) -> World:
    """`poison`: at most so many lines."""
    size, tasks = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    lines = range(size * tasks)
    return World(
        [Task(list(lines[size * n : size * (n + 1)])) for n in range(tasks)],
        workers=draw(st.integers(1, 3)),
        poison=draw(st.frozensets(st.sampled_from(lines), max_size=poison)),
        outages=outages,
        chance=Random(draw(st.integers(0, 2**32))),
    )


def cuts(lines: int) -> int:
    """How often a task is cut until a line of it is alone."""
    count = 0
    while lines > 1:
        lines, count = ceil(lines / PARTS), count + 1
    return count


@given(worlds(poison=4, outages=0))
def test_lines_that_kill_fail_and_no_other_does(world: World) -> None:
    lines = {line for task in world.pending for line in task.left}
    world.run()
    assert world.failed == world.poison
    assert world.succeeded == lines - world.poison


@given(worlds(poison=1, outages=0))
def test_one_line_that_kills_costs_few_workers_and_sends_its_neighbours_a_few_times(
    world: World,
) -> None:
    deepest = cuts(len(world.pending[0].left))
    world.run()
    assert world.lost <= SUSPECT_LOSSES + deepest + ALONE_LOSSES
    for line in world.succeeded:
        assert world.sent[line] <= SUSPECT_LOSSES + deepest + 1


@settings(max_examples=300)
@given(worlds(poison=4, outages=ALONE_LOSSES - 1))
def test_fewer_than_three_outages_fail_no_line_whatever_lines_kill(world: World) -> None:
    world.run()
    assert world.failed <= world.poison


@settings(max_examples=300)
@given(worlds(poison=0, outages=SUSPECT_LOSSES + ALONE_LOSSES - 1))
def test_four_outages_fail_no_line(world: World) -> None:
    world.run()
    assert not world.failed


@pytest.mark.parametrize("lines", [1, 2, 7, 8, 9, 500])
def test_the_parts_are_the_lines_in_their_order_and_about_equal(lines: int) -> None:
    found = parts(range(lines))
    assert [line for part in found for line in part] == list(range(lines))
    assert len(found) == min(PARTS, lines)
    assert max(map(len, found)) - min(map(len, found)) <= 1
