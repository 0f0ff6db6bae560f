"""The simulated models in this process: faults become the outcomes that a real server's would."""

import asyncio
from collections.abc import Iterator

import orjson
import pytest

from xalen_batch import catalog, config
from xalen_batch.backends.contract import Answered, Outcome, Refused, Request, Retryable
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.endpoints.names import CHAT

MISTRAL = catalog.read(None)["mistral-small-3-1"]


@pytest.fixture(autouse=True)
def _short_timeout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XALEN_REQUEST_TIMEOUT", "0.05")
    config.settings.cache_clear()
    yield
    config.settings.cache_clear()


def send(directives: str, times: int = 1) -> list[Outcome]:
    body = {
        "model": MISTRAL.id,
        "messages": [{"role": "user", "content": "Hello"}],
        "metadata": {"simulate": directives},
    }
    request = Request(CHAT, orjson.dumps(body), "req_1")

    async def main() -> list[Outcome]:
        backend = SimulatedBackend(MISTRAL, latency_ms=0)
        return [await backend.send(request) for _ in range(times)]

    return asyncio.run(main())


def test_an_answer_carries_the_usage_that_it_states() -> None:
    (outcome,) = send("")
    assert isinstance(outcome, Answered)
    usage = orjson.loads(outcome.body)["usage"]
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )
    assert not outcome.usage.counted


@pytest.mark.parametrize(
    "directives",
    [
        "no_usage",
        "usage=negative",
        "usage=string",
        "usage=float",
        "usage=bool",
        "usage=null",
        "usage=absurd",
    ],
)
def test_usage_that_is_wrong_is_counted(directives: str) -> None:
    (plain,), (outcome,) = send(""), send(directives)
    assert isinstance(plain, Answered)
    assert isinstance(outcome, Answered)
    assert outcome.usage.counted
    assert outcome.usage.input_tokens == plain.usage.input_tokens


@pytest.mark.parametrize(
    "directives", ["status=500", "hang", "reset", "truncate", "html", "empty", "slow=10000"]
)
def test_faults_are_retried(directives: str) -> None:
    (outcome,) = send(directives)
    assert isinstance(outcome, Retryable)
    assert outcome.is_timeout == (directives in ("hang", "slow=10000"))


def test_overload_ends_after_its_times() -> None:
    first, second, third = send("status=429;retry_after=1;times=2", times=3)
    assert (
        first
        == second
        == Retryable("The backend answered 429.", 429, retry_after=1.0, is_overload=True)
    )
    assert isinstance(third, Answered)


def test_a_refusal_is_final() -> None:
    assert isinstance(send("status=422")[0], Refused)
