"""The elements of a document that arrives in pieces, and documents that have none."""

import json
import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from xalen_batch.api.anthropic import elements as reader
from xalen_batch.api.anthropic.elements import elements
from xalen_batch.errors import InvalidRequest, TooLarge

LONGEST = 1_000_000
VALUES: list[Any] = [
    {},
    [],
    {"a": [1, -2.5e3, True, None, "x"]},
    'a "quoted" \\ text ]}[{, with a backslash at its end \\',
    {"nested": {"list": [[["]"]], {"}": "{"}]}},
    "é \u2028 😀",
    7,
    None,
]


def cut(document: bytes, size: int) -> Iterator[bytes]:
    return (document[start : start + size] for start in range(0, len(document), size))


def found(document: bytes, size: int = 1 << 20, longest: int = LONGEST) -> list[Any]:
    parts = elements(cut(document, size), "requests", longest=longest)
    return [json.loads(part) for part in parts]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_pieces_in_which_a_document_arrives_do_not_matter(
    size: int, indent: int | None
) -> None:
    document = {"before": {"requests": [1]}, "requests": VALUES, "after": "]}"}
    assert found(json.dumps(document, indent=indent).encode(), size) == VALUES
    assert found(json.dumps(document, ensure_ascii=False).encode(), size) == VALUES


def test_random_documents() -> None:
    random.seed(1)
    for _ in range(200):
        values = random.choices(VALUES, k=random.randrange(5))
        document = json.dumps({"requests": values}, indent=random.choice([None, 1])).encode()
        assert found(document, random.randrange(1, 40)) == values


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"null",
        b'"requests"',
        b"{",
        b'{"requests": [1',
        b'{"requests": [1,',
        b'{"requests": [1,]}',
        b'{"requests": [1 2]}',
        b'{"requests": [,1]}',
        b'{"requests": [1],}',
        b'{"requests": ["a]}',
        b'{"requests": ["a\\',
        b'{"requests": []} {}',
        b'{"requests": []}}',
        b"{requests: []}",
        b"{1: []}",
        b'{"requests" []}',
        b'{"a": nonsense, "requests": []}',
        b'\xff{"requests": []}',
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_broken_document_is_refused(document: bytes, size: int) -> None:
    with pytest.raises(InvalidRequest, match=r"Send \{.requests"):
        found(document, size)


@pytest.mark.parametrize("document", [b"{}", b'{"requests": null}', b'{"requests": {}}'])
def test_a_document_without_the_list_is_told(document: bytes) -> None:
    with pytest.raises(InvalidRequest, match="requests: a list is missing"):
        found(document)


@pytest.mark.parametrize("value", ['"%s"' % ("a" * 2_000), "[%s1]" % ("1," * 1_000), "1" * 2_000])
@pytest.mark.parametrize("where", ['{"requests": [%s]}', '{"other": %s, "requests": []}'])
def test_a_long_value_is_refused_before_it_is_held(value: str, where: str) -> None:
    document = (where % value).encode()
    with pytest.raises(TooLarge):
        found(document, 100, longest=1_000)
    # Endless: refused without its end.
    with pytest.raises(TooLarge):
        found(document[:-10] + value[1:-1].encode() * 3, 100, longest=1_000)


def test_a_document_of_brackets_is_refused_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST_BRACKETS", 1_000)
    values = [[[[]]] * 100] * 10
    document = json.dumps({"requests": values}).encode()
    with pytest.raises(TooLarge, match="more than 1,000 nested objects and lists"):
        found(document)
    # Those without nested ones do not count.
    flat = [{"messages": [{"role": "user", "content": "]}"}] * 1_000}]
    assert found(json.dumps({"requests": flat}).encode()) == flat


def test_deep_nesting_takes_no_more_memory_than_its_bytes() -> None:
    document = b'{"requests": [%s%s]}' % (b"[" * 50_000, b"]" * 50_000)
    tracemalloc.start()
    try:
        (element,) = elements(cut(document, 1 << 14), "requests", longest=LONGEST)
        assert len(element) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 800_000
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_document() -> None:
    def document() -> Iterator[bytes]:
        yield b'{"requests": ['
        for number in range(5_000):
            yield b'{"custom_id": "%d", "text": "%s"},' % (number, b"a" * 2_000)
        yield b"1]}"

    tracemalloc.start()
    try:
        assert sum(1 for _ in elements(document(), "requests", longest=LONGEST)) == 5_001
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
