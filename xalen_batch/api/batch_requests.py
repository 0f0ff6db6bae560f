"""The requests of a batch that is created without a file: they become its input file."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from xalen_batch import disk, files, ids, storage
from xalen_batch.accounts.accounts import Caller
from xalen_batch.errors import InvalidRequest
from xalen_batch.files import Purpose
from xalen_batch.storage import marks

FILENAME = "requests.jsonl"
# Line breaks of JSON are blanks between its tokens: within a string they are escaped.
_BREAKS = bytes.maketrans(b"\r\n", b"  ")

_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


@contextmanager
def stored(session: Session, caller: Caller, requests: bytes) -> Iterator[str]:
    """Store requests, a JSON list, as an input file; its public id. An error inside removes it.

    Each request is a line, in the order of the list. Raises InvalidRequest for anything but a list
    with requests; TooManyRequests if a quota is used up; StorageFull while a disk is short.
    """
    disk.refuse_if_full()
    content = _lines(requests)
    id = ids.new()
    key = storage.key(id)
    marks.confirm()
    storage.write(key, [content])
    try:
        marks.confirm_kept(key)
        files.create(
            session,
            caller,
            id=id,
            purpose=Purpose.BATCH,
            filename=FILENAME,
            size=len(content),
            sha256=hashlib.sha256(content).digest(),
        )
        yield ids.render("file", id)
    except OperationalError:
        # The commit may have succeeded. If not, the sweep removes the bytes.
        raise
    except Exception:
        storage.delete(key)
        raise


def _lines(requests: bytes) -> bytes:
    try:
        found = _items(requests)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(
            "requests: should be a list of requests, each an object with `custom_id`, `method`,"
            " `url` and `body`.",
            param="requests",
        ) from None
    if not found:
        raise InvalidRequest(
            "requests: there is none. Send at least one, or an `input_file_id` instead.",
            param="requests",
        )
    return b"".join(bytes(request).translate(_BREAKS) + b"\n" for request in found)
