"""Preflight, the part for a process of its own: find the errors in a schedule's file.

Imports no database.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from xalen_batch import storage
from xalen_batch.billing.terms import Terms
from xalen_batch.catalog import Model
from xalen_batch.endpoints.names import Endpoint
from xalen_batch.schedules import templates
from xalen_batch.schedules.fill import Unfit, capped, rendered
from xalen_batch.schedules.templates import Moment
from xalen_batch.validation.errors import Fault, Faults, refused
from xalen_batch.validation.lines import scan


@dataclass(frozen=True, slots=True)
class FileCheck:
    """A check of the file at `key`. Called in another process.

    With a `moment` the file is a template, filled as of that moment; without one it is an input
    file, which runs unchanged.
    """

    key: str
    endpoint: Endpoint
    models: Mapping[str, Model]
    terms: Terms
    moment: Moment | None

    def __call__(self) -> Faults:
        """The errors of the file. Raises storage.UNAVAILABLE, or FileNotFoundError."""
        faults = Faults()
        named: set[str] = set()
        chunks = storage.chunks(self.key)
        if self.moment is None:
            content = _unfilled(chunks, faults)
        else:
            content = _filled(chunks, self.moment, faults)
        for line in scan(content, endpoint=self.endpoint, models=self.models):
            if isinstance(line, Fault):
                faults.add(line)
            else:
                named.add(line.model)
        for model in sorted(named):
            fault = refused(model, self.terms)
            if fault is not None:
                faults.add(fault)
        return faults


def _unfilled(chunks: Iterable[bytes], faults: Faults) -> Iterator[bytes]:
    """The chunks of an input file. A placeholder in it is an error: nothing would replace it."""
    found, tail = None, b""
    for chunk in chunks:
        if found is None:
            found = templates.first(tail + chunk)
            if found is not None:
                message = (
                    f"The file holds {found}, and `input_file_id` sends it as it is. Name the file"
                    " in `template_file_id` instead."
                )
                faults.add(Fault("placeholder_in_input_file", message))
        # A placeholder may lie across two chunks.
        tail = chunk[-templates.LONGEST :]
        yield chunk


def _filled(chunks: Iterable[bytes], moment: Moment, faults: Faults) -> Iterator[bytes]:
    """The chunks of a template, filled as of a moment. Adds its errors to `faults`."""
    try:
        yield from capped(rendered(chunks, moment, faults.add))
    except Unfit as unfit:
        faults.add(unfit.fault)
