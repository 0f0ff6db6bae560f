"""The engine on a real database: every line ends once, and is charged once, whatever goes wrong."""

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import pytest
from sqlalchemy import func, select, update

from tests import factories
from tests.integration import engines
from tests.integration.engines import (
    a_batch,
    a_claim,
    answers,
    charged,
    chat_lines,
    expire_leases,
    lines_of,
    read,
    read_states,
    run_to_end,
)
from tests.outcome import assert_whole
from tests.waiting import PATIENCE, wait_until
from xalen_batch import db
from xalen_batch.backends import registry
from xalen_batch.backends.contract import Answered, Refused, Request
from xalen_batch.batches import batches
from xalen_batch.batches.batches import Progress
from xalen_batch.broker import Job
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import NotCancellable
from xalen_batch.models import Batch, File, Invoice, Result, Task
from xalen_batch.models.files import FilePart
from xalen_batch.models.next_task import FreeCapacity
from xalen_batch.pipeline import claim, finalize, record, recover, validate
from xalen_batch.results import results
from xalen_batch.states import TaskState
from xalen_batch.worker import engine as worker_engine
from xalen_batch.worker.engine import Engine
from xalen_batch.worker.lane import Lane

pytestmark = pytest.mark.usefixtures("database", "valkey")
engine = engines.engine


def test_a_batch_runs_to_its_files_counts_and_invoice(engine: Engine) -> None:
    batch_id = a_batch(chat_lines(45))
    batch = run_to_end(engine, batch_id)
    assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 45, 45, 0)
    output = lines_of(batch_id, FilePart.OUTPUT)
    assert [line["custom_id"] for line in output] == [f"line-{n}" for n in range(45)]
    assert all(line["response"]["body"]["system_fingerprint"] == "simulated" for line in output)
    assert batch.error_file_id is None
    with db.transaction() as session:
        invoice = session.scalars(select(Invoice).where(Invoice.batch_id == batch_id)).one()
    assert invoice.total == charged(batch_id) > 0


def test_the_size_of_an_output_file_is_its_bytes(engine: Engine) -> None:
    batch = run_to_end(
        engine, a_batch([*chat_lines(12), factories.chat_line("too-long", max_tokens=10_000_000)])
    )
    with db.transaction() as session:
        for file_id, part in (
            (batch.output_file_id, FilePart.OUTPUT),
            (batch.error_file_id, FilePart.ERROR),
        ):
            file = session.get_one(factories.File, file_id)
            assert file.size == sum(map(len, results.chunks(batch.id, part)))


def test_a_refused_line_goes_to_the_error_file_and_costs_nothing(engine: Engine) -> None:
    batch = run_to_end(
        engine, a_batch([*chat_lines(3), factories.chat_line("too-long", max_tokens=10_000_000)])
    )
    assert (batch.status, batch.completed, batch.failed) == ("completed", 3, 1)
    (line,) = lines_of(batch.id, FilePart.ERROR)
    assert line["custom_id"] == "too-long"
    assert line["response"]["status_code"] == 400
    assert line["error"] is None
    with db.transaction() as session:
        assert (
            session.scalar(
                select(Result.amount).where(
                    Result.batch_id == batch.id, Result.custom_id == "too-long"
                )
            )
            is None
        )


def test_a_batch_whose_lines_all_fail_is_completed(engine: Engine) -> None:
    batch = run_to_end(engine, a_batch(chat_lines(3, max_tokens=10_000_000)))
    assert (batch.status, batch.completed, batch.failed, batch.output_file_id) == (
        "completed",
        0,
        3,
        None,
    )


def test_a_stale_fence_writes_nothing() -> None:
    batch_id = a_batch(chat_lines(4))
    frozen = a_claim()
    expire_leases()
    recover.due()
    owner = a_claim()
    assert owner.key == frozen.key
    assert record.record(frozen.key, frozen.fence, answers(frozen)).is_stale
    assert charged(batch_id) == 0
    assert not record.record(owner.key, owner.fence, answers(owner), to=TaskState.DONE).is_stale
    assert record.record(frozen.key, frozen.fence, answers(frozen)).is_stale
    assert charged(batch_id) == len(owner.lines) * Decimal("0.00002")


def test_a_task_of_a_lost_worker_runs_only_the_lines_that_have_no_result(engine: Engine) -> None:
    batch_id = a_batch(chat_lines(8), endpoint="/v1/chat/completions")
    held = a_claim()
    record.record(held.key, held.fence, answers(held)[:3])
    expire_leases()
    recover.due()
    again = a_claim()
    assert [line.line_no for line in again.lines] == [line.line_no for line in held.lines][3:]
    expire_leases()
    assert run_to_end(engine, batch_id).completed == 8


