"""Execution windows, and batches that schedules made, over HTTP and through OpenAI's client."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from tests import factories
from tests.integration import clock as clocks
from tests.integration.clock import Clock
from tests.integration.conftest import Api, new_key
from xalen_batch import db, ids
from xalen_batch.accounts import accounts
from xalen_batch.batches import batches
from xalen_batch.models import Batch, Schedule, ScheduleRun

REQUEST = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
WINDOW = {
    "start": "22:00",
    "end": "06:00",
    "timezone": "Europe/Berlin",
    "days": ["fri", "mon", "tue"],
}
LINES = factories.jsonl([factories.chat_line("a")])
TUESDAY_NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
OPENS, CLOSES = (
    int(datetime(2026, 11, day, hour, tzinfo=UTC).timestamp()) for day, hour in ((24, 21), (25, 5))
)


@pytest.fixture
def clock(api: Api) -> Iterator[Clock]:
    with clocks.installed() as clock:
        clock.run_fast(TUESDAY_NOON, pace=0)
        yield clock


def ask(api: Api, **fields: Any) -> Any:
    return api.ask(
        "POST", "/v1/batches", {"input_file_id": api.upload(LINES)["id"], **REQUEST, **fields}
    )


def test_openais_client_sends_a_window_and_reads_the_batch(api: Api, clock: Clock) -> None:
    client = api.client
    file = client.files.create(file=LINES, purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"execution_window": WINDOW},
    )
    shown = {
        **WINDOW,
        "days": ["mon", "tue", "fri"],
        "state": "closed",
        "opens_at": OPENS,
        "closes_at": CLOSES,
    }
    assert batch.to_dict()["execution_window"] == shown
    clock.run_fast(datetime.fromtimestamp(OPENS, UTC), pace=0)
    found = client.batches.retrieve(batch.id)
    assert found.to_dict()["execution_window"] == {**shown, "state": "open"}
    clock.run_fast(datetime.fromtimestamp(CLOSES, UTC), pace=0)
    (listed,) = client.batches.list()
    # It opens on Friday again.
    three_days = 3 * 86_400
    assert listed.to_dict()["execution_window"] == {
        **shown,
        "opens_at": OPENS + three_days,
        "closes_at": CLOSES + three_days,
    }
    cancelled = client.batches.cancel(batch.id)
    assert cancelled.to_dict()["execution_window"] == {**shown, "opens_at": None, "closes_at": None}


def test_a_batch_without_a_window_has_none(api: Api) -> None:
    for fields in ({}, {"execution_window": None}):
        answer = ask(api, **fields)
        assert (answer.status, answer.json["execution_window"]) == (200, None)
        assert (answer.json["schedule_id"], answer.json["run_id"]) == (None, None)


@pytest.mark.parametrize(
    ("window", "param"),
    [
        ("22:00-06:00", "execution_window"),
        ({}, "execution_window.start"),
        ({"start": "22:00"}, "execution_window.end"),
        ({**WINDOW, "start": "24:00"}, "execution_window.start"),
        ({**WINDOW, "start": 22}, "execution_window.start"),
        ({**WINDOW, "end": "6:00"}, "execution_window.end"),
        ({**WINDOW, "end": "22:00"}, "execution_window"),
        ({**WINDOW, "timezone": "Europe/Berlim"}, "execution_window.timezone"),
        ({**WINDOW, "timezone": "../etc/passwd\0"}, "execution_window.timezone"),
        ({**WINDOW, "days": []}, "execution_window.days"),
        ({**WINDOW, "days": ["mon", "\ud800"]}, "execution_window.days.1"),
        ({**WINDOW, "day": "mon"}, "execution_window.day"),
    ],
)
def test_a_window_that_is_none_is_refused(api: Api, window: Any, param: str) -> None:
    answer = ask(api, execution_window=window)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert api.ask("GET", "/v1/batches").json["data"] == []


def test_a_window_that_never_opens_in_time_is_refused_with_the_arithmetic(
    api: Api, clock: Clock
) -> None:
    answer = ask(api, execution_window=WINDOW, completion_window="9h")
    assert (answer.status, answer.error["param"]) == (400, "execution_window")
    for figure in ("9 h", "22:00", "mon–tue", "at least 10h"):
        assert figure in answer.error["message"]
    assert ask(api, execution_window=WINDOW, completion_window="10h").status == 200


def test_a_window_is_part_of_what_an_idempotency_key_stands_for(api: Api) -> None:
    sent = {
        "input_file_id": api.upload(LINES)["id"],
        **REQUEST,
        "completion_window": "7d",
        "execution_window": WINDOW,
    }
    other = {**sent, "execution_window": {**WINDOW, "end": "07:00"}}
    key = {"idempotency-key": "night"}
    first, again, changed = (
        api.ask("POST", "/v1/batches", body, headers=key) for body in (sent, sent, other)
    )
    assert (again.status, again.body, again.headers["idempotent-replayed"]) == (
        200,
        first.body,
        "true",
    )
    assert changed.error["code"] == "idempotency_key_reused"


class TestOfASchedule:
    def made(self, api: Api, name: str) -> tuple[str, str, str]:
        """The ids of a batch that a schedule made, of the schedule and of the run."""
        file_id = api.upload(LINES)["id"]
        with db.transaction() as session:
            caller = accounts.authenticate(session, api.key)
            mine = {"account_id": caller.account_id, "livemode": caller.livemode}
            next_fire = datetime.now(UTC) + timedelta(days=1)
            schedule = Schedule(
                id=ids.new(), name=name, definition={}, next_fire_at=next_fire, **mine
            )
            session.add(schedule)
            session.flush()
            run = ScheduleRun(
                id=ids.new(),
                schedule_id=schedule.id,
                scheduled_for=next_fire,
                trigger="schedule",
                state="running",
                definition={},
            )
            session.add(run)
            session.flush()
            batch = batches.create(
                session,
                caller,
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                run=run,
            )
            return (
                ids.render("batch", batch.id),
                ids.render("sched", schedule.id),
                ids.render("run", run.id),
            )

    def test_a_batch_names_its_schedule_and_its_run_and_is_found_by_it(self, api: Api) -> None:
        ask(api)
        (one, schedule, run), (other, *_) = (self.made(api, name) for name in ("one", "other"))
        shown = api.ask("GET", f"/v1/batches/{one}").json
        assert (shown["schedule_id"], shown["run_id"]) == (schedule, run)
        page = api.ask("GET", f"/v1/batches?schedule_id={schedule}").json
        assert [batch["id"] for batch in page["data"]] == [one]
        assert [batch["id"] for batch in api.ask("GET", "/v1/batches?limit=2").json["data"]] == [
            other,
            one,
        ]

    def test_pages_of_a_schedules_batches_go_on_where_they_ended(self, api: Api) -> None:
        one, schedule, _ = self.made(api, "nightly")
        other, *_ = self.made(api, "other")
        with db.transaction() as session:
            session.execute(
                update(Batch).values(schedule_id=ids.parse("sched", schedule), run_id=None)
            )
        path = f"/v1/batches?schedule_id={schedule}&limit=1"
        page = api.ask("GET", path).json
        assert ([batch["id"] for batch in page["data"]], page["has_more"]) == ([other], True)
        page = api.ask("GET", f"{path}&after={page['last_id']}").json
        assert ([batch["id"] for batch in page["data"]], page["has_more"]) == ([one], False)

    def test_the_schedule_of_another_account_has_no_batches(self, api: Api) -> None:
        _, schedule, _ = self.made(api, "nightly")
        answer = api.ask("GET", f"/v1/batches?schedule_id={schedule}", key=new_key())
        assert (answer.status, answer.json["data"]) == (200, [])

    @pytest.mark.parametrize(
        "id", ["", "nightly", "batch_01a20b8f5d2d769db6d42f3b21c9ed3f", "sched_" + "x" * 200]
    )
    def test_an_id_that_is_no_schedules_is_refused(self, api: Api, id: str) -> None:
        answer = api.ask("GET", f"/v1/batches?schedule_id={id}")
        assert (answer.status, answer.error["param"]) == (400, "schedule_id")
        assert id[:90] in answer.error["message"]
