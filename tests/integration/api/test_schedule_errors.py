"""An invalid request about schedules gets an error in the envelope that names the field and the
remedy, and changes nothing.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from tests import factories
from tests.integration.conftest import Answer, Api
from xalen_batch import db
from xalen_batch.config import settings
from xalen_batch.endpoints.names import CHAT

NIGHTLY = {
    "name": "Nightly digest",
    "cron": "30 2 * * *",
    "timezone": "Europe/Berlin",
    "endpoint": CHAT,
    "inbox": {},
}
DEEP: Any = {}
for _ in range(900):
    DEEP = {"a": DEEP}
KEY = {"idempotency-key": "nightly-1"}
LINE = factories.chat_line("a")


def create(api: Api, **fields: Any) -> str:
    answer = api.ask("POST", "/v1/schedules", {**NIGHTLY, **fields})
    assert answer.status == 200, answer.body
    id: str = answer.json["id"]
    return f"/v1/schedules/{id}"


# Invalid definitions: (fields, the field that the error names, words of its message).
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"name": ""}, "name", "at least 1 character"),
    ({"name": " \t"}, "name", "at least 1 character"),
    ({"name": "n" * 201}, "name", "at most 200"),
    ({"name": "a\0b"}, "name", "NUL"),
    ({"name": "a\ud800"}, "name", "unicode"),
    ({"name": None}, "name", "valid string"),
    ({"cron": "30 2 * *"}, "cron", "five fields"),
    ({"cron": "0 0 30 2 *"}, "cron", "never fires"),
    ({"cron": "@noon"}, "cron", "@daily"),
    ({"cron": "61 2 * * *"}, "cron", "minute"),
    ({"cron": "* * * * *"}, "cron", "5 minutes"),
    ({"cron": "\0"}, "cron", "NUL"),
    ({"cron": "*" * 100_000}, "cron", "most is 200"),
    ({"cron": 5}, "cron", "valid string"),
    ({"timezone": "Europe/Berln"}, "timezone", "Europe/Berlin"),
    ({"timezone": "../../etc/passwd"}, "timezone", "no IANA time zone"),
    (
        {"timezone": "Mars/X", "execution_window": {"start": "22:00", "end": "06:00"}},
        "timezone",
        "no IANA time zone",
    ),
    ({"timezone": ["UTC"]}, "timezone", "valid string"),
    ({"starts_at": "tomorrow"}, "starts_at", "ISO 8601"),
    ({"starts_at": "0001-01-01T00:00:00+14:00"}, "starts_at", "1970"),
    ({"starts_at": -1}, "starts_at", "1970"),
    ({"starts_at": True}, "starts_at", "ISO 8601"),
    ({"starts_at": float("nan")}, "starts_at", "ISO 8601"),
    ({"starts_at": float("inf")}, "starts_at", "ISO 8601"),
    ({"starts_at": 10**9 * 31_556_952}, "starts_at", "ISO 8601"),
    ({"starts_at": 10**400}, "starts_at", "ISO 8601"),
    ({"starts_at": {}}, "starts_at", "ISO 8601"),
    ({"ends_at": "9999-12-31T23:59:59-12:00"}, "ends_at", "2999"),
    ({"ends_at": "2020-01-01"}, "ends_at", "no fire left"),
    ({"jitter": -1}, "jitter", "greater than or equal to 0"),
    ({"jitter": 901}, "jitter", "900"),
    ({"jitter": 1.5}, "jitter", "integer"),
    ({"jitter": 10**400}, "jitter", "900"),
    ({"cron": "*/10 * * * *", "jitter": 600}, "jitter", "10 minutes"),
    ({"inbox": None}, "input_file_id", "none is given"),
    ({"input_file_id": "file-1", "inbox": {}}, "input_file_id", "input_file_id and inbox"),
    ({"inbox": None, "input_file_id": "file-1"}, "input_file_id", "no file"),
    ({"inbox": None, "input_file_id": "batch_" + "0" * 32}, "input_file_id", "no file"),
    ({"inbox": None, "template_file_id": "file-" + "0" * 32}, "template_file_id", "no file"),
    ({"inbox": None, "template_file_id": {"id": 1}}, "template_file_id", "valid string"),
    ({"inbox": None, "source": {}}, "source", "prefix"),
    ({"inbox": None, "source": {"prefix": "a", "folder": "/b"}}, "source", "either"),
    ({"inbox": None, "source": {"folder": "/etc"}}, "source.folder", "XALEN_DROP_ROOTS"),
    ({"inbox": None, "source": {"prefix": "../other"}}, "source.prefix", "../other"),
    ({"inbox": None, "source": {"prefix": "/absolute"}}, "source.prefix", "/absolute"),
    ({"inbox": None, "source": {"prefix": "{{scheduled_dat}}"}}, "source.prefix", "scheduled_dat"),
    (
        {"inbox": None, "source": {"prefix": "a", "on_empty": "wait"}},
        "source.on_empty",
        "'skip' or 'fail'",
    ),
    ({"inbox": None, "source": {"prefix": "a\0"}}, "source.prefix", "NUL"),
    ({"inbox": None, "source": []}, "source", "should be an object"),
    ({"inbox": True}, "inbox", "should be an object"),
    ({"endpoint": "/v1/moderations"}, "endpoint", "/v1/rerank"),
    ({"completion_window": "8d"}, "completion_window", "1h"),
    ({"metadata": {"a": 1}}, "metadata.a", "valid string"),
    ({"metadata": DEEP}, "metadata.a", "valid string"),
    ({"metadata": {"a": "\udfff"}}, "metadata.a", "unicode"),
    ({"cron": "\udfff"}, "cron", "lone surrogates"),
    (
        {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
        "output_expires_after.seconds",
        "3600",
    ),
    ({"execution_window": {"start": "24:00", "end": "06:00"}}, "execution_window.start", "24:00"),
    ({"execution_window": {"start": "22:00", "end": "22:00"}}, "execution_window", "another time"),
    (
        {
            "execution_window": {"start": "22:00", "end": "06:00", "days": ["mon"]},
            "completion_window": "1d",
        },
        "execution_window",
        "not open before the batch expires",
    ),
    ({"overlap": "maybe"}, "overlap", "'buffer_one'"),
    ({"misfire": None}, "misfire", "'latest'"),
    ({"misfire": "all", "overlap": "cancel_previous"}, "overlap", "buffer_one"),
    ({"misfire_limit": 0}, "misfire_limit", "greater than or equal to 1"),
    ({"catch_up_window": "31d"}, "catch_up_window", "30d"),
    ({"pause_on_failure": 0}, "pause_on_failure", "greater than or equal to 1"),
    ({"crom": "30 2 * * *"}, "crom", "Did you mean `cron`?"),
    ({"prefix": "nightly"}, "prefix", "Did you mean `source.prefix`?"),
    ({"inbox": {"on_emty": "fail"}}, "inbox.on_emty", "`inbox.on_empty`"),
    ({"status": "paused"}, "status", "Unknown parameter: `status`"),
    ({"x" * 100_000: 1}, "x" * 200, "Unknown parameter"),
]


def told(answer: Answer, param: str | None, words: str) -> None:
    assert (answer.status, answer.error["type"], answer.error["param"]) == (
        400,
        "invalid_request_error",
        param,
    ), answer.body
    assert words in answer.error["message"]
    assert len(answer.error["message"]) < 700


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    WRONG,
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_400_and_named_when_a_schedule_is_made_and_when_it_is_changed(
    api: Api, fields: dict[str, Any], param: str, words: str
) -> None:
    sent = {
        name: value
        for name, value in {**NIGHTLY, **fields}.items()
        if name != "inbox" or value is not None
    }
    told(api.ask("POST", "/v1/schedules", sent), param, words)
    assert api.ask("GET", "/v1/schedules").json["data"] == []
    if fields == {"misfire": None}:
        return
    schedule = create(api)
    before = api.ask("GET", schedule).body
    told(api.ask("PATCH", schedule, fields), param, words)
    assert api.ask("GET", schedule).body == before


@pytest.mark.parametrize("name", ["name", "cron", "endpoint"])
def test_what_is_needed_is_named_where_it_is_missing_and_cannot_be_cleared(
    api: Api, name: str
) -> None:
    answer = api.ask(
        "POST", "/v1/schedules", {key: value for key, value in NIGHTLY.items() if key != name}
    )
    assert (answer.status, answer.error["code"], answer.error["param"]) == (
        400,
        "missing_required_parameter",
        name,
    )
    answer = api.ask("PATCH", create(api), {name: None})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (
        400,
        "invalid_value",
        name,
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'"text"',
        b"\xff\xfe{\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"7" * 9_000,
    ],
)
@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("POST", ""),
        ("POST", "/preview"),
        ("PATCH", "/{id}"),
        ("POST", "/{id}/backfill"),
        ("POST", "/{id}/pause"),
        ("POST", "/{id}/requests"),
    ],
)
def test_a_body_that_is_no_json_object_is_400(
    api: Api, method: str, route: str, body: bytes
) -> None:
    path = f"/v1/schedules{route}".replace("/v1/schedules/{id}", create(api))
    answer = api.ask(method, path, body, headers={"content-type": "application/json"})
    if route == "/{id}/pause" and body in (b"", b"null"):
        assert answer.json["status"] == "paused"
    else:
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("method", "route", "body", "param", "words"),
    [
        ("POST", "/{id}/pause", {"note": "n" * 501}, "note", "501 characters"),
        ("POST", "/{id}/pause", {"note": "\0"}, "note", "NUL"),
        ("POST", "/{id}/pause", {"note": 7}, "note", "valid string"),
        ("POST", "/{id}/pause", {"reason": "x"}, "reason", "Unknown parameter"),
        ("POST", "/{id}/backfill", {"from": "2020-11-01"}, "to", "Missing"),
        ("POST", "/{id}/backfill", {"from": 10**12 * 10**6, "to": 0}, "from", "ISO 8601"),
        ("POST", "/{id}/backfill", {"from": -5, "to": 0}, "from", "1970"),
        (
            "POST",
            "/{id}/backfill",
            {"from": "2020-11-08", "to": "2020-11-01", "until": 1},
            "until",
            "Unknown parameter",
        ),
        ("POST", "/preview", {"cron": "* * * * *"}, "cron", "5 minutes"),
        (
            "POST",
            "/preview",
            {"cron": "@daily", "timezone": "CEST"},
            "timezone",
            "no IANA time zone",
        ),
        ("POST", "/preview", {"cron": "@daily", "endpoint": CHAT}, "endpoint", "Unknown parameter"),
        ("POST", "/preview?count=0", {"cron": "@daily"}, "count", "greater than or equal to 1"),
        ("GET", "/{id}/preview?count=101", None, "count", "less than or equal to 100"),
        ("GET", "/{id}/runs?state=done", None, "state", "'succeeded'"),
        ("GET", "/{id}/runs?limit=0", None, "limit", "greater than"),
        ("GET", "/{id}/runs?after=batch_1", None, "after", "not the id of a run"),
        ("GET", "?status=deleted", None, "status", "'paused'"),
        ("GET", "?after=run_1", None, "after", "not the id"),
        ("GET", "?after=%00", None, "after", "not the id"),
        ("DELETE", "/{id}?discard_requests=perhaps", None, "discard_requests", "true or false"),
    ],
)
def test_what_a_route_cannot_take_is_400_and_named(
    api: Api, method: str, route: str, body: dict[str, Any] | None, param: str, words: str
) -> None:
    schedule = create(api)
    told(
        api.ask(method, f"/v1/schedules{route}".replace("/v1/schedules/{id}", schedule), body),
        param,
        words,
    )
    assert api.ask("GET", f"{schedule}/runs").json["data"] == []


@pytest.mark.parametrize(
    ("start", "end", "param", "words"),
    [
        ("2020-11-08", "2020-11-01", "from", "not before `to`"),
        (2_000_000_000, 2_100_000_000, "from", "no instant"),
        ("2020-11-01T03:00", "2020-11-02T02:00", "from", "no instant"),
        ("2000-01-01", "2020-01-01", "to", "more than 100"),
        ("2999-01-01", "2999-12-31", "from", "no instant"),
    ],
)
def test_a_backfill_without_instants_or_with_too_many_is_400(
    api: Api, start: Any, end: Any, param: str, words: str
) -> None:
    schedule = create(api, inbox=None, input_file_id=api.upload(factories.jsonl([LINE]))["id"])
    told(api.ask("POST", f"{schedule}/backfill", {"from": start, "to": end}), param, words)


def test_an_inbox_has_nothing_to_backfill(api: Api) -> None:
    told(
        api.ask("POST", f"{create(api)}/backfill", {"from": "2020-11-01", "to": "2020-11-08"}),
        "from",
        "inbox",
    )


def test_a_second_run_at_once_is_400_and_says_what_to_do(api: Api) -> None:
    schedule = create(api, inbox=None, input_file_id=api.upload(factories.jsonl([LINE]))["id"])
    assert api.ask("POST", f"{schedule}/run").json["state"] == "running"
    answer = api.ask("POST", f"{schedule}/run")
    assert (answer.status, answer.error["code"]) == (400, "run_in_progress")
    assert len(api.ask("GET", f"{schedule}/runs").json["data"]) == 1


def test_a_file_that_would_fail_every_night_is_refused_before_the_first(api: Api) -> None:
    for field, lines, words in [
        ("input_file_id", [LINE, factories.chat_line("b", model="gpt-9")], "gpt-9"),
        ("template_file_id", [factories.chat_line("{{scheduled_dat}}")], "scheduled_dat"),
        ("input_file_id", [factories.rerank_line("a")], "url"),
    ]:
        file = api.upload(factories.jsonl(lines))["id"]
        told(
            api.ask("POST", "/v1/schedules", {**NIGHTLY, "inbox": None, field: file}), field, words
        )
    assert api.ask("GET", "/v1/schedules").json["data"] == []


POSTS = [
    ("", {**NIGHTLY}, {**NIGHTLY, "name": "Other"}),
    ("/{id}/run", None, None),
    (
        "/{id}/backfill",
        {"from": "2020-11-01", "to": "2020-11-02"},
        {"from": "2020-11-01", "to": "2020-11-03"},
    ),
    ("/{id}/requests", LINE, factories.chat_line("b")),
]


def prepared(api: Api, route: str) -> str:
    """The path of a schedule on which the route succeeds."""
    what: dict[str, Any] = {
        "inbox": None,
        "input_file_id": api.upload(factories.jsonl([LINE]))["id"],
    }
    schedule = create(api, overlap="allow", **({} if route == "/{id}/requests" else what))
    return f"/v1/schedules{route}".replace("/v1/schedules/{id}", schedule)


@pytest.mark.parametrize(("route", "body", "other"), POSTS)
def test_the_same_key_with_the_same_request_does_it_once(
    api: Api, route: str, body: Any, other: Any
) -> None:
    path, at_once = prepared(api, route), settings().long_requests_per_account
    with ThreadPoolExecutor(at_once) as threads:
        answers = list(
            threads.map(lambda _: api.ask("POST", path, body, headers=KEY), range(at_once))
        )
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    with db.transaction() as session:
        counts = [
            session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in ("schedules", "schedule_runs", "inbox_requests")
        ]
    assert (
        counts
        == {
            "": [2, 0, 0],
            "/{id}/run": [1, 1, 0],
            "/{id}/backfill": [1, 1, 0],
            "/{id}/requests": [1, 0, 1],
        }[route]
    )
    # With another schedule or another body, it is another request.
    for again, sent in [(prepared(api, route), body), (path, other)]:
        if (again, sent) != (path, body):
            answer = api.ask("POST", again, sent, headers=KEY)
            assert (answer.status, answer.error["code"]) == (400, "idempotency_key_reused")


def test_a_replay_needs_the_file_no_more(api: Api) -> None:
    file = api.upload(factories.jsonl([LINE]))["id"]
    request = {**NIGHTLY, "inbox": None, "input_file_id": file}
    first = api.ask("POST", "/v1/schedules", request, headers=KEY)
    assert (
        api.ask("DELETE", f"/v1/schedules/{first.json['id']}").status
        == api.ask("DELETE", f"/v1/files/{file}").status
        == 200
    )
    again = api.ask("POST", "/v1/schedules", request, headers=KEY)
    assert (again.status, again.body, again.headers["idempotent-replayed"]) == (
        200,
        first.body,
        "true",
    )
    told(api.ask("POST", "/v1/schedules", request), "input_file_id", "no file")
