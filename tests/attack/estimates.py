"""One account has 30 estimates of a large file made at once: another's requests and `/readyz` keep
their time, and its own estimate gets in.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from statistics import median
from threading import Event
from urllib.parse import urlparse

from tests.attack.system import Figure, Size, System, median_seconds

SETTINGS: Mapping[str, object] = {}
CATALOG = ""

MODEL = "mistral-small-3-1"
AT_ONCE = 30
LINE_BYTES = 4_000
LINES = {Size.SMALL: 6_000, Size.FULL: 50_000}
# Most seconds for the requests beside the estimates, which take minutes if each waits for all.
LONGEST = 20.0
LOOKS = {Size.SMALL: 40, Size.FULL: 150}
WORDS = "where is my parcel it was sent on monday and has not come yet please look for it "


def attack(system: System, size: Size) -> Iterator[Figure]:
    """Yield figures of the other account, the time of a single estimate, and the answers to the
    greedy account.
    """
    greedy, other = system.test_key, system.new_account("other")
    content = _file(LINES[size])
    files = {key: _upload(system, key, content) for key in (greedy, other)}
    _estimate(system, greedy, files[greedy])
    if size == Size.FULL:
        yield Figure(
            "one estimate of 50,000 lines of 4 KB, s",
            median_seconds(lambda: _estimate(system, greedy, files[greedy]), 5),
            1.0,
        )

    alone = median_seconds(lambda: _ask(system, "GET", "/v1/batches", other), LOOKS[size])
    statuses, ready, is_over = Counter[int](), Counter[int](), Event()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        asked = [
            threads.submit(_insist, system, greedy, files[greedy], statuses, is_over)
            for _ in range(AT_ONCE)
        ]
        try:
            _wait_for(statuses)
            beside = _median_beside(system, other, ready, LOOKS[size])
            admitted = _estimate(system, other, files[other])
        finally:
            is_over.set()
    for thread in asked:
        thread.result()

    yield Figure(
        "another account's GET beside 30 estimates, times its time alone",
        beside / alone,
        size.times(2.0),
    )
    yield Figure("times that /readyz was not 200", ready.total() - ready[200], 0)
    yield Figure("refusals of the other account's estimate", admitted != 200, 0)
    yield Figure(
        "estimates answered neither 200 nor 429",
        statuses.total() - statuses[200] - statuses[429],
        0,
    )


def _file(lines: int) -> bytes:
    text = (WORDS * (LINE_BYTES // len(WORDS) + 1))[:LINE_BYTES]
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 100}
    frame = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    return b"".join(
        json.dumps({"custom_id": f"request-{number}", **frame}).encode() + b"\n"
        for number in range(lines)
    )


def _upload(system: System, key: str, content: bytes) -> str:
    boundary = "xalen-attack"
    fields = f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    file = (
        f'--{boundary}\r\ncontent-disposition: form-data; name="file";'
        ' filename="large.jsonl"\r\n\r\n'
    )
    sent = (fields + file).encode() + content + f"\r\n--{boundary}--\r\n".encode()
    status, _, answer = _ask(
        system, "POST", "/v1/files", key, sent, f"multipart/form-data; boundary={boundary}"
    )
    if status != 200:
        raise RuntimeError(f"the upload was answered {status}: {answer!r}")
    return str(json.loads(answer)["id"])


def _insist(system: System, key: str, file_id: str, statuses: Counter[int], is_over: Event) -> None:
    """Request estimates repeatedly; after a refusal wait for its `retry-after`, as SDKs do."""
    while not is_over.is_set():
        status, wait, _ = _ask(
            system,
            "POST",
            "/v1/batches/estimate",
            key,
            json.dumps({"input_file_id": file_id}).encode(),
        )
        statuses[status] += 1
        is_over.wait(wait)


def _wait_for(statuses: Counter[int]) -> None:
    """Wait for the first answer to the greedy account; by then all of its requests have arrived."""
    while not statuses.total():
        time.sleep(0.01)


def _median_beside(system: System, key: str, ready: Counter[int], looks: int) -> float:
    """The median time of a GET, with a request to `/readyz` after each."""
    times, deadline = [], time.monotonic() + LONGEST
    while len(times) < looks and time.monotonic() < deadline:
        times.append(median_seconds(lambda: _ask(system, "GET", "/v1/batches", key), 1))
        ready[_ask(system, "GET", "/readyz", key)[0]] += 1
    return median(times)


def _estimate(system: System, key: str, file_id: str) -> int:
    return _ask(
        system, "POST", "/v1/batches/estimate", key, json.dumps({"input_file_id": file_id}).encode()
    )[0]


def _ask(
    system: System,
    method: str,
    path: str,
    key: str,
    body: bytes | None = None,
    kind: str = "application/json",
) -> tuple[int, float, bytes]:
    """The answer's status, its `retry-after` in seconds (0: none), and its body."""
    connection = HTTPConnection("127.0.0.1", urlparse(system.url).port or 80, timeout=120)
    try:
        connection.request(
            method, path, body, {"authorization": f"Bearer {key}", "content-type": kind}
        )
        answer = connection.getresponse()
        return answer.status, float(answer.headers.get("retry-after", 0)), answer.read()
    finally:
        connection.close()
