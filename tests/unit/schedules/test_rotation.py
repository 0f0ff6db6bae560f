"""Rotation: accounts take turns, whatever one of them has piled up."""

from uuid import UUID, uuid4

from xalen_batch import ids
from xalen_batch.accounts.accounts import Owner
from xalen_batch.errors import TooManyRequests
from xalen_batch.schedules.rotation import READ_EVERY, REST, DueSchedule, Rotation
from xalen_batch.schedules.turn import Turn

FULL = TooManyRequests("full", retry_after=1)


class World:
    """The due schedules and the time, which a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[DueSchedule] = []
        self.rotation = Rotation(lambda: self.due, lambda: self.now)

    def account(self, schedules: int, *, only_waits: bool = False) -> Owner:
        owner = Owner(uuid4(), livemode=False)
        self.due += [DueSchedule(ids.new(), owner, only_waits) for _ in range(schedules)]
        return owner

    def next(self) -> DueSchedule:
        due = self.rotation.next()
        assert due is not None
        return due

    def owners(self, number: int) -> list[Owner]:
        return [self.next().owner for _ in range(number)]

    def rest(self) -> list[UUID]:
        found = []
        while (due := self.rotation.next()) is not None:
            found.append(due.id)
        return found


def test_an_account_with_a_thousand_due_schedules_makes_no_other_wait_for_more_than_one() -> None:
    world = World()
    greedy, other = world.account(1_000), world.account(2)
    assert world.owners(5) == [greedy, other, greedy, other, greedy]


def test_one_that_comes_due_meanwhile_is_next_but_one_after_the_next_reading() -> None:
    world = World()
    greedy = world.account(1_000)
    assert world.owners(3) == [greedy] * 3
    late = world.account(1)
    world.now += READ_EVERY
    assert late in world.owners(2)


def test_an_account_that_was_served_is_behind_those_that_were_not_also_after_a_reading() -> None:
    world = World()
    slow, other, third = world.account(10), world.account(10), world.account(10)
    served = []
    for _ in range(6):
        served.append(world.next().owner)
        world.now += READ_EVERY
    assert served == [slow, other, third] * 2


def test_each_schedule_has_one_turn_and_then_rests() -> None:
    world = World()
    world.account(3)
    assert sorted(world.rest()) == sorted(due.id for due in world.due)
    assert world.rotation.next() is None
    world.now += REST
    assert len(world.rest()) == 3


def test_a_turn_that_was_cut_short_goes_on_behind_the_accounts_other_schedules() -> None:
    world = World()
    world.account(2)
    first = world.next()
    world.rotation.end(first, Turn(moved=10, is_cut=True))
    assert world.next() != first
    assert world.next() == first


def test_a_turn_that_moved_nothing_rests_though_it_was_cut_short() -> None:
    world = World()
    world.account(1)
    world.rotation.end(world.next(), Turn(moved=0, is_cut=True))
    assert world.rotation.next() is None


def test_a_refusal_ends_the_turn_of_runs_that_wait_and_instants_are_recorded_knowing_it() -> None:
    world = World()
    greedy = world.account(500, only_waits=True)
    world.due.append(fires := DueSchedule(ids.new(), greedy, only_waits=False))
    other = world.account(1)
    first = world.next()
    assert world.rotation.turn(first).refusal is None
    world.rotation.end(first, Turn(refusal=FULL))
    assert world.next().owner == other
    assert (world.next(), world.rotation.turn(fires).refusal) == (fires, FULL)
    assert world.rotation.next() is None


def test_a_refused_account_is_tried_again_when_its_schedules_have_rested() -> None:
    world = World()
    world.account(5, only_waits=True)
    world.rotation.end(world.next(), Turn(refusal=FULL))
    assert world.rotation.next() is None
    world.now += REST
    assert world.rotation.turn(world.next()).refusal is None


def test_an_account_that_another_worker_fires_is_left_to_it() -> None:
    world = World()
    greedy, other = world.account(500), world.account(1)
    assert world.next().owner == greedy
    world.rotation.leave(greedy)
    assert world.next().owner == other
    assert world.rotation.next() is None
