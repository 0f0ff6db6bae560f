"""Preflight: check the file of a schedule that is created or changed, as its next run would."""

from datetime import datetime
from uuid import UUID

from xalen_batch import catalog, db, ids, storage
from xalen_batch.accounts.accounts import Owner
from xalen_batch.batches import batches
from xalen_batch.billing.terms import Terms
from xalen_batch.errors import InvalidRequest
from xalen_batch.schedules import sources
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.preflight_file import FileCheck
from xalen_batch.schedules.templates import Moment
from xalen_batch.states import OnInvalid
from xalen_batch.storage import marks
from xalen_batch.timezones import zone
from xalen_batch.validation import apart
from xalen_batch.validation.errors import Faults

NO_RUN = ids.render("run", UUID(int=0))


def check(owner: Owner, definition: Definition, now: datetime) -> None:
    """InvalidRequest with the first error of a schedule's input, and the number of the others.

    Reads the whole file in a process of its own, so call this without an open transaction. Raises
    storage.UNAVAILABLE; Unavailable if reading takes too long.
    """
    if definition.source is not None:
        sources.check(owner, definition.source)
    if definition.file_id is None:
        return
    param = definition.file_param
    with db.transaction() as session:
        file = batches.input_file(session, owner, definition.file_id, param=param)
        offered = batches.offered(session, owner, definition.endpoint)
    try:
        size = storage.size(storage.key(file.id))
        faults = apart.run(_file_check(definition, file.id, offered, now), size=size)
    except FileNotFoundError:
        marks.confirm_gone(storage.key(file.id))
        message = (
            f"{param}: the content of {definition.file_id} is gone. Upload it again and send its"
            " new id."
        )
        raise InvalidRequest(message, param=param, code="file_not_found") from None
    are_skipped = definition.on_invalid == OnInvalid.SKIP and faults.are_of_lines
    if faults and not are_skipped:
        raise _refusal(definition, faults)


def _refusal(definition: Definition, faults: Faults) -> InvalidRequest:
    first = faults.kept[0]
    where = definition.file_id
    if first.line is not None:
        where = f"line {first.line:,} of {definition.file_id}"
    message = f"{definition.file_param}: {where}: {first.message}"
    more = faults.count - 1
    if more == 1:
        message += " There is 1 more fault in it."
    elif more:
        message += f" There are {more:,} more faults in it."
    return InvalidRequest(message, param=definition.file_param, code=first.code)


def _file_check(definition: Definition, file_id: UUID, terms: Terms, now: datetime) -> FileCheck:
    moment = None
    if definition.template_file_id is not None:
        moment = Moment(next(definition.fires(now), now), zone(definition.timezone), NO_RUN)
    return FileCheck(storage.key(file_id), definition.endpoint, catalog.models(), terms, moment)
