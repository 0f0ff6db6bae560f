"""The backend of OpenAI-compatible servers, against real sockets: every way of misbehaving becomes
an outcome.
"""

import asyncio
import resource
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest

from tests import tls
from tests.integration.backends import hostile
from tests.integration.backends.at_address import backend_at, model_at
from tests.integration.backends.hostile import Answer, Hostile, raw, reply
from tests.waiting import PATIENCE
from xalen_batch import config
from xalen_batch.backends import registry
from xalen_batch.backends.contract import Answered, Outcome, Refused, Request, Retryable
from xalen_batch.backends.openai import OpenAIBackend, longest_answer
from xalen_batch.backends.simulated.server import Simulator, close, listen
from xalen_batch.catalog_backend import BackendConfig
from xalen_batch.endpoints.names import CHAT, EMBEDDINGS, RERANK
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import ConfigError

T = TypeVar("T")
CHAT_BODY = orjson.dumps(
    {
        "model": "mistral-small-3-1",
        "messages": [{"role": "user", "content": "Hello, who are you?"}],
        "extra": [1, None],
    }
)
RERANK_BODY = orjson.dumps(
    {
        "model": "bge-reranker-v2",
        "query": "reset password",
        "documents": ["Apples.", {"text": "Resetting a password."}],
    }
)


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XALEN_REQUEST_TIMEOUT", str(PATIENCE))
    monkeypatch.setenv("XALEN_ANSWER_MAX_BYTES", str(1024 * 1024))
    config.settings.cache_clear()
    yield
    config.settings.cache_clear()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short request timeout, for requests that get no answer."""
    monkeypatch.setenv("XALEN_REQUEST_TIMEOUT", "1")
    config.settings.cache_clear()


def ask(answer: Answer, request: Request | None = None, **backend: Any) -> tuple[Outcome, Hostile]:
    """The outcome of one request to a server that gives this answer, and the server's record."""

    async def main() -> tuple[Outcome, Hostile]:
        async with hostile.hostile() as server, backend_at(server.base_url, **backend) as client:
            server.answer = answer
            return await client.send(request or Request(CHAT, CHAT_BODY, "req_1")), server

    return asyncio.run(main())


def rank(answer: Answer, api: str, body: bytes = RERANK_BODY) -> tuple[Outcome, Hostile]:
    return ask(answer, Request(RERANK, body, "req_1"), id="bge-reranker-v2", rerank_api=api)


def retried(outcome: Outcome) -> Retryable:
    assert isinstance(outcome, Retryable)
    return outcome


EMBEDDING = b"[" + b",".join([b"-0.0123456789012345678"] * 1_024) + b"]"


def embeddings(inputs: int) -> tuple[Request, bytes]:
    """A request for embeddings, and its answer as text: 1,024 numbers for each input."""
    body = orjson.dumps({"model": "m", "input": ["a"] * inputs})
    data = b",".join(b'{"index":%d,"embedding":%b}' % (n, EMBEDDING) for n in range(inputs))
    answer = b'{"object":"list","data":[%b],"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
    return Request(EMBEDDINGS, body, "req_1"), answer % (data, inputs, inputs)


class TestLongestAnswer:
    def test_grows_with_the_inputs_of_embeddings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XALEN_WORKER_BYTES", str(256 * 1024 * 1024))
        config.settings.cache_clear()
        request, answer = embeddings(2_048)
        assert len(answer) > 44 * 1024 * 1024
        outcome, _ = ask(reply(answer), request)
        assert isinstance(outcome, Answered)
        assert (len(outcome.body), outcome.usage) == (len(answer), Usage(2_048))

    def test_is_at_most_a_quarter_of_a_workers_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XALEN_WORKER_BYTES", str(32 * 1024 * 1024))
        config.settings.cache_clear()
        request, answer = embeddings(2_048)
        outcome, _ = ask(reply(answer), request)
        most = 8 * 1024 * 1024
        assert retried(outcome).reason == f"The backend's answer is longer than {most} bytes."

    @pytest.mark.parametrize("body", [b'{"input": "a"}', b'{"input": ["a", "b"]}', b'{"input": 3}'])
    def test_is_the_usual_one_for_few_inputs(self, body: bytes) -> None:
        assert longest_answer(Request(EMBEDDINGS, body, "r")) == 1024 * 1024
        assert longest_answer(Request(CHAT, body, "r")) == 1024 * 1024


