"""Results are joined with their requests by their ids, in the order of the input."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from tests.unit.client.stub_api import answer, refusal
from xalen.batch.join import Join, Side
from xalen.types.results import LineResult


def joined(
    requests: list[bytes], output: list[dict[str, Any]], errors: list[dict[str, Any]]
) -> list[LineResult[Any]]:
    lines = {
        Side.REQUESTS: iter(requests),
        Side.OUTPUT: iter([json.dumps(line).encode() for line in output]),
        Side.ERRORS: iter([json.dumps(line).encode() for line in errors]),
    }
    join, found = Join(ChatCompletion), []
    while not join.is_over:
        for side in join.wanted():
            join.put(side, next(lines[side], None))
        if (result := join.take()) is not None:
            found.append(result)
    return found


def line(custom_id: str) -> bytes:
    return json.dumps({"custom_id": custom_id, "body": {"of": custom_id}}).encode()


@given(st.lists(st.booleans(), max_size=30), st.data())
def test_every_line_has_its_result_in_the_order_of_the_input(
    succeeds: list[bool], data: st.DataObject
) -> None:
    ids = [f"c{number}" for number in range(len(succeeds))]
    requests = []
    for custom_id in ids:
        requests += [b"  \r\n"] * data.draw(st.integers(0, 2)) + [line(custom_id)]
    results = joined(
        requests,
        [answer(id, id) for id, good in zip(ids, succeeds, strict=True) if good],
        [refusal(id) for id, good in zip(ids, succeeds, strict=True) if not good],
    )
    assert [result.custom_id for result in results] == ids
    for result, good in zip(results, succeeds, strict=True):
        assert result.request == {"custom_id": result.custom_id, "body": {"of": result.custom_id}}
        assert (result.response is not None, result.error is None) == (good, good)


def test_lines_that_were_skipped_are_joined_by_their_number() -> None:
    results = joined(
        [line("a"), b"", b"{no json", line("a"), b"[]", line("b")],
        [answer("a", "x"), answer("b", "y")],
        [refusal("line-3"), refusal("line-4-2"), refusal("line-5")],
    )
    assert [(result.custom_id, result.request and True) for result in results] == [
        ("a", True),
        ("line-3", None),
        ("line-4-2", True),
        ("line-5", None),
        ("b", True),
    ]


def test_without_the_input_file_the_results_have_no_requests() -> None:
    results = joined([], [answer("a", "x"), answer("c", "y")], [refusal("b")])
    assert [(result.custom_id, result.request) for result in results] == [
        ("a", None),
        ("c", None),
        ("b", None),
    ]


def test_no_result_is_lost_if_the_order_is_another() -> None:
    results = joined(
        [line("a"), line("b"), line("c")], [answer("c", "x"), answer("a", "y")], [refusal("b")]
    )
    assert sorted(result.custom_id for result in results) == ["a", "b", "c"]
    assert all(
        result.request is None or result.request["custom_id"] == result.custom_id
        for result in results
    )


def test_a_line_without_a_result_is_left_out() -> None:
    assert [
        result.custom_id for result in joined([line("a"), line("b")], [answer("b", "x")], [])
    ] == ["b"]


def test_a_line_of_results_that_is_no_json_is_an_error() -> None:
    join = Join(ChatCompletion)
    with pytest.raises(ValueError, match="Expecting"):
        join.put(Side.OUTPUT, b"<html>")
