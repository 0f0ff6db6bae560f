"""Hostile requests, as bytes on a connection, with the answer that each has to get.

`{file}`, `{batch}`: ids of the caller's own objects; `{their_file}`, `{their_batch}`: another
account's; `{live_file}`: of the caller's account in the other mode; `{key}`: the caller's key.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Headers = tuple[tuple[str, str | bytes], ...]
KiB = 1024
MiB = 1024 * 1024
JSON = (("content-type", "application/json"),)
FORM = (("content-type", "multipart/form-data; boundary=edge"),)
KEY = (("authorization", "Bearer {key}"),)


@dataclass(frozen=True)
class HostileRequest:
    """`code` None: any code.

    `raw`: the whole request as bytes, instead of the other fields. `changes`: the request is valid
    and creates or changes an object.
    """

    name: str
    method: str = "GET"
    path: str = "/v1/files"
    headers: Headers = ()
    body: bytes = b""
    status: int = 400
    code: str | None = None
    auth: Headers = KEY
    raw: bytes | None = field(default=None, repr=False)
    changes: bool = False

    def render(self, names: Mapping[bytes, bytes]) -> bytes:
        """The request's bytes, with each `{name}` replaced."""

        def filled(template: str | bytes) -> bytes:
            content = (
                template.encode("utf-8", "surrogatepass") if isinstance(template, str) else template
            )
            for name, value in names.items():
                content = content.replace(name, value)
            return content

        if self.raw is not None:
            return filled(self.raw)
        body = filled(self.body)
        sent = [*self.auth, *self.headers]
        if (body or self.method == "POST") and not {name for name, _ in sent} & {
            "content-length",
            "transfer-encoding",
        }:
            sent.append(("content-length", str(len(body))))
        head = filled(f"{self.method} {self.path} HTTP/1.1\r\nhost: x\r\n")
        return (
            head
            + b"".join(filled(name) + b": " + filled(value) + b"\r\n" for name, value in sent)
            + b"\r\n"
            + body
        )


def part(
    name: str, content: bytes = b"", *, filename: bytes | None = None, head: bytes = b""
) -> bytes:
    disposition = b'form-data; name="%b"' % name.encode() + (
        b"" if filename is None else b'; filename="%b"' % filename
    )
    return (
        b"--edge\r\nContent-Disposition: "
        + disposition
        + b"\r\n"
        + head
        + b"\r\n"
        + content
        + b"\r\n"
    )


PURPOSE = part("purpose", b"batch")
FILE = part("file", b"{}\n", filename=b"a.jsonl")
END = b"--edge--\r\n"


def upload(
    name: str, body: bytes, headers: Headers = FORM, status: int = 400, **more: object
) -> HostileRequest:
    return HostileRequest(
        name, "POST", "/v1/files", headers, body, status, changes=status == 200, **more
    )  # type: ignore[arg-type]