class TestRequest:
    def test_goes_to_chat_completions_with_its_id_and_a_body_that_differs_in_the_model_only(
        self,
    ) -> None:
        outcome, server = ask(reply(hostile.GOOD))
        assert outcome == Answered(200, hostile.GOOD, Usage(3, 2))
        (seen,) = server.seen
        assert seen.head.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
        assert "x-request-id: req_1" in seen.head.lower()
        assert "content-type: application/json" in seen.head.lower()
        assert orjson.loads(seen.body) == {
            **orjson.loads(CHAT_BODY),
            "model": "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        }

    def test_body_is_the_users_bytes_where_the_server_knows_the_catalogs_id(self) -> None:
        _, server = ask(reply(hostile.GOOD), model=None)
        assert server.seen[0].body == CHAT_BODY

    def test_key_of_the_environment_is_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_KEY", " secret-1\n")
        _, server = ask(reply(hostile.GOOD), api_key_env="SOME_KEY")
        assert "authorization: Bearer secret-1\r\n".lower() in server.seen[0].head.lower()

    def test_no_key_no_header(self) -> None:
        _, server = ask(reply(hostile.GOOD), api_key_env="SOME_KEY_THAT_IS_NOT_SET")
        assert "authorization" not in server.seen[0].head.lower()

    def test_connection_is_kept_for_the_next_request(self) -> None:
        async def main() -> int:
            made = 0

            async with hostile.hostile() as server:

                async def counted(
                    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
                ) -> None:
                    nonlocal made
                    made += 1
                    await server.serve(reader, writer)

                async with await asyncio.start_server(counted, "127.0.0.1", 0) as front:
                    port = front.sockets[0].getsockname()[1]
                    async with backend_at(f"http://127.0.0.1:{port}/v1") as client:
                        for _ in range(5):
                            assert isinstance(
                                await client.send(Request(CHAT, CHAT_BODY, "r")), Answered
                            )
            return made

        assert asyncio.run(main()) == 1

    def test_proxy_of_the_environment_is_used_but_not_to_this_machine(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> tuple[list[str], Outcome]:
            async with hostile.hostile() as proxy, hostile.hostile() as server:
                monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
                for base_url in (server.base_url, "http://backend.invalid/v1"):
                    async with backend_at(base_url) as client:
                        outcome = await client.send(Request(CHAT, CHAT_BODY, "r"))
                return [seen.head.split("\r\n")[0] for seen in proxy.seen], outcome

        requests, outcome = asyncio.run(main())
        assert requests == ["POST http://backend.invalid/v1/chat/completions HTTP/1.1"]
        assert isinstance(outcome, Answered)

    def test_no_address_is_an_error_that_names_the_setting(self) -> None:
        with pytest.raises(
            ConfigError, match=r"models\.mistral-small-3-1\.backend has no base_url"
        ):
            OpenAIBackend(model_at(None))


class TestBrokenConnections:
    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(
                raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"),
                id="truncated by content-length",
            ),
            pytest.param(
                raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{}"),
                id="truncated chunk",
            ),
            pytest.param(hostile.reset, id="reset in the body"),
            pytest.param(raw(b""), id="closed at once"),
            pytest.param(raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), id="no HTTP"),
            pytest.param(raw(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 2_000_000), id="endless header"),
            pytest.param(
                reply(hostile.GOOD, content_encoding="gzip"), id="not the encoding it says"
            ),
        ],
    )
    def test_is_retried(self, answer: Answer) -> None:
        outcome = retried(ask(answer)[0])
        assert not outcome.is_timeout
        assert "connection" in outcome.reason

    @pytest.mark.parametrize("answer", [hostile.never, hostile.drip, hostile.drip_head])
    def test_total_timeout_covers_head_and_body(self, answer: Answer, impatient: None) -> None:
        assert retried(ask(answer)[0]).is_timeout

    def test_nobody_listens(self) -> None:
        async def main() -> Outcome:
            async with hostile.hostile() as server:
                url = server.base_url
            async with backend_at(url) as client:
                return await client.send(Request(CHAT, CHAT_BODY, "r"))

        assert not retried(asyncio.run(main())).is_timeout

    def test_name_that_does_not_resolve(self) -> None:
        async def main() -> Outcome:
            async with backend_at("http://backend.invalid/v1") as client:
                return await client.send(Request(CHAT, CHAT_BODY, "r"))

        retried(asyncio.run(main()))

    def test_cancelling_stops_the_request(self) -> None:
        async def main() -> None:
            async with hostile.hostile() as server, backend_at(server.base_url) as client:
                server.answer = hostile.never
                sent = asyncio.create_task(client.send(Request(CHAT, CHAT_BODY, "r")))
                while not server.seen:
                    await asyncio.sleep(0)
                sent.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await sent

        asyncio.run(main())


