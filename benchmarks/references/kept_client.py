"""The HTTP client that we use for TLS and proxies, pyreqwest, in the same bare loop: what one of
our own is worth.
"""

import uvloop

from benchmarks.references.http_client import LIMITS, run
from benchmarks.references.script import Work, main
from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.clients.full import FullClient


async def _run(work: Work) -> int:
    headers = {"content-type": "application/json"}
    return await run(
        work,
        FullClient(work.url, headers, LIMITS, Buffer(), is_direct=True, connections=work.in_flight),
    )


if __name__ == "__main__":
    main(lambda work: uvloop.run(_run(work)))
