"""Hostile input files: each goes through upload, validation and, where it passes, to its batch's
end.

A batch of a file either fails with `errors`, or completes with an outcome for each of its `lines`.
"""

import gzip
import json
import zlib
from bz2 import compress as bzip2
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.factories import CHAT_MODEL, RERANK_MODEL, chat_line
from xalen_batch.endpoints.names import CHAT, RERANK

UNPRICED_MODEL = "no-price"
# The catalog in force for these files; one of its models has no price.
CATALOG = f"""\
[models.{UNPRICED_MODEL}]
name = "A model nobody has priced"
owned_by = "nobody"
category = "compact"
parameters = "1B"
context_window = 1000
endpoints = ["{CHAT}"]
price = {{}}
"""


@dataclass(frozen=True)
class HostileFile:
    """`errors`: (code, line) of each error of validation.

    Without any, `lines` has the status or error code of each custom_id.
    """

    name: str
    content: bytes
    errors: tuple[tuple[str, int | None], ...] = ()
    lines: Mapping[str, int | str] = field(default_factory=dict)
    endpoint: str = CHAT


def line(custom_id: str = "a", **changes: Any) -> bytes:
    """A good line, with other values in it; `...` leaves a key out."""
    changed = {**chat_line(custom_id, max_tokens=1), **changes}
    return json.dumps(
        {key: value for key, value in changed.items() if value is not ...}, ensure_ascii=False
    ).encode()


def body(**changes: Any) -> bytes:
    """A good line, with other values in its body."""
    changed = {**chat_line("a", max_tokens=1)["body"], **changes}
    return line(body={key: value for key, value in changed.items() if value is not ...})


def message(**values: Any) -> bytes:
    return body(messages=[values])


def rerank(**changes: Any) -> bytes:
    asked = {"model": RERANK_MODEL, "query": "q", "documents": ["d"], **changes}
    return line(url=RERANK, body={key: value for key, value in asked.items() if value is not ...})


def extra(value: bytes) -> bytes:
    """A good line, with a value in its body as literal JSON."""
    return GOOD.replace(b'"messages"', b'"extra":' + value + b',"messages"')


def lines(*ids: str) -> bytes:
    return b"".join(line(id) + b"\n" for id in ids)


GOOD = line()
TEXT = GOOD.decode()
PRETTY = json.dumps([json.loads(GOOD)], indent=2).encode()
RUNS = {"a": 200}


def _encodings() -> Iterator[HostileFile]:
    whole = (("invalid_encoding", None),)
    yield HostileFile("UTF-16 with a byte order mark", TEXT.encode("utf-16"), whole)
    yield HostileFile("UTF-16LE without one", TEXT.encode("utf-16-le"), whole)
    yield HostileFile("UTF-16BE without one", TEXT.encode("utf-16-be"), whole)
    yield HostileFile("UTF-32 with one", TEXT.encode("utf-32"), whole)
    yield HostileFile("UTF-32BE without one", TEXT.encode("utf-32-be"), whole)
    yield HostileFile("gzip", gzip.compress(GOOD), whole)
    yield HostileFile("a gzip bomb", gzip.compress(bytes(20_000_000)), whole)
    yield HostileFile("zip", b"PK\x03\x04" + zlib.compress(GOOD), whole)
    yield HostileFile("zstd", b"\x28\xb5\x2f\xfd" + GOOD, whole)
    yield HostileFile("bzip2", bzip2(GOOD), whole)
    second = (("invalid_encoding", 2),)
    yield HostileFile(
        "a line of Latin-1",
        GOOD + b"\n" + line("b", method="POST").replace(b"parcel", b"p\xfcree"),
        second,
    )
    yield HostileFile(
        "quotes of Windows-1252", GOOD + b"\n" + GOOD.replace(b"parcel", b"\x93parcel\x94"), second
    )
    yield HostileFile(
        "an overlong slash", GOOD + b"\n" + GOOD.replace(b"parcel", b"\xc0\xaf"), second
    )
    yield HostileFile(
        "an overlong NUL", GOOD + b"\n" + GOOD.replace(b"parcel", b"\xc0\x80"), second
    )
    yield HostileFile(
        "a surrogate as bytes", GOOD + b"\n" + GOOD.replace(b"parcel", b"\xed\xa0\xbd"), second
    )
    yield HostileFile(
        "beyond the last code point",
        GOOD + b"\n" + GOOD.replace(b"parcel", b"\xf5\x80\x80\x80"),
        second,
    )
    yield HostileFile("cut in the middle of a character", GOOD + b"\n" + "{é".encode()[:-1], second)
    yield HostileFile("random bytes", bytes(range(128, 256)) * 20, (("invalid_encoding", 1),))
    yield HostileFile("a byte order mark", b"\xef\xbb\xbf" + GOOD, lines=RUNS)
    yield HostileFile(
        "two byte order marks", b"\xef\xbb\xbf" * 2 + GOOD, (("invalid_json_line", 1),)
    )
    yield HostileFile(
        "a byte order mark where files were joined",
        GOOD + b"\n\xef\xbb\xbf" + line("b"),
        (("invalid_json_line", 2),),
    )
    yield HostileFile("a byte order mark alone", b"\xef\xbb\xbf", (("empty_file", None),))