def batch(
    name: str, status: int = 400, headers: Headers = JSON, **changes: object
) -> HostileRequest:
    """A request for a batch that is valid but for the changed fields."""
    good = {
        "input_file_id": "{file}",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    body = json.dumps({**good, **changes}).encode()
    return HostileRequest(name, "POST", "/v1/batches", headers, body, status, changes=status == 200)


def body_of_batch(
    name: str, body: bytes, status: int = 400, headers: Headers = JSON, **more: object
) -> HostileRequest:
    return HostileRequest(
        name, "POST", "/v1/batches", headers, body, status, changes=status == 200, **more
    )  # type: ignore[arg-type]


def raw(
    name: str,
    first_line: bytes,
    *headers: bytes,
    body: bytes = b"",
    status: int = 400,
    code: str | None = None,
    end: bytes = b"\r\n",
) -> HostileRequest:
    head = end.join([first_line, b"host: x", b"authorization: Bearer {key}", *headers])
    return HostileRequest(name, raw=head + end + end + body, status=status, code=code)


GOOD_BATCH = (
    b'{"input_file_id":"{file}","endpoint":"/v1/chat/completions","completion_window":"24h"}'
)


def _forms() -> Iterator[HostileRequest]:
    whole = FILE + PURPOSE + END
    yield upload("no content type", whole, ())
    yield upload("a form that says it is JSON", whole, JSON)
    yield upload("no boundary", whole, (("content-type", "multipart/form-data"),))
    yield upload(
        "an empty boundary", whole, (("content-type", 'multipart/form-data; boundary=""'),)
    )
    yield upload(
        "another boundary", whole, (("content-type", "multipart/form-data; boundary=other"),)
    )
    yield upload(
        "a boundary of 10 KB",
        whole,
        (("content-type", "multipart/form-data; boundary=" + "b" * 10_000),),
    )
    yield upload("two content types", whole, (*FORM, *JSON), status=200)
    yield upload("nothing", b"")
    yield upload("an end and nothing before it", END)
    yield upload("no end", FILE + PURPOSE)
    yield upload("cut in the middle", whole[:40])
    yield upload("no file", PURPOSE + END)
    yield upload("no purpose", FILE + END)
    yield upload("the file twice", FILE + FILE + PURPOSE + END)
    yield upload("a purpose that is not for uploads", FILE + part("purpose", b"batch_output") + END)
    yield upload("a purpose that is no text", FILE + part("purpose", b"\xff\0") + END)
    yield upload(
        "a part without a name",
        b"--edge\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + PURPOSE + END,
    )
    yield upload("a part without headers", b"--edge\r\n\r\nx\r\n" + PURPOSE + END)
    yield upload(
        "a part with a header of 100 KB",
        part("file", filename=b"a", head=b"x: " + b"y" * 100_000 + b"\r\n") + PURPOSE + END,
    )
    yield upload(
        "a part with 1,000 headers",
        part("file", filename=b"a", head=b"x: y\r\n" * 1000) + PURPOSE + END,
    )
    yield upload("20,000 parts", part("x", b"y") * 20_000 + whole, status=413)
    yield upload("2 MB before the first part", b"x" * 2 * MiB + b"\r\n" + whole)
    yield upload("2 MB behind the end", whole + b"x" * 2 * MiB, status=413)
    yield upload(
        "a life of 1e9 s",
        FILE
        + PURPOSE
        + part("expires_after[anchor]", b"created_at")
        + part("expires_after[seconds]", b"1000000000")
        + END,
    )
    yield upload(
        "a life in other digits",
        FILE
        + PURPOSE
        + part("expires_after[anchor]", b"created_at")
        + part("expires_after[seconds]", "३६००".encode())
        + END,
    )
    yield upload(
        "the form's own end in the file",
        part("file", whole, filename=b"a") + PURPOSE + END,
        status=200,
    )
    yield upload(
        "another form in the file",
        part("file", whole.replace(b"edge", b"inner"), filename=b"a") + PURPOSE + END,
        status=200,
    )
    yield upload("a file name of 10 KB", part("file", filename=b"x" * 10_000) + PURPOSE + END)
    yield upload("no file name", part("file", b"{}") + PURPOSE + END, status=200)
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "x"):
        yield upload(
            f"Content-Encoding {encoding}",
            whole,
            (*FORM, ("content-encoding", encoding)),
            status=415,
        )
    bomb = gzip.compress(bytes(50 * MiB))
    yield upload(
        "a bomb of zeros as a form", bomb, (*FORM, ("content-encoding", "gzip")), status=415
    )
    yield body_of_batch(
        "a bomb of zeros as JSON",
        bomb,
        415,
        (*JSON, ("content-encoding", "gzip")),
        code="unsupported_content_encoding",
    )
    yield upload(
        "Content-Encoding identity", whole, (*FORM, ("content-encoding", "Identity")), status=200
    )


