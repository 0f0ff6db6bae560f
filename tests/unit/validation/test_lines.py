"""Each kind of faulty file or line has its own code, line, param and remedy."""

import gzip
import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import ROOT
from tests.factories import CHAT_MODEL, RERANK_MODEL, chat_line, embedding_line, jsonl, rerank_line
from tests.unit.validation.chunks import cut
from xalen_batch import catalog
from xalen_batch.endpoints.chat import UsualChat
from xalen_batch.endpoints.names import CHAT, EMBEDDINGS, RERANK
from xalen_batch.jsonl import Block, Span, input_line
from xalen_batch.validation import fast_path
from xalen_batch.validation.errors import Fault
from xalen_batch.validation.lines import GoodLine, LineReader, refused_line, scan

GOOD = orjson.dumps(chat_line("good"))


def read(content: bytes, endpoint: str | None = CHAT) -> list[GoodLine | Fault]:
    return list(scan([content], endpoint=endpoint, models=catalog.read(None)))


def only_fault(content: bytes, endpoint: str | None = CHAT) -> Fault:
    (found,) = read(content, endpoint)
    assert isinstance(found, Fault), found
    return found


def changed(**values) -> bytes:
    line = {**chat_line("a"), **values}
    return json.dumps({key: value for key, value in line.items() if value is not ...}).encode()


def with_body(text: bytes) -> bytes:
    """A good line with one more field in its body, given as JSON."""
    return GOOD.replace(b'"messages"', b'"extra":' + text + b',"messages"')


