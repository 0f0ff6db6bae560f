"""An account sends lines that the model fails, or never answers: another account's lines take at
most three times as long as alone.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

import openai
from openai.types import Batch

from tests.attack.system import Figure, Size, System

SETTINGS: Mapping[str, object] = {}
CATALOG = ""
MODEL = "mistral-small-3-1"
ENDED = ("completed", "failed", "expired", "cancelled")
# Failing lines, the other account's lines, and the most seconds that the latter may take.
LINES = {Size.SMALL: (1_500, 1_000, 30.0), Size.FULL: (20_000, 2_000, 120.0)}
# The number of lines without an answer, and of the batches that hold them.
HANGING, BATCHES = 400, 40
FAULTS = {
    "fail with 500": "status=500",
    "fail with 503": "status=503",
    "are refused with 401": "status=401",
    "are never answered": "hang",
}


def attack(system: System, size: Size) -> Iterator[Figure]:
    failing, lines, longest = LINES[size]
    other = openai.OpenAI(
        base_url=system.base_url, api_key=system.new_account("other"), max_retries=3
    )
    _seconds(other, 100, longest)
    alone = _seconds(other, lines, longest)
    for number, (what, fault) in enumerate(
        list(FAULTS.items())[: 1 if size is Size.SMALL else None]
    ):
        hostile = openai.OpenAI(
            base_url=system.base_url, api_key=system.new_account(f"hostile-{number}"), max_retries=3
        )
        count, batches = (HANGING, BATCHES) if fault == "hang" else (failing, 1)
        begun = [_submit(hostile, count // batches, fault) for _ in range(batches)]
        _wait_until_they_fail(hostile, begun[0])
        beside = _seconds(other, lines, longest)
        for batch in begun:
            with suppress(openai.ConflictError):
                hostile.batches.cancel(batch.id)
        name = (
            f"time of {lines:,} lines beside {count:,} of another account that {what}, of their"
            f" time alone ({alone:.1f} s)"
        )
        yield Figure(name, beside / alone, 3)


def _submit(client: openai.OpenAI, lines: int, fault: str | None = None) -> Batch:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Where is the parcel?"}],
        "max_tokens": 8,
    }
    if fault is not None:
        body["metadata"] = {"simulate": fault}
    asked = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body,
        }
        for number in range(lines)
    ]
    file = client.files.create(
        file=("lines.jsonl", "\n".join(map(json.dumps, asked)).encode()), purpose="batch"
    )
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )


def _seconds(client: openai.OpenAI, lines: int, longest: float) -> float:
    """Seconds from a batch's creation to its end, at most `longest`."""
    begun, batch = time.monotonic(), _submit(client, lines)
    while batch.status not in ENDED and time.monotonic() - begun < longest:
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return time.monotonic() - begun


def _wait_until_they_fail(client: openai.OpenAI, batch: Batch) -> None:
    """Wait until the batch runs, and a moment more: the server answers within milliseconds."""
    while client.batches.retrieve(batch.id).status == "validating":
        time.sleep(0.05)
    time.sleep(1)