# Names of uploaded files as they are sent, and as they are stored.
FILE_NAMES = {
    b"../../etc/passwd": "../../etc/passwd",
    rb"..\..\boot.ini": r"..\..\boot.ini",
    b"/etc/passwd": "/etc/passwd",
    b"a\0b": "ab",
    "\u202egpj.exe".encode(): "gpj.exe",
    "a\u2028b\u2029c".encode(): "abc",
    b"\x1b[2J\x1b]8;;http://e.org\x07x": "[2J]8;;http://e.orgx",
    b"a%0d%0aset-cookie: x=1": "a%0d%0aset-cookie: x=1",
    b"a\tb": "ab",
    "ünïcode ☕ 日本".encode(): "ünïcode ☕ 日本",
    b"\xff\xfe": "\ufffd\ufffd",
    b"[red]x[/red] [link=http://e.org]": "[red]x[/red] [link=http://e.org]",
    b"=1+1": "=1+1",
    b"": "upload",
    b"\x7f\x9f": "\ufffd",
}


def _bodies() -> Iterator[HostileRequest]:
    for name, body in {
        "nothing": b"",
        "cut off": GOOD_BATCH[:-5],
        "a list": b"[1]",
        "a list of requests": b"[" + GOOD_BATCH + b"]",
        "null": b"null",
        "a number": b"3",
        "a string": b'"x"',
        "no UTF-8": b'{"input_file_id":"\xff"}',
        "NaN": b'{"input_file_id":NaN}',
        "lists 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
        "objects 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "a number of 5,000 digits": b'{"a":' + b"9" * 5000 + b"}",
        "1e400": (
            GOOD_BATCH[:-1] + b',"output_expires_after":{"anchor":"created_at","seconds":1e400}}'
        ),
        "a key twice, the last of them wrong": GOOD_BATCH[:-1] + b',"input_file_id":3}',
        "a NUL behind it": GOOD_BATCH + b"\0",
        "JSON for a form": FILE + PURPOSE + END,
        "a key of 500 KB": b'{"' + b"k" * 500_000 + b'":1}',
        "metadata with a key of 500 KB": (
            GOOD_BATCH[:-1] + b',"metadata":{"' + b"k" * 500_000 + b'":"v"}}'
        ),
    }.items():
        yield body_of_batch(f"a batch's body: {name}", body)
    yield body_of_batch(
        "a batch's body of 2 MB", GOOD_BATCH[:-1] + b',"x":"' + b"y" * 2 * MiB + b'"}', 413
    )
    chunks = b"".join(b"10000\r\n" + b"y" * 65_536 + b"\r\n" for _ in range(20))
    yield body_of_batch(
        "2 MB in chunks", chunks + b"0\r\n\r\n", 413, (*JSON, ("transfer-encoding", "chunked"))
    )
    yield body_of_batch(
        "a stranger's body of 2 MB", b'{"x":"' + b"y" * 2 * MiB + b'"}', 401, auth=()
    )
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=edge",
        "a",
        "\x00" and "application/json;" * 500,
    ):
        yield body_of_batch(
            f"a body that is no JSON, as {kind[:40]}", b"a=1&b=2", headers=(("content-type", kind),)
        )
    for name, values in {
        "input_file_id": (
            None,
            7,
            [],
            {},
            "",
            "{their_file}",
            "{live_file}",
            "{batch}",
            "{file}x",
            "../{file}",
            "x" * 900_000,
            "\0",
            "\ud800",
        ),
        "endpoint": (
            None,
            7,
            "",
            "/v1/moderations",
            "https://x/v1/chat/completions",
            ["/v1/rerank"],
        ),
        "completion_window": (
            None,
            "",
            24,
            "24",
            "24h\n",
            "-1h",
            "0h",
            "999999999999h",
            "२४h",
            "1e3h",
            "24H ",
        ),
        "metadata": (
            [],
            "x",
            7,
            {"k": None},
            {"k": {"a": 1}},
            {"k": ["a"]},
            {"k": 1},
            {"k" * 65: "v"},
            {"k": "v" * 513},
            {"k": "\0"},
            {"\0": "v"},
            {"k": "\udfff"},
            {str(n): "v" for n in range(17)},
        ),
        "output_expires_after": (
            1,
            [],
            {},
            {"anchor": "now", "seconds": 3600},
            {"anchor": "created_at", "seconds": -1},
            {"anchor": "created_at", "seconds": 10**30},
        ),
        "execution_window": (
            "x",
            {"start": "25:00", "end": "26:00"},
            {"start": "1:00", "end": "2:00", "timezone": "../../etc/passwd"},
        ),
    }.items():
        for value in values:
            yield batch(f"{name} {json.dumps(value)[:40]}", **{name: value})
    yield batch(
        "metadata that a terminal would obey",
        200,
        metadata={"\x1b[2J": "\x1b]8;;http://e.org\x07", "rtl": "\u202e", "[red]": "\r\n"},
    )
    yield batch("fields that nobody knows", 200, x={"y": [None]}, stream=True)
    yield batch(
        "null for all that need not be",
        200,
        metadata=None,
        output_expires_after=None,
        execution_window=None,
    )


