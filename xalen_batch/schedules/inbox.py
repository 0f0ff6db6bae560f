"""Inboxes: requests that arrive one by one and wait for their schedule's next run.

A request is acknowledged when its row is committed. The transaction that starts a run assigns the
waiting requests to it. The transaction that publishes the run's input file deletes them. So each
request is in the inbox or in one file, and never in two runs.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import psycopg
from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from xalen_batch import db, ids
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.accounts.quotas import Quota
from xalen_batch.config import MiB, settings
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest
from xalen_batch.models import InboxRequest, Schedule, ScheduleRun

PAGE_ROWS = 2_000
PAGE_BYTES = 3 * MiB

# Sorted: two transactions that insert the same custom_ids in different orders would deadlock.
_ADD = """
    INSERT INTO inbox_requests (id, schedule_id, custom_id, line, inputs)
    SELECT id, %(schedule_id)s, custom_id, line, inputs
    FROM unnest(%(ids)b::uuid[], %(custom_ids)b::text[], %(lines)b::bytea[], %(inputs)b::bigint[])
        AS sent (id, custom_id, line, inputs)
    ORDER BY custom_id
    ON CONFLICT (schedule_id, custom_id) WHERE run_id IS NULL DO NOTHING
    RETURNING custom_id
"""
_WAITING = """
    SELECT custom_id, sha256(line) FROM inbox_requests
    WHERE schedule_id = %(schedule_id)s AND run_id IS NULL AND custom_id = ANY(%(custom_ids)s)
"""
_ASSIGN = """
    UPDATE inbox_requests SET run_id = %(run_id)s
    FROM (
        SELECT id, row_number() OVER oldest AS number, sum(size) OVER oldest AS bytes,
            sum(inputs) OVER oldest AS inputs
        FROM (
            SELECT id, octet_length(line) + 1 AS size, inputs FROM inbox_requests
            WHERE schedule_id = %(schedule_id)s AND run_id IS NULL ORDER BY id LIMIT %(most_lines)s
        ) AS waiting
        WINDOW oldest AS (ORDER BY id)
    ) AS sized
    WHERE inbox_requests.id = sized.id AND (
        sized.bytes <= %(most_bytes)s AND sized.inputs <= coalesce(%(most_inputs)s, sized.inputs)
        OR sized.number = 1
    )
"""
# A conflict with a row that is being inserted waits for its commit, as in `_ADD`.
_RELEASE = text(
    "WITH back AS (DELETE FROM inbox_requests WHERE run_id = :run_id RETURNING *)"
    " INSERT INTO inbox_requests (id, schedule_id, custom_id, line, inputs, created_at)"
    " SELECT id, schedule_id, custom_id, line, inputs, created_at FROM back ORDER BY custom_id"
    " ON CONFLICT (schedule_id, custom_id) WHERE run_id IS NULL DO NOTHING"
)


class RequestsGone(Exception):
    """Requests of a run have left the inbox: they are in its input file already."""


@dataclass(frozen=True, slots=True)
class Added:
    """Numbers of requests: new ones, those that waited already, and all that wait now."""

    accepted: int
    known: int
    pending: int


def add(
    session: Session,
    schedule: Schedule,
    lines: Sequence[tuple[str, bytes]],
    inputs: Mapping[str, int] | None = None,
) -> Added:
    """Add (custom_id, line of JSON) pairs to a schedule's inbox: all of them, or none.

    `inputs`: the texts to embed in each line that has any, by custom_id.

    A pair that waits already with the same bytes is known. InvalidRequest if a custom_id waits with
    other bytes, or if more requests would wait than one batch can have; TooManyRequests beyond the
    account's quotas of requests and bytes. Takes the account's lock.
    """
    left = dict(lines)
    if len(left) < len(lines):
        raise ValueError("a custom_id is there twice")
    owner = Owner(schedule.account_id, schedule.livemode)
    # Lock order: the account's lock before its tally, which the rows' trigger updates.
    quotas.lock(session, owner)
    accepted, size = 0, 0
    while left:
        new = _insert(session, schedule, left, inputs or {})
        accepted += len(new)
        size += sum(len(left[custom_id]) + 1 for custom_id in new)
        left = {custom_id: line for custom_id, line in left.items() if custom_id not in new}
        # A conflicting row that vanished was assigned to a run; retry, for the next run.
        for custom_id in _known(session, schedule, left):
            del left[custom_id]
    waiting = pending(session, [schedule.id])[schedule.id]
    if accepted and waiting > settings().max_batch_lines:
        raise InvalidRequest(
            f"The inbox of {ids.render('sched', schedule.id)} has {waiting - accepted:,} requests,"
            f" and with these {waiting:,}; the most of one batch is {settings().max_batch_lines:,}."
            " Send them after its next run, or run the schedule now.",
            code="inbox_full",
        )
    if accepted:
        asked = {Quota.INBOX_REQUESTS: accepted, Quota.STORAGE_BYTES: size}
        excess = quotas.excess(session, owner, asked, is_recorded=True)
        if excess is not None:
            raise excess.refusal()
    return Added(accepted, len(lines) - accepted, waiting)


def pending(session: Session, schedule_ids: Sequence[UUID]) -> dict[UUID, int]:
    """The number of requests that wait in each inbox, by schedule id."""
    waiting = select(InboxRequest.schedule_id, func.count()).where(
        InboxRequest.schedule_id.in_(schedule_ids), InboxRequest.run_id.is_(None)
    )
    counts = dict(session.execute(waiting.group_by(InboxRequest.schedule_id)).all())
    return {schedule_id: counts.get(schedule_id, 0) for schedule_id in schedule_ids}


def size(session: Session, run_id: UUID) -> int:
    """Bytes of the requests that are assigned to a run, each with its newline."""
    size = func.sum(func.octet_length(InboxRequest.line) + 1)
    assigned = select(func.coalesce(size, 0)).where(InboxRequest.run_id == run_id)
    return int(session.execute(assigned).scalar_one())


def assign(session: Session, schedule: Schedule, run: ScheduleRun) -> int:
    """Assign the oldest waiting requests to a run, and return their number.

    At most as many lines, bytes and inputs of embeddings as one batch can have; the rest wait for
    the next run.
    """
    session.flush()
    limits = {
        "most_lines": settings().max_batch_lines,
        "most_bytes": settings().max_file_bytes,
        "most_inputs": settings().max_batch_inputs,
    }
    with db.driver(session).cursor() as cursor:
        cursor.execute(_ASSIGN, {"run_id": run.id, "schedule_id": schedule.id, **limits})
        return cursor.rowcount


def release(session: Session, run: ScheduleRun) -> None:
    """Let the requests that are assigned to a run, and in no file yet, wait for the next run.

    A request whose custom_id waits already is dropped: the newer one counts.
    """
    session.execute(_RELEASE, {"run_id": run.id})


def chunks(run_id: UUID) -> Iterator[bytes]:
    """A run's requests as JSONL, in the order of arrival.

    Keyset pagination over ids: pages of about 3 MiB, each in a transaction of its own. RequestsGone
    if any of them has left the inbox meanwhile: a part must never be taken for the whole.
    """
    with db.transaction() as session:
        sized = select(InboxRequest.id, func.octet_length(InboxRequest.line)).where(
            InboxRequest.run_id == run_id
        )
        left = session.execute(sized.order_by(InboxRequest.id)).all()
    if not left:
        raise RequestsGone
    for page in _pages(left):
        yield b"".join(line + b"\n" for line in _lines(page))


def forget(session: Session, run_id: UUID) -> None:
    """Delete a run's requests: they are in its input file now."""
    session.execute(delete(InboxRequest).where(InboxRequest.run_id == run_id))


