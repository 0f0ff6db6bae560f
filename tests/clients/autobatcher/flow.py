"""autobatcher, unmodified: its calls become batches, or Responses in the background, by turns."""

import asyncio
import json
import os
from importlib.metadata import version

from autobatcher import BatchOpenAI

CHAT, EMBEDDING = "mistral-small-3-1", "bge-m3"
ADDRESS = {"api_key": os.environ["OPENAI_API_KEY"], "base_url": os.environ["OPENAI_BASE_URL"]}


async def ask(client: BatchOpenAI, question: str) -> int:
    answer = await client.chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": question}], max_tokens=20
    )
    assert answer.choices[0].message.content
    return answer.usage.total_tokens


async def embed(client: BatchOpenAI) -> int:
    answer = await client.embeddings.create(model=EMBEDDING, input=["a parcel", "a cat"])
    assert len(answer.data) == 2
    return answer.usage.total_tokens


async def main() -> None:
    pace = {"batch_window_seconds": 0.3, "poll_interval_seconds": 0.3}
    usage = 0
    for window in ("24h", None):
        async with BatchOpenAI(**ADDRESS, **pace, completion_window=window) as client:
            calls = [ask(client, f"Where is parcel {number}?") for number in range(5)]
            usage += sum(await asyncio.gather(*calls, embed(client)))
    # The spelling of partial results that it reads, also with an offset.
    async with BatchOpenAI(**ADDRESS) as client:
        found = [file async for file in await client.files.list(purpose="batch_output")]
        url = f"{client._api_base_url}/files/{found[0].id}/content"
        whole = await client._http_client.get(url)
        lines = whole.text.splitlines()
        part = await client._http_client.get(f"{url}?offset={len(lines) - 1}")
        assert part.text.splitlines() == lines[-1:]
        assert part.headers["x-last-line"] == str(len(lines))
        assert part.headers["x-incomplete"] == "false"
    print(json.dumps({"sdk": f"autobatcher {version('autobatcher')}", "usage": usage}))  # noqa: T201


asyncio.run(main())