class TestAnswers:
    @pytest.mark.parametrize("answer", [hostile.huge, hostile.gzip_bomb])
    def test_too_long_is_cut_off_in_little_memory(self, answer: Answer) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = retried(ask(answer)[0])
        assert outcome.reason == "The backend's answer is longer than 1048576 bytes."
        assert outcome.status == 200
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"<html><body>Sign in to the Wi-Fi</body></html>", "200 OK"),
            (b"", "200 OK"),
            (b"[]", "200 OK"),
            (b'{"choices":[]', "200 OK"),
            (b'{"choices":[NaN]}', "200 OK"),
            (b'{"choices":["\xff"]}', "200 OK"),
            (b'{"choices":[],"deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "200 OK"),
            (b'{"error":{"message":"no"}}', "200 OK"),
            (b'{"choices":[]}', "302 Found"),
        ],
    )
    def test_2xx_without_a_chat_completion_is_retried(self, body: bytes, status: str) -> None:
        assert retried(ask(reply(body, status))[0]).status == int(status[:3])

    def test_204_is_retried(self) -> None:
        assert retried(ask(raw(b"HTTP/1.1 204 No Content\r\n\r\n"))[0]).status == 204

    def test_redirect_is_not_followed(self) -> None:
        outcome, server = ask(reply(b"", "307 Temporary Redirect", location="/v1/elsewhere"))
        assert "redirects (307)" in retried(outcome).reason
        assert len(server.seen) == 1

    def test_overload_says_when_to_come_back(self) -> None:
        outcome = retried(ask(reply(b"", "429 Too Many Requests", retry_after="7"))[0])
        assert (outcome.is_overload, outcome.retry_after, outcome.status) == (True, 7.0, 429)

    def test_refusal_is_final_and_keeps_the_backends_words(self) -> None:
        error = (
            b'{"error":{"message":"too'
            b' long","type":"invalid_request_error","param":null,"code":"context_length_exceeded"}}'
        )
        assert ask(reply(error, "400 Bad Request"))[0] == Refused(400, error)


