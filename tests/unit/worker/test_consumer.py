"""A message of the queue is parsed and written anew before Celery sees it."""

import base64
import json
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from tests.hostile import messages
from tests.hostile.messages import BATCH, BROKEN, OPTIONS, SECRET
from xalen_batch.broker import Job, Message
from xalen_batch.worker import consumer
from xalen_batch.worker.consumer import Malformed, for_celery, parse


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_a_broken_message_is_named_without_its_words(raw: bytes) -> None:
    with pytest.raises(Malformed) as problem:
        parse(raw)
    assert SECRET not in str(problem.value)
    assert "celery" not in str(problem.value)


@pytest.mark.parametrize("raw", OPTIONS.values(), ids=OPTIONS)
def test_celery_sees_none_of_a_messages_options(raw: bytes) -> None:
    ours = json.loads(for_celery(*parse(raw)))
    assert json.loads(base64.b64decode(ours["body"])) == [[], {}, {}]
    assert ours["headers"].keys() == {"lang", "task", "id", "expires"}
    assert ours["headers"]["id"].isalnum()


@pytest.mark.parametrize(
    "message",
    [
        Message(Job.TICK),
        Message(Job.FIRE),
        Message(Job.EXECUTE),
        Message(Job.EXECUTE, "12"),
        Message(Job.VALIDATE, BATCH),
        Message(Job.FINALIZE, BATCH),
    ],
)
def test_every_message_of_ours_passes(message: Message) -> None:
    assert parse(messages.message(message.job.value, message.args)) == (message, None)
    assert parse(for_celery(message, None)) == (message, None)


def test_an_expiry_is_kept() -> None:
    expires = datetime(2026, 11, 28, 12, tzinfo=UTC)
    assert parse(for_celery(Message(Job.TICK), expires)) == (Message(Job.TICK), expires)


def test_a_flood_of_broken_messages_is_one_log_event(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(consumer.time, "monotonic", lambda: now)
    dropped = consumer._Dropped()
    with capture_logs() as events:
        for _ in range(5):
            dropped.add(Malformed("not JSON"))
        now += consumer.LOG_PAUSE
        dropped.add(Malformed("too long"))
    assert [(event["problem"], event["count"]) for event in events] == [
        ("not JSON", 1),
        ("too long", 5),
    ]
