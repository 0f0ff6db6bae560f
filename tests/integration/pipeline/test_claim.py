"""The claim: the order of tasks, under concurrent claims, and its cost among very many tasks."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from benchmarks import backlog
from tests import factories
from tests.conftest import as_owner
from tests.factories import CHAT_MODEL, RERANK_MODEL
from tests.integration import plans
from xalen_batch import db, jsonl
from xalen_batch.models import Account, Batch, Task, next_task
from xalen_batch.models.next_task import ClaimedTask, FreeCapacity
from xalen_batch.models.tasks import SUSPECT_CRASHES, advance, has_any, reclaim
from xalen_batch.pipeline import recover
from xalen_batch.states import TaskState

pytestmark = pytest.mark.usefixtures("database")

ROOM = 3
HOUR = timedelta(hours=1)


def claim(session: Session, *rooms: FreeCapacity, with_suspects: bool = True) -> ClaimedTask | None:
    return next_task.claim(
        session, worker="w", lease=60, rooms=rooms, room=ROOM, with_suspects=with_suspects
    )


@dataclass
class Waiting:
    """A pending task, with all values that the rule uses."""

    account: Account
    batch: Batch
    seq: int
    model: str
    lines: int
    completed: int
    losses: int
    is_paused: bool

    def room(self, rooms: Sequence[FreeCapacity]) -> int:
        """Its lines that may be taken: the least of the free capacities that match it."""
        return min(
            (room.lines for room in rooms if matches(room, self.model, self.batch, self.batch.id)),
            default=ROOM,
        )


def matches(room: FreeCapacity, model: str, batch: Batch, batch_id: UUID | None) -> bool:
    wanted = (room.model, room.livemode, room.account_id, room.batch_id)
    return all(
        value is None or value == found
        for value, found in zip(
            wanted, (model, batch.livemode, batch.account_id, batch_id), strict=True
        )
    )


@dataclass
class Rule:
    """The rule of the claim in plain words, over a few tasks held in memory."""

    waiting: list[Waiting] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)

    def next(
        self, rooms: Sequence[FreeCapacity], *, with_suspects: bool
    ) -> tuple[UUID, int, int] | None:
        """The batch and the seq of the next task, and how many of its lines are taken."""
        now = datetime.now(UTC)
        found = [
            task
            for task in self.waiting
            if task.batch.status == "in_progress"
            and task.batch.expires_at > now
            and (
                task.batch.window_closes_at is None
                or task.batch.window_opens_at <= now < task.batch.window_closes_at
            )
            and not task.is_paused
            and task.room(rooms) > 0
            and (with_suspects or task.losses < SUSPECT_CRASHES)
        ]
        if not found:
            return None
        task = min(
            found,
            key=lambda task: (
                *(
                    task.account.virtual_time,
                    self.first_deadline(task.account, rooms),
                    task.account.id,
                ),
                *(self.is_passed(task), task.batch.expires_at, task.batch.id, task.seq),
            ),
        )
        taken = task.lines if task.completed else min(task.lines, task.room(rooms))
        task.account.virtual_time += taken / task.account.weight
        if task.account.rotates_next:
            task.account.rotated_deadline, task.account.rotated_batch_id = (
                task.batch.expires_at,
                task.batch.id,
            )
        task.account.rotates_next = not task.account.rotates_next
        self.waiting.remove(task)
        if taken < task.lines:
            rest = Waiting(
                task.account,
                task.batch,
                task.seq + taken,
                task.model,
                task.lines - taken,
                0,
                task.losses,
                False,
            )
            self.waiting.append(rest)
        return task.batch.id, task.seq, taken

    def is_passed(self, task: Waiting) -> bool:
        """Whether the round robin over the account's batches has passed this one in its round."""
        last, id = task.account.rotated_deadline, task.account.rotated_batch_id
        return (
            task.account.rotates_next
            and last is not None
            and (task.batch.expires_at, task.batch.id) <= (last, id)
        )

    def first_deadline(self, account: Account, rooms: Sequence[FreeCapacity]) -> datetime:
        """The first deadline of its batches, except those of one model whose lane is full."""
        return min(
            batch.expires_at
            for batch in self.batches
            if batch.account_id == account.id
            and batch.status == "in_progress"
            and not any(
                room.lines == 0 and matches(room, batch.model or "", batch, None) for room in rooms
            )
        )


