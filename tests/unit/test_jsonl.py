"""The spans of the lines of an input file, and the form of an output line."""

import json
from uuid import uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.validation.chunks import cut
from xalen_batch import ids, jsonl
from xalen_batch.jsonl import Span

LINES = st.lists(
    st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b" ").rstrip(b"\r")),
    min_size=1,
    max_size=20,
)


@given(
    LINES,
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.lists(st.integers(0, 700), max_size=30),
)
def test_any_chunking_gives_the_same_lines_and_every_span_slices_back_to_its_line(
    lines, newline, has_last_newline, places
):
    content = newline.join(lines) + (newline if has_last_newline else b"")
    read = list(jsonl.lines(cut(content, places), longest=100))
    assert read == list(jsonl.lines([content], longest=100))
    assert all(content[span.offset : span.offset + span.length] == raw for span, raw in read)
    assert [raw for _, raw in read] == (lines if has_last_newline or lines[-1] else lines[:-1])
    assert [span.line_no for span, _ in read] == list(range(1, len(read) + 1))


@given(
    st.lists(
        st.builds(
            Span,
            st.integers(1, 1 << 31),
            st.integers(0, (1 << 64) - 1),
            st.integers(0, (1 << 32) - 1),
        ),
        max_size=9,
    ),
    st.integers(0, (1 << 31) - 1),
)
def test_numbers_of_an_index_are_moved_and_nothing_else(spans, by):
    moved = jsonl.unpack(jsonl.renumber(jsonl.pack(spans), by))
    assert list(moved) == [Span(number + by, offset, length) for number, offset, length in spans]


def test_a_line_that_is_too_long_comes_without_its_bytes_and_the_next_ones_are_read():
    read = list(jsonl.lines([b"ab\n" + b"x" * 50, b"x" * 50 + b"\ncd"], longest=60))
    assert read == [(Span(1, 0, 2), b"ab"), (Span(2, 3, 100), None), (Span(3, 104, 2), b"cd")]


def test_a_line_that_is_too_long_is_never_held():
    def endless():
        for _ in range(200):
            yield bytes(1 << 20)

    assert list(jsonl.lines(endless(), longest=1 << 20)) == [(Span(1, 0, 200 << 20), None)]


def test_offsets_count_from_the_start_of_the_object():
    first, second = jsonl.blocks([b"a\nb"], longest=9, start=3)
    assert (first.spans, first.line(first.spans[0])) == ([Span(1, 3, 1)], b"a")
    assert (second.spans, second.line(second.spans[0])) == ([Span(2, 5, 1)], b"b")


def test_a_chunk_of_whole_lines_is_one_block_and_is_not_copied():
    chunk = b"a\nbc\r\n\nd\n"
    (block,) = jsonl.blocks([chunk], longest=9)
    assert block.data is chunk
    assert block.ends == (0, len(chunk) - 1)
    assert [block.line(span) for span in block.spans] == [b"a", b"bc", b"", b"d"]


@pytest.mark.parametrize("line", [b"\n", b"1\r\n"])
def test_a_chunk_of_many_short_lines_is_many_blocks_since_a_place_takes_more_room_than_a_short_line(
    line,
):
    chunk = line * 2_500
    found = list(jsonl.blocks([chunk, chunk], longest=9))
    assert max(len(block.spans) for block in found) == jsonl.BLOCK_LINES
    assert [span for block in found for span in block.spans] == [
        Span(number + 1, number * len(line), len(line.rstrip())) for number in range(5_000)
    ]


@given(
    st.lists(
        st.builds(Span, st.integers(1, 2**32 - 1), st.integers(0, 2**63), st.integers(0, 2**32 - 1))
    )
)
def test_packed_spans_unpack_to_themselves_at_sixteen_bytes_each(spans):
    packed = jsonl.pack(spans)
    assert list(jsonl.unpack(packed)) == spans
    assert len(packed) == len(spans) * jsonl.SPAN_BYTES


# Every character at which `str.splitlines` cuts.
CUTS = [char for char in map(chr, range(0x3000)) if len(f"a{char}b".splitlines()) == 2]
EVERY_CUT = "a".join(CUTS) + "\r\n"


@pytest.mark.parametrize(
    "custom_id", ["a", 'quote " and \\', "line\nbreak", "ünïcode 😀", "\\\u2028", *CUTS, EVERY_CUT]
)
def test_output_lines_are_one_line_of_json_whatever_they_hold(custom_id):
    batch = ids.new()
    message = f"too late for {custom_id}"
    is_escaped = jsonl.has_line_break(custom_id, message)
    body = jsonl.escaped(orjson.dumps({"a": custom_id}))
    answered = jsonl.result_line(batch, 1, custom_id, 200, body, None, None, is_escaped)
    refused = jsonl.result_line(
        batch, 1, custom_id, None, None, "batch_expired", message, is_escaped
    )
    for raw in (answered, refused):
        assert raw.endswith(b"\n")
        assert raw.decode().splitlines(keepends=True) == [raw.decode()]
    line_id, request_id = ids.line_id(batch, 1), ids.request_id(batch, 1)
    response = {"status_code": 200, "request_id": request_id, "body": {"a": custom_id}}
    assert json.loads(answered) == {
        "id": line_id,
        "custom_id": custom_id,
        "response": response,
        "error": None,
    }
    error = {"code": "batch_expired", "message": message}
    assert json.loads(refused) == {
        "id": line_id,
        "custom_id": custom_id,
        "response": None,
        "error": error,
    }


def test_only_what_cuts_a_line_is_escaped():
    # U+2027 and U+0084 are one bit away, and the bytes of U+0085 stand within no other character.
    for text in ("ascii", "ünï 😀", "\u2027\u202a\x84\x86", "腅"):
        raw = orjson.dumps(text)
        assert jsonl.escaped(raw) is raw or jsonl.escaped(raw) == raw
        assert not jsonl.has_line_break(text, None)
    assert jsonl.escaped(orjson.dumps("x\x85y\u2028z\u2029")) == b'"x\\u0085y\\u2028z\\u2029"'


@given(
    st.integers(1, 2**30),
    st.text(min_size=1, max_size=20),
    st.one_of(st.none(), st.sampled_from([200, 404, 500])),
    st.one_of(st.none(), st.binary(max_size=50)),
    st.text(max_size=20),
    st.booleans(),
)
def test_the_size_of_a_line_is_known_without_making_it(
    line_no, custom_id, status, body, message, is_escaped
):
    custom_id += "\x85" * is_escaped
    line = jsonl.result_line(
        uuid4(), line_no, custom_id, status, body, "bad_answer", message, is_escaped
    )
    assert jsonl.result_size(
        line_no, custom_id, status, body, "bad_answer", message, is_escaped
    ) == len(line)


@pytest.mark.parametrize("status", [200, 404, None])
def test_a_line_has_the_id_that_every_attempt_gives_it(status):
    batch = ids.new()
    line = json.loads(jsonl.result_line(batch, 7, "a", status, b"{}", "bad_answer", "no"))
    assert line["id"] == ids.line_id(batch, 7)
    assert status is None or line["response"]["request_id"] == ids.request_id(batch, 7)
