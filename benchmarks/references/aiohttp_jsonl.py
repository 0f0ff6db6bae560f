"""The aiohttp loop that appends each answer to a JSONL file: what a careful script does.

No retries, no resuming, no bill.
"""

import asyncio
import json
from typing import Any

import aiohttp

from benchmarks.references.script import Work, main


async def _run(work: Work) -> int:
    limit = asyncio.Semaphore(work.in_flight)
    with work.out.open("a", encoding="utf-8") as out:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=work.in_flight)
        ) as session:

            async def ask(number: int, request: dict[str, Any]) -> bool:
                async with limit, session.post(work.url, json=request) as response:
                    answer = await response.json()
                out.write(json.dumps({"custom_id": f"r{number}", "response": answer}) + "\n")
                return bool(answer["choices"])

            return sum(await asyncio.gather(*(ask(*pair) for pair in enumerate(work.requests()))))


if __name__ == "__main__":
    main(lambda work: asyncio.run(_run(work)))
