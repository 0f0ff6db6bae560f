"""Inflate the bodies that a server compresses although no request asks for it."""

import zlib
from collections.abc import Iterator

from xalen_batch.backends.buffer import READ_BYTES
from xalen_batch.backends.clients.contract import NoReply

# Detect gzip or zlib by the first bytes.
_INFLATE = 32 + zlib.MAX_WBITS
INFLATED_AT_A_TIME = 4 * 1024


def inflate(body: bytes, encoding: bytes) -> Iterator[bytes]:
    """Yield the inflated body in parts of at most READ_BYTES; with `identity`, the body as it is.

    Raises NoReply for other encodings and for invalid data.
    """
    encoding = encoding.strip().lower()
    if encoding == b"identity":
        yield body
        return
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise NoReply("its answer has an encoding that it was not asked for")
    stream = zlib.decompressobj(_INFLATE)
    try:
        for begin in range(0, len(body), INFLATED_AT_A_TIME):
            rest = body[begin : begin + INFLATED_AT_A_TIME]
            while rest and not stream.eof:
                yield stream.decompress(rest, READ_BYTES)
                rest = stream.unconsumed_tail
    except zlib.error as error:
        raise NoReply("its answer is not compressed as it says") from error
    if not stream.eof:
        raise NoReply("its compressed answer is cut off")