def some_state(session: Session, chance: random.Random) -> Rule:
    """A few accounts, batches and tasks of all kinds."""
    rule = Rule()
    now = datetime.now(UTC)
    for _ in range(chance.randint(1, 4)):
        account = factories.account(session)
        account.rotates_next = chance.random() < 0.5
        account.virtual_time, account.weight = float(chance.randint(0, 2)), chance.choice([1, 1, 4])
        for _ in range(chance.randint(0, 4)):
            model = chance.choice([CHAT_MODEL, RERANK_MODEL, None])
            caller = factories.caller(session, account, livemode=chance.random() < 0.3)
            opens, closes = chance.choice(
                [(None, None), (None, None), (-HOUR, HOUR), (HOUR, 2 * HOUR), (-2 * HOUR, -HOUR)]
            )
            batch = factories.batch(
                session,
                caller,
                factories.input_file(session, caller, b""),
                model=model,
                status=chance.choice(["in_progress"] * 6 + ["cancelling", "validating"]),
                expires_at=now + HOUR * chance.choice([-1, 1, 1, 2, 2, 3]),
                execution_window=opens and {},
                window_opens_at=opens and now + opens,
                window_closes_at=closes and now + closes,
            )
            rule.batches.append(batch)
            for seq in range(0, chance.randint(0, 5) * 10, 10):
                task = Waiting(
                    account,
                    batch,
                    seq,
                    model or chance.choice([CHAT_MODEL, RERANK_MODEL]),
                    lines=chance.randint(2, 5),
                    completed=chance.choice([0, 0, 0, 1]),
                    losses=chance.choice([0, 0, 0, SUSPECT_CRASHES]),
                    is_paused=chance.random() < 0.2,
                )
                state = chance.choice(["pending", "pending", "pending", "running", "done"])
                session.add(a_task(task, state, now))
                if state == "pending":
                    rule.waiting.append(task)
    session.flush()
    return rule


def a_task(task: Waiting, state: str, now: datetime) -> Task:
    return Task(
        batch_id=task.batch.id,
        seq=task.seq,
        model=task.model,
        state=state,
        lines=task.lines,
        line_index=bytes(16 * task.lines),
        completed=task.completed,
        losses=task.losses,
        not_before=now + HOUR if task.is_paused else None,
    )


@pytest.mark.parametrize("seed", range(30))
def test_claims_follow_the_rule_until_nothing_is_left(session: Session, seed: int) -> None:
    chance = random.Random(seed)
    rule = some_state(session, chance)
    session.expunge_all()
    lanes = [(model, is_live) for model in (CHAT_MODEL, RERANK_MODEL) for is_live in (False, True)]
    while True:
        rooms = [
            FreeCapacity(chance.choice([0, 1, 4]), model, is_live)
            for model, is_live in lanes
            if chance.random() < 0.5
        ]
        # The free capacity of an account in a lane, of an account in all lanes, and of a batch.
        for batch in chance.sample(
            rule.batches, k=min(len(rule.batches), chance.choice([0, 0, 1, 2]))
        ):
            lane = chance.choice([*lanes, (None, None)])
            rooms.append(
                FreeCapacity(
                    chance.choice([0, 1]), *lane, batch.account_id, chance.choice([None, batch.id])
                )
            )
        with_suspects = chance.random() < 0.5
        expected = rule.next(rooms, with_suspects=with_suspects)
        task = claim(session, *rooms, with_suspects=with_suspects)
        assert (task and (task.batch_id, task.seq, task.lines)) == expected
        if expected is None and not rooms and with_suspects:
            break
    session.expire_all()
    for account in {id(task.account): task.account for task in rule.waiting}.values():
        assert session.get_one(Account, account.id).virtual_time == pytest.approx(
            account.virtual_time
        )


def test_a_small_batch_behind_a_large_one_gets_every_fourth_claim(
    session: Session,
) -> None:
    caller = factories.caller(session)
    now = datetime.now(UTC)

    def a_batch(due: timedelta, lines: int) -> Batch:
        batch = factories.batch(
            session,
            caller,
            factories.input_file(session, caller, b""),
            model=CHAT_MODEL,
            status="in_progress",
            expires_at=now + due,
        )
        session.add(
            Task(
                batch_id=batch.id,
                seq=0,
                model=CHAT_MODEL,
                state="pending",
                lines=lines,
                line_index=bytes(16 * lines),
            )
        )
        session.flush()
        return batch

    large, small = a_batch(HOUR, 3_000), a_batch(2 * HOUR, 20)
    found = [task.batch_id for _ in range(20) if (task := claim(session)) is not None]
    assert found[:8].count(small.id) == 2
    assert small.id in found[:4]
    assert found.count(large.id) == 15


def a_backlog(**sizes: int) -> None:
    # Only an owner may analyse tables.
    with as_owner() as session:
        backlog.fill(session, **sizes)


