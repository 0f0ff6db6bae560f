"""A stranger who reaches Redis puts foreign messages on the queue; no worker ends or obeys them."""

import json
import time
from collections.abc import Iterator, Mapping

import openai
import redis

from tests.attack.system import MB, Figure, Size, System
from tests.hostile.messages import BROKEN, OPTIONS, QUEUE

SETTINGS: Mapping[str, object] = {}
CATALOG = ""
HUGE = 100 * 1024 * 1024
SECONDS = 20
# Stop after this number of ended workers, since each takes time to start again.
MOST_ENDED = 3
LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "mistral-small-3-1", "messages": [{"role": "user", "content": "Hello"}]},
}


def attack(system: System, size: Size) -> Iterator[Figure]:
    messages = [*BROKEN.values(), *OPTIONS.values()]
    with redis.Redis.from_url(system.redis_url) as queue:
        ended = 0
        for message in messages:
            ended += _ends_a_worker(system, queue, message)
            if ended == MOST_ENDED:
                break
        yield Figure(
            f"Messages that ended a worker, of {len(messages)}, counted up to {MOST_ENDED}",
            ended,
            0,
        )
        if size is Size.FULL:
            before = system.rss("worker")
            _take(queue, b'{"x": "' + b"x" * HUGE + b'"}')
            yield Figure(
                "Worker's memory 1 s after a message of 100 MiB, MB",
                (_later(system) - before) / MB,
                60,
            )
    words = system.log("worker")
    yield Figure("Tasks of Celery's own that ran", words.count("Task celery."), 0)
    yield Figure(
        "Seconds until a batch is completed after it", _seconds_for_a_batch(system), SECONDS
    )


def _ends_a_worker(system: System, queue: redis.Redis, message: bytes) -> bool:
    """Put a message on the queue; whether the worker was replaced by a new process afterwards."""
    before = system.pid("worker")
    _take(queue, message)
    return _pid(system) != before


def _take(queue: redis.Redis, message: bytes) -> None:
    """Put two messages on the queue and wait until both are taken; the first is handled by then."""
    for sent in (message, BROKEN["an unknown task"]):
        queue.lpush(QUEUE, sent)
        deadline = time.monotonic() + SECONDS
        while queue.llen(QUEUE) and time.monotonic() < deadline:
            time.sleep(0.005)


def _pid(system: System) -> int:
    """The worker's process id, from a file that the supervisor rewrites at each restart."""
    try:
        return system.pid("worker")
    except (OSError, ValueError):
        return 0


def _later(system: System) -> int:
    time.sleep(1)
    return system.rss("worker")


def _seconds_for_a_batch(system: System) -> float:
    client = openai.OpenAI(base_url=system.base_url, api_key=system.test_key)
    begun = time.monotonic()
    file = client.files.create(file=("line.jsonl", json.dumps(LINE).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status != "completed" and time.monotonic() < begun + 3 * SECONDS:
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return time.monotonic() - begun
