"""A model server that misbehaves for a whole batch: failed lines are billed nothing, and the worker
neither grows nor stops.

XALEN_TEST_OUTAGE is the number of seconds for which the server is broken.
"""

import asyncio
import gzip
import os
import resource
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import select

from tests import factories
from tests.integration.backends import hostile, hostile_backend
from tests.integration.backends.hostile import Answer, Hostile, MiB, raw, reply
from tests.integration.engines import a_batch, charged, chat_lines, lines_of, run_to_end
from xalen_batch import db
from xalen_batch.models import Batch, Invoice, Result
from xalen_batch.models.files import FilePart
from xalen_batch.worker.engine import Engine

pytestmark = pytest.mark.usefixtures("database", "valkey")
engine, server = hostile_backend.engine, hostile_backend.server

OUTAGE = float(os.environ.get("XALEN_TEST_OUTAGE", "3"))
# Compressed once, since compressing takes longer than answering.
BOMB = gzip.compress(bytes(64 * MiB), 1)


async def ten_mib(writer: asyncio.StreamWriter) -> None:
    # A MiB at a time, since the server's bytes are in this process too.
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (10 * MiB))
    for _ in range(10):
        writer.write(b" " * MiB)
        await writer.drain()


def live_batch(count: int) -> Batch:
    with db.transaction() as session:
        caller = factories.caller(session, livemode=True)
    batch_id = a_batch(chat_lines(count), caller)
    with db.transaction() as session:
        return session.get_one(Batch, batch_id)


def invoiced(batch: Batch) -> object:
    with db.transaction() as session:
        return session.scalars(select(Invoice.total).where(Invoice.batch_id == batch.id)).one()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (reply(b"busy", "500 Internal Server Error"), "500"),
        (reply(b"<html><h1>Bad gateway</h1></html>", "502 Bad Gateway"), "502"),
        (reply(b"<html>Sign in to the Wi-Fi</html>"), "not valid JSON"),
        (reply(b""), "empty"),
        (reply(b'{"choices":[{"message"'), "JSON"),
        (raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"), ""),
        (raw(b""), ""),
        (hostile.reset, ""),
        (ten_mib, "longer than 1048576 bytes"),
        (hostile.huge, "longer than 1048576 bytes"),
        (reply(BOMB, content_encoding="gzip"), "longer than 1048576 bytes"),
    ],
    ids=[
        "500",
        "502",
        "html",
        "empty",
        "cut json",
        "cut body",
        "closed",
        "reset",
        "10 MB",
        "1 GB",
        "zip bomb",
    ],
)
def test_every_line_fails_is_billed_nothing_and_memory_is_flat(
    engine: Engine, server: Hostile, answer: Answer, said: str
) -> None:
    server.answer = answer
    batch = live_batch(8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ended = run_to_end(engine, batch.id)
    assert (ended.status, ended.completed, ended.failed) == ("completed", 0, 8)
    assert (charged(batch.id), invoiced(batch)) == (0, 0)
    errors = lines_of(batch.id, FilePart.ERROR)
    assert [line["custom_id"] for line in errors] == [f"line-{n}" for n in range(8)]
    told = [line["error"] or line["response"]["body"]["error"] for line in errors]
    assert all(
        "was not billed" in error["message"] and said in error["message"] for error in told
    ), told[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 96 * 1024  # KiB


def test_a_storm_of_429_delays_and_fails_nothing(engine: Engine, server: Hostile) -> None:
    busy = reply(b'{"error":{"message":"slow down"}}', "429 Too Many Requests", retry_after="0.05")
    good = reply(hostile.GOOD)
    left = 60

    async def storm(writer: asyncio.StreamWriter) -> None:
        nonlocal left
        left -= 1
        await (busy if left >= 0 else good)(writer)

    server.answer = storm
    batch = live_batch(40)
    ended = run_to_end(engine, batch.id)
    # More refusals than a line has attempts: overload does not count as an attempt.
    assert (ended.status, ended.completed, ended.failed) == ("completed", 40, 0)
    assert len(server.seen) == 100
    assert charged(batch.id) == invoiced(batch) > 0


def test_a_backend_that_is_broken_and_comes_back(
    engine: Engine, server: Hostile, configure: Callable[..., None]
) -> None:
    configure(
        max_attempts=1_000,
        retry_base=0.01,
        retry_cap=0.05,
        circuit_pause=0.1,
        circuit_failures=5,
        flush_interval=0.05,
    )
    broken = True

    async def answer(writer: asyncio.StreamWriter) -> None:
        await (reply(b"", "503 Service Unavailable") if broken else reply(hostile.GOOD))(writer)

    def heal() -> None:
        nonlocal broken
        broken = False

    server.answer = answer
    batch = live_batch(20)
    timer = threading.Timer(OUTAGE, heal)
    timer.start()
    ended = run_to_end(engine, batch.id)
    assert (ended.status, ended.completed, ended.failed) == ("completed", 20, 0)
    # The circuit was open meanwhile: 20 lines without a pause would send many hundred requests.
    assert len(server.seen) < 100 * max(OUTAGE, 1)


def test_an_answer_that_takes_longer_than_the_lease_is_asked_for_once(
    engine: Engine, server: Hostile, configure: Callable[..., None]
) -> None:
    configure(lease=3)

    async def answer(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(8)
        await reply(hostile.GOOD)(writer)

    server.answer = answer
    batch = live_batch(3)
    ended = run_to_end(engine, batch.id)
    assert (ended.status, ended.completed, ended.failed) == ("completed", 3, 0)
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    "count", ["-1", "1e308", "1" + "0" * 400, '"12"', "null", "[]", "NaN", "1.5", "true"]
)
def test_a_usage_that_cannot_be_is_not_billed_as_it_is_said(
    engine: Engine, server: Hostile, count: str
) -> None:
    server.answer = reply(
        b'{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Soon."}}],'
        b'"usage":{"prompt_tokens":%b,"completion_tokens":%b}}' % (count.encode(), count.encode())
    )
    batch = live_batch(3)
    ended = run_to_end(engine, batch.id)
    assert ended.status == "completed"
    with db.transaction() as session:
        rows = session.scalars(select(Result).where(Result.batch_id == batch.id)).all()
    assert len(rows) == 3
    for row in rows:
        if row.amount is None:
            # The answer cannot be read at all.
            assert row.input_tokens == row.output_tokens == 0
        else:
            # Counted by us: no more than a token a byte.
            assert row.flag is not None
            assert 0 < row.input_tokens < 200
            assert 0 < row.output_tokens < 20
    assert charged(batch.id) == invoiced(batch)