def _line_ends() -> Iterator[HostileFile]:
    yield HostileFile("one blank", b" ", (("empty_file", None),))
    yield HostileFile("blank lines alone", b"\n \r\n\t\n\n", (("empty_file", None),))
    yield HostileFile(
        "600,000 blank lines before a good one",
        b"\n" * 600_000 + GOOD,
        (("too_many_tasks", 500_000),),
    )
    yield HostileFile(
        "CR LF, and blank lines between",
        GOOD + b"\r\n\r\n \n" + line("b") + b"\r\n",
        lines={"a": 200, "b": 200},
    )
    yield HostileFile("no last line end", lines("a") + line("b"), lines={"a": 200, "b": 200})
    yield HostileFile("CR alone", GOOD + b"\r" + line("b"), (("invalid_json_line", 1),))
    yield HostileFile("CR CR LF", GOOD + b"\r\r\n" + line("b"), lines={"a": 200, "b": 200})
    yield HostileFile(
        "a form feed between lines", GOOD + b"\x0c" + line("b"), (("invalid_json_line", 1),)
    )
    yield HostileFile(
        "a Unicode line separator between lines",
        GOOD + "\u2028".encode() + line("b"),
        (("invalid_json_line", 1),),
    )
    yield HostileFile("blanks around a line", b" \t" + GOOD + b"\t  ", lines=RUNS)
    yield HostileFile("a file of NUL", bytes(5000), (("invalid_json_line", 1),))
    yield HostileFile(
        "a NUL in a string", GOOD.replace(b"parcel", b"par\0cel"), (("invalid_json_line", 1),)
    )
    yield HostileFile("a NUL behind a line", GOOD + b"\0\n", (("invalid_json_line", 1),))


def _json() -> Iterator[HostileFile]:
    wrong = (("invalid_json_line", 1),)
    yield HostileFile("cut off", GOOD[:-9], wrong)
    yield HostileFile("one brace too many", GOOD + b"}", wrong)
    yield HostileFile("two objects on a line", GOOD + GOOD, wrong)
    yield HostileFile("a list of lines", b"[" + GOOD + b"]", wrong)
    yield HostileFile(
        "a list over several lines",
        PRETTY,
        tuple(("invalid_json_line", n + 1) for n in range(PRETTY.count(b"\n") + 1)),
    )
    yield HostileFile(
        "null, a number, a string, true",
        b'null\n1\n"x"\ntrue',
        tuple(("invalid_json_line", n) for n in (1, 2, 3, 4)),
    )
    yield HostileFile("single quotes", GOOD.replace(b'"', b"'"), wrong)
    yield HostileFile("a comma too many", GOOD[:-1] + b",}", wrong)
    yield HostileFile("a comment", GOOD + b" // here", wrong)
    yield HostileFile("an escape that there is not", extra(rb'"\x41"'), wrong)
    yield HostileFile("a control character in a string", extra(b'"\x1b[2J"'), wrong)
    yield HostileFile("lists 100,000 deep", extra(b"[" * 100_000 + b"]" * 100_000), wrong)
    yield HostileFile("lists 100,000 deep that never end", b"[" * 100_000, wrong)
    yield HostileFile(
        "objects 100,000 deep", extra(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), wrong
    )
    yield HostileFile("nested as deep as is allowed", extra(b"[" * 126 + b"]" * 126), lines=RUNS)
    yield HostileFile("nested one deeper", extra(b"[" * 127 + b"]" * 127), wrong)
    yield HostileFile("brackets in a string", extra(b'"' + b"[{" * 5000 + b'"'), lines=RUNS)
    yield HostileFile("a number of 5,000 digits", extra(b"9" * 5000), wrong)
    yield HostileFile(
        "a seed of 400 digits",
        GOOD.replace(b'"messages"', b'"seed":' + b"9" * 400 + b',"messages"'),
        wrong,
    )
    yield HostileFile("a fraction of 5,000 digits", extra(b"0." + b"1" * 5000), lines=RUNS)
    yield HostileFile("1e400", extra(b"1e400"), wrong)
    yield HostileFile("-1e400", extra(b"-1e400"), wrong)
    yield HostileFile("1e-400", extra(b"1e-400"), lines=RUNS)
    yield HostileFile("NaN", extra(b"NaN"), wrong)
    yield HostileFile("Infinity", extra(b"-Infinity"), wrong)
    yield HostileFile("-0", extra(b"[-0, -0.0, -0e0]"), lines=RUNS)
    yield HostileFile("a number that begins with 0", extra(b"01"), wrong)
    yield HostileFile("half of a surrogate pair", extra(rb'"\ud83d"'), wrong)
    yield HostileFile("a surrogate pair the wrong way round", extra(rb'"\ude00\ud83d"'), wrong)
    yield HostileFile("a whole surrogate pair", extra(rb'"\ud83d\ude00"'), lines=RUNS)
    yield HostileFile("a NUL as an escape", GOOD.replace(b"parcel", rb"par\u0000cel"), lines=RUNS)
    yield HostileFile("custom_id twice", b'{"custom_id":"b",' + GOOD[1:], wrong)
    yield HostileFile("body twice", GOOD.replace(b'"body"', b'"body":{},"body"'), wrong)
    yield HostileFile("model twice", GOOD.replace(b'"model"', b'"model":"x","model"'), wrong)
    yield HostileFile(
        "model twice, once by its codes",
        GOOD.replace(b'"model"', rb'"\u006dodel":"x","model"'),
        wrong,
    )
    yield HostileFile(
        "messages twice", GOOD.replace(b'"messages"', b'"messages":[],"messages"'), wrong
    )
    yield HostileFile(
        "a key of JavaScript's", extra(b'{"__proto__":{"a":1},"constructor":1}'), lines=RUNS
    )
    yield HostileFile(
        "100,000 keys",
        extra(b"{" + b",".join(b'"%d":0' % n for n in range(100_000)) + b"}"),
        lines=RUNS,
    )