def _ids() -> Iterator[HostileRequest]:
    unknown = "unknown_url"
    for path, code in {
        "a/b": unknown,
        "{file}/x": unknown,
        "a%2Fb": unknown,
        "..": None,
        "%2e%2e": None,
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd": unknown,
        "%00": None,
        "{file}%00": None,
        "{file}%0a": None,
        "%20{file}": None,
        "%2500": None,
        "%ff%fe": None,
        "%ED%A0%80": None,
        "FILE": None,
        "{batch}": None,
        "{their_file}": None,
        "{live_file}": None,
        "file-": None,
        "file-" + "0" * 32: None,
        "file-" + "A" * 32: None,
        "file-" + "%EF%BC%91" * 32: None,
        "f" * 10_000: None,
        "'%20OR%201=1--": None,
        "{{file}}": None,
        "%7Bfile%7D": None,
        "<script>": None,
    }.items():
        yield HostileRequest(
            f"a file's id {path[:40]}", path=f"/v1/files/{path}", status=404, code=code
        )
    yield HostileRequest("a file's id of 70 KB", path="/v1/files/" + "f" * 70_000, status=431)
    for path in (
        "{their_batch}",
        "{file}",
        "batch_" + "0" * 32,
        "BATCH_X",
        "%00",
        "{batch}%2Finvoice",
    ):
        for rest in ("", "/output", "/errors", "/invoice"):
            yield HostileRequest(
                f"a batch's id {path}{rest}", path=f"/v1/batches/{path}{rest}", status=404
            )
        yield HostileRequest(f"cancel of {path}", "POST", f"/v1/batches/{path}/cancel", status=404)
    for path in ("{their_file}", "{live_file}", "{batch}", "%00", "..%2f..%2fetc"):
        yield HostileRequest(f"deletion of {path}", "DELETE", f"/v1/files/{path}", status=404)
    for path in ("%00", "x" * 5000, "../files/{file}", "gpt%0d%0ax:1"):
        yield HostileRequest(f"a model {path[:30]}", path=f"/v1/models/{path}", status=404)
    for month in (
        "2026-13",
        "0000-00",
        "%D9%A2%D9%A0%D9%A2%D9%A6-11",
        "99999-01",
        "2026-1",
        "%00",
        "x" * 5000,
        "2026-11%0a",
        "-1-01",
    ):
        yield HostileRequest(f"the statement of {month[:30]}", path=f"/v1/statements/{month}")


def _queries() -> Iterator[HostileRequest]:
    for query in (
        "limit=-1",
        "limit=0",
        "limit=1000000000",
        "limit=abc",
        "limit=1.5",
        "limit=",
        "limit=" + "9" * 5000,
        "limit=0x10",
        "limit=%00",
        "limit=1e1",
        "after=x",
        "after=",
        "after={batch}",
        "after=%00",
        "after=%ff",
        "after=" + "x" * 10_000,
        "after=file-" + "G" * 32,
        "after={file}%0a",
        "order=DESC",
        "order=",
        "order=asc;drop",
        "purpose=x",
        "purpose=%00",
    ):
        yield HostileRequest(f"files?{query[:40]}", path=f"/v1/files?{query}")
    yield HostileRequest("batches?limit=101", path="/v1/batches?limit=101")
    yield HostileRequest("batches of another's schedule", path="/v1/batches?schedule_id=x")
    for query in ("after={their_file}", "limit=0&limit=1", "x=%ff%00&y=[]", "&&&=", "limit=%31"):
        yield HostileRequest(
            f"files?{query}, which is harmless", path=f"/v1/files?{query}", status=200
        )
    yield HostileRequest(
        "a cursor of another account's batch", path="/v1/batches?after={their_batch}", status=200
    )


