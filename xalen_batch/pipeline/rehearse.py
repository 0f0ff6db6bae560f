"""Rehearse: read what a schedule will run, before it is made or changed, as its next run would: no night is to fail for a typo."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from uuid import UUID

from xalen_batch import batches, catalog, db, ids, storage
from xalen_batch.accounts import Owner
from xalen_batch.cron import zone
from xalen_batch.errors import InvalidRequest
from xalen_batch.pipeline import assemble
from xalen_batch.pipeline.assemble import Unfit
from xalen_batch.pipeline.faults import Fault, Faults, refused
from xalen_batch.pipeline.scan import scan
from xalen_batch.schedules import sources, templates
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.templates import Moment
from xalen_batch.terms import Terms

NO_RUN = ids.render("run", UUID(int=0))


def rehearse(owner: Owner, definition: Definition, now: datetime) -> None:
    """InvalidRequest with the first thing that is wrong with what would be run, and how many more there are. Runs nothing.

    Reads a whole file, so no transaction is open. storage.AWAY.
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
        faults = _read(storage.chunks(storage.key(file.id)), definition, offered, now)
    except FileNotFoundError:
        message = f"{param}: the content of {definition.file_id} is gone. Upload it again and send its new id."
        raise InvalidRequest(message, param=param, code="file_not_found") from None
    if faults:
        first = faults.kept[0]
        where = definition.file_id if first.line is None else f"line {first.line:,} of {definition.file_id}"
        more = faults.count - 1
        others = f" There {'is 1 more fault' if more == 1 else f'are {more:,} more faults'} in it." if more else ""
        raise InvalidRequest(f"{param}: {where}: {first.message}{others}", param=param, code=first.code)


def _read(chunks: Iterable[bytes], definition: Definition, offered: Terms, now: datetime) -> Faults:
    faults, models = Faults(), set[str]()
    content = _unfilled(chunks, faults) if definition.template_file_id is None else _rendered(chunks, definition, faults, now)
    for line in scan(content, endpoint=definition.endpoint, models=catalog.models()):
        if isinstance(line, Fault):
            faults.add(line)
        else:
            models.add(line.model)
    for model in sorted(models):
        if fault := refused(model, offered):
            faults.add(fault)
    return faults


def _unfilled(chunks: Iterable[bytes], faults: Faults) -> Iterator[bytes]:
    """A file that is run as it is. That it holds placeholders can only be a mistake."""
    found, tail = None, b""
    for chunk in chunks:
        if found is None and (found := templates.first(tail + chunk)):
            message = f"The file holds {found}, and `input_file_id` sends it as it is. Name the file in `template_file_id` instead."
            faults.add(Fault("placeholder_in_input_file", message))
        tail = chunk[-templates.LONGEST :]
        yield chunk


def _rendered(chunks: Iterable[bytes], definition: Definition, faults: Faults, now: datetime) -> Iterator[bytes]:
    """A template as the next run reads it. What is wrong with it is added to the faults."""
    moment = Moment(next(definition.fires(now), now), zone(definition.timezone), NO_RUN)
    try:
        yield from assemble.capped(assemble.rendered(chunks, moment, faults.add))
    except Unfit as unfit:
        faults.add(unfit.fault)