def _sizes() -> Iterator[HostileFile]:
    yield HostileFile(
        "a line of 9 MB", message(role="user", content="x" * 9_000_000), (("line_too_long", 1),)
    )
    yield HostileFile(
        "a line of 9 MB of blanks", b" " * 9_000_000 + b"\n" + GOOD, (("line_too_long", 1),)
    )
    yield HostileFile(
        "a line of 7 MB that is no JSON", b'{"a":"' + b"\\" * 7_000_000, (("invalid_json_line", 1),)
    )
    yield HostileFile(
        "a prompt that no window holds",
        message(role="user", content="word " * 140_000),
        (("context_length_exceeded", 1),),
    )
    yield HostileFile(
        "50,001 lines",
        b"".join(b"%b\n" % line(str(n)) for n in range(50_001)),
        (("too_many_tasks", 50_001),),
    )
    many = tuple(("invalid_json_line", n + 1) for n in range(1000))
    yield HostileFile(
        "more errors than are kept", b"x\n" * 3000, (*many, ("too_many_errors", None))
    )
    yield HostileFile(
        "a good line among bad ones",
        b"x\n" + GOOD + b"\nx",
        (("invalid_json_line", 1), ("invalid_json_line", 3)),
    )


def _custom_ids() -> Iterator[HostileFile]:
    wrong = (("invalid_custom_id", 1),)
    yield HostileFile("no custom_id", line(custom_id=...), (("missing_required_parameter", 1),))
    yield HostileFile("custom_id null", line(custom_id=None), (("missing_required_parameter", 1),))
    for name, value in {"number": 7, "list": ["a"], "object": {}, "boolean": True}.items():
        yield HostileFile(f"custom_id a {name}", line(custom_id=value), wrong)
    yield HostileFile("custom_id empty", line(""), wrong)
    yield HostileFile("custom_id of 513 characters", line("x" * 513), wrong)
    yield HostileFile("custom_id of 1 MB", line("x" * 1_000_000), wrong)
    yield HostileFile("custom_id with a NUL", line("a\0"), wrong)
    odd = (
        "x" * 512,
        "😀" * 512,
        "\x1b[2J\x1b]8;;http://e.org\x07",
        "\u202egpj.exe",
        "a\nb\r\n",
        "\u2028",
        "é",
        "e\u0301",
    )
    rest = (
        " a ",
        "=1+1",
        "../../etc/passwd",
        "'; DROP TABLE results; --",
        "<script>",
        "__proto__",
        "[red]",
        "\ufeff",
        "\uffff",
        "%00",
        "null",
    )
    yield HostileFile(
        "custom_ids that are odd", lines(*odd, *rest), lines=dict.fromkeys((*odd, *rest), 200)
    )
    yield HostileFile(
        "the same custom_id at both ends",
        lines("a", *map(str, range(2000)), "a"),
        (("duplicate_custom_id", 2002),),
    )
    yield HostileFile(
        "the same custom_id, once by its codes",
        lines("a") + GOOD.replace(b'"a"', rb'"\u0061"'),
        (("duplicate_custom_id", 2),),
    )
    yield HostileFile(
        "custom_ids that differ in case and blanks",
        lines("a", "A", "a "),
        lines={"a": 200, "A": 200, "a ": 200},
    )


