"""Lines of embeddings as one request: what is combined, and how its answer is split."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch.backends.contract import Answered, Request
from xalen_batch.endpoints.names import CHAT, EMBEDDINGS
from xalen_batch.endpoints.usage import Usage
from xalen_batch.worker import combine
from xalen_batch.worker.work import Part


def request(input: Any = "a text", **fields: Any) -> Request:
    body = {"model": "m", "input": input, **fields}
    return Request(EMBEDDINGS, orjson.dumps(body), "r")


def part(input: Any = "a text", **fields: Any) -> Part:
    found = combine.part_of(request(input, **fields))
    assert found is not None
    return found


def answer(*vectors: Any, read: int = 10, counted: bool = False, **fields: Any) -> Answered:
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    body = {"object": "list", "data": data, "model": "m", **fields}
    return Answered(200, orjson.dumps(body), Usage(read, counted=counted))


class TestParts:
    @pytest.mark.parametrize(
        ("input", "inputs"),
        [
            ("a", ['"a"']),
            (["a", "b c"], ['"a"', '"b c"']),
            ([1, 2, 3], ["[1,2,3]"]),
            ([[1, 2], [3]], ["[1,2]", "[3]"]),
        ],
    )
    def test_each_form_of_input_is_a_list_of_texts(self, input: Any, inputs: list[str]) -> None:
        assert [bytes(each).decode() for each in part(input).inputs] == inputs

    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"[]",
            b'{"model":"m"}',
            b'{"input":[]}',
            b'{"input":["a",1]}',
            b'{"input":null}',
            b'{"input":"\xff"}',
        ],
    )
    def test_what_is_no_request_is_sent_as_it_is(self, body: bytes) -> None:
        assert combine.part_of(Request(EMBEDDINGS, body, "r")) is None

    def test_other_endpoints_are_sent_as_they_are(self) -> None:
        assert combine.part_of(Request(CHAT, request().body, "r")) is None

    def test_parameters_but_the_user_have_to_be_equal(self) -> None:
        plain = part("a")
        assert plain.is_like(part(["b", "c"]))
        assert plain.is_like(part("b", user="someone"))
        assert not plain.is_like(part("b", dimensions=8))
        assert not plain.is_like(part("b", encoding_format="base64"))
        assert part("a", x=1, y=2).is_like(part("b", y=2, x=1))
        # Texts and token ids are not mixed in one request.
        assert not plain.is_like(part([1, 2]))


class TestSplit:
    def test_each_line_gets_its_own_vectors_from_0_on_and_its_share_of_the_usage(self) -> None:
        parts = [part("a b c"), part(["d", "e"]), part("f g")]
        found = combine.split(answer([1.50], [2], [3], [4], read=15, id="x"), parts)
        assert found is not None
        bodies = [json.loads(each.body) for each in found]
        assert [[item["embedding"] for item in body["data"]] for body in bodies] == [
            [[1.5]],
            [[2], [3]],
            [[4]],
        ]
        assert [[item["index"] for item in body["data"]] for body in bodies] == [[0], [0, 1], [0]]
        # By our count the lines have 3, 2 and 2 tokens.
        assert [each.usage for each in found] == [Usage(7), Usage(4), Usage(4)]
        assert [body["usage"] for body in bodies] == [
            {"prompt_tokens": read, "total_tokens": read} for read in (7, 4, 4)
        ]
        assert {(body["object"], body["model"], body["id"]) for body in bodies} == {
            ("list", "m", "x")
        }

    def test_the_order_is_that_of_the_indexes(self) -> None:
        body = json.loads(answer([1], [2]).body)
        body["data"].reverse()
        mixed = Answered(200, orjson.dumps(body), Usage(2))
        found = combine.split(mixed, [part("a"), part("b")])
        assert found is not None
        assert [json.loads(each.body)["data"][0]["embedding"] for each in found] == [[1], [2]]

    def test_a_server_without_indexes_answers_in_order(self) -> None:
        body = b'{"data":[{"embedding":"AAA="},{"embedding":"AQE="}]}'
        found = combine.split(Answered(200, body, Usage(2)), [part("a"), part("b")])
        assert found is not None
        assert [json.loads(each.body)["data"] for each in found] == [
            [{"embedding": "AAA=", "index": 0}],
            [{"embedding": "AQE=", "index": 0}],
        ]

    @pytest.mark.parametrize(
        "body",
        [
            b'{"data":[]}',
            b'{"data":[{"index":0}]}',
            b'{"data":[{"index":0},{"index":0}]}',
            b'{"data":[{"index":0},{"index":2}]}',
            b'{"data":[{"index":0},{}]}',
            b'{"data":[{"index":0},{"index":"1"}]}',
            b'{"data":[{"index":0},{"index":1.5}]}',
            b'{"data":[0,1]}',
            b'{"data":{}}',
            b"{}",
        ],
    )
    def test_an_answer_without_one_item_for_each_input_is_not_split(self, body: bytes) -> None:
        assert combine.split(Answered(200, body, Usage(2)), [part("a"), part("b")]) is None

    def test_counted_tokens_are_counted_for_each_line(self) -> None:
        parts = [part("a b c"), part("d")]
        stated = {"usage_source": "counted", "usage_reported": None}
        found = combine.split(answer([1], [2], read=4, counted=True, xalen=stated), parts)
        assert found is not None
        assert [each.usage for each in found] == [Usage(3, counted=True), Usage(1, counted=True)]
        assert [json.loads(each.body)["xalen"]["usage_source"] for each in found] == ["counted"] * 2


@given(st.integers(0, 10**7), st.lists(st.integers(0, 10**5), min_size=1, max_size=40))
def test_shares_sum_to_the_whole_and_are_fair(total: int, weights: list[int]) -> None:
    found = combine.shares(total, weights)
    assert sum(found) == total
    assert min(found) >= 0
    if sum(weights):
        for share, weight in zip(found, weights, strict=True):
            assert abs(share - total * weight / sum(weights)) < 1
    assert found == combine.shares(total, weights)


def test_what_rounding_leaves_goes_to_the_largest_remainders() -> None:
    assert combine.shares(10, [1, 1, 1]) == [4, 3, 3]
    assert combine.shares(11, [5, 3, 2]) == [6, 3, 2]
    assert combine.shares(7, [0, 0]) == [4, 3]
