"""Uploads in parts, which go on where a broken one ended, also in a later call of the command.

Parts are recognized by their content: each part of the file that the server has already, by size
and SHA-256, is not sent again. A file of this machine remembers the ids of unfinished uploads.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from xalen_batch.cli.client import ApiClient
from xalen_batch.cli.failures import INTERRUPTED, ApiError, Failed, Unreachable
from xalen_batch.cli.output import figure
from xalen_batch.cli.progress import Moved

# A file of more bytes is uploaded in parts of this size.
PART = 32 * 1024 * 1024
# Seconds for which an upload lives on the server.
LIFE = 3_600
# Seconds for which the server may join the parts, and between two questions whether it has.
LONGEST_JOIN = 1_800.0
JOIN_PAUSE = 2.0
# Bytes at the beginning of a file that identify it, with its size.
BEGINNING = 1024 * 1024

Json = dict[str, Any]
# The size and the SHA-256 of a part.
Content = tuple[int, str]


def send(client: ApiClient, path: Path, name: str, moved: Moved) -> Json:
    """Upload a file in parts; its file object. Raises ApiError 404 for a server without uploads."""
    size = path.stat().st_size
    key = _key(client, path, size)
    unfinished = _unfinished(client, key, size)
    if unfinished is not None:
        try:
            return _send(client, unfinished, key, path, moved)
        except ApiError as error:
            # The file has changed since: parts that it no longer has take the room of others.
            if error.code != "upload_too_large":
                raise
            client.post(f"/uploads/{unfinished['id']}/cancel")
    upload = client.post(
        "/uploads",
        {"bytes": size, "filename": name, "mime_type": "application/jsonl", "purpose": "batch"},
    )
    _remember(key, upload["id"])
    return _send(client, upload, key, path, moved)


def _send(client: ApiClient, upload: Json, key: str, path: Path, moved: Moved) -> Json:
    """Add what the upload lacks of the file, and complete it."""
    size = upload["bytes"]
    parts = _Parts(client, upload)
    sent = 0
    try:
        for content in _pieces(path):
            parts.add(content)
            sent += len(content)
            moved(sent, size)
    except (Unreachable, KeyboardInterrupt) as error:
        reason, exit_code = (
            (str(error), error.exit_code)
            if isinstance(error, Unreachable)
            else ("Stopped; nothing was submitted.", INTERRUPTED)
        )
        raise Failed(
            f"{reason} {figure(sent)} of {figure(size)} bytes are on the server: the same command"
            " goes on there within an hour.",
            exit_code,
        ) from error
    file = _completed(client, upload["id"], parts.ids)
    _forget(key)
    return file


class _Parts:
    """The parts of an upload, in the order of the file."""

    def __init__(self, client: ApiClient, upload: Json) -> None:
        self.ids: list[str] = []
        self._client = client
        self._path = f"/uploads/{upload['id']}"
        self._stored = _by_content(upload.get("parts", []))

    def add(self, content: bytes) -> None:
        """Send a part, unless the server has it."""
        key = (len(content), hashlib.sha256(content).hexdigest())
        id = self._known(key)
        if id is None:
            id = self._client.upload_part(
                f"{self._path}/parts", content, lambda: self._arrived(key)
            )["id"]
        self.ids.append(id)

    def _known(self, key: Content) -> str | None:
        """A stored part with this content that is not in the file yet."""
        found = self._stored.get(key)
        return found.pop() if found else None

    def _arrived(self, key: Content) -> Json | None:
        """A part that has arrived although its answer has not."""
        try:
            upload = self._client.get(self._path)
        except ApiError as error:
            if error.status != 403:
                raise
            # A key without the scope `read` sends the part again.
            return None
        used = set(self.ids)
        left = [part for part in upload["parts"] if part["id"] not in used]
        self._stored = _by_content(left)
        id = self._known(key)
        return None if id is None else {"id": id}


def _by_content(parts: list[Json]) -> dict[Content, list[str]]:
    found: dict[Content, list[str]] = {}
    for part in parts:
        found.setdefault((part["bytes"], part["sha256"]), []).append(part["id"])
    return found


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as source:
        while piece := source.read(PART):
            yield piece


def _completed(client: ApiClient, upload_id: str, part_ids: list[str]) -> Json:
    """The file of an upload. Asks again while the server joins the parts."""
    deadline = time.monotonic() + LONGEST_JOIN
    while True:
        try:
            file: Json = client.post(f"/uploads/{upload_id}/complete", {"part_ids": part_ids})[
                "file"
            ]
        except (ApiError, Unreachable) as error:
            is_joining = isinstance(error, Unreachable) or error.code == "upload_busy"
            if not is_joining or time.monotonic() > deadline:
                raise
            time.sleep(JOIN_PAUSE)
        else:
            return file


def _unfinished(client: ApiClient, key: str, size: int) -> Json | None:
    """The upload of this file that an earlier call has not finished, if the server still has it."""
    known = _remembered().get(key)
    if known is None:
        return None
    try:
        upload = client.get(f"/uploads/{known['id']}")
    except ApiError:
        return None
    return upload if (upload["status"], upload["bytes"]) == ("pending", size) else None


def _key(client: ApiClient, path: Path, size: int) -> str:
    with path.open("rb") as source:
        beginning = hashlib.sha256(source.read(BEGINNING)).hexdigest()
    said = [client.connection.base_url, size, beginning]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _memory() -> Path:
    folder = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(folder) / "xalen-batch" / "uploads.json"


def _remembered() -> dict[str, Json]:
    """Uploads of the last hour, by file. A file that cannot be read has none."""
    try:
        found = json.loads(_memory().read_text("utf-8"))
        return {key: one for key, one in found.items() if one["at"] > time.time() - LIFE}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _remember(key: str, upload_id: str) -> None:
    _write(_remembered() | {key: {"id": upload_id, "at": time.time()}})


def _forget(key: str) -> None:
    _write({other: one for other, one in _remembered().items() if other != key})


def _write(known: dict[str, Json]) -> None:
    """Without it, a broken upload begins anew: so an error is no reason to fail."""
    path = _memory()
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.write_text(json.dumps(known), "utf-8")
        partial.replace(path)