def _addresses() -> Iterator[HostileFile]:
    yield HostileFile("no method", line(method=...), (("missing_required_parameter", 1),))
    for method in ("GET", "post", "POST ", "TRACE", 1, ["POST"]):
        yield HostileFile(f"method {method}", line(method=method), (("invalid_method", 1),))
    yield HostileFile("no url", line(url=...), (("missing_required_parameter", 1),))
    odd = (
        "/v1/moderations",
        "https://api.openai.com/v1/chat/completions",
        "//v1/chat/completions",
        f"{CHAT}?a=1",
        "/v1/x/..",
        "",
        1,
        {},
    )
    for url in odd:
        yield HostileFile(f"url {url!r}", line(url=url), (("url_mismatch", 1),))
    yield HostileFile("a line of another endpoint", lines("b") + rerank(), (("url_mismatch", 2),))


def _bodies() -> Iterator[HostileFile]:
    wrong, unknown = (("invalid_request", 1),), (("model_not_found", 1),)
    yield HostileFile("no body", line(body=...), (("missing_required_parameter", 1),))
    for name, value in {"list": [], "string": "{}", "number": 1, "boolean": False}.items():
        yield HostileFile(f"body a {name}", line(body=value), wrong)
    yield HostileFile("no model", body(model=...), (("missing_required_parameter", 1),))
    for model in (
        "gpt-4o",
        "",
        CHAT_MODEL.upper(),
        f"{CHAT_MODEL} ",
        "x" * 100_000,
        "\0",
        3,
        ["a"],
        {},
    ):
        yield HostileFile(f"model {str(model)[:30]!r}", body(model=model), unknown)
    yield HostileFile(
        "a model without a price", body(model=UNPRICED_MODEL), (("model_not_priced", None),)
    )
    yield HostileFile(
        "a model that does not serve the endpoint",
        rerank(model=CHAT_MODEL),
        unknown,
        endpoint=RERANK,
    )
    fields: dict[str, tuple[Any, ...]] = {
        "messages": (..., None, [], {}, "Hello", ["Hello"], [None], [[]], [{}]),
        "stream": (True, "true", 1),
        "n": (0, -1, 10**9, 1.5, "2"),
        "max_tokens": (0, -5, 10**30, "5", True),
        "temperature": (-0.1, 2.1, "warm", []),
        "top_p": (1.1,),
    }
    for name, values in fields.items():
        for value in values:
            yield HostileFile(f"{name} {str(value)[:20]}", body(**{name: value}), wrong)
    for name, value in {
        "no role": {"content": "x"},
        "a role that there is not": {"role": "root", "content": "x"},
    }.items():
        yield HostileFile(f"a message with {name}", message(**value), wrong)
    for content in (1, None, [], [{}], [{"type": "text"}], [{"type": 1}], {"text": "x"}):
        yield HostileFile(
            f"a message's content {content}", message(role="user", content=content), wrong
        )
    yield HostileFile(
        "keys that nobody knows",
        body(metadata=7, logit_bias=[1], stop=[[]], x={"y": None}),
        lines=RUNS,
    )


def _rankings() -> Iterator[HostileFile]:
    wrong = (("invalid_request", 1),)
    fields: dict[str, tuple[Any, ...]] = {
        "query": (..., "", 1, ["q"]),
        "documents": (..., [], "d", [1], [{}], [{"text": None}], [None]),
        "top_n": (0, -1, 1.5, "1"),
        "return_documents": ("yes", 1),
        "stream": (True,),
    }
    for name, values in fields.items():
        for value in values:
            yield HostileFile(
                f"rerank's {name} {value}", rerank(**{name: value}), wrong, endpoint=RERANK
            )
    yield HostileFile(
        "a ranking of odd documents",
        rerank(documents=["", "\0", "\u202e", "😀" * 1000], top_n=99),
        lines=RUNS,
        endpoint=RERANK,
    )
    for name, content in {
        "no JSON": "Hello",
        "a list": "[1]",
        "no documents": '{"query":"q"}',
        "deep": "[" * 10_000,
    }.items():
        asked = body(model=RERANK_MODEL, messages=[{"role": "user", "content": content}])
        yield HostileFile(f"a chat with the reranker, {name}", asked, lines={"a": 400})


FILES = [
    case
    for cases in (
        _encodings,
        _line_ends,
        _json,
        _sizes,
        _custom_ids,
        _addresses,
        _bodies,
        _rankings,
    )
    for case in cases()
]
