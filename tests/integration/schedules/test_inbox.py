"""Inboxes: an acknowledged request is in the inbox or in one run, also under concurrency."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from tests import factories
from tests.factories import CHAT_MODEL, EMBEDDING_MODEL, RERANK_MODEL, chat_line
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Owner
from xalen_batch.billing.terms import Terms
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import InboxRequest, Schedule, ScheduleRun
from xalen_batch.schedules import collect as collecting
from xalen_batch.schedules import inbox, runs
from xalen_batch.schedules.inbox import Added
from xalen_batch.schedules.runs import Trigger
from xalen_batch.states import RunState

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def owner(database: str) -> Owner:
    with db.transaction() as session:
        return factories.caller(session)


@pytest.fixture
def schedule(owner: Owner) -> Schedule:
    with db.transaction() as session:
        return factories.schedule(session, owner)


def add(schedule: Schedule, *lines: tuple[str, bytes]) -> Added:
    with db.transaction() as session:
        return inbox.add(session, schedule, lines)


def begin(session: Session, schedule: Schedule, day: int = 25) -> ScheduleRun:
    columns = runs.blank(
        schedule, datetime(2026, 11, day, 1, 30, tzinfo=UTC), Trigger.SCHEDULE, RunState.WAITING
    )
    run = ScheduleRun(**columns)
    session.add(run)
    session.flush()
    return run


def assign(schedule: Schedule, day: int = 25) -> tuple[UUID, int]:
    with db.transaction() as session:
        run = begin(session, schedule, day)
        return run.id, inbox.assign(session, schedule, run)


def waiting(schedule: Schedule) -> list[str]:
    with db.transaction() as session:
        rows = select(InboxRequest.custom_id).where(
            InboxRequest.schedule_id == schedule.id, InboxRequest.run_id.is_(None)
        )
        return list(session.scalars(rows.order_by(InboxRequest.id)))


def content(run_id: UUID) -> bytes:
    return b"".join(inbox.chunks(run_id))


class TestAdding:
    def test_the_same_request_again_is_known_and_another_under_its_name_is_refused(
        self, schedule: Schedule
    ) -> None:
        assert add(schedule, ("a", b"1"), ("b", b"2")) == Added(accepted=2, known=0, pending=2)
        assert add(schedule, ("b", b"2"), ("c", b"3")) == Added(accepted=1, known=1, pending=3)
        with pytest.raises(InvalidRequest, match="custom_id 'b' waits") as refused:
            add(schedule, ("d", b"4"), ("b", b"other"))
        assert (refused.value.code, refused.value.param) == ("duplicate_custom_id", "custom_id")
        assert waiting(schedule) == ["a", "b", "c"]

    def test_custom_ids_are_of_one_schedule(self, schedule: Schedule, owner: Owner) -> None:
        with db.transaction() as session:
            other = factories.schedule(session, owner)
        assert add(schedule, ("a", b"1")).accepted == add(other, ("a", b"2")).accepted == 1
        with db.transaction() as session:
            assert inbox.pending(session, [schedule.id, other.id, owner.account_id]) == {
                schedule.id: 1,
                other.id: 1,
                owner.account_id: 0,
            }

    def test_no_more_wait_than_one_batch_can_have(
        self, schedule: Schedule, configure: Callable[..., None]
    ) -> None:
        configure(max_batch_lines=2)
        add(schedule, ("a", b"1"), ("b", b"2"))
        assert add(schedule, ("a", b"1")) == Added(accepted=0, known=1, pending=2)
        with pytest.raises(
            InvalidRequest,
            match=rf"{ids.render('sched', schedule.id)} has 2 requests.*run the schedule now",
        ) as refused:
            add(schedule, ("a", b"1"), ("c", b"3"))
        assert refused.value.code == "inbox_full"
        assert waiting(schedule) == ["a", "b"]

    def test_many_who_send_the_same_at_once_are_all_answered(self, schedule: Schedule) -> None:
        lines = [(f"{number:03}", b"%d" % number) for number in range(50)]
        orders = [lines, lines[::-1], lines[25:] + lines[:25], lines[::2] + lines[1::2]] * 2
        with ThreadPoolExecutor(len(orders)) as pool:
            answers = list(pool.map(lambda order: add(schedule, *order), orders))
        assert sum(answer.accepted for answer in answers) == 50
        assert all(answer.accepted + answer.known == 50 for answer in answers)
        assert sorted(waiting(schedule)) == [custom_id for custom_id, _ in lines]


class TestSealing:
    def test_a_run_gets_what_waits_in_the_order_of_arrival(self, schedule: Schedule) -> None:
        for number in (3, 1, 2):
            add(schedule, (f"{number}", b"%d" % number), (f"{number}b", b"%db" % number))
        run_id, assigned = assign(schedule)
        assert assigned == 6
        assert content(run_id) == b"3\n3b\n1\n1b\n2\n2b\n"
        assert waiting(schedule) == []
        assert add(schedule, ("3", b"again")) == Added(accepted=1, known=0, pending=1)
        assert assign(schedule, 26)[1] == 1
        assert assign(schedule, 27)[1] == 0

    def test_what_does_not_fit_in_one_batch_waits_for_the_next(
        self, schedule: Schedule, configure: Callable[..., None]
    ) -> None:
        add(schedule, *((f"{number}", b"12345") for number in range(10)))
        configure(max_batch_lines=4)
        assert assign(schedule, 25)[1] == 4
        configure(max_batch_lines=100, max_file_bytes=18)
        second, assigned = assign(schedule, 26)
        assert assigned == 3
        # A request that exceeds a batch's limit still runs, alone, so that it blocks no other.
        configure(max_file_bytes=1)
        assert assign(schedule, 27)[1] == 1
        assert len(content(second)) == 18
        assert waiting(schedule) == ["8", "9"]

    def test_inputs_of_embeddings_beyond_one_batch_wait_for_the_next(
        self, owner: Owner, configure: Callable[..., None]
    ) -> None:
        with db.transaction() as session:
            schedule = factories.schedule(session, owner, endpoint="/v1/embeddings")
        for number, texts in enumerate((["a", "b"], "c", ["d", "e"], ["f", "g", "h"], "i")):
            body = {"model": EMBEDDING_MODEL, "input": texts}
            line = {"custom_id": f"{number}", "method": "POST", "url": "/v1/embeddings"}
            sent = collecting.check(
                owner, schedule, json.dumps({**line, "body": body}).encode(), "json"
            )
            with db.transaction() as session:
                collecting.collect(session, schedule, sent)
        configure(max_batch_inputs=4)
        first, assigned = assign(schedule, 25)
        assert assigned == 2
        # What a run gives back is counted again.
        with db.transaction() as session:
            inbox.release(session, session.get_one(ScheduleRun, first))
        assert assign(schedule, 26)[1] == 2
        # A request that exceeds a batch's limit still runs, alone, so that it blocks no other.
        configure(max_batch_inputs=1)
        assert assign(schedule, 27)[1] == 1
        configure(max_batch_inputs="none")
        assert assign(schedule, 28)[1] == 2

    def test_a_fire_that_is_rolled_back_leaves_all_in_the_inbox(self, schedule: Schedule) -> None:
        add(schedule, ("a", b"1"))
        with Session(db.engine()) as session:
            assert inbox.assign(session, schedule, begin(session, schedule)) == 1
            session.rollback()
        assert waiting(schedule) == ["a"]

    def test_a_request_that_arrives_while_it_is_assigned_is_for_the_next_run(
        self, schedule: Schedule
    ) -> None:
        add(schedule, ("a", b"1"))
        with db.transaction() as assigning:
            run = begin(assigning, schedule)
            assert inbox.assign(assigning, schedule, run) == 1
            # Another one does not wait for the fire.
            assert add(schedule, ("b", b"2")).accepted == 1
        assert content(run.id) == b"1\n"
        assert waiting(schedule) == ["b"]

    @pytest.mark.parametrize(
        ("commits", "expected"), [(True, Added(1, 0, 1)), (False, Added(0, 1, 1))]
    )
    def test_the_same_request_sent_while_it_is_assigned_waits_for_what_becomes_of_it(
        self, schedule: Schedule, commits: bool, expected: Added
    ) -> None:
        add(schedule, ("a", b"1"))
        with ThreadPoolExecutor(1) as pool, Session(db.engine()) as assigning:
            assert inbox.assign(assigning, schedule, begin(assigning, schedule)) == 1
            answer = pool.submit(add, schedule, ("a", b"1"))
            until_blocked()
            if commits:
                assigning.commit()
            else:
                assigning.rollback()
            assert answer.result(10) == expected

    def test_another_request_under_a_assigned_name_is_new_also_if_it_is_assigned_between_two_reads(
        self, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(schedule, ("a", b"1"))
        known = inbox._known
        assigned = []

        def assigned_before(*args: Any) -> list[str]:
            if not assigned:
                assigned.append(assign(schedule)[1])
            return known(*args)

        monkeypatch.setattr(inbox, "_known", assigned_before)
        assert add(schedule, ("a", b"other"), ("b", b"2")) == Added(accepted=2, known=0, pending=2)
        assert assigned == [1]

    def test_what_was_acknowledged_is_in_one_run_or_waits_however_the_two_meet(
        self, schedule: Schedule
    ) -> None:
        """Eight threads add requests while the schedule fires; some fires are rolled back."""
        acknowledged: list[str] = []
        over = threading.Event()

        def send(sender: int) -> None:
            for number in range(30):
                custom_id = f"{sender}-{number}"
                assert add(schedule, (custom_id, custom_id.encode())).accepted == 1
                acknowledged.append(custom_id)

        def fire() -> list[UUID]:
            made = []
            for day in range(1, 10_000):
                done = over.is_set()
                try:
                    with db.transaction() as session:
                        at = datetime(2026, 1, 1, tzinfo=UTC).replace(microsecond=day)
                        run = ScheduleRun(
                            **runs.blank(schedule, at, Trigger.SCHEDULE, RunState.WAITING)
                        )
                        session.add(run)
                        inbox.assign(session, schedule, run)
                        if day % 3 == 0:
                            raise InterruptedError
                        made.append(run.id)
                except InterruptedError:
                    continue
                if done:
                    return made
            raise AssertionError("the senders never ended")

        with ThreadPoolExecutor(9) as pool:
            fired = pool.submit(fire)
            list(pool.map(send, range(8)))
            over.set()
            run_ids = fired.result(60)
        found = [line for run_id in run_ids for line in lines_of(run_id)]
        assert sorted(found + waiting(schedule)) == sorted(acknowledged)
        assert len(acknowledged) == 240


def until_blocked() -> None:
    """Wait until a connection waits for a lock."""
    for _ in range(10_000):
        with db.engine().connect() as connection:
            if connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
                return
    raise AssertionError("nobody waits")


def lines_of(run_id: UUID) -> list[str]:
    with db.transaction() as session:
        rows = select(InboxRequest.custom_id).where(InboxRequest.run_id == run_id)
        return list(session.scalars(rows))


class TestReading:
    def test_pages_are_bounded_and_leave_out_nothing(
        self, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = [(f"{number}", b"%d" % number * (number % 7 + 1)) for number in range(100)]
        add(schedule, *lines, ("long", b"x" * 500))
        run_id, _ = assign(schedule)
        expected = b"".join(line + b"\n" for _, line in lines) + b"x" * 500 + b"\n"
        for rows, most in ((1, 10_000), (7, 10_000), (10_000, 20), (10_000, 1)):
            monkeypatch.setattr(inbox, "PAGE_ROWS", rows)
            monkeypatch.setattr(inbox, "PAGE_BYTES", most)
            pages = list(inbox.chunks(run_id))
            assert b"".join(pages) == expected
            assert all(page.count(b"\n") <= rows for page in pages)

    def test_requests_that_have_left_the_inbox_are_told_and_never_left_out(
        self, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inbox, "PAGE_ROWS", 1)
        add(schedule, ("a", b"1"), ("b", b"2"), ("c", b"3"))
        run_id, _ = assign(schedule)
        reading = inbox.chunks(run_id)
        assert next(reading) == b"1\n"
        with db.transaction() as session:
            inbox.forget(session, run_id)
        with pytest.raises(inbox.RequestsGone):
            list(reading)
        with pytest.raises(inbox.RequestsGone):
            content(run_id)

    def test_only_what_waits_is_discarded(self, schedule: Schedule) -> None:
        add(schedule, ("a", b"1"))
        run_id, _ = assign(schedule)
        add(schedule, ("b", b"2"), ("c", b"3"))
        with db.transaction() as session:
            assert inbox.discard(session, schedule.id) == 2
        assert (waiting(schedule), content(run_id)) == ([], b"1\n")


class TestCollecting:
    @pytest.fixture
    def send(self, owner: Owner, schedule: Schedule) -> Iterator[Callable[..., Added]]:
        def send(body: Any, kind: Any = "json", to: Schedule = schedule) -> Added:
            sent = collecting.check(
                owner, to, body if isinstance(body, bytes) else json.dumps(body).encode(), kind
            )
            with db.transaction() as session:
                return collecting.collect(session, to, sent)

        return send

    def test_one_request_a_list_or_an_object_of_them_may_be_sent(
        self, send: Callable[..., Added], schedule: Schedule
    ) -> None:
        assert send(chat_line("a")) == Added(1, 0, 1)
        assert send([chat_line("b"), chat_line("c")]) == Added(2, 0, 3)
        assert send({"requests": [chat_line("d")]}) == Added(1, 0, 4)
        assert send(
            factories.jsonl([chat_line("e"), chat_line("f")]).replace(b"\n", b"\r\n\r\n"), "jsonl"
        ) == Added(2, 0, 6)
        assert waiting(schedule) == list("abcdef")
        run_id, _ = assign(schedule)
        assert [json.loads(line) for line in content(run_id).splitlines()] == [
            chat_line(custom_id) for custom_id in "abcdef"
        ]

    def test_a_request_is_the_same_however_it_is_laid_out(
        self, send: Callable[..., Added], schedule: Schedule
    ) -> None:
        line = chat_line(
            "a",
            'Two  blanks, a "quote\\", a \n newline',
            temperature=0.10,
            seed=12345678901234567890,
        )

        def written(**options: Any) -> bytes:
            """A line with a number that a parser would change."""
            return json.dumps(line, **options).replace("0.1", "0.10").encode()

        compact = written(separators=(",", ":"))
        assert send(compact).accepted == 1
        assert send(written(indent=4)) == Added(0, 1, 1)
        assert send(b"\xef\xbb\xbf [\r\n" + written(indent="\t") + b"\n]\n") == Added(0, 1, 1)
        assert send(b'{"requests" : [ ' + compact + b" ] }") == Added(0, 1, 1)
        assert send(b" " + written(separators=(" ,\t", "  : ")) + b" \r\n", "jsonl") == Added(
            0, 1, 1
        )
        assert content(assign(schedule)[0]) == compact + b"\n"

    @pytest.mark.parametrize(
        ("body", "kind", "code", "param", "told"),
        [
            (
                [chat_line("a"), chat_line("b", model="gpt-9")],
                "json",
                "model_not_found",
                "[1].body.model",
                r"^Request 2 \(custom_id 'b'\): .*gpt-9",
            ),
            (
                {"requests": [{**chat_line("a"), "url": "/v1/rerank"}]},
                "json",
                "url_mismatch",
                "requests[0].url",
                r"^Request 1 \(custom_id 'a'\): url",
            ),
            (
                {**chat_line("a"), "body": {}},
                "json",
                "missing_required_parameter",
                "body.model",
                r"^\(custom_id 'a'\): body.model is missing",
            ),
            (chat_line("x" * 600), "json", "invalid_custom_id", "custom_id", "512"),
            (b'\n{"custom_id": "a"\n', "jsonl", "invalid_json_line", None, "^Line 2: Not JSON"),
            (
                [chat_line("a"), chat_line("a"), 7],
                "json",
                "duplicate_custom_id",
                "[1].custom_id",
                "^Request 2 .*Make it unique.* In all 2 requests have errors; none was added",
            ),
            (b"[1, 2", "json", "invalid_json", None, "cannot be read.*requests"),
            (b"", "json", "invalid_json", None, "cannot be read"),
            (b"", "jsonl", "empty_file", None, "no requests"),
            (b"[]", "json", None, "requests", "no request"),
            (b'{"requests": []}', "json", None, "requests", "no request"),
            (b'{"requests": {}}', "json", "invalid_json", None, "cannot be read"),
            (b'{"requests": [], "requests": []}', "json", None, "requests", "twice"),
            (
                b'{"requests": [], "requests": [], "n": ' + b"1" * 5000 + b"}",
                "json",
                "invalid_json",
                None,
                "cannot be read",
            ),
            (b"null", "json", "invalid_json", None, "cannot be read"),
            (b"[" * 100_000, "json", "invalid_json", None, "nested|cannot be read"),
            (b'{"a":' * 100_000, "json", "invalid_json", None, "nested|cannot be read"),
            (b'[{"custom_id": "\xff"}]', "json", "invalid_encoding", "[0]", "UTF-8"),
            ("[1]".encode("utf-16"), "json", "invalid_json", None, "cannot be read"),
        ],
    )
    def test_what_is_wrong_is_told_with_its_place_and_nothing_is_added(
        self,
        send: Callable[..., Added],
        schedule: Schedule,
        body: Any,
        kind: str,
        code: str | None,
        param: str | None,
        told: str,
    ) -> None:
        with pytest.raises(InvalidRequest, match=told) as refused:
            send(body, kind)
        assert (refused.value.code, refused.value.param) == (code, param)
        assert waiting(schedule) == []

    def test_a_model_without_a_price_is_refused_now_and_not_tonight(
        self, send: Callable[..., Added], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            collecting.batches,
            "offered",
            lambda *_: Terms({CHAT_MODEL: {"input": "1"}}, {CHAT_MODEL: "simulated"}),
        )
        with pytest.raises(
            InvalidRequest, match=f"Request 2 .*{RERANK_MODEL} has no price"
        ) as refused:
            send([chat_line("a"), chat_line("b", model=RERANK_MODEL)])
        assert (refused.value.code, refused.value.param) == ("model_not_priced", "[1].body.model")

    def test_a_schedule_that_will_not_run_them_takes_none(
        self, send: Callable[..., Added], owner: Owner
    ) -> None:
        with db.transaction() as session:
            file = factories.input_file(session, owner, [chat_line("a")])  # type: ignore[arg-type]
            of_a_file = factories.schedule(
                session, owner, input_file_id=ids.render("file", file.id)
            )
            ended = factories.schedule(session, owner)
            ended.aim(None)
        for to, code in ((of_a_file, "no_inbox"), (ended, "schedule_ended")):
            with pytest.raises(InvalidRequest) as refused:
                send(chat_line("a"), to=to)
            assert refused.value.code == code

    def test_the_longest_blanks_and_strings_take_no_more_than_their_length(
        self, send: Callable[..., Added]
    ) -> None:
        with pytest.raises(InvalidRequest):
            send(b'{"custom_id": "' + b'\\"' * 2_000_000)
        with pytest.raises(InvalidRequest):
            send(b'["' + b" " * 2_000_000 + b'"')


def test_a_full_inbox_is_assigned_in_one_statement_within_its_time(schedule: Schedule) -> None:
    line = json.dumps(chat_line("x")).encode()
    for thousand in range(50):
        add(schedule, *((f"{thousand}-{number}", line) for number in range(1000)))
    assert assign(schedule)[1] == 50_000
    with db.transaction() as session:
        assert (
            session.scalar(
                select(func.count())
                .select_from(InboxRequest)
                .where(InboxRequest.run_id.is_not(None))
            )
            == 50_000
        )
