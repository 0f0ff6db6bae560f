"""The simulated models: believable, deterministic, and as strict as a real server."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch import catalog
from xalen_batch.backends.contract import Request
from xalen_batch.backends.simulated import faults
from xalen_batch.backends.simulated.faults import Attempts, Fault
from xalen_batch.backends.simulated.model import Answer, answer
from xalen_batch.endpoints import tokens
from xalen_batch.endpoints.names import CHAT, RERANK

KEYS = [
    "role",
    "content",
    "type",
    "json_schema",
    "schema",
    "items",
    "properties",
    "enum",
    "minItems",
    "maximum",
    "anyOf",
    "simulate",
]
MODELS = catalog.read(None)
MISTRAL, BGE = MODELS["mistral-small-3-1"], MODELS["bge-reranker-v2"]
USER = {"role": "user", "content": "My card was charged twice on this invoice."}


def ask(request_id: str = "r", attempts: Attempts | None = None, **body: Any) -> Answer:
    asked = {"model": MISTRAL.id, "messages": [USER], **body}
    return answer(MISTRAL, Request(CHAT, orjson.dumps(asked), request_id), attempts=attempts)


def content(**body: Any) -> str:
    return str(orjson.loads(ask(**body).body)["choices"][0]["message"]["content"])


def error(reply: Answer) -> tuple[int, str | None, str | None]:
    found = orjson.loads(reply.body)["error"]
    return reply.status, found["code"], found["param"]


def rank(query: str, documents: list[Any], **body: Any) -> Answer:
    return answer(
        BGE,
        Request(
            RERANK,
            orjson.dumps({"model": BGE.id, "query": query, "documents": documents, **body}),
            "r",
        ),
    )


class TestChat:
    def test_says_that_it_is_simulated_and_counts_its_tokens(self) -> None:
        body = orjson.loads(ask().body)
        assert body["system_fingerprint"] == "simulated"
        assert body["model"] == MISTRAL.id
        read, written = (
            tokens.count_chat([USER]),
            tokens.count(body["choices"][0]["message"]["content"]),
        )
        assert body["usage"] == {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }
        assert written > 10

    def test_is_deterministic(self) -> None:
        assert ask() == ask()
        assert ask().body != ask(messages=[{"role": "user", "content": "Something else"}]).body

    def test_latency_is_the_catalogs_with_a_mild_spread(self) -> None:
        latencies = [ask(seed=seed).latency for seed in range(100)]
        assert 0.096 <= min(latencies) < max(latencies) <= 0.144
        assert answer(MISTRAL, Request(CHAT, b"{}", "r"), latency_ms=0).latency == 0

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    def test_stops_at_max_tokens(self, name: str) -> None:
        body = orjson.loads(ask(**{name: 5}).body)
        assert body["choices"][0]["finish_reason"] == "length"
        assert (
            body["usage"]["completion_tokens"]
            == tokens.count(body["choices"][0]["message"]["content"])
            == 5
        )

    def test_reads_whole_numbers_in_every_spelling(self) -> None:
        body = orjson.loads(ask(n=2.0, max_tokens=5.0).body)
        assert [len(body["choices"]), body["usage"]["completion_tokens"]] == [2, 10]

    def test_gives_n_choices(self) -> None:
        body = orjson.loads(ask(n=3).body)
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert body["usage"]["completion_tokens"] == sum(
            tokens.count(choice["message"]["content"]) for choice in body["choices"]
        )

    @pytest.mark.parametrize(
        ("prompt", "text", "label"),
        [
            (
                (
                    "Classify into exactly one of: billing, technical, shipping. Answer with the"
                    " label only."
                ),
                USER["content"],
                "billing",
            ),
            (
                "Classify into exactly one of: billing, technical, shipping.",
                "Die App stürzt ab, Fehler E-12.",
                "technical",
            ),
            (
                "Labels:\n- feature request\n- shipping\n- other",
                "Le colis n'est pas arrivé.",
                "shipping",
            ),
            ("Answer as positive, negative or neutral", "I love it, great work!", "positive"),
            ("Pick one of: aardvark, zebra, other", "Nothing fits here.", "other"),
            ("Pick one of: aardvark, zebra", "A zebra crossed the road.", "zebra"),
        ],
    )
    def test_classifies_by_the_labels_in_the_prompt(
        self, prompt: str, text: str, label: str
    ) -> None:
        assert (
            content(
                messages=[{"role": "system", "content": prompt}, {"role": "user", "content": text}]
            )
            == label
        )

    def test_summarizes_with_the_users_words(self) -> None:
        messages = [
            {"role": "system", "content": "Summarize in one sentence."},
            {"role": "user", "content": "Hi. The parcel never arrived here. Help!"},
        ]
        assert content(messages=messages) == "The parcel never arrived here."

    def test_fits_a_json_schema(self) -> None:
        schema = {
            "type": "object",
            "properties": {
                "category": {"enum": ["shipping", "billing"]},
                "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                "stars": {"type": "integer", "minimum": 1, "maximum": 5},
                "urgent": {"type": "boolean"},
                "tags": {
                    "type": "array",
                    "items": {"type": "string", "maxLength": 10},
                    "minItems": 2,
                },
                "order": {"$ref": "#/$defs/Order"},
                "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
                "kind": {"const": "ticket"},
                "nothing": {"type": "null"},
            },
            "$defs": {
                "Order": {"type": "object", "properties": {"id": {"type": ["string", "null"]}}}
            },
        }
        made = orjson.loads(
            content(
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "t", "schema": schema},
                }
            )
        )
        assert made.keys() == schema["properties"].keys()  # type: ignore[attr-defined]
        assert made["category"] == "billing"
        assert 0 <= made["confidence"] <= 1
        assert made["stars"] in range(1, 6)
        assert isinstance(made["urgent"], bool)
        assert len(made["tags"]) == 2
        assert all(len(tag) <= 10 for tag in made["tags"])
        assert isinstance(made["order"]["id"], str)
        assert isinstance(made["note"], str)
        assert (made["kind"], made["nothing"]) == ("ticket", None)

    def test_a_schema_that_refers_to_itself_ends(self) -> None:
        schema = {"type": "object", "properties": {"child": {"$ref": "#"}}}
        assert "child" in orjson.loads(
            content(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
        )

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "object", "properties": {name: {"$ref": "#"} for name in "abcdefghij"}},
            {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 10**9}},
            {"type": "string", "minLength": 10**9},
        ],
    )
    def test_a_schema_that_asks_for_too_much_gets_a_bounded_answer(
        self, schema: dict[str, Any]
    ) -> None:
        assert (
            len(content(response_format={"type": "json_schema", "json_schema": {"schema": schema}}))
            < 50_000
        )

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "object", "properties": 3},
            {"type": "array", "minItems": "x"},
            {"enum": 3},
            {"$ref": 1},
            {"type": "number", "minimum": "a"},
        ],
    )
    def test_a_schema_that_is_none_is_refused(self, schema: dict[str, Any]) -> None:
        assert error(
            ask(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
        ) == (400, None, "response_format")

    def test_json_mode_has_the_keys_that_the_prompt_names(self) -> None:
        prompt = (
            'Classify into one of: billing, shipping. Answer in JSON: {"category": "…",'
            ' "confidence": 0.9}'
        )
        made = orjson.loads(
            content(
                messages=[{"role": "system", "content": prompt}, USER],
                response_format={"type": "json_object"},
            )
        )
        assert made["category"] == "billing"
        assert 0 <= made["confidence"] <= 1

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ({"max_tokens": 200_000}, (400, "context_length_exceeded", "messages")),
            (
                {"messages": [{"role": "user", "content": "a1" * 70_000}]},
                (400, "context_length_exceeded", "messages"),
            ),
            ({"temperature": 2.5}, (400, "invalid_value", "temperature")),
            ({"top_p": -1}, (400, "invalid_value", "top_p")),
            ({"max_tokens": 0}, (400, "invalid_value", "max_tokens")),
            ({"n": 1_000}, (400, "invalid_value", "n")),
            ({"messages": []}, (400, None, "messages")),
            ({"messages": "x"}, (400, None, "messages")),
            ({"messages": [{"role": "robot", "content": "x"}]}, (400, None, "messages[0].role")),
            ({"messages": [{"role": "user"}]}, (400, None, "messages[0].content")),
            ({"messages": [{"role": "user", "content": 3}]}, (400, None, "messages[0].content")),
            ({"stream": True}, (400, None, "stream")),
            ({"metadata": {"simulate": "explode"}}, (400, None, "simulate")),
        ],
    )
    def test_refuses_what_a_real_server_refuses(
        self, body: dict[str, Any], expected: tuple[int, str | None, str | None]
    ) -> None:
        assert error(ask(**body)) == expected

    def test_an_answer_ends_before_its_first_stop_sequence(self) -> None:
        messages = [
            {"role": "system", "content": "Summarize in one sentence."},
            {"role": "user", "content": "The parcel never arrived here."},
        ]
        for stop in ("never", ["here", "never"], ["never", [], "", 3]):
            body = orjson.loads(ask(messages=messages, stop=stop).body)
            (choice,) = body["choices"]
            assert (choice["message"]["content"], choice["finish_reason"]) == (
                "The parcel ",
                "stop",
            )
            assert body["usage"]["completion_tokens"] == tokens.count("The parcel ")

    def test_refuses_an_endpoint_that_the_model_does_not_serve(self) -> None:
        assert (
            answer(MISTRAL, Request(RERANK, b'{"query":"q","documents":["a"]}', "r")).status == 404
        )

    @given(
        st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "n",
                    "max_tokens",
                    "temperature",
                    "metadata",
                    "response_format",
                    "tools",
                ]
            ),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers(-5, 50)
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(st.characters(codec="utf-8"), max_size=20),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
                ),
                max_leaves=6,
            ),
        )
    )
    def test_no_request_raises(self, body: dict[str, Any]) -> None:
        assert ask(**body).status in (200, 400)


class TestRerank:
    DOCUMENTS = [
        "Selling a device. Remove it from your home before you hand it over.",
        {"text": "Resetting the password. The reset mail arrives within minutes; look in spam."},
        "What plans cost. Prices change once a year, and you are told a month before.",
    ]

    def test_ranks_by_relevance_between_0_and_1(self) -> None:
        body = orjson.loads(rank("password reset mail", self.DOCUMENTS).body)
        scores = [result["relevance_score"] for result in body["results"]]
        assert body["results"][0]["index"] == 1
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > 0.7
        assert 0 < scores[-1] < 0.2
        assert body["usage"]["prompt_tokens"] == tokens.count_rerank(
            "password reset mail", self.DOCUMENTS
        )
        assert body["system_fingerprint"] == "simulated"

    def test_top_n_and_documents(self) -> None:
        (result,) = orjson.loads(
            rank("how much is a plan", self.DOCUMENTS, top_n=1, return_documents=True).body
        )["results"]
        assert (result["index"], result["document"]) == (2, {"text": self.DOCUMENTS[2]})

    def test_through_chat_gives_the_same_ranking(self) -> None:
        asked = orjson.dumps({"query": "password", "documents": self.DOCUMENTS}).decode()
        request = Request(
            CHAT,
            orjson.dumps({"model": BGE.id, "messages": [{"role": "user", "content": asked}]}),
            "r",
        )
        completion = orjson.loads(answer(BGE, request).body)
        results = orjson.loads(completion["choices"][0]["message"]["content"])["results"]
        assert results == orjson.loads(rank("password", self.DOCUMENTS).body)["results"]
        assert completion["system_fingerprint"] == "simulated"

    def test_refuses_what_is_no_rerank(self) -> None:
        assert rank("", ["a"]).status == 400
        assert rank("q", []).status == 400
        assert error(rank("q", ["a", "word " * 9_000])) == (
            400,
            "context_length_exceeded",
            "documents",
        )
        request = Request(CHAT, orjson.dumps({"model": BGE.id, "messages": [USER]}), "r")
        assert error(answer(BGE, request)) == (400, "invalid_rerank_message", "messages")

    def test_no_word_in_common_is_no_error(self) -> None:
        assert rank("zzz", ["…", "", "日本語"]).status == 200


class TestFaults:
    def simulate(self, directives: str, **arguments: Any) -> Answer:
        return ask(metadata={"simulate": directives}, **arguments)

    def test_status_and_retry_after(self) -> None:
        reply = self.simulate("status=429;retry_after=1.5")
        assert (reply.status, reply.headers) == (429, {"retry-after": "1.5"})
        assert error(reply)[1] == "simulated_fault"

    def test_endings_and_bodies(self) -> None:
        assert [self.simulate(one).ending for one in ("hang", "reset", "truncate", "slow=1")] == [
            "hang",
            "reset",
            "truncated",
            "whole",
        ]
        assert self.simulate("html").body.startswith(b"<html>")
        assert self.simulate("empty").body == b""
        assert self.simulate("slow=1000").latency > 1

    @pytest.mark.parametrize("wrong", list(faults.USAGES))
    def test_usage_that_is_wrong(self, wrong: str) -> None:
        assert (
            orjson.loads(self.simulate(f"usage={wrong}").body)["usage"]["prompt_tokens"]
            == faults.USAGES[wrong]
        )
        assert "usage" not in orjson.loads(self.simulate("no_usage").body)

    def test_times_ends_after_that_many_attempts_of_one_request(self) -> None:
        attempts = Attempts()
        assert [
            self.simulate("status=500;times=2", attempts=attempts).status for _ in range(4)
        ] == [500, 500, 200, 200]
        assert (
            self.simulate("status=500;times=2", attempts=attempts, request_id="other").status == 500
        )

    def test_a_rerank_asks_at_the_top_level(self) -> None:
        assert rank("q", ["a"], simulate="status=503").status == 503

    def test_a_fault_from_outside(self) -> None:
        request = Request(CHAT, orjson.dumps({"messages": [USER]}), "r")
        assert answer(MISTRAL, request, fault=Fault(status=503)).status == 503

    @pytest.mark.parametrize(
        "directives",
        [
            "status",
            "status=200",
            "status=x",
            "usage=odd",
            "hang=1",
            "slow=-1",
            "retry_after=inf",
            "boom",
        ],
    )
    def test_unknown_directives_are_named(self, directives: str) -> None:
        with pytest.raises(ValueError, match=directives.replace("=", ".")):
            faults.parse(directives)

    def test_attempts_forget_the_oldest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(faults, "MOST_REMEMBERED", 2)
        attempts = Attempts()
        assert [attempts.next(id) for id in ("a", "b", "a", "c", "b", "a")] == [1, 1, 2, 1, 1, 1]
