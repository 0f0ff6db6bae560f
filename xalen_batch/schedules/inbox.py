"""Inboxes: requests that arrive one by one and wait for their schedule's next run.

A request is acknowledged when it is committed here. A run seals what waits in the transaction that
fires it; it leaves the inbox in the transaction that makes the run's input file count. So it is
always in the inbox or in a file, and never in two runs.
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

# Sorted, so that two who send the same requests at once do not wait for each other.
_ADD = """
    INSERT INTO inbox_requests (id, schedule_id, custom_id, line)
    SELECT id, %(schedule_id)s, custom_id, line
    FROM unnest(%(ids)b::uuid[], %(custom_ids)b::text[], %(lines)b::bytea[]) AS sent (id, custom_id, line)
    ORDER BY custom_id
    ON CONFLICT (schedule_id, custom_id) WHERE run_id IS NULL DO NOTHING
    RETURNING custom_id
"""
_WAITING = """
    SELECT custom_id, sha256(line) FROM inbox_requests
    WHERE schedule_id = %(schedule_id)s AND run_id IS NULL AND custom_id = ANY(%(custom_ids)s)
"""
_SEAL = """
    UPDATE inbox_requests SET run_id = %(run_id)s
    FROM (
        SELECT id, row_number() OVER oldest AS number, sum(size) OVER oldest AS bytes
        FROM (
            SELECT id, octet_length(line) + 1 AS size FROM inbox_requests
            WHERE schedule_id = %(schedule_id)s AND run_id IS NULL ORDER BY id LIMIT %(most_lines)s
        ) AS waiting
        WINDOW oldest AS (ORDER BY id)
    ) AS sized
    WHERE inbox_requests.id = sized.id AND (sized.bytes <= %(most_bytes)s OR sized.number = 1)
"""
# Waits for requests that are arriving, as `add` does.
UNSEAL = text(
    "WITH back AS (DELETE FROM inbox_requests WHERE run_id = :run_id RETURNING *)"
    " INSERT INTO inbox_requests (id, schedule_id, custom_id, line, created_at)"
    " SELECT id, schedule_id, custom_id, line, created_at FROM back ORDER BY custom_id"
    " ON CONFLICT (schedule_id, custom_id) WHERE run_id IS NULL DO NOTHING"
)


class Gone(Exception):
    """Requests of a run have left the inbox: its file is there already."""


@dataclass(frozen=True, slots=True)
class Added:
    """How many requests are new, how many were waiting already, and how many wait now."""

    accepted: int
    known: int
    pending: int


def add(session: Session, schedule: Schedule, lines: Sequence[tuple[str, bytes]]) -> Added:
    """Put (custom_id, line of JSON) into a schedule's inbox, all or none. What is there with the
    same bytes is known.

    InvalidRequest for a custom_id that is there with other bytes, and when more would wait than one
    batch can have; TooManyRequests when the account has no room for more requests, or for their
    bytes. Takes the account's lock.
    """
    left = dict(lines)
    if len(left) < len(lines):
        raise ValueError("a custom_id is there twice")
    owner = Owner(schedule.account_id, schedule.livemode)
    # Before the rows: their trigger locks the account's tally.
    quotas.lock(session, owner)
    accepted, size = 0, 0
    while left:
        new = _insert(session, schedule, left)
        accepted, size = (
            accepted + len(new),
            size + sum(len(left[custom_id]) + 1 for custom_id in new),
        )
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
    asked = {Quota.INBOX_REQUESTS: accepted, Quota.STORAGE_BYTES: size}
    if accepted and (excess := quotas.excess(session, owner, asked, is_recorded=True)):
        raise excess.refusal()
    return Added(accepted, len(lines) - accepted, waiting)


def pending(session: Session, schedule_ids: Sequence[UUID]) -> dict[UUID, int]:
    """How many requests wait in each inbox."""
    waiting = select(InboxRequest.schedule_id, func.count()).where(
        InboxRequest.schedule_id.in_(schedule_ids), InboxRequest.run_id.is_(None)
    )
    counts = dict(session.execute(waiting.group_by(InboxRequest.schedule_id)).all())
    return {schedule_id: counts.get(schedule_id, 0) for schedule_id in schedule_ids}


def size(session: Session, run_id: UUID) -> int:
    """Bytes of the requests that a run has sealed, each with its newline."""
    sealed = select(func.coalesce(func.sum(func.octet_length(InboxRequest.line) + 1), 0)).where(
        InboxRequest.run_id == run_id
    )
    return int(session.execute(sealed).scalar_one())


def seal(session: Session, schedule: Schedule, run: ScheduleRun) -> int:
    """Give a run the oldest requests that one batch can have, and return how many; the rest wait
    for the next run.
    """
    session.flush()
    limits = {"most_lines": settings().max_batch_lines, "most_bytes": settings().max_file_bytes}
    with db.driver(session).cursor() as cursor:
        cursor.execute(_SEAL, {"run_id": run.id, "schedule_id": schedule.id, **limits})
        return cursor.rowcount


def unseal(session: Session, run: ScheduleRun) -> None:
    """Let the requests that a run never put into its file wait for the next one; a newer one of the
    same custom_id counts instead.
    """
    session.execute(UNSEAL, {"run_id": run.id})


def chunks(run_id: UUID) -> Iterator[bytes]:
    """A run's requests as JSONL, in the order of arrival. Reads pages of about 3 MiB, each in a
    transaction of its own.

    Gone if any of them is not in the inbox any more, so that nothing is ever taken for all of them
    that is not.
    """
    with db.transaction() as session:
        sized = select(InboxRequest.id, func.octet_length(InboxRequest.line)).where(
            InboxRequest.run_id == run_id
        )
        left = session.execute(sized.order_by(InboxRequest.id)).all()
    if not left:
        raise Gone
    for page in _pages(left):
        yield b"".join(line + b"\n" for line in _lines(page))


def forget(session: Session, run_id: UUID) -> None:
    """Delete a run's requests, which are in its file now."""
    session.execute(delete(InboxRequest).where(InboxRequest.run_id == run_id))


