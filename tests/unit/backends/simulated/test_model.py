"""The simulated models' dispatch, latency and faults."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.backends.simulated.asking import MISTRAL, USER, ask, error, rank
from xalen_batch.backends.contract import Request
from xalen_batch.backends.simulated import faults
from xalen_batch.backends.simulated.faults import Attempts, Fault
from xalen_batch.backends.simulated.model import Answer, answer
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


class TestAnswer:
    def test_is_deterministic(self) -> None:
        assert ask() == ask()
        assert ask().body != ask(messages=[{"role": "user", "content": "Something else"}]).body

    def test_latency_is_the_catalogs_with_a_mild_spread(self) -> None:
        latencies = [ask(seed=seed).latency for seed in range(100)]
        assert 0.096 <= min(latencies) < max(latencies) <= 0.144
        assert answer(MISTRAL, Request(CHAT, b"{}", "r"), latency_ms=0).latency == 0

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
