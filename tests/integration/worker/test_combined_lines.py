"""Lines of embeddings through an engine: fewer requests, the same results and exact charges."""

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from tests import factories
from tests.factories import EMBEDDING_MODEL, embedding_line
from tests.integration.engines import charged, engine, lines_of, run_to_end
from xalen_batch import db
from xalen_batch.backends.clients.contract import Reply
from xalen_batch.backends.contract import Outcome, Request
from xalen_batch.backends.outcomes import outcome_of
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.billing import prices, reconcile
from xalen_batch.endpoints.names import EMBEDDINGS
from xalen_batch.models import Batch, Invoice
from xalen_batch.models.files import FilePart
from xalen_batch.pipeline import validate
from xalen_batch.worker.engine import Engine

__all__ = ["engine"]

pytestmark = pytest.mark.usefixtures("database", "valkey")

REFUSAL = b'{"error":{"message":"bad","type":"invalid_request_error","param":null,"code":null}}'


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The inputs of each request. A text with `bad` in it is refused, and one with `ill` is a 500.

    A text takes 7 tokens, and a request 3 more, so that shares have to be rounded.
    """
    requests: list[list[str]] = []

    async def send(self: SimulatedBackend, request: Request) -> Outcome:
        given = orjson.loads(request.body)["input"]
        inputs = given if isinstance(given, list) else [given]
        requests.append(inputs)
        if any("ill" in each for each in inputs):
            return outcome_of(Reply(500, b"{}", {}.get), request)
        if any("bad" in each for each in inputs):
            return outcome_of(Reply(400, REFUSAL, {}.get), request)
        data = [{"index": n, "embedding": [len(each)]} for n, each in enumerate(inputs)]
        answer = {"data": data, "usage": {"prompt_tokens": 7 * len(inputs) + 3}}
        return outcome_of(Reply(200, orjson.dumps(answer), {}.get), request)

    monkeypatch.setattr(SimulatedBackend, "send", send)
    return requests


def run(engine: Engine, lines: list[dict[str, Any]]) -> Batch:
    with db.transaction() as session:
        caller = factories.caller(session)
        batch_id = factories.batch(
            session,
            caller,
            factories.input_file(session, caller, lines),
            endpoint=EMBEDDINGS,
            price_snapshot=prices.snapshot(session, livemode=False, models=[EMBEDDING_MODEL]),
        ).id
    validate.run(batch_id)
    return run_to_end(engine, batch_id)


def test_each_line_has_its_vectors_and_the_charges_sum_to_what_was_reported(
    engine: Engine, asked: list[list[str]], configure: Callable[..., None]
) -> None:
    configure(task_lines=100)
    texts = [["x" * n, "y" * (n + 1)] if n % 5 == 0 else "z" * n for n in range(1, 101)]
    batch = run(engine, [embedding_line(f"id-{n}", text) for n, text in enumerate(texts)])
    assert (batch.status, batch.completed) == ("completed", 100)
    assert len(asked) < 20
    for line in lines_of(batch.id, FilePart.OUTPUT):
        text = texts[int(line["custom_id"].removeprefix("id-"))]
        body = line["response"]["body"]
        expected = [len(each) for each in ([text] if isinstance(text, str) else text)]
        assert [item["embedding"][0] for item in body["data"]] == expected
        assert [item["index"] for item in body["data"]] == list(range(len(expected)))
    reported = 7 * 120 + 3 * len(asked)
    assert batch.input_tokens == reported
    cost = reported * Decimal("0.003") / 1_000_000 / 2
    assert charged(batch.id) == cost
    with db.transaction() as session:
        assert session.scalar(select(Invoice.total).where(Invoice.batch_id == batch.id)) == cost
    assert list(reconcile.differences()) == []


def test_a_bad_line_and_one_that_breaks_the_server_fail_alone(
    engine: Engine, asked: list[list[str]], configure: Callable[..., None]
) -> None:
    configure(task_lines=100, max_attempts=2, retry_base=0.01, retry_cap=0.01)
    texts = [f"text {n}" for n in range(64)]
    texts[20], texts[50] = "bad", "ill"
    batch = run(engine, [embedding_line(f"id-{n}", text) for n, text in enumerate(texts)])
    assert (batch.completed, batch.failed) == (62, 2)
    failed = {line["custom_id"]: line for line in lines_of(batch.id, FilePart.ERROR)}
    assert failed["id-20"]["response"]["status_code"] == 400
    assert failed["id-50"]["response"]["status_code"] == 500
    # Each other line was in at most six failed requests and in one that was answered.
    sent = Counter(text for inputs in asked for text in inputs)
    assert max(sent[text] for text in texts if text not in ("bad", "ill")) <= 7
    assert list(reconcile.differences()) == []


def test_max_inputs_of_1_sends_each_line_alone(
    asked: list[list[str]], configure: Callable[..., None], tmp_path: Path, engine: Engine
) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(f"[models.{EMBEDDING_MODEL}.backend]\nmax_inputs = 1\n", "utf-8")
    configure(catalog=catalog)
    batch = run(engine, [embedding_line(f"id-{n}", f"text {n}") for n in range(20)])
    assert batch.completed == 20
    assert sorted(map(len, asked)) == [1] * 20