BROKEN = [
    # content, code, param, in the message
    (b"\xff" + GOOD, "invalid_encoding", None, "iconv"),
    (GOOD.replace(b"parcel", b"par\xffcel"), "invalid_encoding", None, "0xff"),
    (GOOD.replace(b"parcel", b"par\x00cel"), "invalid_json_line", None, "NUL"),
    (b'{"custom_id": "a"', "invalid_json_line", None, "Not JSON"),
    (
        b'{"custom_id": "a',
        "invalid_json_line",
        None,
        "Not JSON: Unterminated string starting at character 15.",
    ),
    (
        b'{"custom_id": "\t"}',
        "invalid_json_line",
        None,
        "Not JSON: Invalid control character at character 16.",
    ),
    (b"{'custom_id': 'a'}", "invalid_json_line", None, "double quotes"),
    (b"[", "invalid_json_line", None, "on one line of its own"),
    (GOOD + b" " + GOOD, "invalid_json_line", None, "one whole JSON object"),
    (b"[1]", "invalid_json_line", None, "a list, not an object"),
    (b"null", "invalid_json_line", None, "null, not an object"),
    (b"3", "invalid_json_line", None, "a number, not an object"),
    (with_body(b"[" * 200 + b"]" * 200), "invalid_json_line", None, "nested too deeply"),
    (with_body(b"[" * 100_000), "invalid_json_line", None, "nested too deeply"),
    (
        with_body(b'{"a":' * 5000 + b"1" + b"}" * 5000),
        "invalid_json_line",
        None,
        "nested too deeply",
    ),
    (with_body(b'[{"a":' * 65 + b"1" + b"}]" * 65), "invalid_json_line", None, "nested too deeply"),
    (with_body(rb'"\ud800"'), "invalid_json_line", None, "surrogate"),
    (with_body(rb'"\udc00\ud800"'), "invalid_json_line", None, "surrogate"),
    (with_body(b"NaN"), "invalid_json_line", None, "NaN is not JSON"),
    (with_body(b"-Infinity"), "invalid_json_line", None, "-Infinity is not JSON"),
    (with_body(b"1e400"), "invalid_json_line", None, "too large"),
    (with_body(b"9" * 400), "invalid_json_line", None, "too large"),
    (with_body(b"9" * 10_000), "invalid_json_line", None, "too large"),
    (b'{"custom_id":"b",' + GOOD[1:], "invalid_json_line", None, "'custom_id' is there twice"),
    (
        GOOD.replace(b'"body"', b'"body":{},"body"'),
        "invalid_json_line",
        None,
        "'body' is there twice",
    ),
    (
        GOOD.replace(b'"model"', b'"model":"gpt","model"'),
        "invalid_json_line",
        None,
        "'model' is there twice",
    ),
    (
        GOOD.replace(b'"model"', rb'"mod\u0065l":"gpt","model"'),
        "invalid_json_line",
        None,
        "'model' is there twice",
    ),
    (
        GOOD.replace(b'"messages"', b'"messages":[],"messages"'),
        "invalid_json_line",
        None,
        "'messages' is there twice",
    ),
    (
        GOOD.replace(b'"messages"', b'"seed":' + b"9" * 400 + b',"messages"'),
        "invalid_json_line",
        None,
        "too large",
    ),
    (
        GOOD.replace(b'"messages"', b'"max_tokens":' + b"9" * 400 + b',"messages"'),
        "invalid_json_line",
        None,
        "too large",
    ),
    (changed(custom_id=...), "missing_required_parameter", "custom_id", "request-1"),
    (changed(custom_id=7), "invalid_custom_id", "custom_id", "It is 7."),
    (changed(custom_id=""), "invalid_custom_id", "custom_id", "1 to 512 characters"),
    (changed(custom_id="x" * 513), "invalid_custom_id", "custom_id", "513 characters long"),
    (changed(custom_id="a\x00"), "invalid_custom_id", "custom_id", "without NUL"),
    (changed(method=...), "missing_required_parameter", "method", "POST"),
    (changed(method="GET"), "invalid_method", "method", "It is 'GET'."),
    (changed(method=["POST"]), "invalid_method", "method", "It is list."),
    (changed(url=...), "missing_required_parameter", "url", CHAT),
    (changed(url="/v1/moderations"), "url_mismatch", "url", f"the batch's endpoint, {CHAT}"),
    (changed(url={}), "url_mismatch", "url", CHAT),
    (changed(body=...), "missing_required_parameter", "body", CHAT),
    (changed(body=[]), "invalid_request", "body", "a list"),
    (changed(body={"messages": []}), "missing_required_parameter", "body.model", CHAT_MODEL),
    (changed(body={"model": 3}), "model_not_found", "body.model", "3"),
    (
        changed(body={"model": "mistral-smal-3.1"}),
        "model_not_found",
        "body.model",
        f"Did you mean {CHAT_MODEL}",
    ),
    (
        changed(body={"model": "zzz"}),
        "model_not_found",
        "body.model",
        f"Name one of: {CHAT_MODEL}, {RERANK_MODEL}",
    ),
    (
        changed(body={**chat_line("a")["body"], "stream": True}),
        "invalid_request",
        "body.stream",
        "Leave stream out",
    ),
]


@pytest.mark.parametrize(("content", "code", "param", "message"), BROKEN)
def test_each_broken_line_is_its_own_error(content, code, param, message):
    first, fault = read(GOOD + b"\n" + content + b"\n")
    assert isinstance(first, GoodLine)
    assert isinstance(fault, Fault)
    assert (fault.code, fault.line, fault.param) == (code, 2, param)
    assert message in fault.message
    assert len(fault.message) < 500


FOREIGN = [
    *[
        (GOOD.decode().encode(name), "invalid_encoding", "UTF-8: iconv")
        for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be")
    ],
    (gzip.compress(GOOD), "invalid_encoding", "gzip"),
    (b"PK\x03\x04 and so on", "invalid_encoding", "zip"),
    (b"", "empty_file", "no requests"),
    (b"\xef\xbb\xbf", "empty_file", "no requests"),
    (b"\n \r\n\n", "empty_file", "no requests"),
]


@pytest.mark.parametrize(("content", "code", "message"), FOREIGN)
def test_a_file_that_is_no_jsonl_text_is_one_error_without_a_line(content, code, message):
    fault = only_fault(content)
    assert (fault.code, fault.line) == (code, None)
    assert message in fault.message


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_the_encoding_is_seen_however_the_first_bytes_arrive(chunk):
    content = GOOD.decode().encode("utf-16")
    pieces = [content[at : at + chunk] for at in range(0, len(content), chunk)]
    (fault,) = scan(pieces, endpoint=CHAT, models=catalog.read(None))
    assert isinstance(fault, Fault)
    assert fault.code == "invalid_encoding"


