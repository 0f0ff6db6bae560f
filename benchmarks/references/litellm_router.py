"""LiteLLM's Router over one OpenAI-compatible server, `acompletion` behind a semaphore.

Runs in an environment of its own.
"""

import asyncio
from typing import Any

import litellm  # type: ignore[import-not-found]
from litellm import Router  # type: ignore[import-not-found]

from benchmarks.references.script import Work, main


async def _run(work: Work) -> int:
    litellm.suppress_debug_info = True
    settings = {
        "model": "openai/mistral-small-3-1",
        "api_base": work.url.removesuffix("/chat/completions"),
        "api_key": "none",
    }
    router = Router(model_list=[{"model_name": "mistral-small-3-1", "litellm_params": settings}])
    limit = asyncio.Semaphore(work.in_flight)

    async def ask(request: dict[str, Any]) -> bool:
        async with limit:
            answer = await router.acompletion(model=request["model"], messages=request["messages"])
            return bool(answer.choices)

    return sum(await asyncio.gather(*(ask(request) for request in work.requests())))


if __name__ == "__main__":
    main(lambda work: asyncio.run(_run(work)))