def _auth() -> Iterator[HostileRequest]:
    def auth(
        name: str, *values: str | bytes, status: int = 401, code: str | None = None
    ) -> HostileRequest:
        return HostileRequest(
            f"authorization: {name}",
            auth=tuple(("authorization", value) for value in values),
            status=status,
            code=code,
        )

    yield auth("none")
    yield auth("empty", "")
    yield auth("Bearer alone", "Bearer")
    yield auth("Bearer and blanks", "Bearer    ")
    yield auth("Basic", "Basic eGxuOnRlc3Q=")
    yield auth("the key alone", "{key}")
    yield auth("another scheme", "Token {key}")
    yield auth("half of the key", "Bearer xln_test_")
    yield auth("the key and more", "Bearer {key}x")
    yield auth("the key in capitals", "Bearer XLN_TEST_{key}")
    yield auth("two in one", "Bearer x, Bearer {key}")
    yield auth("two, the first wrong", "Bearer x", "Bearer {key}")
    yield auth("two, the second wrong: the first counts", "Bearer {key}", "Bearer x", status=200)
    yield auth("small letters", "bearer {key}", status=200)
    yield auth("no ASCII", b"Bearer \xff\xfe")
    yield auth("no ASCII but UTF-8", "Bearer ключ")
    yield auth("60 KB", "Bearer " + "x" * 60_000)
    yield auth("100 KB", "Bearer " + "x" * 100_000, status=431)
    yield auth("a NUL", b"Bearer {key}\0", status=400, code="invalid_http")
    yield auth("a line break", b"Bearer {key}\r\n x", status=400, code="invalid_http")
    yield HostileRequest(
        "the key in the address",
        path="/v1/files?api_key={key}&authorization=Bearer%20{key}",
        auth=(),
        status=401,
    )
    yield HostileRequest(
        "the key in a cookie", auth=(("cookie", "authorization=Bearer {key}"),), status=401
    )


def _idempotency() -> Iterator[HostileRequest]:
    for name, value in {
        "empty": "",
        "256 characters": "x" * 256,
        "10 KB": "x" * 10_000,
        "a tab": "a\tb",
        "C1": b"a\x9bb",
        "no-break space": b"a\xa0b",
    }.items():
        yield batch(f"an Idempotency-Key: {name}", headers=(*JSON, ("idempotency-key", value)))
    yield HostileRequest(
        "an Idempotency-Key with a NUL",
        "POST",
        headers=(("idempotency-key", b"a\0b"),),
        code="invalid_http",
    )
    yield batch(
        "an Idempotency-Key of odd letters",
        200,
        headers=(*JSON, ("idempotency-key", "x'; DROP TABLE files --")),
    )