def test_a_bom_crlf_blank_lines_and_a_missing_last_newline_are_fine():
    content = (
        b"\xef\xbb\xbf"
        + orjson.dumps(chat_line("a"))
        + b"\r\n\r\n  \n"
        + orjson.dumps(chat_line("b"))
    )
    found = read(content)
    assert [(line.span.line_no, line.custom_id) for line in found] == [(1, "a"), (4, "b")]
    assert [content[line.span.offset :][: line.span.length] for line in found] == [
        orjson.dumps(chat_line("a")),
        orjson.dumps(chat_line("b")),
    ]
    assert [line.custom_id for line in read(content + b"\n\r\n\n")] == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        rb'"\ud83d\ude00"',
        rb'"\u0000"',
        b"1e-400",
        b"-0",
        b"9" * 40,
        b"[" * 100 + b"]" * 100,
        b'{"a":1,"model":2}',
        b'"\xe2\x80\xae"',
        b"[[],[]" + b",[]" * 500 + b"]",
    ],
)
def test_odd_json_that_every_parser_reads_alike_is_taken(text):
    (line,) = read(with_body(text))
    assert isinstance(line, GoodLine)
    assert input_line(with_body(text)).custom_id == "good"


def test_a_custom_id_used_twice_names_both_lines():
    content = jsonl([chat_line("a"), chat_line("b"), chat_line("a")])
    fault = read(content)[2]
    assert (fault.code, fault.line, fault.param) == ("duplicate_custom_id", 3, "custom_id")
    assert "line 1 and again on line 3" in fault.message


def test_hostile_values_are_escaped_and_cut_in_messages():
    fault = only_fault(changed(url="\x1b[2J\u202e" + "x" * 10_000))
    assert fault.message.isprintable()
    assert "x" * 100 not in fault.message


def test_a_line_that_another_view_has_refused_fails_with_its_words():
    line = refused_line("a", "params.max_tokens", "Send a whole number.")
    found = read(jsonl([line, chat_line("b"), refused_line("b", "", "x")]))
    assert (found[0].code, found[0].param, found[0].message, found[0].custom_id) == (
        "invalid_request",
        "params.max_tokens",
        "Send a whole number.",
        "a",
    )
    assert isinstance(found[1], GoodLine)
    # Its custom id counts like any.
    assert found[2].code == "duplicate_custom_id"


def test_hostile_words_of_a_refused_line_are_harmless():
    fault = only_fault(jsonl([refused_line("a", "\x00", "\x00\x1b[2J\u202e" + "x" * 10_000)]))
    assert fault.message.isprintable()
    assert len(fault.message) < 1_001
    assert fault.param is None
    for refused in ("x", None, [], 1):
        line = {"custom_id": "a", "refused": refused}
        assert only_fault(jsonl([line])).param == "method"
    assert isinstance(read(jsonl([chat_line("a") | {"refused": {"message": "x"}}]))[0], GoodLine)


def test_the_first_lines_url_is_taken_where_no_endpoint_is_given():
    content = jsonl([rerank_line("a"), chat_line("b")])
    first, second = read(content, None)
    assert (first.endpoint, second.code) == (RERANK, "url_mismatch")
    assert only_fault(changed(url="/v1/moderations"), None).message.startswith("url must be one of")


@pytest.mark.parametrize("url", ["/chat/completions", "/v1/chat/completions/", CHAT])
@pytest.mark.parametrize("endpoint", [CHAT, None])
def test_every_spelling_of_the_chat_endpoint_is_a_usual_line(url, endpoint):
    lines = [chat_line("a") | {"url": url}, chat_line("b"), chat_line("c") | {"url": url}]
    good = list(read(jsonl(lines), endpoint))
    assert [line.endpoint for line in good] == [CHAT] * 3
    assert all(isinstance(line.request, UsualChat) for line in good[1:])


