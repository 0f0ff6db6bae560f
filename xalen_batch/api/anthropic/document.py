"""The document of a message batch as the input file of a batch: a chat line for each request."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from xalen_batch import storage
from xalen_batch.api.anthropic.elements import REMEDY, elements
from xalen_batch.api.anthropic.params import param_of, to_chat
from xalen_batch.config import settings
from xalen_batch.endpoints.form import InvalidBody
from xalen_batch.endpoints.names import CHAT
from xalen_batch.errors import InvalidRequest, TooLarge, XalenError, quoted
from xalen_batch.validation.fast_path import MAX_CUSTOM_ID
from xalen_batch.validation.lines import hidden, refused_line


@dataclass(frozen=True, slots=True)
class Written:
    """An input file that was written: its bytes, its digest and its requests."""

    size: int
    sha256: bytes
    requests: int


def convert(document: str, target: str) -> Written | XalenError:
    """Write the input file of a document; both are keys of objects. Runs in a process of its own.

    An error is returned, since an exception there would count as a crash of the process.
    """
    lines = _Lines(document)
    try:
        storage.write(target, lines)
    except XalenError as error:
        return error
    return Written(lines.size, lines.digest.digest(), lines.count)


class _Lines(Iterable[bytes]):
    """The lines of an input file, with their number, bytes and digest so far."""

    def __init__(self, document: str) -> None:
        self._document = document
        self._seen: set[str] = set()
        self.size = self.count = 0
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        limits = settings()
        chunks = storage.chunks(self._document)
        for element in elements(chunks, "requests", longest=limits.max_line_bytes):
            if self.count == limits.max_batch_lines:
                raise TooLarge(
                    f"requests: there are more than {limits.max_batch_lines:,}, the most of one"
                    " batch. Split them into several batches.",
                    param="requests",
                    code="request_too_large",
                )
            line = self._line(element)
            self.count += 1
            self.size += len(line)
            if self.size > limits.max_file_bytes:
                raise TooLarge(
                    f"requests: as a file they have more than {limits.max_file_bytes:,} bytes."
                    " Split them into several batches.",
                    param="requests",
                    code="request_too_large",
                )
            self.digest.update(line)
            yield line
        if not self.count:
            raise InvalidRequest(f"requests: the list is empty. {REMEDY}", param="requests")

    def _line(self, element: bytes) -> bytes:
        where = f"requests[{self.count}]"
        try:
            request = orjson.loads(element)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(
                f"{where} is not valid JSON: {error.msg}.", param=where, code="invalid_json"
            ) from None
        if not isinstance(request, dict):
            raise InvalidRequest(f"{where} must be an object. {REMEDY}", param=where)
        custom_id = self._id(request.get("custom_id"), f"{where}.custom_id")
        line = _rendered(custom_id, element, request.get("params"))
        if len(line) <= settings().max_line_bytes:
            return line
        message = f"The request has {len(line):,} bytes as a line; the most is"
        return _json(refused_line(custom_id, "params", f"{message} {settings().max_line_bytes:,}."))

    def _id(self, custom_id: object, where: str) -> str:
        if (
            not isinstance(custom_id, str)
            or not 0 < len(custom_id) <= MAX_CUSTOM_ID
            or "\x00" in custom_id
        ):
            raise InvalidRequest(
                f"{where} must be a string of 1 to {MAX_CUSTOM_ID} characters, without NUL. It is"
                f" {quoted(custom_id)}.",
                param=where,
            )
        if custom_id in self._seen:
            raise InvalidRequest(
                f"{where}: {quoted(custom_id)} is there twice. Make it unique in the batch.",
                param=where,
            )
        self._seen.add(custom_id)
        return custom_id


def _rendered(custom_id: str, element: bytes, params: Any) -> bytes:
    if not isinstance(params, dict):
        return _json(refused_line(custom_id, "params", "Send the request's body as an object."))
    fault = hidden(element, 0)
    if fault is not None:
        return _json(refused_line(custom_id, "params", fault.message))
    chat = to_chat(params)
    if isinstance(chat, InvalidBody):
        return _json(refused_line(custom_id, param_of(chat.param), chat.message))
    return _json({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": chat})


def _json(line: dict[str, Any]) -> bytes:
    return orjson.dumps(line) + b"\n"
