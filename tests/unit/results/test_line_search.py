"""One line is found by its custom id in an input file, and by its number in sorted results."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from xalen_batch.results import line_search
from xalen_batch.results.line_search import Chunks, Found

READ = 50


def reader(content: bytes) -> Chunks:
    def chunks(start: int, end: int) -> Iterator[bytes]:
        end = min(end, len(content))
        for begin in range(start, end, READ):
            yield content[begin : min(begin + READ, end)]

    return chunks


def lines(*ids: Any, ascii: bool = False) -> list[bytes]:
    return [
        json.dumps({"custom_id": id, "body": {"text": f"not {other}"}}, ensure_ascii=ascii).encode()
        for id, other in zip(ids, (*ids[1:], ids[0]), strict=True)
    ]


def find(content: bytes, custom_id: str) -> Found | None:
    return line_search.by_custom_id(reader(content), len(content), custom_id, longest=10_000)


IDS = ["a", "a/b", 'quote"d', "100%", "Grüße", "\u2028", "tab\t", "a", "z" * 120, "last"]


@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_is_found_by_its_id_wherever_chunks_end(ascii: bool, end: bytes) -> None:
    ids = list(dict.fromkeys(IDS))
    made = lines(*ids, ascii=ascii)
    for first in (b"", b"\n\n", b"\xef\xbb\xbf"):
        content = first + end.join(made)
        for position, id in enumerate(ids):
            number = position + 1 + first.count(b"\n")
            line = (first if position == 0 and first[:1] != b"\n" else b"") + made[position]
            assert find(content, id) == Found(number, line)
        assert find(content, "none") is None
        # An id in the text of another line is none.
        assert find(content, "not a") is None


def test_other_spellings_of_an_id_are_found_by_reading_each_line() -> None:
    content = (
        b'{"custom_id":"one"}\n{"custom_id":"\\u0074wo"}\n{"custom_id": "a\\/b"}\nno JSON \\\n'
    )
    assert find(content, "two") == Found(2, b'{"custom_id":"\\u0074wo"}')
    assert find(content, "a/b") == Found(3, b'{"custom_id": "a\\/b"}')
    assert find(content, "three") is None


def number_of(line: bytes) -> int:
    return int(line[1:7])


@pytest.mark.parametrize("longest", [10, 400])
def test_a_line_is_found_by_its_number(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_search, "MiB", 64)
    numbers = [n for n in range(1, 600) if n % 7]
    made = {n: b"#%06d" % n + b"x" * (n * 31 % longest) for n in numbers}
    content = b"".join(line + b"\n" for line in made.values())
    asked: list[int] = []

    def chunks(start: int, end: int) -> Iterator[bytes]:
        for chunk in reader(content)(start, end):
            asked.append(len(chunk))
            yield chunk

    for n in range(602):
        asked.clear()
        found = line_search.by_number(chunks, len(content), n, number_of)
        assert found == made.get(n)
        # Far less than the whole.
        assert sum(asked) < 40 * (64 + longest) + 1_000


def test_nothing_is_found_in_nothing() -> None:
    assert line_search.by_number(reader(b""), 0, 1, number_of) is None
    assert find(b"", "a") is None