def _downloads() -> Iterator[HostileRequest]:
    many = "bytes=" + ",".join(f"{n}-{n}" for n in range(5000))
    for name, header, value, status in (
        ("one byte", "range", "bytes=0-0", 206),
        ("the last", "range", "bytes=-1", 206),
        ("5,000 ranges", "range", many, 200),
        ("no range", "range", "bytes=a-b", 200),
        ("beyond", "range", "bytes=9999999999-", 416),
        ("5,000 digits", "range", f"bytes={'9' * 5000}-", 200),
        ("other", "range", "lines=1-2", 200),
        ("5,000 tags", "if-none-match", ", ".join(['"x"'] * 5000), 200),
        ("a tag without an end", "if-none-match", '"' + "x" * 50_000, 200),
        ("no tag", "if-match", "W/" * 20_000, 412),
        ("5,000 codings", "accept-encoding", ", ".join(["zstd;q=2"] * 5000), 200),
    ):
        yield HostileRequest(
            f"a download: {name}",
            path="/v1/files/{file}/content",
            headers=((header, value),),
            status=status,
        )
    yield HostileRequest(
        "a page's range: no range",
        path="/docs/assets/VERSION",
        headers=(("range", "bytes=a-b"),),
        status=400,
    )
    yield HostileRequest(
        "a page's range: beyond",
        path="/docs/assets/VERSION",
        headers=(("range", "bytes=999-"),),
        status=416,
    )
    yield HostileRequest(
        "a page's range: many",
        path="/docs/assets/swagger-ui.css",
        headers=(("range", many),),
        status=200,
    )
    for path in (
        "../../app.py",
        "%2e%2e/%2e%2e/app.py",
        "..%2f..%2fapp.py",
        "..%5capp.py",
        "%00",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "x" * 5000,
        ".",
    ):
        yield HostileRequest(f"a page's asset {path[:30]}", path=f"/docs/assets/{path}", status=404)
    yield HostileRequest(
        "content in a form that there is not",
        path="/v1/files/{file}/content",
        headers=(("accept", "text/html"), ("accept-encoding", "*;q=x")),
        status=200,
    )


