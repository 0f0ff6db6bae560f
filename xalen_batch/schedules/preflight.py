"""Rehearse: read what a schedule will run, before it is made or changed, as its next run would: no
night is to fail for a typo.
"""

from datetime import datetime
from uuid import UUID

from xalen_batch import batches, catalog, db, ids, storage
from xalen_batch.accounts.accounts import Owner
from xalen_batch.billing.terms import Terms
from xalen_batch.errors import InvalidRequest
from xalen_batch.schedules import sources
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.preflight_file import Rehearsal
from xalen_batch.schedules.templates import Moment
from xalen_batch.states import OnInvalid
from xalen_batch.storage import marks
from xalen_batch.timezones import zone
from xalen_batch.validation import apart

NO_RUN = ids.render("run", UUID(int=0))


def rehearse(owner: Owner, definition: Definition, now: datetime) -> None:
    """InvalidRequest with the first fault of what would be run, and the number of the others. Runs
    nothing.

    Reads a whole file, in a process of its own, so no transaction is open. storage.UNAVAILABLE;
    Unavailable if that takes too long.
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
        faults = apart.run(
            _work(definition, file.id, offered, now), size=storage.size(storage.key(file.id))
        )
    except FileNotFoundError:
        marks.confirm_gone(storage.key(file.id))
        message = (
            f"{param}: the content of {definition.file_id} is gone. Upload it again and send its"
            " new id."
        )
        raise InvalidRequest(message, param=param, code="file_not_found") from None
    if faults and not (definition.on_invalid == OnInvalid.SKIP and faults.are_of_lines):
        first = faults.kept[0]
        where = (
            definition.file_id
            if first.line is None
            else f"line {first.line:,} of {definition.file_id}"
        )
        more = faults.count - 1
        others = (
            f" There {'is 1 more fault' if more == 1 else f'are {more:,} more faults'} in it."
            if more
            else ""
        )
        raise InvalidRequest(
            f"{param}: {where}: {first.message}{others}", param=param, code=first.code
        )


def _work(definition: Definition, file_id: UUID, terms: Terms, now: datetime) -> Rehearsal:
    moment = None
    if definition.template_file_id is not None:
        moment = Moment(next(definition.fires(now), now), zone(definition.timezone), NO_RUN)
    return Rehearsal(storage.key(file_id), definition.endpoint, catalog.models(), terms, moment)
