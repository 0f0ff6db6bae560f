"""What needs attention, each with its next step: held batches, failed ones, schedules, webhooks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from xalen_batch.accounts.sessions import Visitor
from xalen_batch.api.schedule_schemas import ScheduleObject
from xalen_batch.batches import lists
from xalen_batch.batches.lists import BatchFilters
from xalen_batch.console import words
from xalen_batch.console.batch_rows import BatchRow, rows
from xalen_batch.console.routes import PATH
from xalen_batch.states import BatchStatus, RunState, ScheduleStatus
from xalen_batch.webhooks import endpoints

# Batches that failed or expired are told for this long.
RECENT = timedelta(days=2)
MOST_OF_KIND = 5
MOST_WEBHOOKS = 50
_ENDS = {RunState.FAILED: "failed", RunState.MISSED: "was missed"}


@dataclass(frozen=True, slots=True)
class Note:
    """A matter with its next step. `kind`: `bad` or `warn`."""

    kind: str
    title: str
    text: str
    link: str
    step: str


def of(
    session: Session,
    visitor: Visitor,
    running: Sequence[BatchRow],
    planned: Sequence[ScheduleObject],
    now: int,
) -> list[Note]:
    """The notes of an account, the urgent ones first."""
    found = [
        *_held(running),
        *_ended_badly(session, visitor, now),
        *_of_schedules(planned),
        *_of_webhooks(session, visitor),
    ]
    return sorted(found, key=lambda note: note.kind != "bad")


def _held(running: Sequence[BatchRow]) -> Iterator[Note]:
    for row in [row for row in running if row.state == "held"][:MOST_OF_KIND]:
        yield Note(
            "bad",
            f"{row.name} is held",
            f"{row.why} Nothing is lost, and nothing is billed twice.",
            f"{PATH}/batches/{row.of.id}",
            "See batch",
        )


def _ended_badly(session: Session, visitor: Visitor, now: int) -> Iterator[Note]:
    since = datetime.now(UTC) - RECENT
    for status, kind in ((BatchStatus.FAILED, "bad"), (BatchStatus.EXPIRED, "warn")):
        found = lists.page(
            session,
            visitor.caller,
            BatchFilters(status=status, created_after=since),
            limit=MOST_OF_KIND,
            after=None,
        )
        for row in rows(session, visitor, found.data, now):
            ended = row.of.failed_at or row.of.expired_at or now
            yield Note(
                kind,
                f"{row.name} {'failed validation' if kind == 'bad' else 'expired'}",
                f"{row.why} {words.relative(ended, now).capitalize()}.",
                f"{PATH}/batches/{row.of.id}",
                "See lines" if kind == "bad" else "See batch",
            )


def _of_schedules(planned: Sequence[ScheduleObject]) -> Iterator[Note]:
    for each in planned:
        last = each.last_run
        link = f"{PATH}/schedules/{each.id}"
        if each.status == ScheduleStatus.PAUSED and each.failures:
            yield Note(
                "bad",
                f"{each.name} is paused: {words.plural(each.failures, 'run')} failed in a row",
                (last.message if last else None) or each.pause_note or "",
                link,
                "See schedule",
            )
        elif last is not None and last.state in _ENDS:
            yield Note(
                "warn",
                f"The last run of {each.name} {_ENDS[last.state]}",
                last.message or "",
                link,
                "See schedule",
            )


def _of_webhooks(session: Session, visitor: Visitor) -> Iterator[Note]:
    page = endpoints.page(session, visitor.caller, limit=MOST_WEBHOOKS, after=None, batch_id=None)
    for endpoint in page.data:
        if endpoint.status == "disabled" and endpoint.disabled_reason:
            yield Note(
                "warn",
                f"The webhook {endpoint.url} is disabled",
                f"{endpoint.disabled_reason} Mend its receiver, enable it, then replay its events.",
                f"{PATH}/settings",
                "See webhooks",
            )
