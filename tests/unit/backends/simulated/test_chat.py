"""Simulated chats: plain answers, limits of tokens, stop sequences, and invalid parameters."""

import subprocess
import sys
from typing import Any

import orjson
import pytest

from tests import ROOT
from tests.unit.backends.simulated.asking import MISTRAL, USER, ask, content, error
from xalen_batch.endpoints import tokens

PLAIN_CHAT = """
import sys
from xalen_batch import catalog
from xalen_batch.backends.contract import Request
from xalen_batch.backends.simulated.model import answer
body = b'{"messages": [{"role": "user", "content": "Hello"}]}'
model = catalog.read(None)["mistral-small-3-1"]
assert answer(model, Request("/v1/chat/completions", body, "r")).status == 200
assert not [name for name in sys.modules if name.startswith("jsonschema") or ".schemas." in name]
"""


def test_a_plain_chat_does_not_import_what_makes_json() -> None:
    subprocess.run([sys.executable, "-c", PLAIN_CHAT], check=True, cwd=ROOT)


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

    @pytest.mark.parametrize("text", ["", " \n", [{"type": "text", "text": ""}]])
    def test_an_empty_message_is_answered(self, text: Any) -> None:
        for body in ({}, {"response_format": {"type": "json_object"}}, {"logprobs": True}):
            made = content(messages=[{"role": "user", "content": text}], **body)
            assert made