@pytest.mark.parametrize("url", ["/rerank", "/v2/rerank", "/v2/rerank/", RERANK])
@pytest.mark.parametrize("endpoint", [RERANK, None])
def test_every_spelling_of_the_rerank_endpoint_means_the_same(url, endpoint):
    good = list(read(jsonl([rerank_line("a") | {"url": url}, rerank_line("b")]), endpoint))
    assert [line.endpoint for line in good] == [RERANK, RERANK]


@pytest.mark.parametrize(
    "url", ["/v2/chat/completions", "/v3/rerank", "chat/completions", "//rerank", "/", ""]
)
def test_a_url_that_no_server_uses_is_no_spelling(url):
    assert only_fault(changed(url=url)).code == "url_mismatch"


def test_a_model_that_does_not_serve_the_endpoint_says_which_ones_it_serves():
    fault = only_fault(jsonl([rerank_line("a", model=CHAT_MODEL)]), RERANK)
    assert (fault.code, fault.param) == ("model_not_found", "body.model")
    assert f"does not serve {RERANK}, only {CHAT}" in fault.message
    assert RERANK_MODEL in fault.message


def test_more_lines_than_a_batch_may_have_is_one_error_that_ends_the_reading(monkeypatch):
    monkeypatch.setattr("xalen_batch.validation.lines.settings", lambda: Limits(max_batch_lines=2))
    found = read(jsonl([chat_line(str(number)) for number in range(5)]))
    assert [getattr(line, "code", "good") for line in found] == ["good", "good", "too_many_tasks"]
    assert "Split it" in found[-1].message


def embeddings(*texts):
    lines = [embedding_line(f"id-{number}", each) for number, each in enumerate(texts)]
    return list(scan([jsonl(lines)], endpoint=EMBEDDINGS, models=catalog.read(None)))


def test_more_inputs_of_embeddings_than_a_batch_may_have_end_the_reading(monkeypatch):
    limits = Limits(max_batch_inputs=4)
    monkeypatch.setattr("xalen_batch.validation.lines.settings", lambda: limits)
    # Four, with the inputs of an invalid line left out; a text and token ids are one each.
    good = embeddings(["a", "b"], ["a", ""], "c", [1, 2, 3])
    assert [getattr(line, "code", "good") for line in good] == [
        *("good", "invalid_request", "good", "good")
    ]
    found = embeddings(["a", "b"], "c", ["d", "e"], "f")
    assert [getattr(line, "code", "good") for line in found] == ["good", "good", "too_many_inputs"]
    assert (found[-1].line, found[-1].param, found[-1].is_of_line) == (3, "body.input", False)
    assert found[-1].message == (
        "With the 2 of this line, the file has 5 inputs of embeddings; the most of one batch is 4."
        " Split the file before this line."
    )
    limits.max_batch_inputs = None
    assert all(isinstance(line, GoodLine) for line in embeddings(["a", "b"], "c", ["d", "e"], "f"))


def test_a_file_of_blank_lines_is_not_read_for_ever(monkeypatch):
    monkeypatch.setattr("xalen_batch.validation.lines.settings", lambda: Limits(max_batch_lines=5))
    line = orjson.dumps(chat_line("a")) + b"\n"
    (fault,) = read(b"\n" * 50 + line)
    assert (fault.code, fault.line) == ("too_many_tasks", 50)
    assert "Remove the blank lines" in fault.message
    assert [getattr(found, "code", "good") for found in read(b"\n" * 48 + line)] == ["good"]


def test_a_line_that_is_too_long_is_an_error_and_the_next_one_is_read(monkeypatch):
    monkeypatch.setattr("xalen_batch.validation.lines.settings", lambda: Limits(max_line_bytes=200))
    found = read(jsonl([chat_line("a", "x" * 300), chat_line("b")]))
    assert [getattr(line, "code", "good") for line in found] == ["line_too_long", "good"]
    assert found[0].line == 1


