"""Answers of a model server that never end."""

# By way of answering without end: the first bytes, and the bytes that are repeated forever.
ENDLESS = {
    "a status line": (b"HTTP/1.1 200 ", b"O" * 1000),
    "spaces before the status line": (b"", b"\r\n" * 500),
    "a header": (b"HTTP/1.1 200 OK\r\nx-a: ", b"a" * 1000),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x-a: b\r\n" * 100),
    "1xx answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
    "1xx answers with headers": (
        b"",
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n" * 20,
    ),
    "a chunk's size": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"0" * 1000),
    "a chunk extension": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;x=",
        b"a" * 1000,
    ),
    "chunk extensions": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"1;x=" + b"a" * 1000 + b"\r\nb\r\n",
    ),
    "a trailer": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-a: ",
        b"a" * 1000,
    ),
    "trailers": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
        b"x-a: b\r\n" * 100,
    ),
    "answers": (b"", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}" * 25),
}