def _http() -> Iterator[HostileRequest]:
    broken = "invalid_http"
    length, chunked = b"content-length: %d", b"transfer-encoding: chunked"
    post = b"POST /v1/batches HTTP/1.1"
    yield raw(
        "both length and chunks",
        post,
        length % 5,
        chunked,
        body=b"0\r\n\r\nGET /livez HTTP/1.1\r\n\r\n",
        code=broken,
    )
    yield raw("chunks and then length", post, chunked, length % 5, body=b"0\r\n\r\n", code=broken)
    yield raw("two lengths", post, length % 2, length % 3, body=b"{}x", code=broken)
    yield raw("a negative length", post, b"content-length: -1", code=broken)
    yield raw("a length with a sign", post, b"content-length: +2", body=b"{}", code=broken)
    yield raw("a length of 30 digits", post, b"content-length: " + b"9" * 30, code=broken)
    yield raw("two lengths in one", post, b"content-length: 2, 2", body=b"{}", code=broken)
    yield raw(
        "another transfer encoding",
        post,
        b"transfer-encoding: xchunked",
        body=b"0\r\n\r\n",
        code=broken,
    )
    yield raw(
        "chunks that are not last",
        post,
        b"transfer-encoding: chunked, gzip",
        body=b"0\r\n\r\n",
        code=broken,
    )
    yield raw("chunks of no size", post, chunked, body=b"zz\r\n{}\r\n0\r\n\r\n", code=broken)
    yield raw(
        "a chunk of 17 digits", post, chunked, body=b"FFFFFFFFFFFFFFFFF\r\n{}\r\n", code=broken
    )
    yield raw("a chunk with a sign", post, chunked, body=b"-2\r\n{}\r\n0\r\n\r\n", code=broken)
    yield raw(
        "a chunk that is longer than it says",
        post,
        chunked,
        body=b"2\r\n{}xx\r\n0\r\n\r\n",
        code=broken,
    )
    yield raw(
        "a chunk's extension of 1 MB",
        post,
        chunked,
        body=b"2;" + b"x" * MiB + b"\r\n{}\r\n0\r\n\r\n",
        status=431,
    )
    yield raw(
        "trailers of 1 MB",
        post,
        chunked,
        body=b"2\r\n{}\r\n0\r\n" + b"x: yyyyyyy\r\n" * 100_000 + b"\r\n",
        status=431,
    )
    yield raw(
        "more bytes than the length says",
        b"POST /v1/batches HTTP/1.1",
        *_lines(JSON),
        length % 2,
        body=b"{}GARBAGE",
        code=broken,
    )
    yield raw("another version", b"GET /v1/files HTTP/9.9", code=broken)
    yield raw("HTTP/2's first words", b"PRI * HTTP/2.0", code=broken)
    yield HostileRequest("HTTP/0.9", raw=b"GET /v1/files\r\n\r\n", status=401)
    yield HostileRequest(
        "TLS", raw=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), code=broken
    )
    yield HostileRequest("zeros", raw=bytes(1000), code=broken)
    yield HostileRequest("line ends alone", raw=b"\r\n" * 40_000, status=431)
    yield raw("HTTP/1.0", b"GET /v1/files HTTP/1.0", status=200)
    yield raw("a whole address", b"GET http://evil.example/v1/files HTTP/1.1", status=200)
    yield raw("a whole address of a file", b"GET file:///etc/passwd HTTP/1.1", code=broken)
    yield raw("CONNECT", b"CONNECT evil.example:443 HTTP/1.1", code=broken)
    yield raw("TRACE", b"TRACE /v1/files HTTP/1.1", status=405)
    yield raw("OPTIONS of everything", b"OPTIONS * HTTP/1.1", status=404)
    yield HostileRequest("HEAD of files", "HEAD", status=200)
    for method in ("PUT", "PATCH", "OPTIONS", "PROPFIND"):
        yield HostileRequest(f"{method} of files", method, status=405)
    yield raw("a method that there is not", b"STEAL /v1/files HTTP/1.1", code=broken)
    yield raw("a method in small letters", b"get /v1/files HTTP/1.1", code=broken)
    yield raw("a method of 10 KB", b"G" * 10_000 + b" /v1/files HTTP/1.1", code=broken)
    yield raw("a blank in the address", b"GET /v1/files /x HTTP/1.1", code=broken)
    yield raw("a control character in the address", b"GET /v1/files\x01 HTTP/1.1", code=broken)
    yield raw("no ASCII in the address", "GET /v1/files/é HTTP/1.1".encode(), code=broken)
    yield raw("an address that is none", b"GET v1/files HTTP/1.1", code=broken)
    yield raw("two slashes", b"GET //v1/files HTTP/1.1", status=200)
    yield raw("a fragment", b"GET /v1/files#x HTTP/1.1", status=200)
    yield raw("line feeds alone", b"GET /v1/files HTTP/1.1", end=b"\n", code=broken)
    yield raw("a header without a colon", b"GET /v1/files HTTP/1.1", b"nonsense", code=broken)
    yield raw("a blank in a header's name", b"GET /v1/files HTTP/1.1", b"a b: c", code=broken)
    yield raw("a blank before the colon", b"GET /v1/files HTTP/1.1", b"a : c", code=broken)
    yield raw("a NUL in a header", b"GET /v1/files HTTP/1.1", b"a: b\0c", code=broken)
    yield raw("CR alone in a header", b"GET /v1/files HTTP/1.1", b"a: b\rc: d", code=broken)
    yield raw(
        "a header that goes on in the next line",
        b"GET /v1/files HTTP/1.1",
        b"a: b",
        b" c",
        code=broken,
    )
    yield raw(
        "10,000 headers",
        b"GET /v1/files HTTP/1.1",
        *(b"x-%d: y" % n for n in range(10_000)),
        status=431,
        code="request_head_too_large",
    )
    yield raw(
        "a header of 5 MB",
        b"GET /v1/files HTTP/1.1",
        b"x: " + b"y" * 5 * MiB,
        status=431,
        code="request_head_too_large",
    )
    yield raw(
        "an address of 5 MB",
        b"GET /v1/files?x=" + b"y" * 5 * MiB + b" HTTP/1.1",
        status=431,
        code="request_head_too_large",
    )
    yield raw(
        "500 headers", b"GET /v1/files HTTP/1.1", *(b"x-%d: y" % n for n in range(500)), status=200
    )
    yield raw("two hosts", b"GET /v1/files HTTP/1.1", b"host: y", status=200)
    yield raw(
        "WebSocket",
        b"GET /v1/files HTTP/1.1",
        b"connection: upgrade",
        b"upgrade: websocket",
        b"sec-websocket-key: eA==",
        b"sec-websocket-version: 13",
        status=200,
    )
    yield raw(
        "HTTP/2 by upgrade",
        b"GET /v1/files HTTP/1.1",
        b"connection: upgrade, http2-settings",
        b"upgrade: h2c",
        b"http2-settings: AAA",
        status=200,
    )
    yield raw("another expectation", b"GET /v1/files HTTP/1.1", b"expect: 200-ok", status=200)
    yield raw(
        "forwarded from everywhere",
        b"GET /v1/files HTTP/1.1",
        b"x-forwarded-for: 127.0.0.1",
        b"x-forwarded-host: evil.example",
        b"x-http-method-override: DELETE",
        b"x-original-url: /v1/batches",
        status=200,
    )
    expecting = GOOD_BATCH.replace(b"{file}", b"file-x")
    yield HostileRequest(
        "100-continue, for a body that is wrong",
        "POST",
        "/v1/batches",
        (*JSON, ("expect", "100-continue")),
        expecting,
    )
    yield HostileRequest(
        "100-continue of a stranger",
        "POST",
        "/v1/files",
        (*FORM, ("expect", "100-continue")),
        FILE + PURPOSE + END,
        401,
        auth=(),
    )


