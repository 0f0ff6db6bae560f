"""From the request that failed to the explanation of its line: attempts at a faulty model server."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete

from tests import factories, ran
from tests.conftest import as_owner
from tests.integration.backends.hostile import GOOD, Hostile, reply
from tests.integration.backends.hostile_backend import engine, server
from tests.integration.engines import a_batch, chat_lines, expire_leases, run_to_end
from tests.waiting import wait_until
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Caller
from xalen_batch.api.lines import LineObject
from xalen_batch.models import Batch, LineAttempts, Result
from xalen_batch.pipeline import claim, recover
from xalen_batch.results import explain
from xalen_batch.worker.engine import Engine

__all__ = ["engine", "server"]

pytestmark = pytest.mark.usefixtures("database", "valkey")


@pytest.fixture
def caller(database: str) -> Caller:
    with db.transaction() as session:
        return factories.caller(session, livemode=True)


def explained(caller: Caller, batch_id: Any, custom_id: str) -> dict[str, Any]:
    found = explain.of(caller, ids.render("batch", batch_id), custom_id)
    return LineObject.of(found, custom_id).model_dump(mode="json")


def fails_first(server: Hostile, word: bytes, times: int) -> None:
    """The first requests with this word are answered 503, any other request is answered well."""
    left = times

    async def answer(writer: asyncio.StreamWriter) -> None:
        nonlocal left
        if left and word in server.seen[-1].body:
            left -= 1
            await reply(b"", "503 Service Unavailable")(writer)
        else:
            await asyncio.sleep(0.005)
            await reply(GOOD)(writer)

    server.answer = answer


def test_a_line_that_was_answered_at_last_has_its_failed_attempts(
    engine: Engine, server: Hostile, caller: Caller
) -> None:
    fails_first(server, b"parcel 3?", 2)
    batch = run_to_end(engine, a_batch(chat_lines(6), caller))
    assert (batch.completed, batch.failed) == (6, 0)
    assert_two_attempts(caller, batch)
    # And when its rows are gone.
    ran.sealed(batch)
    with as_owner() as session:
        session.execute(delete(Result))
    assert_two_attempts(caller, batch)


def assert_two_attempts(caller: Caller, batch: Batch) -> None:
    found = explained(caller, batch.id, "line-3")
    assert (found["status"], found["failed_attempts"]) == ("succeeded", 2)
    for attempt in found["attempts"]:
        assert 0 <= attempt.pop("seconds") < 20
        assert 0 <= attempt.pop("at") - batch.created_at.timestamp() + 1 < 60
        assert attempt == {"error": "busy", "status_code": 503, "server": 1}
    assert len(found["attempts"]) == 2
    other = explained(caller, batch.id, "line-2")
    assert (other["failed_attempts"], other["attempts"]) == (0, [])


def test_a_line_that_waits_has_its_failed_attempts(
    engine: Engine, server: Hostile, caller: Caller, configure: Callable[..., None]
) -> None:
    server.answer = reply(b"", "503 Service Unavailable")
    batch_id = a_batch(chat_lines(1), caller)
    engine.wake()

    def is_told() -> bool:
        with db.reading() as session:
            return session.get(LineAttempts, (batch_id, 1)) is not None

    wait_until(is_told)
    found = explained(caller, batch_id, "line-0")
    assert (found["status"], found["result"]) == ("waiting", None)
    assert found["failed_attempts"] >= len(found["attempts"]) >= 1
    assert {one["status_code"] for one in found["attempts"]} == {503}


def test_a_lost_worker_is_an_attempt_at_its_lines(caller: Caller) -> None:
    batch_id = a_batch(chat_lines(2), caller)
    assert claim.claim([], with_suspects=True) is not None
    expire_leases()
    recover.due()
    for name in ("line-0", "line-1"):
        found = explained(caller, batch_id, name)
        assert (found["status"], found["failed_attempts"]) == ("waiting", 1)
        assert [one["error"] for one in found["attempts"]] == ["worker_lost"]


def test_a_waiting_line_repeats_what_its_batch_waits_for(caller: Caller) -> None:
    batch_id = a_batch(chat_lines(1), caller)
    reason = explained(caller, batch_id, "line-0")["reason"]
    assert "worker" in reason


def test_a_line_that_was_not_run_says_why_its_batch_failed(caller: Caller) -> None:
    lines = [factories.chat_line("good"), factories.chat_line("bad", model="none")]
    found = explained(caller, ran.submitted(lines, caller).id, "good")
    assert (found["status"], found["attempts"]) == ("not_run", [])
    assert found["reason"].startswith("The batch is failed: ")
    assert "none" in found["reason"]