def test_workers_lost_after_the_last_line_was_recorded_leave_nothing_to_do() -> None:
    batch_id = a_batch(chat_lines(3))
    held = a_claim()
    record.record(held.key, held.fence, answers(held))
    for _ in range(2):
        expire_leases()
        recover.due()
        again = a_claim()
        assert again.lines == ()
    record.record(again.key, again.fence, [], crashes=1)
    expire_leases()
    assert recover.due()[-1].job is Job.FINALIZE
    finalize.run(batch_id)
    batch = read(batch_id)
    assert (batch.status, batch.completed, batch.total) == ("completed", 3, 3)


def test_cancel_keeps_and_bills_what_finished(engine: Engine) -> None:
    batch_id = a_batch(chat_lines(25))
    held = a_claim()
    record.record(held.key, held.fence, answers(held)[:2])
    with db.transaction() as session:
        assert batches.cancel(session, session.get_one(Batch, batch_id)).status == "cancelling"
    assert claim.claim([], with_suspects=True) is None
    finalize.run(batch_id)
    assert read(batch_id).status == "cancelling"
    assert not record.record(held.key, held.fence, answers(held)[2:3]).goes_on
    record.record(held.key, held.fence, [], to=TaskState.PENDING)
    finalize.run(batch_id)
    batch = read(batch_id)
    assert (batch.status, batch.completed, batch.failed, batch.cancelled, batch.expired) == (
        "cancelled",
        3,
        0,
        22,
        0,
    )
    assert charged(batch_id) == 3 * Decimal("0.00002")
    errors = lines_of(batch_id, FilePart.ERROR)
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert len(errors) + len(lines_of(batch_id, FilePart.OUTPUT)) == 25


def test_no_character_of_an_answer_or_id_cuts_a_line_and_sizes_are_exact(engine: Engine) -> None:
    cut = "\x85 \u2028 \u2029 \x0b\x0c\x1c\x1d\x1e\r\n"
    batch_id = a_batch([factories.chat_line(f"{n}{cut}") for n in range(30)])
    held = a_claim()
    body = json.dumps({"text": cut}, ensure_ascii=False).encode()
    outcomes = [Answered(200, body, Usage(1_000, 500)), Refused(400, body)]
    rows = [
        record.row(
            record.LineRef(batch_id, line.line_no, held.model, line.custom_id), outcome, held.tariff
        )
        for line, outcome in zip(held.lines, outcomes, strict=False)
    ]
    record.record(held.key, held.fence, rows, to=TaskState.PENDING)
    with db.transaction() as session:
        batches.cancel(session, session.get_one(Batch, batch_id))
    finalize.run(batch_id)
    batch = assert_whole(batch_id, 30)
    for part, file_id, count in (
        (FilePart.OUTPUT, batch.output_file_id, 1),
        (FilePart.ERROR, batch.error_file_id, 29),
    ):
        content = b"".join(results.chunks(batch_id, part))
        with db.transaction() as session:
            assert session.get_one(File, file_id).size == len(content)
        read = [json.loads(line) for line in content.decode().splitlines()]
        assert len(read) == count
        assert all(line["custom_id"].endswith(cut) for line in read)
        assert [line["response"]["body"]["text"] for line in read if line["response"]] == [cut]


def test_lines_that_an_older_process_counted_as_failed_end_as_cancelled(engine: Engine) -> None:
    batch_id = a_batch(chat_lines(25))
    with db.transaction() as session:
        batches.cancel(session, session.get_one(Batch, batch_id))
        assert batches.progress(session, [session.get_one(Batch, batch_id)])[batch_id].done == 0
    finalize._end_open_tasks(read(batch_id))
    with db.transaction() as session:
        batch = session.get_one(Batch, batch_id)
        assert batches.progress(session, [batch])[batch_id] == Progress(total=25, cancelled=25)
        session.execute(update(Task).where(Task.seq == 0).values(failed=Task.lines))
    finalize.run(batch_id)
    assert assert_whole(batch_id, 25).cancelled == 25


def test_cancelling_again_is_fine_also_after_the_end(engine: Engine) -> None:
    batch_id = a_batch(chat_lines(2))
    for status in ("cancelling", "cancelling", "cancelled", "cancelled"):
        if status == "cancelled":
            finalize.run(batch_id)
        with db.transaction() as session:
            assert batches.cancel(session, session.get_one(Batch, batch_id)).status == status


def test_a_batch_that_completed_is_not_cancelled(engine: Engine) -> None:
    batch_id = a_batch(chat_lines(2))
    run_to_end(engine, batch_id)
    with db.transaction() as session, pytest.raises(NotCancellable, match="completed"):
        batches.cancel(session, session.get_one(Batch, batch_id))


def test_a_batch_cancelled_before_it_was_validated_ends_empty() -> None:
    with db.transaction() as session:
        caller = factories.caller(session)
        batch = factories.batch(
            session, caller, factories.input_file(session, caller, chat_lines(2))
        )
        batches.cancel(session, batch)
    validate.run(batch.id)
    finalize.run(batch.id)
    batch = read(batch.id)
    assert (batch.status, batch.total, batch.output_file_id, batch.error_file_id) == (
        "cancelled",
        0,
        None,
        None,
    )


