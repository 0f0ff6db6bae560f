"""Collect: check requests for a schedule's inbox as the lines of an upload, and add them."""

from sqlalchemy.orm import Session

from xalen_batch import catalog, db, disk, ids
from xalen_batch.accounts.accounts import Owner
from xalen_batch.batches import batches
from xalen_batch.errors import InvalidRequest, Unavailable
from xalen_batch.models import Schedule
from xalen_batch.schedules import inbox
from xalen_batch.schedules.collect_lines import Checking, Kind, Sent
from xalen_batch.schedules.definition import Definition
from xalen_batch.states import ScheduleStatus
from xalen_batch.validation import apart


def check(owner: Owner, schedule: Schedule, body: bytes, kind: Kind) -> Sent:
    """The requests of a body. InvalidRequest with the first error and the number of the others.

    A large body is read in a process of its own and takes about a second, so call this without an
    open transaction. Unavailable if it takes too long.
    """
    definition = refuse_if_never_run(schedule)
    with db.reading() as session:
        offered = batches.offered(session, owner, definition.endpoint)
    sent = apart.run(
        Checking(body, kind, definition.endpoint, catalog.models(), offered), size=len(body)
    )
    if isinstance(sent, InvalidRequest):
        raise sent
    return sent


def collect(session: Session, schedule: Schedule, sent: Sent) -> inbox.Added:
    """Add checked requests to a schedule's inbox: all of them, or none.

    TooManyRequests beyond the account's quotas, StorageFull while a disk is short, Unavailable if
    the schedule's endpoint has changed since `check`. The caller holds a lock on the schedule's row
    that keeps it from being deleted (`schedules.keep`).
    """
    disk.refuse_if_full()
    definition = refuse_if_never_run(schedule)
    if definition.endpoint != sent.endpoint:
        raise Unavailable(
            "The schedule's endpoint was changed while these requests were checked. Send them"
            " again."
        )
    return inbox.add(session, schedule, sent.lines, sent.inputs)


def refuse_if_never_run(schedule: Schedule) -> Definition:
    """A schedule's definition. InvalidRequest if it has no inbox, or has ended."""
    definition = Definition.model_validate(schedule.definition)
    name = ids.render("sched", schedule.id)
    if definition.inbox is None:
        raise InvalidRequest(
            f"Schedule {name} has no inbox to send requests to. Create one with `inbox`.",
            code="no_inbox",
        )
    if schedule.status == ScheduleStatus.ENDED:
        raise InvalidRequest(
            f"Schedule {name} has ended: nothing would run them. Give it a later ends_at.",
            code="schedule_ended",
        )
    return definition
