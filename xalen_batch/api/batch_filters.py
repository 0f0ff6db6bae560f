"""The filters of `GET /v1/batches`, as query parameters."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Request

from xalen_batch import ids
from xalen_batch.batches.lists import BatchFilters
from xalen_batch.endpoints.names import NamedEndpoint
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest
from xalen_batch.fields import LONGEST_KEY, LONGEST_VALUE, MOST_NOTES, Text, Time
from xalen_batch.states import BatchStatus

_NOTE = re.compile(r"metadata\[(.*)\]", re.DOTALL)
# Spelled by deepObject, `metadata[team]=search`, which FastAPI does not know.
METADATA: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "style": "deepObject",
            "explode": True,
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "description": "Only batches with these pairs of metadata: `metadata[key]=value`.",
        }
    ]
}


def asked(
    request: Request,
    status: Annotated[BatchStatus | None, Query(description="Only in this status.")] = None,
    model: Annotated[
        Text | None,
        Query(
            max_length=QUOTED_CHARS,
            description="Only batches all of whose lines name this model.",
        ),
    ] = None,
    endpoint: Annotated[
        NamedEndpoint | None, Query(description="Only of this endpoint, in any spelling.")
    ] = None,
    created_after: Annotated[
        Time | None,
        Query(description="Created at this time or later: Unix seconds or ISO 8601, default UTC."),
    ] = None,
    created_before: Annotated[
        Time | None, Query(description="Created before this time, in the same forms.")
    ] = None,
    schedule_id: Annotated[
        str | None, Query(description="Only batches that this schedule made, `sched_…`.")
    ] = None,
) -> Callable[[], BatchFilters]:
    """A dependency: a function for the filters of a request, which raises InvalidRequest.

    The route calls it once its caller is admitted.
    """
    return partial(
        _checked,
        request.query_params.multi_items(),
        schedule_id,
        status=status,
        model=model,
        endpoint=endpoint,
        created_after=_in_utc(created_after),
        created_before=_in_utc(created_before),
    )


def _checked(
    sent: list[tuple[str, str]],
    schedule_id: str | None,
    *,
    created_after: datetime | None,
    created_before: datetime | None,
    **fields: str | None,
) -> BatchFilters:
    if created_after and created_before and created_after >= created_before:
        raise InvalidRequest(
            "created_before: nothing is before it and after `created_after`. Send a later time.",
            param="created_before",
        )
    return BatchFilters(
        created_after=created_after,
        created_before=created_before,
        metadata=_metadata(sent),
        schedule_id=_schedule(schedule_id),
        **fields,
    )


def _in_utc(time: datetime | None) -> datetime | None:
    """A time without an offset is one of UTC."""
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def _metadata(sent: list[tuple[str, str]]) -> dict[str, str]:
    """The pairs of `metadata[key]=value`."""
    found: dict[str, str] = {}
    for name, value in sent:
        note = _NOTE.fullmatch(name)
        if note is None:
            if name.startswith("metadata"):
                raise InvalidRequest(
                    f"{name[:QUOTED_CHARS]}: send `metadata[key]=value` for each pair.",
                    param="metadata",
                )
            continue
        key, param = note[1], name[:QUOTED_CHARS]
        if key in found:
            raise InvalidRequest(f"{param}: it is sent twice. Send each key once.", param=param)
        if not 0 < len(key) <= LONGEST_KEY or len(value) > LONGEST_VALUE or "\0" in key + value:
            raise InvalidRequest(
                f"{param}: a key has 1 to {LONGEST_KEY} characters and a value at most"
                f" {LONGEST_VALUE}, none of them NUL.",
                param=param,
            )
        found[key] = value
    if len(found) > MOST_NOTES:
        raise InvalidRequest(
            f"metadata: it has {len(found)} keys; a batch has at most {MOST_NOTES}.",
            param="metadata",
        )
    return found


def _schedule(sent: str | None) -> UUID | None:
    id = None if sent is None else ids.parse("sched", sent)
    if id is None and sent is not None:
        raise InvalidRequest(
            f"schedule_id: {sent[:QUOTED_CHARS]!r} is not the id of a schedule. Send one such as"
            " `sched_…`.",
            param="schedule_id",
        )
    return id