class TestRerank:
    EXPECTED = {
        "id": "rerank-req_1",
        "model": "bge-reranker-v2",
        "results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}],
    }

    @pytest.mark.parametrize(
        ("api", "answer", "tokens", "stated"),
        [
            (
                "jina",
                {
                    "results": [
                        {"index": 0, "relevance_score": 0.1},
                        {"index": 1, "relevance_score": 0.9},
                    ],
                    "usage": {"total_tokens": 21},
                },
                21,
                {"xalen": {"usage_source": "reported", "usage_reported": {"total_tokens": 21}}},
            ),
            (
                "cohere",
                {
                    "results": [
                        {"index": 1, "relevance_score": 0.9},
                        {"index": 0, "relevance_score": 0.1},
                    ],
                    "meta": {"tokens": {"input_tokens": 22}},
                },
                22,
                {
                    "meta": {"tokens": {"input_tokens": 22}},
                    "xalen": {"usage_source": "reported", "usage_reported": None},
                },
            ),
            (
                "tei",
                [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.1}],
                None,
                {"xalen": {"usage_source": "counted", "usage_reported": None}},
            ),
        ],
    )
    def test_every_shape_becomes_ours(
        self, api: str, answer: Any, tokens: int | None, stated: dict[str, Any]
    ) -> None:
        outcome, server = rank(reply(orjson.dumps(answer)), api)
        assert isinstance(outcome, Answered)
        body = orjson.loads(outcome.body)
        read = outcome.usage.input_tokens
        assert body == {
            **self.EXPECTED,
            "usage": {"prompt_tokens": read, "total_tokens": read},
            **stated,
        }
        assert (read == tokens) if tokens else (outcome.usage.counted and read > 0)
        assert server.seen[0].head.startswith("POST /v1/rerank ")

    @pytest.mark.parametrize(
        ("api", "sent"),
        [
            (
                "jina",
                {
                    "model": "BAAI/bge-reranker-v2-m3",
                    "query": "q",
                    "documents": ["a", "b"],
                    "top_n": 1,
                    "return_documents": True,
                },
            ),
            (
                "cohere",
                {
                    "model": "BAAI/bge-reranker-v2-m3",
                    "query": "q",
                    "documents": ["a", "b"],
                    "top_n": 1,
                },
            ),
            ("tei", {"query": "q", "texts": ["a", "b"], "return_text": False}),
        ],
    )
    def test_every_server_is_asked_in_its_own_shape(self, api: str, sent: dict[str, Any]) -> None:
        # `top_n` as some clients spell a whole number.
        body = {
            "model": "bge-reranker-v2",
            "query": "q",
            "documents": ["a", {"text": "b"}],
            "top_n": 1.0,
            "return_documents": True,
        }
        answer = [{"index": 0, "score": 0.2}, {"index": 1, "score": 0.8}]
        outcome, server = rank(reply(orjson.dumps(answer)), api, orjson.dumps(body))
        assert orjson.loads(server.seen[0].body) == sent
        assert isinstance(outcome, Answered)
        assert orjson.loads(outcome.body)["results"] == [
            {"index": 1, "relevance_score": 0.8, "document": {"text": "b"}}
        ]

    @pytest.mark.parametrize(
        "rows",
        [
            None,
            [],
            [{"index": 2, "relevance_score": 1}],
            [{"index": True, "relevance_score": 1}],
            [{"index": 0, "relevance_score": "1"}],
            [{"index": 0, "relevance_score": 1}, {"index": 0, "relevance_score": 1}],
            ["x"],
        ],
    )
    def test_ranking_that_is_none_is_retried(self, rows: Any) -> None:
        assert retried(rank(reply(orjson.dumps({"results": rows})), "jina")[0]).status == 200


