"""Two accounts and one model server, from the claim to the result: failing lines of one account do
not delay the other.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from tests import factories
from tests.integration.backends.hostile import GOOD, Hostile, reply
from tests.integration.backends.hostile_backend import engine, server
from tests.integration.engines import a_batch, chat_lines, lines_of, read, run_to_end
from xalen_batch import db
from xalen_batch.models.files import FilePart
from xalen_batch.worker import circuit_breaker
from xalen_batch.worker.engine import Engine

__all__ = ["engine", "server"]

pytestmark = pytest.mark.usefixtures("database", "valkey")

UNKNOWN = (
    b'{"error":{"message":"The model `m` does not'
    b' exist.","type":"invalid_request_error","param":null,"code":"model_not_found"}}'
)
Logged = list[tuple[str, dict[str, object]]]


def batch_of_a_new_account(lines: list[dict]) -> UUID:
    with db.transaction() as session:
        caller = factories.caller(session, livemode=True)
    return a_batch(lines, caller)


def by_prompt(server: Hostile, word: bytes, bad: bytes, status: str) -> None:
    """A request with this word in it gets the bad answer, any other the good one a moment later."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        if word in server.seen[-1].body:
            await reply(bad, status)(writer)
        else:
            await asyncio.sleep(0.005)
            await reply(GOOD)(writer)

    server.answer = answer


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Logged:
    """The events that the circuit breaker logs."""
    found: Logged = []

    class Logger:
        def warning(self, event: str, **fields: object) -> None:
            found.append((event, fields))

        info = warning

    monkeypatch.setattr(circuit_breaker, "logger", Logger())
    return found


@pytest.fixture(autouse=True)
def _settings(engine: Engine, configure: Callable[..., None], tmp_path: Path) -> None:
    configure(
        catalog=tmp_path / "catalog.toml",
        flush_interval=0.05,
        lease=30,
        request_timeout=20,
        retry_base=0.01,
        retry_cap=0.05,
        circuit_failures=5,
        circuit_pause=1,
        max_attempts=3,
    )


def test_an_accounts_lines_succeed_beside_another_accounts_that_fail(
    engine: Engine, server: Hostile
) -> None:
    by_prompt(server, b"poison", b"", "500 Internal Server Error")
    failing = batch_of_a_new_account(
        [factories.chat_line(f"line-{n}", "poison") for n in range(300)]
    )
    good = run_to_end(engine, batch_of_a_new_account(chat_lines(100)), timeout=30)
    assert (good.status, good.completed, good.failed) == ("completed", 100, 0)
    assert read(failing).status == "in_progress"


def test_lines_that_fail_have_ended_when_others_have(engine: Engine, server: Hostile) -> None:
    by_prompt(server, b"poison", b"", "500 Internal Server Error")
    failing = batch_of_a_new_account(
        [factories.chat_line(f"line-{n}", "poison") for n in range(40)]
    )
    batch_of_a_new_account(chat_lines(2_000))
    ended = run_to_end(engine, failing, timeout=60)
    assert (ended.status, ended.completed, ended.failed) == ("completed", 0, 40)


def test_a_model_that_the_backend_does_not_know_makes_everybody_wait_and_is_logged(
    engine: Engine, server: Hostile, logged: Logged, configure: Callable[..., None]
) -> None:
    server.answer = reply(UNKNOWN, "404 Not Found")
    batches = [batch_of_a_new_account(chat_lines(30)) for _ in range(2)]
    with pytest.raises(AssertionError, match="in_progress"):
        run_to_end(engine, batches[0], timeout=3)
    opened = [fields for event, fields in logged if event == "backend.circuit_opened"]
    assert opened
    assert opened[0]["status"] == 404
    assert "does not know the model by the catalog's name (404, model_not_found)" in str(
        opened[0]["reason"]
    )
    # The operator gives the model that name.
    server.answer = reply(GOOD)
    for batch in batches:
        ended = run_to_end(engine, batch, timeout=30)
        assert (ended.status, ended.completed, ended.failed) == ("completed", 30, 0)
    assert logged[-1][0] == "backend.circuit_closed"


def test_a_lines_own_404_ends_with_the_backends_words_while_others_are_answered(
    engine: Engine, server: Hostile
) -> None:
    said = (
        b'{"error":{"message":"There is no such'
        b' image.","type":"invalid_request_error","param":"messages","code":null}}'
    )
    by_prompt(server, b"gone", said, "404 Not Found")
    lines = [factories.chat_line(f"line-{n}", "gone" if n == 20 else "here") for n in range(400)]
    ended = run_to_end(engine, batch_of_a_new_account(lines), timeout=60)
    assert (ended.status, ended.completed, ended.failed) == ("completed", 399, 1)
    (line,) = lines_of(ended.id, FilePart.ERROR)
    assert (line["custom_id"], line["response"]["status_code"]) == ("line-20", 404)
    assert line["response"]["body"]["error"]["message"] == "There is no such image."