def discard(session: Session, schedule_id: UUID) -> int:
    """Delete the requests that no run has sealed, and return how many."""
    waiting = delete(InboxRequest).where(
        InboxRequest.schedule_id == schedule_id, InboxRequest.run_id.is_(None)
    )
    return len(session.execute(waiting.returning(InboxRequest.id)).all())


def _insert(session: Session, schedule: Schedule, lines: Mapping[str, bytes]) -> set[str]:
    """The custom_ids that were not there. Waits for a run that is sealing one of them."""
    # Ids of one process sort by creation: the order of arrival.
    sent = {
        "schedule_id": schedule.id,
        "ids": [ids.new() for _ in lines],
        "custom_ids": list(lines),
        "lines": list(lines.values()),
    }
    with db.driver(session).cursor() as cursor:
        cursor.execute(_ADD, sent)
        return {custom_id for (custom_id,) in cursor}


def _known(session: Session, schedule: Schedule, lines: Mapping[str, bytes]) -> list[str]:
    """The custom_ids that wait already, with the same lines.

    InvalidRequest if one waits with another line.
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
    page: list[UUID] = []
    room = PAGE_BYTES
    for id, size in sized:
        if page and (len(page) == PAGE_ROWS or size > room):
            yield page
            page, room = [], PAGE_BYTES
        page.append(id)
        room -= size
    yield page


def _lines(page: list[UUID]) -> list[bytes]:
    with db.transaction() as session, psycopg.Cursor(db.driver(session)) as cursor:
        # Binary: lines come as bytes and not as hex digits.
        cursor.execute(
            "SELECT line FROM inbox_requests WHERE id = ANY(%(page)s) ORDER BY id",
            {"page": page},
            binary=True,
        )
        lines = [line for (line,) in cursor]
    if len(lines) < len(page):
        raise Gone
    return lines