def test_an_overdue_batch_expires_with_what_finished(engine: Engine) -> None:
    batch_id = a_batch(chat_lines(12))
    held = a_claim()
    record.record(held.key, held.fence, answers(held), to=TaskState.DONE)
    with db.transaction() as session:
        session.get_one(Batch, batch_id).expires_at = datetime.now(UTC) - timedelta(seconds=1)
    batch = run_to_end(engine, batch_id)
    assert (batch.status, batch.completed) == ("expired", len(held.lines))
    assert {line["error"]["code"] for line in lines_of(batch_id, FilePart.ERROR)} == {
        "batch_expired"
    }
    assert (batch.failed, batch.expired, batch.cancelled) == (0, 12 - len(held.lines), 0)


def test_finalizing_twice_at_once_issues_one_invoice() -> None:
    batch_id = a_batch(chat_lines(2))
    while (held := claim.claim([], with_suspects=True)) is not None:
        record.record(held.key, held.fence, answers(held), to=TaskState.DONE)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(finalize.run, [batch_id] * 8))
    finalize.run(batch_id)
    with db.transaction() as session:
        assert (
            session.scalar(
                select(func.count()).select_from(Invoice).where(Invoice.batch_id == batch_id)
            )
            == 1
        )
    assert read(batch_id).status == "completed"


def test_a_small_account_does_not_wait_behind_a_giant_one() -> None:
    a_batch(chat_lines(200))
    for _ in range(3):
        a_claim()
    small = a_batch(chat_lines(2))
    # It starts at the giant's virtual time, so at most one of the giant's tasks goes first.
    assert small in (a_claim().batch_id, a_claim().batch_id)


def test_two_claimers_never_get_the_same_task(configure: Callable[..., None]) -> None:
    configure(task_lines=10)
    a_batch(chat_lines(160))
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: a_claim().key, range(12)))
    assert len(set(claims)) == 12


def test_a_busy_backend_is_passed_over() -> None:
    a_batch(chat_lines(5))
    assert claim.claim([FreeCapacity(0, factories.CHAT_MODEL, False)], with_suspects=True) is None
    assert (
        claim.claim([FreeCapacity(0, factories.CHAT_MODEL, True)], with_suspects=True) is not None
    )


def test_a_task_handed_back_waits_for_its_pause() -> None:
    a_batch([factories.chat_line("only")])
    held = a_claim()
    record.record(held.key, held.fence, [], to=TaskState.PENDING, pause=3600)
    assert claim.claim([], with_suspects=True) is None
    with db.transaction() as session:
        session.execute(update(Task).values(not_before=func.now()))
    assert a_claim().key == held.key


def test_a_stopping_engine_gives_its_tasks_back(
    engine: Engine, configure: Callable[..., None]
) -> None:
    configure(shutdown_grace=0.1, task_lines=10, flush_interval=0.05)
    batch_id = a_batch(
        [factories.chat_line(f"slow-{n}", metadata={"simulate": "hang"}) for n in range(4)]
    )
    drain = threading.Thread(target=engine.drain)
    drain.start()
    while read_states(batch_id) != {"running"}:
        threading.Event().wait(0.01)
    engine.stop()
    drain.join(PATIENCE)
    assert not drain.is_alive()
    assert read_states(batch_id) == {"pending"}
    assert charged(batch_id) == 0


def test_more_is_claimed_while_lines_still_wait_whatever_the_flush_interval(
    engine: Engine, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else wakes the engine: no hint, no poll, no flush, no end of a task."""
    configure(task_lines=10, flush_interval=30, lease=300)
    arrived: list[str] = []
    may_answer, goes_on = threading.Event(), threading.Event()

    class Model:
        async def send(self, request: Request) -> Answered:
            while not may_answer.is_set():
                await asyncio.sleep(0.002)
            arrived.append(request.request_id)
            if len(arrived) == 10:
                # The last of the first task is answered once a line of the second has come.
                while len(arrived) == 10:
                    await asyncio.sleep(0.002)
                goes_on.set()
            return Answered(200, b"{}", Usage(1, 1))

        async def close(self) -> None:
            return

    monkeypatch.setattr(registry, "backend_for", lambda *_: Model())
    monkeypatch.setattr(
        worker_engine,
        "Lane",
        lambda backend, limit, name, **options: Lane(backend, 3, name, **options),
    )
    a_batch(chat_lines(30))
    engine.wake()
    # Once its slot has stopped claiming.
    wait_until(lambda: engine._idle_until)
    may_answer.set()
    assert goes_on.wait(PATIENCE)


def test_lines_that_wait_for_a_limit_are_reported_when_it_lasts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = SimpleNamespace(wait=0.4)
    monkeypatch.setattr(engine, "_rates", {("a", True): rates})
    monkeypatch.setattr(worker_engine, "LIMITED_AFTER", 0.0)
    assert engine.waits() == []
    [wait] = engine.waits()
    assert (wait.reason, wait.model, wait.livemode) == ("rate_limit", "a", True)
    rates.wait = 0.0
    assert engine.waits() == []