def discard(session: Session, schedule_id: UUID) -> int:
    """Delete the requests that are assigned to no run, and return their number."""
    waiting = delete(InboxRequest).where(
        InboxRequest.schedule_id == schedule_id, InboxRequest.run_id.is_(None)
    )
    return len(session.execute(waiting.returning(InboxRequest.id)).all())


def _insert(
    session: Session, schedule: Schedule, lines: Mapping[str, bytes], inputs: Mapping[str, int]
) -> set[str]:
    """Insert lines, and return the custom_ids that were new.

    A conflict with a row that is being assigned to a run waits for that transaction's commit.
    """
    # Ids of one process sort by creation, so they keep the order of arrival.
    sent = {
        "schedule_id": schedule.id,
        "ids": [ids.new() for _ in lines],
        "custom_ids": list(lines),
        "lines": list(lines.values()),
        "inputs": [inputs.get(custom_id, 0) for custom_id in lines],
    }
    with db.driver(session).cursor() as cursor:
        cursor.execute(_ADD, sent)
        return {custom_id for (custom_id,) in cursor}


def _known(session: Session, schedule: Schedule, lines: Mapping[str, bytes]) -> list[str]:
    """The custom_ids that wait already with the same line.

    InvalidRequest if a custom_id waits with another line.
    """
    known = []
    with db.driver(session).cursor() as cursor:
        cursor.execute(
            _WAITING, {"schedule_id": schedule.id, "custom_ids": list(lines)}, binary=True
        )
        for custom_id, digest in cursor:
            if digest != hashlib.sha256(lines[custom_id]).digest():
                raise InvalidRequest(
                    f"custom_id {custom_id[:QUOTED_CHARS]!r} waits in the inbox already, with"
                    " another request. Give this one a custom_id of its own.",
                    param="custom_id",
                    code="duplicate_custom_id",
                )
            known.append(custom_id)
    return known


def _pages(sized: Sequence[tuple[UUID, int]]) -> Iterator[list[UUID]]:
    """The ids in pages of at most PAGE_ROWS rows and PAGE_BYTES bytes, or one longer line."""
    page: list[UUID] = []
    free = PAGE_BYTES
    for id, size in sized:
        if page and (len(page) == PAGE_ROWS or size > free):
            yield page
            page, free = [], PAGE_BYTES
        page.append(id)
        free -= size
    yield page


def _lines(page: list[UUID]) -> list[bytes]:
    with db.transaction() as session, psycopg.Cursor(db.driver(session)) as cursor:
        # The binary format: the text format sends bytes as hex digits, twice the size.
        cursor.execute(
            "SELECT line FROM inbox_requests WHERE id = ANY(%(page)s) ORDER BY id",
            {"page": page},
            binary=True,
        )
        lines = [line for (line,) in cursor]
    if len(lines) < len(page):
        raise RequestsGone
    return lines
