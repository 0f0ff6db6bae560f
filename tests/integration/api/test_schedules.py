"""Schedules over HTTP: made, previewed, run, changed, paused, backfilled and deleted, with the
outcome of their runs.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests import factories
from tests.integration import clock as clocks
from tests.integration.clock import Clock
from tests.integration.conftest import Answer, Api, new_key
from xalen_batch import db, ids, storage
from xalen_batch.accounts import accounts
from xalen_batch.billing import invoices
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.models import Batch, Invoice
from xalen_batch.schedules import fire, preflight, sources
from xalen_batch.states import BatchStatus

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
NIGHT = datetime(2026, 11, 25, 1, 30, tzinfo=UTC)  # 02:30 in Berlin
DAY = timedelta(days=1)
NIGHTLY = {
    "name": "Nightly digest",
    "cron": "30 2 * * *",
    "timezone": "Europe/Berlin",
    "endpoint": CHAT,
}
LINE = factories.chat_line("a")


@pytest.fixture
def clock(database: str) -> Iterator[Clock]:
    with clocks.installed() as clock:
        clock.set(NOON)
        yield clock


def upload(api: Api) -> str:
    id: str = api.upload(factories.jsonl([LINE]))["id"]
    return id


def create(api: Api, **fields: Any) -> dict[str, Any]:
    what = {} if {"input_file_id", "template_file_id", "source"} & set(fields) else {"inbox": {}}
    answer = api.ask("POST", "/v1/schedules", {**NIGHTLY, **what, **fields})
    assert answer.status == 200, answer.body
    made: dict[str, Any] = answer.json
    return made


def path(schedule: dict[str, Any], *rest: str) -> str:
    return "/".join([f"/v1/schedules/{schedule['id']}", *rest])


def get(api: Api, path: str) -> Any:
    answer = api.ask("GET", path)
    assert answer.status == 200, answer.body
    return answer.json


def post(api: Api, path: str, body: Any = None) -> Any:
    answer = api.ask("POST", path, body)
    assert answer.status == 200, answer.body
    return answer.json


def complete(batch_id: str, cost: Decimal) -> None:
    """End a batch as its finalizer would, with an invoice."""
    with db.transaction() as session:
        batch = session.get_one(Batch, ids.parse("batch", batch_id))
        batch.total = batch.completed = 1
        for status in (BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.COMPLETED):
            assert batch.move(session, status)
        mine = {"account_id": batch.account_id, "livemode": batch.livemode, "batch_id": batch.id}
        assert invoices.store(session, Invoice(**mine, total=cost), [])


def test_the_life_of_a_schedule(api: Api, clock: Clock) -> None:
    schedule = create(api, input_file_id=upload(api))
    assert schedule["id"].startswith("sched_")
    assert (schedule["status"], schedule["description"], schedule["metadata"]) == (
        "active",
        "At 02:30 every day",
        {},
    )
    assert (schedule["next_fire_at"], schedule["next_fire_local"]) == (
        NIGHT.timestamp(),
        "2026-11-25T02:30:00+01:00",
    )
    assert (schedule["last_run"], schedule["recent_runs"]) == (None, [])

    # A manual run does not change its instants.
    run = post(api, path(schedule, "run"))
    assert (run["object"], run["schedule_id"], run["trigger"], run["state"]) == (
        "schedule.run",
        schedule["id"],
        "manual",
        "running",
    )
    batch = get(api, f"/v1/batches/{run['batch_id']}")
    assert (batch["schedule_id"], batch["run_id"], batch["input_file_id"]) == (
        schedule["id"],
        run["id"],
        schedule["input_file_id"],
    )
    assert get(api, path(schedule))["next_fire_at"] == schedule["next_fire_at"]
    complete(run["batch_id"], Decimal("0.80485307"))

    # The night comes.
    clock.set(NIGHT + timedelta(seconds=2))
    fire.run()
    night, manual = get(api, path(schedule, "runs"))["data"]
    assert (manual["id"], manual["state"], manual["cost"]) == (run["id"], "succeeded", "0.80485307")
    assert (night["trigger"], night["state"], night["cost"], night["reason"]) == (
        "schedule",
        "running",
        None,
        None,
    )
    assert (night["scheduled_for"], night["scheduled_local"]) == (
        NIGHT.timestamp(),
        "2026-11-25T02:30:00+01:00",
    )
    assert 2 <= night["lag"] < 10
    assert night["fired_at"] == int(NIGHT.timestamp() + night["lag"])
    shown = get(api, path(schedule))
    assert shown["last_run"] == night
    assert [recent["id"] for recent in shown["recent_runs"]] == [manual["id"], night["id"]]
    assert shown["run_counts"] == {
        "succeeded": 1,
        "failed": 0,
        "cancelled": 0,
        "skipped": 0,
        "missed": 0,
    }
    assert shown["next_fire_at"] == (NIGHT + DAY).timestamp()

    # Paused, a night passes.
    paused = post(api, path(schedule, "pause"), {"note": "The warehouse is being moved."})
    assert (paused["status"], paused["pause_note"], paused["next_fire_at"]) == (
        "paused",
        "The warehouse is being moved.",
        None,
    )
    assert paused["paused_at"] >= NIGHT.timestamp()
    clock.set(NIGHT + DAY + timedelta(hours=1))
    fire.run()
    resumed = post(api, path(schedule, "resume"))
    assert (resumed["status"], resumed["paused_at"], resumed["pause_note"]) == (
        "active",
        None,
        None,
    )
    assert resumed["next_fire_at"] == (NIGHT + 2 * DAY).timestamp()

    # After a change, earlier runs stay as they were.
    before = get(api, path(schedule, "runs"))
    changed = api.ask(
        "PATCH", path(schedule), {"name": "Morning digest", "timezone": "Asia/Kathmandu"}
    ).json
    assert (changed["name"], changed["next_fire_local"]) == (
        "Morning digest",
        "2026-11-27T02:30:00+05:45",
    )
    assert get(api, path(schedule, "runs")) == before

    # A backfill runs the night that was paused.
    backfilled = post(api, path(schedule, "backfill"), {"from": "2026-11-26", "to": "2026-11-27"})
    assert [(run["trigger"], run["scheduled_local"]) for run in backfilled["data"]] == [
        ("backfill", "2026-11-26T02:30:00+05:45")
    ]
    assert (backfilled["object"], backfilled["has_more"], backfilled["data"][0]["state"]) == (
        "list",
        False,
        "waiting",
    )

    # After the deletion, its runs and batches are still there.
    deleted = api.ask("DELETE", path(schedule)).json
    assert deleted == {
        "id": schedule["id"],
        "object": "schedule",
        "deleted": True,
        "discarded_requests": 0,
    }
    assert api.ask("GET", path(schedule)).status == 404
    assert get(api, "/v1/schedules")["data"] == []
    left = get(api, path(schedule, "runs"))["data"]
    assert [(run["state"], run["reason"]) for run in left] == [
        ("skipped", "schedule_deleted"),
        ("running", None),
        ("succeeded", None),
    ]
    assert [
        batch["id"] for batch in get(api, f"/v1/batches?schedule_id={schedule['id']}")["data"]
    ] == [night["batch_id"], run["batch_id"]]
    clock.set(NIGHT + 3 * DAY)
    fire.run()
    assert len(get(api, path(schedule, "runs"))["data"]) == len(left)


def test_what_was_sent_comes_back(api: Api, clock: Clock) -> None:
    sent = {
        "starts_at": "2026-12-01T00:00:00",
        "ends_at": 1_800_000_000,
        "jitter": 600,
        "completion_window": "7d",
        "metadata": {"team": "search"},
        "output_expires_after": {"anchor": "created_at", "seconds": 86_400},
        "execution_window": {"start": "22:00", "end": "06:00", "days": ["sun", "mon"]},
        "overlap": "buffer_one",
        "misfire": "all",
        "misfire_limit": 3,
        "catch_up_window": "2d",
        "pause_on_failure": 5,
        "inbox": {"on_empty": "fail"},
    }
    schedule = create(api, **sent)
    on_its_clock = {
        "starts_at": int(datetime(2026, 11, 30, 23, tzinfo=UTC).timestamp()),
        "execution_window": {
            "start": "22:00",
            "end": "06:00",
            "days": ["mon", "sun"],
            "timezone": "Europe/Berlin",
        },
        "inbox": {"on_empty": "fail", "pending": 0},
    }
    assert {name: schedule[name] for name in sent} == {**sent, **on_its_clock}
    delay = get(api, path(schedule, "preview"))["jitter_delay"]
    assert 0 <= delay <= 600
    assert schedule["next_fire_at"] == datetime(2026, 12, 1, 1, 30, tzinfo=UTC).timestamp() + delay
    assert get(api, path(schedule)) == schedule


def test_a_preview_shows_local_time_utc_and_offset_through_a_clock_change(
    api: Api, clock: Clock
) -> None:
    clock.set(datetime(2026, 3, 27, 12, tzinfo=UTC))
    when = {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}
    preview = post(api, "/v1/schedules/preview?count=3", when)
    assert preview == {
        "object": "schedule.preview",
        **when,
        "description": "At 02:30 every day",
        "jitter_delay": None,
        "fires": [
            {
                "scheduled_for": 1774661400,
                "local": "2026-03-28T02:30:00+01:00",
                "utc": "2026-03-28T01:30:00Z",
                "utc_offset": "+01:00",
            },
            {
                "scheduled_for": 1774746000,
                "local": "2026-03-29T03:00:00+02:00",
                "utc": "2026-03-29T01:00:00Z",
                "utc_offset": "+02:00",
            },
            {
                "scheduled_for": 1774830600,
                "local": "2026-03-30T02:30:00+02:00",
                "utc": "2026-03-30T00:30:00Z",
                "utc_offset": "+02:00",
            },
        ],
    }
    schedule = create(api, **when)
    assert get(api, path(schedule, "preview?count=3")) == {**preview, "jitter_delay": 0}
    assert len(get(api, path(schedule, "preview"))["fires"]) == 10
    ends = {**when, "starts_at": "2026-04-02", "ends_at": "2026-04-04"}
    assert [fire["local"][:10] for fire in post(api, "/v1/schedules/preview", ends)["fires"]] == [
        "2026-04-02",
        "2026-04-03",
    ]


def test_lists_are_paged_filtered_and_newest_first(api: Api, clock: Clock) -> None:
    made = [create(api, name=f"number {number}")["id"] for number in range(5)]
    post(api, f"/v1/schedules/{made[1]}/pause")
    assert [schedule["id"] for schedule in get(api, "/v1/schedules?status=paused")["data"]] == [
        made[1]
    ]
    first = get(api, "/v1/schedules?limit=3")
    assert (first["first_id"], first["last_id"], first["has_more"]) == (made[4], made[2], True)
    rest = get(api, f"/v1/schedules?limit=3&after={made[2]}")
    assert ([schedule["id"] for schedule in rest["data"]], rest["has_more"]) == (
        [made[1], made[0]],
        False,
    )

    clock.set(NIGHT + 2 * DAY + timedelta(minutes=1))
    fire.run()
    runs = get(api, f"/v1/schedules/{made[0]}/runs")["data"]
    assert [run["state"] for run in runs] == ["skipped", "missed", "missed"]
    pages = [
        get(api, f"/v1/schedules/{made[0]}/runs?limit=1{after}")
        for after in ("", f"&after={runs[0]['id']}", f"&after={runs[1]['id']}")
    ]
    assert [page["data"] for page in pages] == [[run] for run in runs]
    assert [page["has_more"] for page in pages] == [True, True, False]
    assert get(api, f"/v1/schedules/{made[0]}/runs?state=missed")["data"] == runs[1:]
    assert get(api, f"/v1/schedules/{made[0]}")["run_counts"]["missed"] == 2


def test_each_schedule_is_shown_with_its_latest_runs_the_oldest_first(
    api: Api, clock: Clock
) -> None:
    made = [
        create(api, name=f"number {number}", cron=cron)
        for number, cron in enumerate(["30 2 * * *", "0 */12 * * *"])
    ]
    for night in range(16):
        clock.set(NIGHT + night * DAY)
        fire.run()
    shown = get(api, "/v1/schedules")["data"]
    assert [schedule["id"] for schedule in shown] == [made[1]["id"], made[0]["id"]]
    for schedule in shown:
        runs = get(api, path(schedule, "runs?limit=100"))["data"]
        assert len(runs) > 14
        latest = sorted(runs, key=lambda run: run["scheduled_for"])[-14:]
        assert schedule["recent_runs"] == [
            {name: run[name] for name in ("id", "scheduled_for", "state")} for run in latest
        ]
        assert schedule["last_run"] == latest[-1]
        assert get(api, path(schedule)) == schedule


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        (
            {"metadata": {"a": "b"}, "starts_at": 1_800_000_000},
            {"metadata": None, "starts_at": None},
            {"metadata": {}, "starts_at": None},
        ),
        (
            {"overlap": "allow", "jitter": 60},
            {"overlap": None, "jitter": None},
            {"overlap": "skip", "jitter": 0},
        ),
        (
            {},
            {"timezone": None},
            {"timezone": "UTC", "next_fire_local": "2026-11-25T02:30:00+00:00"},
        ),
        ({"pause_on_failure": 3}, {}, {"pause_on_failure": 3, "name": "Nightly digest"}),
        (
            {"starts_at": "2026-12-01", "execution_window": {"start": "22:00", "end": "06:00"}},
            {"timezone": "UTC"},
            {
                "starts_at": int(datetime(2026, 12, 1, tzinfo=UTC).timestamp()),
                "execution_window": {
                    "start": "22:00",
                    "end": "06:00",
                    "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"],
                    "timezone": "UTC",
                },
            },
        ),
        (
            {"inbox": {}},
            {"inbox": {"on_empty": "fail"}},
            {"inbox": {"on_empty": "fail", "pending": 0}},
        ),
        (
            {"inbox": {}},
            {"source": {"prefix": "nightly"}},
            {"inbox": None, "source": {"prefix": "nightly"}},
        ),
    ],
)
def test_a_change_replaces_what_is_sent_and_null_clears(
    api: Api, clock: Clock, before: dict[str, Any], change: dict[str, Any], after: dict[str, Any]
) -> None:
    schedule = create(api, **before)
    answer = api.ask("PATCH", path(schedule), change)
    assert answer.status == 200, answer.body
    changed = answer.json
    for name, value in after.items():
        assert (
            changed[name] == value
            if name != "source"
            else changed[name]["prefix"] == value["prefix"]
        ), name
    same = (
        set(schedule)
        - set(change)
        - set(after)
        - {"updated_at", "source_location", "next_fire_at", "next_fire_local"}
    )
    assert {name: changed[name] for name in same} == {name: schedule[name] for name in same}
    assert get(api, path(schedule)) == changed


def test_another_file_takes_the_place_of_whatever_was_run(api: Api, clock: Clock) -> None:
    first, second = upload(api), upload(api)
    schedule = create(api, input_file_id=first)
    changed = api.ask("PATCH", path(schedule), {"template_file_id": second}).json
    assert (changed["input_file_id"], changed["template_file_id"]) == (None, second)
    run = post(api, path(changed, "run"))
    assert run["batch_id"] is not None
    assert get(api, f"/v1/batches/{run['batch_id']}")["input_file_id"] not in (first, second)
    assert api.ask("DELETE", f"/v1/files/{first}").status == 200


def test_changes_at_once_are_all_kept(api: Api, clock: Clock) -> None:
    schedule = create(api, input_file_id=upload(api))
    changes: list[dict[str, Any]] = [
        {"name": "Other"},
        {"jitter": 60},
        {"overlap": "allow"},
        {"misfire": "all"},
        {"misfire_limit": 7},
        {"catch_up_window": "3d"},
        {"pause_on_failure": 9},
        {"completion_window": "7d"},
        {"metadata": {"a": "b"}},
        {"input_file_id": upload(api)},
    ]
    with ThreadPoolExecutor(len(changes)) as threads:
        answers = list(
            threads.map(lambda change: api.ask("PATCH", path(schedule), change), changes)
        )
    assert [answer.status for answer in answers] == [200] * len(changes)
    found = get(api, path(schedule))
    assert [{name: found[name] for name in change} for change in changes] == changes


def in_transaction() -> int:
    """The number of sessions that are idle in a transaction."""
    with db.transaction() as session:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state ="
            " 'idle in transaction'"
        )
        return session.execute(text(waiting)).scalar_one()


def test_files_are_read_in_no_transaction_and_what_others_change_meanwhile_is_kept(
    api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    meanwhile: list[Callable[[], object]] = []

    def look(*_: object) -> None:
        seen.append(in_transaction())
        if meanwhile:
            meanwhile.pop()()

    monkeypatch.setattr(preflight, "check", look)
    schedule = create(api, input_file_id=upload(api))
    file = upload(api)
    meanwhile.append(
        lambda: api.ask("PATCH", path(schedule), {"name": "Other", "endpoint": RERANK})
    )
    changed = api.ask("PATCH", path(schedule), {"input_file_id": file}).json
    assert (changed["input_file_id"], changed["name"], changed["endpoint"]) == (
        file,
        "Other",
        RERANK,
    )
    # The creation, the change, the concurrent change, and the first change again, because the
    # endpoint is another one by then.
    assert seen == [0] * 4


def test_a_sources_folder_is_looked_at_in_no_transaction_and_only_when_the_source_changes(
    api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(sources, "check", lambda *_: seen.append(in_transaction()))
    schedule = create(api, source={"prefix": "in"})
    api.ask("PATCH", path(schedule), {"name": "Other", "cron": "0 3 * * *"})
    assert (
        api.ask("PATCH", path(schedule), {"source": {"prefix": "other"}}).json["source"]["prefix"]
        == "other"
    )
    assert seen == [0, 0]


def test_a_file_that_a_schedule_uses_cannot_be_deleted(api: Api, clock: Clock) -> None:
    file = upload(api)
    schedule = create(api, input_file_id=file)
    answer = api.ask("DELETE", f"/v1/files/{file}")
    assert (answer.status, answer.error["code"]) == (400, "file_in_use")
    assert schedule["id"] in answer.error["message"]
    assert schedule["name"] in answer.error["message"]
    assert api.ask("DELETE", path(schedule)).status == 200
    assert api.ask("DELETE", f"/v1/files/{file}").status == 200


ROUTES = [
    ("POST", "", "submit"),
    ("GET", "", "read"),
    ("POST", "/preview", "read"),
    ("GET", "/{id}", "read"),
    ("PATCH", "/{id}", "submit"),
    ("DELETE", "/{id}", "submit"),
    ("GET", "/{id}/runs", "read"),
    ("GET", "/{id}/preview", "read"),
    ("POST", "/{id}/pause", "submit"),
    ("POST", "/{id}/resume", "submit"),
    ("POST", "/{id}/run", "submit"),
    ("POST", "/{id}/backfill", "submit"),
    ("POST", "/{id}/requests", "submit"),
]


def ask(api: Api, method: str, route: str, id: str, **options: Any) -> Answer:
    bodies = {
        "": NIGHTLY,
        "/preview": {"cron": "@daily"},
        "/{id}/backfill": {"from": 0, "to": 1},
        "/{id}/requests": LINE,
    }
    body = bodies.get(route, {}) if method in ("POST", "PATCH") else None
    return api.ask(method, f"/v1/schedules{route}".replace("{id}", id), body, **options)


@pytest.mark.parametrize(("method", "route", "scope"), ROUTES)
def test_a_key_without_the_scope_is_403_and_none_is_401(
    api: Api, method: str, route: str, scope: str
) -> None:
    others = [other.value for other in accounts.Scope if other != scope]
    answer = ask(api, method, route, "sched_1", key=new_key(scopes=others))
    assert (answer.status, answer.error["type"]) == (403, "permission_error")
    assert ask(api, method, route, "sched_1", key=None).status == 401


@pytest.mark.parametrize(
    ("method", "route"), [(method, route) for method, route, _ in ROUTES if "{id}" in route]
)
def test_another_account_the_other_mode_and_no_such_id_are_404(
    api: Api, method: str, route: str
) -> None:
    with db.transaction() as session:
        account = factories.account(session)
        mine, live = factories.key(session, account), factories.key(session, account, livemode=True)
    schedule = create(Api(api.port, mine))
    for key, id in [
        (api.key, schedule["id"]),
        (live, schedule["id"]),
        (mine, "sched_1"),
        (mine, schedule["id"].replace("sched_", "batch_")),
        (mine, "%00"),
        (mine, "%ff"),
    ]:
        answer = ask(api, method, route, id, key=key, headers={"idempotency-key": "k"})
        assert (answer.status, answer.error["type"], answer.error["param"]) == (
            404,
            "not_found_error",
            "schedule_id",
        ), (key, id)
    assert get(Api(api.port, mine), path(schedule)) == schedule


def test_a_schedule_fires_in_its_own_mode(
    api: Api, clock: Clock, configure: Callable[..., None], tmp_path: Path
) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        '[models.mistral-small-3-1.backend]\nbase_url = "http://127.0.0.1:9/v1"\n', "utf-8"
    )
    configure(catalog=catalog)
    with db.transaction() as session:
        live = Api(api.port, factories.key(session, livemode=True))
    file = live.upload(factories.jsonl([LINE]))["id"]
    create(live, input_file_id=file)
    clock.set(NIGHT)
    fire.run()
    with db.transaction() as session:
        assert [batch.livemode for batch in session.query(Batch)] == [True]


def test_a_source_says_where_its_objects_are_to_be_put(api: Api, clock: Clock) -> None:
    schedule = create(api, source={"prefix": "exports/{{scheduled_date}}"})
    folder = storage.folder() / schedule["source_location"].replace(
        "{{scheduled_date}}", f"{clock.now():%Y-%m-%d}"
    )
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(factories.jsonl([factories.chat_line("a")]))
    run = api.ask("POST", path(schedule, "run")).json
    assert (run["state"], [Path(entry["path"]).name for entry in run["manifest"]]) == (
        "running",
        ["a.jsonl"],
    )
    assert create(api)["source_location"] is None


def test_a_run_whose_batch_waits_for_its_execution_window_says_so(api: Api, clock: Clock) -> None:
    schedule = create(api, execution_window={"start": "22:00", "end": "06:00"})
    api.ask("POST", path(schedule, "requests"), factories.chat_line("a"))
    run = api.ask("POST", path(schedule, "run"), {"as_of": "2026-11-20T02:30"}).json
    assert (run["state"], run["reason"]) == ("running", "execution_window")
    assert "T22:00:00+01:00" in run["message"]
    assert run["as_of"] == int(datetime(2026, 11, 20, 1, 30, tzinfo=UTC).timestamp())
    clock.set(datetime(2026, 11, 24, 21, 30, tzinfo=UTC))
    [shown] = get(api, path(schedule, "runs?state=running"))["data"]
    assert (shown["reason"], shown["message"]) == (None, None)


def test_pausing_again_without_a_note_keeps_the_note(api: Api, clock: Clock) -> None:
    schedule = create(api)
    for body, note in (
        ({"note": "migration"}, "migration"),
        ({}, "migration"),
        ({"note": "longer"}, "longer"),
    ):
        assert api.ask("POST", path(schedule, "pause"), body).json["pause_note"] == note
