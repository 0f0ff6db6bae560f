"""What a rehearsal reads: a schedule's file with all its faults.

Done in a process of its own, so this imports no database.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from xalen_batch import storage
from xalen_batch.billing.terms import Terms
from xalen_batch.catalog import Endpoint, Model
from xalen_batch.schedules import templates
from xalen_batch.schedules.fill import Unfit, capped, rendered
from xalen_batch.schedules.templates import Moment
from xalen_batch.validation.errors import Fault, Faults, refused
from xalen_batch.validation.lines import scan


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The file at `key`: a template that is filled as of a moment, or without one an input file
    that is run as it is.
    """

    key: str
    endpoint: Endpoint
    models: Mapping[str, Model]
    terms: Terms
    moment: Moment | None

    def __call__(self) -> Faults:
        """storage.UNAVAILABLE."""
        faults, named = Faults(), set[str]()
        chunks = storage.chunks(self.key)
        content = (
            _unfilled(chunks, faults)
            if self.moment is None
            else _filled(chunks, self.moment, faults)
        )
        for line in scan(content, endpoint=self.endpoint, models=self.models):
            if isinstance(line, Fault):
                faults.add(line)
            else:
                named.add(line.model)
        for model in sorted(named):
            if fault := refused(model, self.terms):
                faults.add(fault)
        return faults


def _unfilled(chunks: Iterable[bytes], faults: Faults) -> Iterator[bytes]:
    """A file that is run as it is. That it holds placeholders can only be a mistake."""
    found, tail = None, b""
    for chunk in chunks:
        if found is None and (found := templates.first(tail + chunk)):
            message = (
                f"The file holds {found}, and `input_file_id` sends it as it is. Name the file in"
                " `template_file_id` instead."
            )
            faults.add(Fault("placeholder_in_input_file", message))
        tail = chunk[-templates.LONGEST :]
        yield chunk


def _filled(chunks: Iterable[bytes], moment: Moment, faults: Faults) -> Iterator[bytes]:
    """A template as a run of this moment reads it. Its errors are added to the faults."""
    try:
        yield from capped(rendered(chunks, moment, faults.add))
    except Unfit as unfit:
        faults.add(unfit.fault)
