"""Simulated rankings, at their own endpoint and through chat completions."""

import orjson

from tests.unit.backends.simulated.asking import BGE, USER, error, rank
from xalen_batch.backends.contract import Request
from xalen_batch.backends.simulated.model import answer
from xalen_batch.endpoints import tokens
from xalen_batch.endpoints.names import CHAT


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
