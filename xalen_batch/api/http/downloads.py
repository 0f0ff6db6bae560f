"""Downloads of files: whole, in ranges, and only if they have changed (RFC 9110)."""

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import quote

from fastapi import Request, Response

from xalen_batch.api.http import encodings, paths, preconditions, ranges
from xalen_batch.api.http.responses import Stream
from xalen_batch.errors import PreconditionFailed
from xalen_batch.results.content import Content, Rendered, Stored, Zstd

BYTES = "application/octet-stream"
ZSTD = "zstd"
# A cache asks again each time, since a file can be deleted. Its key must be checked anyway.
CACHING = "private, no-cache"


def download(
    request: Request, content: Content, filename: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a GET or HEAD of a file, whatever the client's Accept header says.

    Raises PreconditionFailed and RangeNotSatisfiable.
    """
    common = {
        "content-disposition": _attachment(filename),
        "x-content-type-options": "nosniff",
        **(headers or {}),
    }
    if isinstance(content, Stored):
        return _stored(request, content, common)
    return _rendered(content, common)


def constant(request: Request, body: bytes, media_type: str = "application/json") -> Response:
    """The answer to a GET of a document that changes with the version of this server alone."""
    tag = preconditions.entity_tag(hashlib.sha256(body).digest())
    headers = {"etag": tag, "cache-control": "no-cache"}
    if not preconditions.if_none_match(_field(request, "if-none-match"), tag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=media_type)


def _rendered(content: Rendered, headers: Mapping[str, str]) -> Response:
    length = {} if content.size is None else {"content-length": str(content.size)}
    return Stream(
        content.chunks(),
        headers={**headers, **length, "accept-ranges": "none"},
        media_type=BYTES,
        files=content.files,
    )


def _stored(request: Request, content: Stored, common: Mapping[str, str]) -> Response:
    is_head = paths.method(request.scope) == "HEAD"
    # Only GET has ranges.
    asked = None if is_head else _field(request, "range")
    # A range is one of the plain bytes.
    zstd = None
    if asked is None and encodings.asks_for(_field(request, "accept-encoding"), ZSTD):
        zstd = content.zstd if content.zstd and content.zstd.is_there() else None
    tag = preconditions.entity_tag(content.sha256, ZSTD if zstd else None)
    headers = {**common, "etag": tag, "cache-control": CACHING}
    if content.zstd:
        headers["vary"] = "accept-encoding"
    if not preconditions.if_match(_field(request, "if-match"), tag):
        raise PreconditionFailed(
            f"If-Match: the file's entity tag is {tag}. Send that one, or leave If-Match out."
        )
    if not preconditions.if_none_match(_field(request, "if-none-match"), tag):
        return Response(status_code=304, headers=headers)
    if is_head:
        # A GET finds out when it reads.
        content.confirm()
    if zstd:
        return _compressed(zstd, headers)
    part = None
    if preconditions.if_range(_field(request, "if-range"), tag):
        part = ranges.parse(asked, content.size)
    digest = f"sha-256=:{b64encode(content.sha256).decode()}:"
    return _plain(request, content, part, {**headers, "repr-digest": digest})


def _compressed(zstd: Zstd, headers: Mapping[str, str]) -> Response:
    """Without ranges, and without a digest: Repr-Digest would be that of the compressed bytes."""
    compressed = {
        "content-encoding": ZSTD,
        "content-length": str(zstd.size),
        "accept-ranges": "none",
    }
    return Stream(zstd.chunks(), headers={**headers, **compressed}, media_type=BYTES)


def _plain(
    request: Request, content: Stored, part: range | None, headers: Mapping[str, str]
) -> Response:
    sent = range(content.size) if part is None else part
    plain = {"accept-ranges": "bytes", "content-length": str(len(sent))}
    if part is not None:
        plain["content-range"] = f"bytes {part.start}-{part.stop - 1}/{content.size}"
    elif paths.method(request.scope) != "HEAD":
        # The digest of what is sent, which is nothing for HEAD (RFC 9530).
        plain["content-digest"] = headers["repr-digest"]
    return Stream(
        content.chunks(sent.start, sent.stop),
        status_code=200 if part is None else 206,
        headers={**headers, **plain},
        media_type=BYTES,
    )


def _field(request: Request, name: str) -> str | None:
    """A field of the request; the lines of one that is there several times, as one list."""
    return ", ".join(request.headers.getlist(name)) or None


def _attachment(filename: str) -> str:
    """A Content-Disposition with the name twice (RFC 6266): in ASCII for old clients, and exact."""
    plain = "".join(char if char.isascii() and char not in '"\\/' else "_" for char in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