class Limits:
    def __init__(
        self,
        max_batch_lines: int = 50_000,
        max_line_bytes: int = 1 << 20,
        max_batch_inputs: int | None = 50_000,
    ) -> None:
        self.max_batch_lines = max_batch_lines
        self.max_line_bytes = max_line_bytes
        self.max_batch_inputs = max_batch_inputs


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(
    st.lists(TEXTS, min_size=1, max_size=15),
    st.booleans(),
    st.lists(st.integers(0, 4000), max_size=30),
)
def test_any_list_of_good_lines_is_read_whole_however_it_is_cut(contents, is_escaped, places):
    lines = [
        json.dumps(chat_line(f"id-{number}", text), ensure_ascii=is_escaped).encode()
        for number, text in enumerate(contents)
    ]
    content = b"\n".join(lines)
    found = list(scan(cut(content, places), endpoint=CHAT, models=catalog.read(None)))
    assert [content[line.span.offset :][: line.span.length] for line in found] == lines
    assert [line.custom_id for line in found] == [f"id-{number}" for number in range(len(lines))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["custom_id", "body", "model", "messages", "x"]), inner)
    ),
)


@given(JSON)
def test_whatever_json_a_line_is_it_is_good_or_a_fault_and_a_good_one_can_be_read_by_a_worker(
    value,
):
    content = json.dumps({**chat_line("a"), "body": value}).encode()
    (found,) = read(content)
    if isinstance(found, GoodLine):
        assert input_line(content).custom_id == found.custom_id


@given(st.binary(min_size=1, max_size=200))
def test_no_bytes_break_the_reading(content):
    assert all(isinstance(found, Fault) for found in read(content))


def test_every_code_is_in_the_guide():
    root = ROOT
    source = "".join(
        path.read_text("utf-8")
        for room in ("validation", "pipeline")
        for path in (root / "xalen_batch" / room).glob("*.py")
    )
    codes = set(re.findall(r'Fault\(\s*"(\w+)"', source))
    assert len(codes) > 10
    guide = (root / "docs" / "validation.md").read_text("utf-8")
    assert {code for code in codes if f"| `{code}` |" not in guide} == set()


def both(raw: bytes) -> tuple[object, object]:
    """A line read on the fast path, if it takes it, and on the slow path."""
    short, long = (LineReader(CHAT, catalog.read(None)) for _ in range(2))
    block = Block([Span(1, 0, len(raw))], raw, 0)
    values = fast_path.decode(block)
    return values and short._usual(block, block.spans[0], values[0]), long._any(
        block, block.spans[0], raw
    )


def test_a_usual_line_goes_the_short_way_and_is_read_alike() -> None:
    raw = orjson.dumps(
        chat_line(
            "a",
            "Where is my parcel? “Here”",
            max_tokens=5,
            temperature=0.5,
            user="u",
            stop=["x"],
            seed=1,
        )
    )
    usual, any_ = both(raw)
    assert isinstance(usual, GoodLine)
    assert isinstance(any_, GoodLine)
    assert (
        usual.custom_id,
        usual.model,
        usual.endpoint,
        list(usual.request.cacheable),
        usual.raw,
    ) == (
        any_.custom_id,
        any_.model,
        any_.endpoint,
        list(any_.request.cacheable),
        any_.raw,
    )


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.text(max_size=2), max_size=2),
    st.sampled_from(
        [
            CHAT_MODEL,
            RERANK_MODEL,
            "POST",
            CHAT,
            "user",
            "assistant",
            "tool",
            {"type": "text"},
            [],
            {},
            [{"role": "user", "content": "x"}],
        ]
    ),
)