def _lines(headers: Headers) -> list[bytes]:
    return [f"{name}: {value}".encode() for name, value in headers if isinstance(value, str)]


def _schedules() -> Iterator[HostileRequest]:
    good = {"name": "n", "cron": "0 2 * * *", "endpoint": "/v1/chat/completions", "inbox": {}}
    for name, change in {
        "a clock of the file system": {"timezone": "../../etc/passwd"},
        "a cron of 10 KB": {"cron": "*," * 5000 + "* * * * *"},
        "a cron that never comes": {"cron": "0 0 30 2 *"},
        "a name with a NUL": {"name": "a\0b"},
        "another's file": {"inbox": None, "input_file_id": "{their_file}"},
        "a source in the file system": {
            "inbox": None,
            "source": {"prefix": "../../etc", "pattern": "passwd"},
        },
        "a field that there is not": {"__proto__": {"a": 1}},
    }.items():
        yield HostileRequest(
            f"a schedule with {name}",
            "POST",
            "/v1/schedules",
            JSON,
            json.dumps({**good, **change}).encode(),
        )


def _live_calls() -> Iterator[HostileRequest]:
    good = {"model": "mistral-small-3-1", "messages": [{"role": "user", "content": "Hello"}]}
    path = "/v1/chat/completions"
    for name, change, status in (
        ("a model that is an object", {"model": {}}, 404),
        ("a model with a NUL", {"model": "a\0b"}, 404),
        ("a model of another kind", {"model": "bge-m3"}, 404),
        ("messages that are an object", {"messages": {"0": "x"}}, 400),
        ("a role of 10 KB", {"messages": [{"role": "x" * 10_000, "content": "x"}]}, 400),
        ("2^80 answers", {"n": 2**80}, 400),
        ("a stream that is no boolean", {"stream": "yes"}, 400),
        ("a tier that there is not", {"service_tier": {}}, 400),
        ("more than its context", {"messages": [{"role": "user", "content": "x " * MiB}]}, 400),
    ):
        body = json.dumps({**good, **change}).encode()
        yield HostileRequest(f"a call with {name}", "POST", path, JSON, body, status)
    twice = b'{"model": "mistral-small-3-1", "model": "bge-m3"}'
    for name, body in (
        ("a name twice", twice),
        ("100,000 brackets", b"[" * 100_000),
        ("no UTF-8", b'{"model": "\xff"}'),
        ("nothing", b""),
    ):
        yield HostileRequest(f"a call with {name} as its body", "POST", path, JSON, body)
    yield HostileRequest(
        "a call in a compressed body",
        "POST",
        path,
        (*JSON, ("content-encoding", "gzip")),
        gzip.compress(json.dumps(good).encode()),
        415,
    )
    yield HostileRequest(
        "a call of a stranger", "POST", path, JSON, json.dumps(good).encode(), 401, auth=()
    )
    yield HostileRequest("a call by GET", "GET", path, status=405)


REQUESTS = [
    case
    for cases in (
        _forms,
        _bodies,
        _ids,
        _queries,
        _auth,
        _idempotency,
        _downloads,
        _http,
        _schedules,
        _live_calls,
    )
    for case in cases()
]
