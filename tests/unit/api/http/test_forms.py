"""A form's bytes pass through whole, however the network cuts them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from python_multipart import MultipartParser

from xalen_batch.api.http.forms import UploadForm
from xalen_batch.errors import InvalidRequest, TooLarge

BOUNDARY = b"edge"
LINES = st.lists(
    st.sampled_from([b"{}\n", b"\r\n", b"\r\n--edge ", b"--edge", b"-", b"\0\xff", b"\r\n--edg"]),
    max_size=40,
)


def encode(parts: list[tuple[str, bytes]]) -> bytes:
    body = b"".join(
        b"--edge\r\nContent-Type: x/y\r\nContent-Disposition: form-data; "
        + head.encode()
        + b"\r\n\r\n"
        + content
        + b"\r\n"
        for head, content in parts
    )
    return body + b"--edge--\r\n"


def parse(body: bytes, cuts: list[int], limit: int = 10_000) -> tuple[UploadForm, bytes]:
    form = UploadForm(limit)
    parser = MultipartParser(BOUNDARY, form.callbacks())
    content = b""
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for start, end in itertools.pairwise(edges):
        parser.write(body[start:end])
        content += b"".join(form.take())
    return form, content


@given(LINES, st.lists(st.integers(0, 10_000), max_size=30), st.booleans())
def test_content_survives_any_cut_in_either_order(
    pieces: list[bytes], cuts: list[int], file_first: bool
) -> None:
    content = b"".join(pieces).replace(b"\r\n--edge", b"\r\n--edg")
    parts = [('name="file"; filename="a.jsonl"', content), ('name="purpose"', b"batch")]
    form, received = parse(encode(parts if file_first else parts[::-1]), cuts)
    assert received == content
    assert (form.size, form.filename, form.fields, form.is_complete) == (
        len(content),
        "a.jsonl",
        {"purpose": "batch"},
        True,
    )


@given(st.integers(0, 1_000))
def test_nothing_but_its_closing_boundary_completes_a_form(length: int) -> None:
    whole = encode([('name="file"; filename="a"', b"{}")]).removesuffix(b"--\r\n")
    assert not parse(whole[: length % (len(whole) + 1)], [])[0].is_complete


def test_limits_hold_while_bytes_arrive() -> None:
    with pytest.raises(TooLarge, match="10 bytes"):
        parse(encode([('name="file"', b"x" * 11)]), [], limit=10)
    with pytest.raises(TooLarge):
        parse(encode([(f'name="f{n}"', b"x" * 30_000) for n in range(3)]), [])
    with pytest.raises(InvalidRequest, match="two parts"):
        parse(encode([('name="file"', b"")] * 2), [])


@pytest.mark.parametrize(
    ("head", "filename"),
    [
        ('name="file"', "upload"),
        ('name="file"; filename=""', "upload"),
        ('name="file"; filename="\u2603 a.jsonl"', "\u2603 a.jsonl"),
        ('name="file"; filename="a\u202e\x07b"', "ab"),
        ("name=\"file\"; filename*=UTF-8''na%C3%AFve.jsonl", "naïve.jsonl"),
        (
            'name="file"; filename="naive.jsonl"; filename*=utf-8\'fr\'na%C3%AFve.jsonl',
            "naïve.jsonl",
        ),
        ("name=\"file\";FILENAME*=iso-8859-1''na%EFve.jsonl;x=1", "naïve.jsonl"),
        ("name=\"file\"; filename*=UTF-8''a%0d%0ab%00%ff", "ab\ufffd"),
        ('name="file"; filename="a.jsonl"; filename*=klingon\'\'b%20c.jsonl', "a.jsonl"),
        ('name="file"; filename="a.jsonl"; filename*=nonsense', "a.jsonl"),
        ('name="file"; filename="a; filename*=UTF-8\'\'b"', "a; filename*=UTF-8''b"),
        ('name="file"; filename="say %22hello%22.jsonl"', 'say "hello".jsonl'),
        ('name="file"; filename="=?UTF-8?Q?na=C3=AFve.jsonl?="', "naïve.jsonl"),
        ('name="file"; filename="=?UTF-8?B?bmHDr3ZlLmpzb25s?="', "naïve.jsonl"),
        ('name="file"; filename="=?klingon?Q?a?="', "=?klingon?Q?a?="),
        ('name="file"; filename="=?UTF-8?B?x?="', "=?UTF-8?B?x?="),
    ],
)
def test_a_filename_is_whatever_can_be_shown(head: str, filename: str) -> None:
    assert parse(encode([(head, b"")]), [])[0].filename == filename