@given(
    line=st.dictionaries(
        st.sampled_from(["custom_id", "method", "url", "extra"]), VALUES, max_size=2
    ),
    body=st.dictionaries(
        st.sampled_from(
            [
                "model",
                "messages",
                "stream",
                "n",
                "max_tokens",
                "temperature",
                "top_p",
                "stop",
                "seed",
                "response_format",
            ]
        ),
        VALUES,
        max_size=3,
    ),
    message=st.dictionaries(
        st.sampled_from(["role", "content", "name", "tool_calls", "refusal"]), VALUES, max_size=2
    ),
    cut=st.tuples(
        st.integers(0, 400),
        st.sampled_from([b"", b"\x00", b"\xff", b'"model":"x",', b"1e400", b"[[", b"0", b","]),
    ),
)
def test_what_goes_the_short_way_is_good_the_long_way(
    line: Any, body: Any, message: Any, cut: tuple[int, bytes]
) -> None:
    good = chat_line("a")
    good["body"]["messages"][-1].update(message)
    good["body"].update(body)
    raw = json.dumps({**good, **line}).encode()
    for sent in (raw, raw[: cut[0]] + cut[1] + raw[cut[0] :]):
        usual, any_ = both(sent)
        assert usual is None or isinstance(any_, GoodLine), any_


ODD = [
    # Lines that take the slow path, with the code of their fault, or None if they are good.
    (changed(custom_id="7"), "duplicate_custom_id"),
    (changed(custom_id="a\x00"), "invalid_custom_id"),
    (GOOD.replace(b'"model"', b'"model":"gpt","model"'), "invalid_json_line"),
    (GOOD.replace(b'"model"', rb'"mod\u0065l":"gpt","model"'), "invalid_json_line"),
    (GOOD[:-1], "invalid_json_line"),
    (GOOD + GOOD, "invalid_json_line"),
    (changed(url="/v1/moderations"), "url_mismatch"),
    (changed(body={**chat_line("a")["body"], "model": "gpt"}), "model_not_found"),
    (changed(body={**chat_line("a")["body"], "stream": True}), "invalid_request"),
    (orjson.dumps(chat_line("a", "model")), None),
    (
        orjson.dumps(chat_line("a", "x", tools=[{"type": "function", "function": {"name": "f"}}])),
        None,
    ),
    (b"  " + orjson.dumps(chat_line("a")) + b" ", None),
]


@pytest.mark.parametrize(("odd", "code"), ODD)
@pytest.mark.parametrize("place", [0, 20, 69])
def test_one_odd_line_is_read_as_it_would_be_alone_and_its_neighbours_are_good(odd, code, place):
    lines = [orjson.dumps(chat_line(str(number), f"text {number}")) for number in range(7, 76)]
    lines.insert(place, odd)
    content = b"\n".join(lines) + b"\n"
    found = read(content)
    # The second use of a line is a duplicate custom id.
    at = 1 if code == "duplicate_custom_id" and not place else place
    assert [getattr(line, "code", None) for line in found] == [
        code if number == at else None for number in range(70)
    ]
    assert [line.line if isinstance(line, Fault) else line.span.line_no for line in found] == list(
        range(1, 71)
    )
    assert [line.raw for line in found if isinstance(line, GoodLine)] == [
        line for number, line in enumerate(lines) if number != at or not code
    ]


ONE, TWO, THREE = (orjson.dumps(chat_line(name)) for name in ("one", "two", "three"))


@pytest.mark.parametrize(
    ("content", "codes"),
    [
        # The number of values equals that of lines, but some line has two.
        (ONE + b" " + TWO + b"\n" + THREE.replace(b",", b",\n", 1), ["invalid_json_line"] * 3),
        (ONE + TWO + b"\n" + b"\n".join(THREE.rsplit(b"}", 1)) + b"}", ["invalid_json_line"] * 3),
        (ONE + TWO + b"\n" + THREE.replace(b'"body":', b'"body":\n'), ["invalid_json_line"] * 3),
        (ONE + TWO + b"\n\n" + THREE, ["invalid_json_line", None]),
    ],
)
def test_a_line_that_is_not_one_value_is_no_line(content, codes):
    assert [getattr(line, "code", None) for line in read(content + b"\n")] == codes


def test_an_id_of_another_part_of_the_file_is_known():
    lines = [orjson.dumps(chat_line(str(number % 60))) + b"\n" for number in range(61)]
    *good, fault = scan(
        [b"".join(lines[:30]), b"".join(lines[30:])], endpoint=CHAT, models=catalog.read(None)
    )
    assert all(isinstance(line, GoodLine) for line in good)
    assert isinstance(fault, Fault)
    assert "line 1 and again on line 61" in fault.message
