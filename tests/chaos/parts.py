"""An upload in parts by hand: each part is sent again if its answer was lost, as clients do."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import openai

T = TypeVar("T")
Insist = Callable[[Callable[[], Any]], Any]
PARTS = 3
# Attempts of a part that do not look up first whether it is stored already.
BLIND = 2
MIME_TYPE = "application/jsonl"


def upload(sdk: openai.OpenAI, insist: Insist, filename: str, content: bytes) -> str:
    """The id of a file that was uploaded in parts. `insist` repeats a request until its answer."""
    made = insist(lambda: _created(sdk, filename, content, {"Idempotency-Key": f"in-{filename}"}))
    part_ids = [insist(_Part(sdk, made.id, piece)) for piece in _pieces(content)]
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    done = insist(lambda: sdk.uploads.complete(made.id, part_ids=part_ids, md5=md5))
    return str(done.file.id)


def abandon(sdk: openai.OpenAI, filename: str, content: bytes) -> None:
    """Begin an upload, and never complete it."""
    with suppress(openai.APIError):
        made = _created(sdk, filename, content, {})
        sdk.uploads.parts.create(made.id, data=_pieces(content)[0])


def by_sdk(sdk: openai.OpenAI, filename: str, content: bytes) -> str:
    """The id of a file that the SDK uploads in parts. A repetition makes another upload."""
    done = sdk.uploads.upload_file_chunked(
        file=content,
        filename=filename,
        bytes=len(content),
        mime_type=MIME_TYPE,
        purpose="batch",
        part_size=len(_pieces(content)[0]),
    )
    assert done.file is not None
    return done.file.id


class _Part:
    """A part, which a call sends. Later calls look up first whether an earlier one stored it."""

    def __init__(self, sdk: openai.OpenAI, upload_id: str, piece: bytes) -> None:
        self._sdk = sdk
        self._upload_id = upload_id
        self._piece = piece
        self._calls = 0

    def __call__(self) -> str:
        self._calls += 1
        if self._calls > BLIND:
            shown = self._sdk.get(f"/uploads/{self._upload_id}", cast_to=dict)
            sha256 = hashlib.sha256(self._piece).hexdigest()
            for part in shown["parts"]:
                if part["sha256"] == sha256:
                    return str(part["id"])
        return self._sdk.uploads.parts.create(self._upload_id, data=self._piece).id


def _created(
    sdk: openai.OpenAI, filename: str, content: bytes, headers: dict[str, str]
) -> openai.types.Upload:
    return sdk.uploads.create(
        bytes=len(content),
        filename=filename,
        mime_type=MIME_TYPE,
        purpose="batch",
        extra_headers=headers,
    )


def _pieces(content: bytes) -> list[bytes]:
    size = -(-len(content) // PARTS)
    return [content[start : start + size] for start in range(0, len(content), size)]
