"""Requests that are POSTed to a schedule: checked as they arrive, and in its next run's batch."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from tests import factories
from tests.integration.conftest import Answer, Api
from xalen_batch import db, ids
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.pipeline import validate
from xalen_batch.schedules import fire

NIGHTLY = {
    "name": "Nightly digest",
    "cron": "30 2 * * *",
    "timezone": "Europe/Berlin",
    "endpoint": CHAT,
    "inbox": {},
}
A, B, C = (factories.chat_line(name) for name in "abc")
JSONL = {"content-type": "application/jsonl"}


@pytest.fixture
def schedule(api: Api) -> str:
    """The path of a schedule with an inbox."""
    return create(api)


def create(api: Api, **fields: Any) -> str:
    answer = api.ask("POST", "/v1/schedules", {**NIGHTLY, **fields})
    assert answer.status == 200, answer.body
    return f"/v1/schedules/{answer.json['id']}"


def send(api: Api, schedule: str, body: Any, **headers: str) -> Answer:
    return api.ask("POST", f"{schedule}/requests", body, headers=headers)


def counts(answer: Answer) -> tuple[int, int, int]:
    assert answer.status == 200, answer.body
    return answer.json["accepted"], answer.json["known"], answer.json["pending"]


def pending(api: Api, schedule: str) -> int:
    waiting: int = api.ask("GET", schedule).json["inbox"]["pending"]
    return waiting


def refused(answer: Answer, code: str | None, param: str | None = None) -> str:
    assert (answer.status, answer.error["type"], answer.error["code"], answer.error["param"]) == (
        400,
        "invalid_request_error",
        code,
        param,
    )
    message: str = answer.error["message"]
    return message


def test_one_or_many_wait_for_the_next_run_and_what_is_known_is_not_added_again(
    api: Api, schedule: str
) -> None:
    found = api.ask("GET", schedule).json
    first = send(api, schedule, A)
    assert first.json == {
        "object": "schedule.requests",
        "schedule_id": found["id"],
        "accepted": 1,
        "known": 0,
        "pending": 1,
        "next_fire_at": found["next_fire_at"],
    }
    assert counts(send(api, schedule, [A, B])) == (1, 1, 2)
    assert counts(send(api, schedule, {"requests": [B, C]})) == (1, 1, 3)
    assert counts(
        send(
            api, schedule, json.dumps(A, indent=4).encode(), **{"content-type": "application/json"}
        )
    ) == (0, 1, 3)
    assert pending(api, schedule) == 3


@pytest.mark.parametrize(
    "kind",
    [
        "application/jsonl",
        "application/x-ndjson",
        "application/jsonlines",
        "application/json-lines",
        "text/plain; charset=utf-8",
    ],
)
def test_lines_are_known_by_their_content_type(api: Api, schedule: str, kind: str) -> None:
    assert counts(send(api, schedule, factories.jsonl([A, B]), **{"content-type": kind})) == (
        2,
        0,
        2,
    )


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/x-www-form-urlencoded",
        "",
    ],
)
def test_anything_else_is_json(api: Api, schedule: str, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    assert counts(send(api, schedule, json.dumps([A, B]).encode(), **headers)) == (2, 0, 2)


def test_what_was_sent_is_the_input_of_the_next_run_and_later_ones_wait_for_the_one_after(
    api: Api, schedule: str
) -> None:
    numbers = json.dumps(B)[:-2].encode() + b', "temperature": 0.10, "seed": 18446744073709551617}}'
    send(api, schedule, [C, A])
    send(api, schedule, numbers, **JSONL)
    run = api.ask("POST", f"{schedule}/run").json
    assert counts(send(api, schedule, A)) == (1, 0, 1)
    batch = api.ask("GET", f"/v1/batches/{run['batch_id']}").json
    assert (
        api.ask("GET", f"/v1/files/{batch['input_file_id']}/content").error["code"]
        == "file_not_ready"
    )
    batch_id = ids.parse("batch", batch["id"])
    assert batch_id is not None
    validate.run(batch_id)
    content = api.ask("GET", f"/v1/files/{batch['input_file_id']}/content").body.splitlines()
    assert [json.loads(line) for line in content[:2]] == [C, A]
    assert content[2].endswith(b'"temperature":0.10,"seed":18446744073709551617}}')
    assert pending(api, schedule) == 1


def test_one_wrong_request_refuses_all_and_is_named(api: Api, schedule: str) -> None:
    wrong = factories.chat_line("b", model="gpt-9")
    assert "Request 2 (custom_id 'b')" in refused(
        send(api, schedule, [A, wrong]), "model_not_found", "[1].body.model"
    )
    assert "Line 2 (custom_id 'b')" in refused(
        send(api, schedule, factories.jsonl([A, wrong]), **JSONL), "model_not_found", "body.model"
    )
    assert "used on line 1" in refused(
        send(api, schedule, factories.jsonl([A, A]), **JSONL), "duplicate_custom_id", "custom_id"
    )
    assert pending(api, schedule) == 0
    send(api, schedule, A)
    refused(
        send(api, schedule, [B, factories.chat_line("a", "Another question?")]),
        "duplicate_custom_id",
        "custom_id",
    )
    assert pending(api, schedule) == 1


@pytest.mark.parametrize("kind", ["application/json", "application/jsonl"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"[]",
        b'{"requests": []}',
        b'{"requests": 7}',
        b"7",
        b"null",
        b'"text"',
        b"[[]]",
        b"[null]",
        b"{",
        b"\xff\xfe{\x00",
        b"\x1f\x8b\x08",
        b"\x00",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        json.dumps({**A, "custom_id": "a\0"}).encode(),
        json.dumps({**A, "custom_id": "\ud800"}).encode(),
        json.dumps({**A, "custom_id": 1}).encode(),
        json.dumps({**A, "body": "x"}).encode(),
        json.dumps({**A, "url": RERANK}).encode(),
        json.dumps(A).encode()[:-1] + b', "body": {}}',
        json.dumps(A).encode()[:-2] + b', "temperature": NaN}}',
        json.dumps(A).encode()[:-2] + b', "temperature": 1e999}}',
        json.dumps(A).encode()[:-2] + b', "max_tokens": ' + b"9" * 9_000 + b"}}",
        json.dumps(A).encode()[:-2]
        + b', "metadata": '
        + b'{"a":' * 5_000
        + b"1"
        + b"}" * 5_000
        + b"}}",
        json.dumps(A).encode() + b"\xff",
    ],
    ids=lambda body: body[:40].decode("ascii", "backslashreplace"),
)
def test_whatever_is_no_request_is_400(api: Api, schedule: str, kind: str, body: bytes) -> None:
    answer = send(api, schedule, body, **{"content-type": kind})
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error"), answer.body
    assert len(answer.error["message"]) < 1_000
    assert pending(api, schedule) == 0


def test_a_body_may_be_larger_than_others_but_not_too_large(
    api: Api, schedule: str, configure: Any
) -> None:
    configure(max_json_bytes=1_000, max_inbox_bytes=20_000)
    assert counts(send(api, schedule, factories.chat_line("a", "x" * 15_000))) == (1, 0, 1)
    answer = send(api, schedule, factories.chat_line("b", "x" * 20_000))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert "20,000 bytes" in answer.error["message"]
    assert api.ask("PATCH", schedule, {"name": "x" * 15_000}).status == 413
    packed = send(
        api, schedule, gzip.compress(json.dumps(B).encode()), **{"content-encoding": "gzip"}
    )
    assert (packed.status, packed.error["code"]) == (415, "unsupported_content_encoding")


def test_a_paused_schedule_takes_requests_and_one_without_an_inbox_or_a_future_does_not(
    api: Api, schedule: str
) -> None:
    api.ask("POST", f"{schedule}/pause")
    answer = send(api, schedule, A)
    assert (counts(answer), answer.json["next_fire_at"]) == ((1, 0, 1), None)
    file = api.upload(factories.jsonl([A]))["id"]
    refused(send(api, create(api, inbox=None, input_file_id=file), A), "no_inbox")
    ended = create(api, ends_at=4_000_000_000)
    with db.transaction() as session:
        session.execute(
            text("UPDATE schedules SET status = 'ended', next_fire_at = NULL WHERE id = :id"),
            {"id": ended[-32:]},
        )
    refused(send(api, ended, A), "schedule_ended")


def test_a_full_inbox_takes_no_more_until_its_next_run(
    api: Api, schedule: str, configure: Any
) -> None:
    configure(max_batch_lines=2)
    send(api, schedule, [A, B])
    refused(send(api, schedule, C), "inbox_full")
    assert counts(send(api, schedule, B)) == (0, 1, 2)
    api.ask("POST", f"{schedule}/run")
    assert counts(send(api, schedule, C)) == (1, 0, 1)


def test_requests_that_wait_are_not_left_behind_when_the_schedule_changes_or_goes(
    api: Api, schedule: str
) -> None:
    send(api, schedule, [A, B])
    file = api.upload(factories.jsonl([A]))["id"]
    assert "2 requests" in refused(
        api.ask("PATCH", schedule, {"input_file_id": file}), "inbox_not_empty", "inbox"
    )
    refused(api.ask("PATCH", schedule, {"endpoint": RERANK}), "inbox_not_empty", "endpoint")
    refused(api.ask("DELETE", schedule), "inbox_not_empty", "discard_requests")
    assert api.ask("PATCH", schedule, {"name": "Other", "cron": "@daily"}).status == 200
    assert pending(api, schedule) == 2
    assert api.ask("DELETE", f"{schedule}?discard_requests=true").json["discarded_requests"] == 2
    emptied = create(api)
    send(api, emptied, A)
    api.ask("POST", f"{emptied}/run")
    assert api.ask("PATCH", emptied, {"input_file_id": file}).json["inbox"] is None


def test_a_request_that_arrives_while_the_inbox_goes_is_refused_or_keeps_it(api: Api) -> None:
    file = api.upload(factories.jsonl([A]))["id"]
    with ThreadPoolExecutor(6) as threads:
        for number in range(10):
            schedule = create(api)
            way = (
                ("PATCH", schedule, {"input_file_id": file}) if number % 2 else ("DELETE", schedule)
            )
            sent = [
                threads.submit(send, api, schedule, factories.chat_line(str(line)))
                for line in range(3)
            ]
            gone = threads.submit(api.ask, *way)
            sent += [
                threads.submit(send, api, schedule, factories.chat_line(str(line)))
                for line in range(3, 5)
            ]
            accepted = sum(answer.result().status == 200 for answer in sent)
            assert gone.result().status == (400 if accepted else 200), (number, accepted)
            if accepted:
                assert pending(api, schedule) == accepted


def test_requests_sent_while_it_runs_are_each_in_one_run_or_wait(api: Api, schedule: str) -> None:
    def one(number: int) -> int:
        if number % 7 == 3:
            api.ask("POST", f"{schedule}/run")
            fire.run()
        return send(api, schedule, factories.chat_line(str(number))).json["accepted"]  # type: ignore[no-any-return]

    api.ask("PATCH", schedule, {"overlap": "allow"})
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(one, range(60))) == 60
    with db.transaction() as session:
        rows = session.execute(text("SELECT custom_id, run_id IS NULL FROM inbox_requests")).all()
    assert sorted(int(custom_id) for custom_id, _ in rows) == list(range(60))
    assert pending(api, schedule) == sum(waits for _, waits in rows) < 60