class TestAgainstTheSimulatedServer:
    """The whole way over HTTP, with faults that end."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(work)

    def test_both_models_answer_and_faults_become_outcomes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The duration of the one request that hangs.
        monkeypatch.setenv("XALEN_REQUEST_TIMEOUT", "5")
        config.settings.cache_clear()

        async def main() -> list[Outcome]:
            simulator = Simulator(latency_ms=0)
            server = await listen(simulator, "127.0.0.1", 0)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            chat = registry.backend_for(model_at(url), True)
            ranker = registry.backend_for(model_at(url, "bge-reranker-v2"), True)
            asked = orjson.loads(CHAT_BODY)
            ranked_chat = {
                "model": "bge-reranker-v2",
                "messages": [{"role": "user", "content": RERANK_BODY.decode()}],
            }
            wanted = [
                "status=429;retry_after=2;times=1",
                "truncate",
                "reset",
                "html",
                "empty",
                "hang",
                "no_usage",
                "usage=negative",
                "status=400",
            ]
            requests = [
                Request(CHAT, orjson.dumps({**asked, "metadata": {"simulate": one}}), f"r{one}")
                for one in wanted
            ]
            outcomes = [
                await chat.send(Request(CHAT, CHAT_BODY, "r")),
                await ranker.send(Request(RERANK, RERANK_BODY, "r")),
                await ranker.send(Request(CHAT, orjson.dumps(ranked_chat), "r")),
                *[await chat.send(request) for request in requests],
                await chat.send(requests[0]),
            ]
            await registry.close_all()
            await close(server, simulator)
            return outcomes

        plain, ranking, ranking_chat, limited, *others, again = self.run(main())
        assert isinstance(plain, Answered)
        assert orjson.loads(plain.body)["system_fingerprint"] == "simulated"
        assert isinstance(ranking, Answered)
        assert orjson.loads(ranking.body)["results"][0]["index"] == 1
        assert isinstance(ranking_chat, Answered)
        content = orjson.loads(orjson.loads(ranking_chat.body)["choices"][0]["message"]["content"])
        assert content["results"] == orjson.loads(ranking.body)["results"]
        assert ranking_chat.usage == ranking.usage
        assert (retried(limited).is_overload, retried(limited).retry_after) == (True, 2.0)
        assert [type(outcome) for outcome in others] == [Retryable] * 5 + [Answered] * 2 + [Refused]
        assert retried(others[4]).is_timeout
        assert [outcome.usage.counted for outcome in others if isinstance(outcome, Answered)] == [
            True,
            True,
        ]
        assert isinstance(again, Answered)


class TestFieldsOfTheCatalog:
    """What the catalog adds to each request, as the server sees it."""

    def test_headers_and_the_header_of_the_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_KEY", "k-1")
        monkeypatch.setenv("SOME_HEADER", "of the environment")
        config = BackendConfig.model_validate(
            {
                "base_url": "http://h",
                "api_key_env": "SOME_KEY",
                "auth_header": "api-key",
                "headers": {"X-Team": "nightly", "X-Env": {"env": "SOME_HEADER"}},
            }
        )
        named = {name: getattr(config, name) for name in ("api_key_env", "auth_header", "headers")}
        _, server = ask(reply(hostile.GOOD), **named)
        head = server.seen[0].head.lower()
        for line in ("api-key: k-1", "x-team: nightly", "x-env: of the environment"):
            assert f"\r\n{line}\r\n" in head
        assert "authorization" not in head

    def test_extra_fields_replace_those_of_a_line(self) -> None:
        extra = {"priority": 10, "extra": {"of": ["the operator"]}}
        _, server = ask(reply(hostile.GOOD), extra_body=extra, model=None)
        assert orjson.loads(server.seen[0].body) == {**orjson.loads(CHAT_BODY), **extra}

    def test_a_ranking_has_them_too(self) -> None:
        _, server = ask(
            reply(b'{"results":[]}'),
            Request(RERANK, RERANK_BODY, "req_1"),
            id="bge-reranker-v2",
            extra_body={"priority": 10},
        )
        assert orjson.loads(server.seen[0].body)["priority"] == 10

    @pytest.mark.parametrize("is_trusted", [True, False])
    def test_a_server_behind_an_own_authority_is_trusted_by_its_file(
        self, tmp_path: Path, is_trusted: bool
    ) -> None:
        async def main() -> Outcome:
            context, authority = tls.server_context(tmp_path)
            server = Hostile()
            server.answer = reply(hostile.GOOD)
            async with await asyncio.start_server(
                server.serve, "127.0.0.1", 0, ssl=context
            ) as listening:
                port = listening.sockets[0].getsockname()[1]
                file = authority if is_trusted else None
                async with backend_at(f"https://127.0.0.1:{port}/v1", ca_file=file) as client:
                    return await client.send(Request(CHAT, CHAT_BODY, "req_1"))

        outcome = asyncio.run(main())
        if is_trusted:
            assert isinstance(outcome, Answered)
        else:
            assert retried(outcome).is_unreachable

    def test_a_certificate_that_is_none_is_named(self, tmp_path: Path) -> None:
        file = tmp_path / "ca.pem"
        file.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        model = model_at("https://127.0.0.1:9/v1", ca_file=file)
        with pytest.raises(ConfigError, match="ca_file has a certificate that cannot be used"):
            OpenAIBackend(model)