@pytest.mark.parametrize("tasks", [1, 12])
def test_claims_at_once_go_on_to_the_next_task_of_the_same_account(tasks: int) -> None:
    a_backlog(batches=12 // tasks, tasks=tasks, accounts=1)

    def take(_: int) -> ClaimedTask | None:
        with db.transaction() as session:
            return next_task.claim(
                session, worker="w", lease=60, rooms=[], room=backlog.LINES, with_suspects=True
            )

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(take, range(12)))
    assert len({task.key for task in found}) == 12


def test_a_claim_says_whether_other_tasks_are_pending() -> None:
    a_backlog(batches=1, tasks=2, accounts=1)
    with as_owner() as session:
        session.execute(
            update(Task)
            .where(Task.seq == 1)
            .values(lines=2, line_index=bytes(2 * jsonl.SPAN_BYTES))
        )
    found = []
    # The second claim leaves one line of its task to the third.
    for room in (1, 1, 1):
        with db.transaction() as session:
            task = next_task.claim(
                session, worker="w", lease=60, rooms=[], room=room, with_suspects=True
            )
        assert task is not None
        found.append(task.has_more)
    assert found == [True, True, False]


class TestAmongManyTasks:
    """Enough rows for the planner to choose as it does among millions."""

    @pytest.fixture(autouse=True)
    def backlog(self, database: str) -> None:
        a_backlog(batches=2_500, tasks=20, accounts=50, idle=20_000)

    def test_a_claim_looks_everything_up_in_indexes(self) -> None:
        (plan,) = plans.of(claim)
        assert plans.scanned(plan) == set()
        # About four pages to find each of fifty accounts, and some for the task.
        assert plans.pages(plan) < 600

    def test_so_does_a_turn_of_the_rotation(self) -> None:
        with db.transaction() as session:
            session.execute(
                text(
                    "UPDATE accounts a SET rotates_next = true, rotated_deadline = b.expires_at,"
                    " rotated_batch_id = b.id FROM batches b WHERE b.account_id = a.id"
                )
            )
        (plan,) = plans.of(claim)
        assert plans.scanned(plan) == set()
        assert plans.pages(plan) < 600

    def test_a_full_lane_is_passed_over_without_a_look_at_its_tasks(self) -> None:
        (plan,) = plans.of(lambda session: claim(session, FreeCapacity(0, CHAT_MODEL, False)))
        assert plans.looked_into(plan) == {"batches"}
        assert plans.pages(plan) < 600


def analyze() -> None:
    with as_owner() as session:
        session.execute(text("ANALYZE tasks, batches"))


class TestInABatchOfManyTasks:
    @pytest.fixture(autouse=True)
    def backlog(self, database: str) -> None:
        a_backlog(batches=1, tasks=5_000, accounts=1)

    def test_tasks_of_a_full_lane_are_passed_over_unread_where_lines_name_another_model_too(
        self,
    ) -> None:
        with db.transaction() as session:
            session.execute(update(Batch).values(model=None))
            session.execute(
                update(Task).where(Task.seq == 4_999 * backlog.LINES).values(model=RERANK_MODEL)
            )
        analyze()
        (plan,) = plans.of(lambda session: claim(session, FreeCapacity(0, CHAT_MODEL, False)))
        assert plan["Actual Rows"] == 1
        assert plans.pages(plan) < 100

    def test_what_is_due_is_found_without_the_tasks_that_are_done(self) -> None:
        with db.transaction() as session:
            session.execute(update(Task).where(Task.seq > 0).values(state=TaskState.DONE))
        analyze()
        # The first query drops the index entries of tasks that have just ended.
        plans.of(is_any_running)
        looks = (
            reclaim,
            partial(recover._batches_due, ended_among=None),
            recover._tasks_due,
            is_any_running,
        )
        found = [plan for look in looks for plan in plans.of(look)]
        assert "tasks" not in set().union(*map(plans.scanned, found))
        assert sum(map(plans.pages, found)) < 200


def is_any_running(session: Session) -> bool:
    return has_any(session, UUID(int=1), TaskState.RUNNING)


def test_a_longer_lease_and_moved_counters_write_no_index() -> None:
    a_backlog(batches=1, tasks=20, accounts=1)
    with db.transaction() as session:
        task = claim(session)
        assert task is not None
    for _ in range(100):
        with db.transaction() as session:
            before = updates(session)
            assert advance(
                session,
                task.key,
                task.fence,
                to=TaskState.RUNNING,
                lease=60,
                pause=None,
                counts={"output_bytes": 1},
            )
            assert updates(session) == (before[0] + 1, before[1] + 1)


def updates(session: Session) -> tuple[int, int]:
    """The updates of `tasks` by this connection, and those among them that were HOT updates.

    They grow within a transaction. `pg_stat_user_tables` has those of other connections too, which
    report them up to a minute later.
    """
    row = session.execute(
        text(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'tasks'"
        )
    ).one()
    return row[0], row[1]
