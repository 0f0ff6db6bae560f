"""An API that is killed in the middle of an upload: no half file, and the same key gives one whole
one.
"""

import io
import signal
import threading

import openai
import pytest

from tests import factories
from tests.chaos import leftovers
from tests.chaos.campaign import Campaign
from tests.chaos.system import SHORT, START_TIMEOUT
from tests.e2e.processes import wait_until

MB = 1_000_000
CONTENT = factories.jsonl(
    [factories.chat_line(f"line-{number}", "x" * 1000) for number in range(12_000)]
)


class Halting(io.BytesIO):
    """A file that stops in the middle until it may go on."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.is_half_way, self.may_go_on = threading.Event(), threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 10 * MB:
            self.is_half_way.set()
            self.may_go_on.wait(START_TIMEOUT)
        return super().read(size)


def test_an_api_killed_during_an_upload(campaign: Campaign) -> None:
    system = campaign.system(SHORT)
    client = openai.OpenAI(
        base_url=system.base_url, api_key=system.key, max_retries=0, timeout=START_TIMEOUT
    )

    def upload(content: io.BytesIO) -> str:
        key = {"Idempotency-Key": "upload-that-is-cut-off"}
        return client.files.create(
            file=("cut-off.jsonl", content), purpose="batch", extra_headers=key
        ).id

    halting, failed = Halting(CONTENT), list[openai.APIConnectionError]()

    def try_once() -> None:
        with pytest.raises(openai.APIConnectionError) as raised:
            upload(halting)
        failed.append(raised.value)

    trying = threading.Thread(target=try_once)
    trying.start()
    assert halting.is_half_way.wait(START_TIMEOUT)
    # Wait until the bytes that have arrived are being written.
    wait_until(lambda: any((system.files / "input").glob("*#*")), timeout=START_TIMEOUT)
    system.parts["api"].end(signal.SIGKILL, 10)
    system.parts["api"].start()
    halting.may_go_on.set()
    trying.join(START_TIMEOUT)
    assert len(failed) == 1
    system.wait_until_ready()

    assert upload(io.BytesIO(CONTENT)) == upload(io.BytesIO(CONTENT))
    with system.connect() as connection:
        assert connection.execute(
            "SELECT bytes FROM files WHERE filename = 'cut-off.jsonl'"
        ).fetchall() == [(len(CONTENT),)]
    assert leftovers.left(system) == []
