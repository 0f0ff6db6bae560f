"""The product's simulated models over HTTP, with a record of every call and storms on request.

Each request is a line of a log: its token (a line's custom id, from the prompt), what it was
answered, whether that was a good answer, and its id. A good answer carries the token back, so that answers
that were mixed up are seen. `POST /storm` with `{"fault": "status=503", "rate": 0.5}` makes that
share of the requests meet the fault; rate 0 ends it.
"""

import asyncio
import os
import re
import signal
import sys
from dataclasses import replace

import orjson
from uvloop import new_event_loop

from xalen_batch.backends.simulated import faults, server
from xalen_batch.backends.simulated.constants import FINGERPRINT
from xalen_batch.backends.simulated.model import Answer

TOKEN = re.compile(rb"run-[0-9]+-[a-z]+-[0-9]+")


class Recorder(server.Simulator):
    def __init__(self, log: int) -> None:
        super().__init__()
        self._log = log

    def answer(self, method: str, path: str, body: bytes, request_id: str) -> Answer:
        if path == "/storm":
            storm = orjson.loads(body)
            self._fault, self._fault_rate = faults.parse(storm["fault"]), storm["rate"]
            return Answer(200, b"{}", 0.0)
        reply = super().answer(method, path, body, request_id)
        found = TOKEN.search(body)
        token = found[0] if found else b"-"
        is_good = reply.status == 200 and reply.ending == "whole" and reply.body.startswith(b"{")
        # One write of a short line is atomic, whichever process is killed meanwhile.
        os.write(
            self._log,
            b"%s %d %s %d %s\n"
            % (token, reply.status, reply.ending.encode(), is_good, request_id.encode() or b"-"),
        )
        if not is_good:
            return reply
        answered = orjson.loads(reply.body)
        if "results" in answered:
            answered["meta"] = {"echo": token.decode()}
        else:
            answered["system_fingerprint"] = f"{FINGERPRINT} {token.decode()}"
        return replace(reply, body=orjson.dumps(answered))


async def serve(port: int, log: str) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    recorder = Recorder(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    listening = await server.listen(recorder, "127.0.0.1", port)
    await stopped.wait()
    await server.close(listening, recorder)


def run(arguments: list[str]) -> None:
    """`[port, log]`: serve until SIGTERM."""
    port, log = arguments
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(int(port), log))


if __name__ == "__main__":
    run(sys.argv[1:])
