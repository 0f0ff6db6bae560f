"""The lines of a batch: a file of the caller's, or requests that are written into one."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

Request = Mapping[str, Any]
Requests = str | os.PathLike[str] | Iterable[Request]

# The endpoint of a body without a line around it, by a field that no other endpoint has.
ENDPOINTS = {
    "messages": "/v1/chat/completions",
    "documents": "/v1/rerank",
    "prompt": "/v1/completions",
}


class Source:
    """An open file of lines, its name, and its endpoint. One thread at a time reads it."""

    def __init__(self, file: IO[bytes], name: str, endpoint: str, *, is_ours: bool) -> None:
        self.file = file
        self.name = name
        self.endpoint = endpoint
        self._is_ours = is_ours
        self._before = self._state()

    @classmethod
    def of(cls, requests: Requests, endpoint: str | None, model: str | None) -> Self:
        """ValueError for requests that cannot be sent; the server checks everything else."""
        if not isinstance(requests, str | os.PathLike):
            return cls._written(requests, endpoint, model)
        if model is not None:
            raise ValueError("model: a file is sent as it is, and its lines name their models")
        path = Path(requests)
        file = path.open("rb")
        return cls(file, path.name, endpoint or _first_url(file, path), is_ours=False)

    @classmethod
    def _written(cls, requests: Iterable[Request], endpoint: str | None, model: str | None) -> Self:
        # The result reads it, and closes it when it is no longer used.
        file = tempfile.TemporaryFile()  # noqa: SIM115
        for number, request in enumerate(requests, start=1):
            line = _line(request, number, endpoint, model)
            endpoint = endpoint or str(line["url"])
            try:
                content = json.dumps(line, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"request {number} is not JSON: {error}") from error
            file.write(content.encode() + b"\n")
        if endpoint is None:
            raise ValueError("no requests")
        # The HTTP client asks the system for the file's size.
        file.flush()
        return cls(file, "requests.jsonl", endpoint, is_ours=True)

    @property
    def is_unchanged(self) -> bool:
        """Whether the file is as it was when it was opened."""
        return self._state() == self._before

    @property
    def size(self) -> int:
        """Its bytes now."""
        return os.fstat(self.file.fileno()).st_size

    def piece(self, first: int, most: int) -> bytes:
        """At most this many bytes from a position on."""
        self.file.seek(first)
        return self.file.read(most)

    def lines(self) -> Iterator[bytes]:
        """The lines from the first one on. Each iteration has its own position."""
        position = 0
        while True:
            self.file.seek(position)
            if not (line := self.file.readline()):
                return
            position += len(line)
            yield line

    def _state(self) -> tuple[int, int] | None:
        if self._is_ours:
            return None
        found = os.fstat(self.file.fileno())
        return found.st_size, found.st_mtime_ns


def _line(request: Request, number: int, endpoint: str | None, model: str | None) -> dict[str, Any]:
    """A line, or a body with a line around it. What is given stays."""
    is_line = isinstance(request.get("body"), Mapping)
    body = dict(request["body"] if is_line else request)
    if model is not None:
        body = {"model": model, **body}
    around = dict(request) if is_line else {}
    url = around.get("url") or endpoint or _meant(body, number)
    return {"custom_id": f"request-{number}", "method": "POST", **around, "url": url, "body": body}


def _meant(body: Mapping[str, Any], number: int) -> str:
    for field, endpoint in ENDPOINTS.items():
        if field in body:
            return endpoint
    raise ValueError(f"request {number} names no url: give endpoint, such as /v1/responses")


def _first_url(file: IO[bytes], path: Path) -> str:
    """The `url` of the first line that is not blank."""
    first = next((line for line in file if not line.isspace()), b"")
    try:
        return str(json.loads(first)["url"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: its first line names no url; give endpoint") from None
