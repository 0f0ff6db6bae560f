"""Retries over HTTP: the routes, the idempotency key, and the merged file."""

import json

import pytest
from sqlalchemy import select

from tests import ran
from tests.integration.conftest import Api
from tests.ran import BUSY, answered
from xalen import XALEN
from xalen_batch import db, ids
from xalen_batch.accounts import accounts
from xalen_batch.models import Batch, WebhookEndpoint
from xalen_batch.pipeline import validate


@pytest.fixture
def first(api: Api) -> Batch:
    with db.transaction() as session:
        caller = accounts.authenticate(session, api.key)
    return ran.ended({"one": answered(), "two": BUSY, "three": None}, caller)


def path(batch: Batch, *rest: str) -> str:
    return "/".join(["/v1/batches", ids.render("batch", batch.id), *rest])


def test_a_retry_is_a_batch_that_names_the_first(api: Api, first: Batch) -> None:
    made = api.ask("POST", path(first, "retry")).json
    assert (made["object"], made["status"]) == ("batch", "validating")
    assert made["retry_of"] == ids.render("batch", first.id)
    assert made["retry_codes"] == ["batch_cancelled", "http_503"]
    listed = api.ask("GET", path(first, "retries")).json
    assert [batch["id"] for batch in listed["data"]] == [made["id"]]
    assert listed["has_more"] is False
    assert api.ask("GET", path(first)).json["retry_of"] is None
    # OpenAI's client parses it.
    assert api.client.batches.retrieve(made["id"]).status == "validating"


def test_options_of_a_retry(api: Api, first: Batch) -> None:
    asked = {"codes": ["http_503"], "completion_window": "2h", "metadata": {"again": "yes"}}
    made = api.ask("POST", path(first, "retry"), asked).json
    assert made["retry_codes"] == ["http_503"]
    assert (made["completion_window"], made["metadata"]) == ("2h", {"again": "yes"})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"codes": []}, "codes"),
        ({"codes": "http_503"}, "codes"),
        ({"code": ["http_503"]}, "code"),
        ({"codes": ["http_999"]}, "codes"),
        ({"completion_window": "soon"}, "completion_window"),
    ],
)
def test_a_wrong_request_is_refused_with_its_field(
    api: Api, first: Batch, body: dict, param: str
) -> None:
    answer = api.ask("POST", path(first, "retry"), body)
    assert answer.status == 400
    assert str(answer.error["param"]).startswith(param)


def test_the_same_key_creates_one_retry(api: Api, first: Batch) -> None:
    headers = {"idempotency-key": "again"}
    answers = [api.ask("POST", path(first, "retry"), headers=headers) for _ in range(2)]
    assert answers[0].json["id"] == answers[1].json["id"]
    assert answers[1].headers["idempotent-replayed"] == "true"
    other = api.ask("POST", path(first, "retry"), {"codes": ["http_503"]}, headers=headers)
    assert other.error["code"] == "idempotency_key_reused"
    # Without the key the lines are taken already.
    assert api.ask("POST", path(first, "retry")).error["code"] == "already_retried"


def test_a_retry_may_have_a_webhook_of_its_own(api: Api, first: Batch) -> None:
    inside = {"webhook": {"url": "https://127.0.0.1/hooks"}}
    refused = api.ask("POST", path(first, "retry"), inside)
    assert (refused.status, refused.error["param"]) == (400, "webhook.url")
    made = api.ask("POST", path(first, "retry"), {"webhook": {"url": "https://example.com/hooks"}})
    assert made.status == 200, made.body
    with db.reading() as session:
        (webhook,) = session.scalars(select(WebhookEndpoint)).all()
    assert ids.render("batch", webhook.batch_id or ids.new()) == made.json["id"]
    assert webhook.url == "https://example.com/hooks"


def test_the_merged_file_has_every_line_once(api: Api, first: Batch) -> None:
    made = api.ask("POST", path(first, "retry")).json
    batch_id = ids.parse("batch", made["id"])
    assert batch_id is not None
    validate.run(batch_id)
    answer = api.ask("GET", path(first, "output?merged=true"))
    assert answer.headers["x-batch-complete"] == "false"
    ran.end(batch_id, {"two": answered("again"), "three": answered("again")})
    answer = api.ask("GET", path(first, "output?merged=true"))
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert [(line["custom_id"], line["response"]["body"]["text"]) for line in lines] == [
        ("one", "yes"),
        ("two", "again"),
        ("three", "again"),
    ]
    assert answer.headers["x-batch-complete"] == "true"
    assert f"{ids.render('batch', first.id)}_merged.jsonl" in answer.headers["content-disposition"]


def test_the_merged_errors_are_the_lines_that_failed_in_all_retries(api: Api, first: Batch) -> None:
    made = api.ask("POST", path(first, "retry")).json
    batch_id = ids.parse("batch", made["id"])
    assert batch_id is not None
    validate.run(batch_id)
    ran.end(batch_id, {"two": answered("again"), "three": ran.BUSY})
    answer = api.ask("GET", path(first, "errors?merged=true"))
    (line,) = [json.loads(line) for line in answer.body.splitlines()]
    assert (line["custom_id"], line["id"][:42]) == ("three", f"batch_req_{batch_id.hex}")
    assert "_merged_errors.jsonl" in answer.headers["content-disposition"]
    # Without `merged`, those of the first batch alone.
    own = api.ask("GET", path(first, "errors")).body.splitlines()
    assert len(own) == 2


def test_the_python_client_gives_the_last_result_of_each_line(api: Api, first: Batch) -> None:
    name = ids.render("batch", first.id)
    with XALEN(base_url=f"http://127.0.0.1:{api.port}/v1", api_key=api.key) as client:
        retry = client.batches.retry(name, webhook={"url": "https://example.com/hooks"})
        assert [each.url for each in client.webhooks.endpoints.list(batch_id=retry.id)] == [
            "https://example.com/hooks"
        ]
        batch_id = ids.parse("batch", retry.id)
        assert batch_id is not None
        validate.run(batch_id)
        ran.end(batch_id, {"two": answered("again"), "three": BUSY})
        assert [batch.id for batch in client.batches.retries(name)] == [retry.id]
        results = client.batches.wait(name, merged=True)
        found = list(results)
    assert results.batch.id == name
    assert [result.custom_id for result in found] == ["one", "two", "three"]
    assert [result.response and result.response.text for result in found] == ["yes", "again", None]
    assert found[2].error is not None
    assert found[2].error.status_code == 503
